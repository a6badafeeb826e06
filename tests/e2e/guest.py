"""A systemd guest that really boots: an overlay on this machine's own root, and systemd as process 1 of namespaces.

The disk is the overlay's upper folder and stays. What a boot makes anew is new each time: network and firewall, /run,
/tmp, boot id, uptime. `systemctl reboot` inside ends in reboot(2), which the kernel answers in a PID namespace by
ending its process 1 with SIGHUP (pid_namespaces(7)); unshare(1) passes that on, so that we know who ended it.

A cut of power kills everything at once but keeps what was written: it stands for the missing clean stop, not for a
missing fsync. There is no udev inside, no kernel log, and no way to write what is this machine's own in /proc and /sys.
"""

import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from jailbridge import process
from jailbridge.demo.lab import ATTACKER, ATTACKER6, HOST, HOST6, INNOCENT
from jailbridge.process import Result, Running

CHECKOUT = Path(__file__).parents[2]
UNPACKED = CHECKOUT / ".programs"
OPT = "/opt/jailbridge"
UNITS = Path("/etc/systemd/system")
# Overlay needs a file system that keeps trusted attributes.
DISKS = Path("/var/tmp")
INNOCENT6 = "2001:db8:1::20"
CLOCK_IS_RIGHT = "/etc/tmpfiles.d/guest-clock.conf"
_COMMANDS = ("ip", "mount", "nsenter", "pivot_root", "setpriv", "systemctl", "unshare")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What makes no sense inside, or would reach out of it.
_MASKED = (
    *(f"system/systemd-udev{one}" for one in ("d.service", "d-control.socket", "d-kernel.socket", "-trigger.service")),
    *(f"system/systemd-{one}.service" for one in ("modules-load", "binfmt", "firstboot", "pstore", "random-seed")),
    *(f"system/sys-{one}.mount" for one in ("kernel-debug", "kernel-tracing", "kernel-config", "fs-fuse-connections")),
    *(f"system/{one}" for one in ("dev-hugepages.mount", "dev-mqueue.mount", "getty.target", "systemd-repart.service")),
    *("system/proc-sys-fs-binfmt_misc.automount", "system-generators/systemd-sysv-generator"),
)

# What the guest must not inherit of this machine.
_OWN = (
    *(f"/etc/{one}" for one in ("systemd/system", "fail2ban/jail.d", "jailbridge", "portsentry")),
    *(f"/var/{one}" for one in ("log", "lib/fail2ban", "lib/jailbridge", "lib/portsentry", "lib/systemd")),
)

_FILES = {
    **dict.fromkeys(("/etc/fstab", "/etc/hosts.allow", "/etc/hosts.deny", "/etc/resolv.conf"), ""),
    # The stock sshd jail has no log to read; without it the stock configuration starts.
    "/etc/fail2ban/jail.local": "[sshd]\nenabled = false\n",
    "/etc/systemd/journald.conf.d/guest.conf": "[Journal]\nStorage=persistent\nReadKMsg=no\nAudit=no\n",
    # A Python's own library may lie in a home, which units do not see: this machine's would be taken in its place.
    "/etc/systemd/system.conf.d/guest.conf": f"[Manager]\nDefaultEnvironment=LD_LIBRARY_PATH={OPT}/python/lib\n",
    # The clock is this machine's, and nothing inside sets it: what says that it is right is there from the start.
    CLOCK_IS_RIGHT: "f /run/systemd/timesync/synchronized\n",
    # As ifupdown and networkd do: what must be in force before the network is up comes before network-pre.target.
    "/etc/systemd/system/guest-network.service": f"""\
[Unit]
DefaultDependencies=no
Wants=network-pre.target network.target
After=network-pre.target local-fs.target systemd-sysctl.service
Before=network.target shutdown.target
Conflicts=shutdown.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=ip link set lo up
ExecStart=ip address replace {HOST}/24 dev eth0
ExecStart=ip address replace {HOST6}/64 dev eth0 nodad
ExecStart=ip link set eth0 up
[Install]
WantedBy=multi-user.target
""",
}

# Process 1, first in this machine's own cgroup and a copy of its mounts. The neighbours are fixed, so that the first
# packet from outside needs no answer to go.
_LINK = f"""
set -eu
cd "$BASE"
mount --make-rprivate /
ip link add eth0 address 02:00:00:00:00:01 type veth peer name guest netns "$OUTSIDE"
nsenter --net="$OUTSIDE" ip -batch - <<END
link set guest up
address add {ATTACKER}/24 dev guest
address add {INNOCENT}/24 dev guest
address add {ATTACKER6}/64 dev guest nodad
address add {INNOCENT6}/64 dev guest nodad
neighbour replace {HOST} lladdr 02:00:00:00:00:01 dev guest
neighbour replace {HOST6} lladdr 02:00:00:00:00:01 dev guest
END
mount -t cgroup2 cgroup2 cgroup
mkdir -p "cgroup/$NAME"
echo 0 >"cgroup/$NAME/cgroup.procs"
exec unshare --cgroup sh -euc "$BOOT"
"""

# Then it builds the root, goes there and becomes systemd. What systemd says before there is a journal goes to kmsg.
_BOOT = f"""
mount -t overlay guest -o "lowerdir=/,upperdir=$BASE/disk,workdir=$BASE/work" root
cd root
mount -t proc -o nosuid,nodev,noexec proc proc
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs run
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs tmp
mount -t tmpfs -o mode=755,nosuid tmpfs dev
place() {{
    : >"dev/$2"
    mount --bind "$1" "dev/$2"
}}
for node in null zero full random urandom tty; do place /dev/$node $node; done
for node in console kmsg; do place "$CONSOLE" $node; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,ro proc/sys
mount --bind "$BASE/boot_id" proc/sys/kernel/random/boot_id
mount -o bind,ro "$PYTHON" .{OPT}/python
mount -o bind,ro "$PACKAGES" .{OPT}/packages
mkdir run/before
pivot_root . run/before
exec chroot . sh -euc '
umount -l /run/before
rmdir /run/before
exec setpriv --bounding-set=-sys_time,-sys_module,-sys_rawio,-syslog,-wake_alarm \\
    env -i container=jailbridge PATH={_PATH} LANG=C.UTF-8 \\
    /lib/systemd/systemd --show-status=1 systemd.unit=multi-user.target
' </dev/null
"""

_PROBE = """
mount --make-rprivate /
mount -t overlay probe -o "lowerdir=/,upperdir=$BASE/disk,workdir=$BASE/work" "$BASE/root"
mount -t cgroup2 cgroup2 "$BASE/cgroup"
mkdir "$BASE/cgroup/$NAME"
rmdir "$BASE/cgroup/$NAME"
ip link add probe type veth peer name other
"""

_FORGET = """
mount --make-rprivate /
mkdir -p "$BASE/cgroup"
mount -t cgroup2 cgroup2 "$BASE/cgroup"
cd "$BASE/cgroup"
[ ! -d "$NAME" ] || find "$NAME" -depth -type d -exec rmdir {} +
"""


def why_not() -> str | None:
    """Return the reason why no guest can run here, None where one can; leaves nothing behind."""
    if os.geteuid() != 0:
        return "root"
    if missing := [name for name in _COMMANDS if not process.has(name)]:
        return f"the commands {', '.join(missing)} (apt install systemd iproute2 util-linux mount)"
    with _folders() as base:
        done = _script(_PROBE, base, "--net", "--mount", "--pid", "--fork", "--time")
    return None if done.code == 0 else f"namespaces, an overlay and a cgroup of its own ({done.first_error})"


class Guest:
    """`with Guest() as guest:` - a machine that is off, and an outside network that its only link leads to."""

    def __init__(self, like: Self | None = None) -> None:
        """`like` is a guest that is off, whose disk this one's begins as a copy of (so files have other inodes)."""
        _sweep()
        self._like = like
        self._running: Running | None = None
        self._pid = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.callback(os.umask, os.umask(0o022))
            self._base = self._stack.enter_context(_folders())
            self._stack.callback(_forget, self._base)
            self._outside = self._stack.enter_context(_network())
            self._stack.callback(self.cut_power)
            if self._like is None:
                self._furnish()
            else:
                # It cannot just be a layer of this one's: it lies in another, this machine's root.
                _done("cp", "-a", f"{self._like.path('/')}/.", str(self.path("/")))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._stack.close()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # The disk

    def path(self, path: str) -> Path:
        """Return where a file of the guest is, of its live root or of its disk's changes while it is off."""
        return (Path(f"/proc/{self._pid}/root") if self._pid else self._base / "disk") / path.lstrip("/")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the guest's."""
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        file.chmod(mode)

    def add(self, *paths: str) -> None:
        """Put in, while the guest is off, files and folders of what packaging/prepare has only unpacked.

        What it has not unpacked is installed on this machine, and so in the guest, too.
        """
        for path in (one for one in paths if (UNPACKED / one).exists()):
            # /lib is a link, which must not be hidden.
            target = self.path(f"usr/{path}" if path.startswith("lib/") else path)
            target.parent.mkdir(parents=True, exist_ok=True)
            _done("cp", "-a", str(UNPACKED / path), str(target))

    def enable(self, unit: str) -> None:
        """Do what `systemctl enable` does, while the guest is off."""
        own, stock = self.path(f"{UNITS}/{unit}"), Path("/lib/systemd/system", unit)
        added = self.path(f"usr{stock}")
        text = next(path for path in (own, added, stock) if path.exists()).read_text(encoding="utf-8")
        for target in " ".join(re.findall(r"^WantedBy=(.*)$", text, re.MULTILINE)).split():
            wants = self.path(f"{UNITS}/{target}.wants")
            wants.mkdir(exist_ok=True)
            (wants / unit).symlink_to(UNITS / unit if own.exists() else stock)

    def _furnish(self) -> None:
        for name in _OWN:
            folder = self.path(name)
            folder.mkdir(parents=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copystat(name, folder)
            os.setxattr(folder, "trusted.overlay.opaque", b"y")
        for path, text in {**_FILES, "/etc/machine-id": f"{uuid.uuid4().hex}\n"}.items():
            self.write(path, text)
        self._furnish_python()
        self.path("/etc/systemd/system-generators").mkdir()
        for masked in _MASKED:
            self.path(f"/etc/systemd/{masked}").symlink_to("/dev/null")
        self.enable("guest-network.service")

    def _furnish_python(self) -> None:
        """Install us in an environment like the one that runs here, at a place that every unit may look into."""
        version = f"python{sysconfig.get_python_version()}"
        for name in ("bin", "python", "packages"):
            self.path(f"{OPT}/{name}").mkdir(parents=True)
        ours = self.path(f"{OPT}/checkout")
        shutil.copytree(CHECKOUT, ours, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests", "benchmarks"))
        # Else each start would take longer: nothing inside may keep what it has compiled.
        compiling = ("-m", "compileall", "-q", "-s", str(ours), "-p", f"{OPT}/checkout")
        _done(sys.executable, *compiling, str(ours / "jailbridge"))
        self.write(f"{OPT}/pyvenv.cfg", f"home = {OPT}/python/bin\ninclude-system-site-packages = false\n")
        self.write(f"{OPT}/lib/{version}/site-packages/guest.pth", f"{OPT}/packages\n{OPT}/checkout\n")
        self.path(f"{OPT}/bin/python").symlink_to(f"{OPT}/python/bin/{version}")
        self.write("/usr/local/bin/jailbridge", f'#!/bin/sh\nexec {OPT}/bin/python -Im jailbridge "$@"\n', 0o755)

    # Power

    def start(self, timeout_s: float = 60.0) -> None:
        """Boot, and return when systemd has nothing left to do."""
        (self._base / "boot_id").write_text(f"{uuid.uuid4()}\n", encoding="ascii")
        master, self._slave = pty.openpty()
        self._told = b""
        threading.Thread(target=self._listen, args=(master,), daemon=True).start()
        argv = [
            *("setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--uts", "--ipc", "--pid"),
            *("--time", "--boottime", f"-{int(time.clock_gettime(time.CLOCK_BOOTTIME))}"),
            *("--monotonic", f"-{int(time.monotonic())}", "--fork", "--kill-child=KILL"),
            *("env", f"BASE={self._base}", f"NAME={self._base.name}", f"OUTSIDE={self._outside}"),
            *(f"CONSOLE={os.ttyname(self._slave)}", f"PYTHON={sys.base_prefix}"),
            *(f"PACKAGES={sysconfig.get_path('purelib')}", f"BOOT={_BOOT}", "sh", "-c", _LINK),
        ]
        with (self._base / "launch.log").open("wb") as log:
            self._running = process.start(argv, log=log)
        self.wait("systemd is process 1", self._has_systemd, timeout_s)
        asking = ("systemctl", "is-system-running", "--wait")
        self.wait("it is up", lambda: self.run(*asking, timeout_s=60).out in {"running\n", "degraded\n"}, timeout_s)

    def shut_down(self) -> None:
        """Have the guest reboot, but leave it off; `start` is the rest."""
        assert self._running is not None
        self.run("systemctl", "reboot")
        code = self._running.wait(60)
        self.cut_power()
        assert code == -signal.SIGHUP, f"{code}: it did not reboot"

    def cut_power(self) -> None:
        """End everything inside at once, without notice; the disk stays."""
        if self._running is None:
            return
        with contextlib.suppress(ProcessLookupError):
            # Process 1 of its namespace: all others go with it.
            os.kill(self._pid or self._running.pid, signal.SIGKILL)
        self._running.wait()
        self._running, self._pid = None, 0
        os.close(self._slave)
        # At once: else the kernel takes the link away some time later.
        self.from_outside("ip", "link", "delete", "guest")

    def _has_systemd(self) -> bool:
        assert self._running is not None
        with contextlib.suppress(OSError, ValueError):
            pid = int(Path(f"/proc/{self._running.pid}/task/{self._running.pid}/children").read_text())
            if Path(f"/proc/{pid}/exe").readlink().name == "systemd":
                self._pid = pid
        return self._pid != 0

    def _listen(self, master: int) -> None:
        with open(master, "rb", buffering=0) as console, contextlib.suppress(OSError):
            while said := console.read(65536):
                self._told += said

    # Inside and outside

    def run(self, *argv: str, timeout_s: float = 30.0) -> Result:
        """Run a program inside, as root, to its end."""
        # Never without --pid: a stray `reboot` would be this machine's.
        namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--time")
        within = ["nsenter", "--target", str(self._pid), *namespaces, "env", "-i", f"PATH={_PATH}", "LANG=C.UTF-8"]
        return process.run([*within, "HOME=/root", *argv], timeout_s=timeout_s)

    def do(self, *argv: str, timeout_s: float = 30.0) -> str:
        """Run a program inside that must succeed; return its output."""
        done = self.run(*argv, timeout_s=timeout_s)
        assert done.code == 0, f"{' '.join(argv)}: {done.code}\n{done.out}{done.err}"
        return done.out

    def wait(self, what: str, holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Wait until something holds, while the guest runs."""
        assert self._running is not None
        end = time.monotonic() + timeout_s
        while not holds():
            if self._running.poll() is not None or time.monotonic() > end:
                launch = (self._base / "launch.log").read_text(errors="replace")
                raise AssertionError(f"not so: {what}\n{launch}{self.console()}")
            time.sleep(0.02)

    def from_outside(self, *argv: str, timeout_s: float = 30.0) -> Result:
        """Run a program in the network outside to its end."""
        return process.run(self.outside_argv(*argv), timeout_s=timeout_s)

    def outside_argv(self, *argv: str) -> list[str]:
        """Return the argument list of a program out there."""
        return ["nsenter", f"--net={self._outside}", *argv]

    def console(self) -> str:
        """Return what was said on the console since the last start, also before there was a journal."""
        return self._told.decode(errors="replace").replace("\r\n", "\n")


def _done(*argv: str) -> None:
    done = process.run(argv, timeout_s=30)
    assert done.code == 0, f"{' '.join(argv)}: {done.err}"


def _script(text: str, base: Path, *namespaces: str) -> Result:
    environment = {**os.environ, "BASE": str(base), "NAME": base.name}
    return process.run(["unshare", *namespaces, "sh", "-euc", text], env=environment, timeout_s=30)


@contextlib.contextmanager
def _folders() -> Iterator[Path]:
    """Make the folders of one guest, in one whose name tells who made it."""
    base = Path(tempfile.mkdtemp(dir=DISKS, prefix=f"jailbridge-guest-{os.getpid()}-"))
    try:
        for name in ("disk", "work", "root", "cgroup"):
            (base / name).mkdir()
        yield base
    finally:
        shutil.rmtree(base)


@contextlib.contextmanager
def _network() -> Iterator[str]:
    """Make a network namespace without a name, which is gone when we are; yield its file."""
    # The loopback's addresses make the routing tables, without which an address to come is taken for a broadcast.
    made = "ip link set lo up && echo made && exec sleep infinity"
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sh", "-c", made]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "made\n", "no network namespace can be made"
            yield f"/proc/{holder.pid}/ns/net"
        finally:
            holder.kill()


def _forget(base: Path) -> None:
    """Remove the cgroups that a guest has left, which are empty once its last process is reaped."""
    end = time.monotonic() + 10
    while (done := _script(_FORGET, base, "--mount")).code != 0:
        assert time.monotonic() < end, f"the guest's cgroup stays: {done.err}"
        time.sleep(0.05)


def _sweep() -> None:
    """Remove what tests left that were killed; their guests and networks died with them."""
    for base in DISKS.glob("jailbridge-guest-*-*"):
        if not Path("/proc", base.name.split("-")[2]).exists() and base.lstat().st_uid == 0:
            _forget(base)
            shutil.rmtree(base)
