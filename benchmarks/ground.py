"""The ground that sensors are measured on: a host and an outside network, each a network namespace, joined by a cable.

Nothing of the machine itself is touched. The host's programs see an /etc and a /dev of its own: a real PortSentry finds
its configuration there, and a /dev/log. Addresses are from TEST-NET-2 (RFC 5737) and, for forged sources,
from 10.0.0.0/8; no packet leaves the two namespaces.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Self

import figures

from jailbridge import process
from jailbridge.errors import FatalError
from jailbridge.process import Running

HOST, OUTSIDE = "198.51.100.1", "198.51.100.66"
HOST_MAC, OUTSIDE_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
FORGED = "10.0.0.0/8"
FIRST_SOURCE = IPv4Address("10.1.0.0")
PORT = 9
"""Where packets are sent whose coming through is looked for: discard (RFC 863)."""
TOOLS = {"ip": "iproute2", "nft": "nftables", "iptables": "iptables", "cc": "gcc", "nsenter": "util-linux"}
QUIET_S, GLANCE_S, BUSY_TICKS = 2.0, 0.25, 2
"""Programs that wrote nothing for so long, and used less CPU than this between two glances, have done their work."""
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_CLONE_NEWNET = 0x40000000
_DEVICES = ("null", "zero", "urandom")
# Without these programs would not start, or not know whom to become.
_ETC = ("alternatives", "group", "ld.so.cache", "localtime", "nsswitch.conf", "passwd", "protocols", "services")
_libc = ctypes.CDLL(None, use_errno=True)
_SETTINGS = """
[sensor]
mode = "off"
[history]
path = "{folder}/portsentry.history"
[policy]
allow_files = []
max_new_bans_per_minute = 1000000
max_new_spoofable_per_minute = 1000000
[ledger]
path = "{folder}/ledger.sqlite3"
[stores.firewall]
backend = "{backend}"
[stores.hosts_deny]
path = "{folder}/hosts.deny"
{deny}
[stores.fail2ban]
enabled = {fail2ban}
socket = "{folder}/fail2ban.sock"
[stores.blocked_files]
enabled = false
[portsentry]
conf = "{folder}/portsentry.conf"
[control]
socket = "{folder}/control.sock"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a storm was: packets sent and taken by the host's interface, when it ended (Unix time), its true rate."""

    packets: int
    arrived: int
    first: float
    last: float
    rate: float


def source(number: int) -> str:
    """Return the address of a forged source."""
    return str(FIRST_SOURCE + number)


def write_settings(folder: Path, *, backend: str = "auto", deny: str = "", fail2ban: bool = False) -> Path:
    """Write what a daemon without a sensor needs, with all files in this folder; return the configuration's path.

    deny      more lines of the section of hosts.deny
    fail2ban  whether the jail of the fail2ban in the folder is a store too
    """
    path = folder / "jailbridge.toml"
    path.write_text(_SETTINGS.format(folder=folder, backend=backend, deny=deny, fail2ban=str(fail2ban).lower()))
    for name in ("portsentry.history", "hosts.deny"):
        (folder / name).touch()
    return path


class Ground:
    """`with Ground() as ground:` - a host that can be stormed from outside."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise FatalError("this needs root (network namespaces, raw sockets, firewall rules): run it with sudo")
        for tool, package in TOOLS.items():
            process.find(tool, package)
        self.folder = Path(tempfile.mkdtemp(prefix="jailbridge-bench-"))
        # A sensor that drops its privileges must still reach its history.
        self.folder.chmod(0o755)
        self.etc = self.folder / "etc"
        """What programs on the host see as /etc."""
        tag = f"jbb-{os.getpid()}-{os.urandom(2).hex()}"
        self._host, self._outside = f"{tag}-host", f"{tag}-out"
        self._started: list[Running] = []
        self._holder: Running | None = None
        self.syslog: list[str] = []
        """What programs on the host sent to /dev/log."""
        self._log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    # The host

    def start(self, name: str, argv: Sequence[str]) -> Running:
        """Start a program on the host, its output in the folder's NAME.log."""
        with (self.folder / f"{name}.log").open("wb") as log:
            running = process.start([*self._on_host(), *argv], log=log)
        self._started.append(running)
        return running

    def run(self, *argv: str, timeout_s: float = 30.0) -> str:
        """Run a program on the host to its end; return its output. Raises FatalError where it fails."""
        return _do(*self._on_host(), *argv, timeout_s=timeout_s)

    def log(self, name: str) -> str:
        """Return what a program has printed."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        """End every program on the host: first with SIGTERM, after ten seconds without notice."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            with contextlib.suppress(FatalError):
                self.wait("the programs ended", lambda: not self._alive(), 10)
        self._started.clear()

    def pids(self) -> list[int]:
        """Return the processes on the host."""
        holder = self._holder.pid if self._holder else 0
        return [int(pid) for pid in _do("ip", "netns", "pids", self._host).split() if int(pid) != holder]

    def ticks(self) -> int:
        """Return the CPU time of the programs on the host so far, in clock ticks."""
        return sum(figures.ticks(text) for text in self._proc("stat"))

    def cpu_s(self) -> float:
        """Return the CPU time of the programs on the host so far, in seconds."""
        return self.ticks() * TICK_S

    def status(self, key: str, file: str = "status") -> float:
        """Return the sum of one number of /proc/PID/`file` over the programs on the host; sizes in MiB."""
        total = 0.0
        for text in self._proc(file):
            value = next((line.split()[1:] for line in text.splitlines() if line.startswith(f"{key}:")), ["0"])
            total += int(value[0]) / 1024 if value[-1] == "kB" else int(value[0])
        return total

    def wakeups(self) -> int:
        """Return how often the programs' threads have given up the CPU by themselves."""
        pattern = "task/*/status"
        paths = [path for pid in self.pids() for path in Path(f"/proc/{pid}").glob(pattern)]
        lines = [line for path in paths for line in path.read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))

    @contextlib.contextmanager
    def on_network(self) -> Iterator[None]:
        """Have this thread, and what it starts, on the host's network."""
        with _inside(self._host):
            yield

    def receiver(self) -> socket.socket:
        """Return what takes the packets that came through to PORT, and does not wait for any."""
        with _inside(self._host):
            sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind((HOST, PORT))
        return sock

    # The outside

    def sender(self, address: str) -> socket.socket:
        """Return what sends packets of a forged source to the host's PORT."""
        with _inside(self._outside):
            sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.bind((address, 0))
        sock.connect((HOST, PORT))
        return sock

    def storm(self, *, sources: int, packets: int, rate: int, ports: str, first: int = 0) -> Sent:
        """Send SYNs from this many sources, beginning with the `first`, and return when the last is sent."""
        before = self._received()
        # fmt: off
        answer = json.loads(_do(
            "ip", "netns", "exec", self._outside, str(self.folder / "storm"), "--to", HOST, "--ports", ports,
            "--from", source(first), "--sources", str(sources), "--packets", str(packets), "--rate", str(rate),
            timeout_s=60 + 10 * packets / rate,
        ))
        # fmt: on
        return Sent(
            packets=answer["sent"],
            arrived=self._received() - before,
            first=answer["first"],
            last=answer["last"],
            rate=answer["sent"] / answer["seconds"],
        )

    @contextlib.contextmanager
    def probe(self, address: str, port: int) -> Iterator[float]:
        """Send one SYN, as connect(2) does; give the monotonic time just before it."""
        with _inside(self._outside):
            sock = socket.socket()
        with sock:
            sock.setblocking(False)
            sock.bind((address, 0))
            start = time.monotonic()
            sock.connect_ex((HOST, port))
            yield start

    def wait(self, what: str, holds: Callable[[], bool], limit_s: float = 30.0, glance_s: float = 0.02) -> None:
        """Wait until something holds, looked at so often. Raises FatalError."""
        end = time.monotonic() + limit_s
        while not holds():
            if time.monotonic() > end:
                raise FatalError(f"not within {limit_s:g} s: {what}")
            time.sleep(glance_s)

    def settle(self, history: Path, limit_s: float = 600.0) -> float:
        """Wait until the programs on the host have nothing left to do; return when they last did (Unix time)."""
        end = time.monotonic() + limit_s
        busy, last, before = time.monotonic(), time.time(), (0, 0)
        while time.monotonic() - busy < QUIET_S:
            now = history.stat().st_size, self.ticks()
            if now[0] != before[0] or now[1] - before[1] >= BUSY_TICKS:
                busy, last = time.monotonic(), time.time()
            if busy > end:
                raise FatalError(f"the host is still busy after {limit_s:g} s")
            before = now
            time.sleep(GLANCE_S)
        return last

    # How it is made

    def _build(self) -> None:
        _do("cc", "-O2", "-o", str(self.folder / "storm"), str(Path(__file__).with_name("storm.c")), timeout_s=60)
        for namespace in (self._host, self._outside):
            _do("ip", "netns", "add", namespace)
            # Forged sources must pass, and IPv6's own chatter would wake an idle sensor.
            off = ("net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
            quiet = ("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
            _do("ip", "netns", "exec", namespace, "sysctl", "-qw", *off, *quiet)
            _do("ip", "-n", namespace, "link", "set", "lo", "up")
        # fmt: off
        _do("ip", "link", "add", "eth0", "address", HOST_MAC, "netns", self._host, "type", "veth",
            "peer", "eth0", "address", OUTSIDE_MAC, "netns", self._outside)
        # fmt: on
        ends = ((self._host, HOST, OUTSIDE, OUTSIDE_MAC), (self._outside, OUTSIDE, HOST, HOST_MAC))
        for namespace, own, other, mac in ends:
            _do("ip", "-n", namespace, "address", "add", f"{own}/24", "dev", "eth0")
            _do("ip", "-n", namespace, "link", "set", "eth0", "up")
            # A flood must not wait for an answer to ARP: the kernel would drop its beginning.
            _do("ip", "-n", namespace, "neigh", "replace", other, "lladdr", mac, "dev", "eth0", "nud", "permanent")
        # Outside, every forged source is somebody; the host knows no way back, and answers none, as behind a firewall
        # that drops: its answers would take more of the generator's core than of the sensor's time.
        _do("ip", "-n", self._outside, "route", "add", "local", FORGED, "dev", "lo")
        # `ip netns exec` gives it a mount namespace, which lives as long as this does.
        self._holder = process.start(["ip", "netns", "exec", self._host, "sleep", "infinity"])
        self.wait("the host's mount namespace", lambda: self._holder is not None and _mounts(self._holder.pid))
        self._make_folders()

    def _make_folders(self) -> None:
        """Give the host an /etc and a /dev of its own, with a /dev/log that is read here."""
        devices = self.folder / "dev"
        for folder in (self.etc, devices):
            folder.mkdir()
        for name in _ETC:
            if (theirs := Path("/etc") / name).is_dir():
                shutil.copytree(theirs, self.etc / name, symlinks=True)
            elif theirs.exists():
                shutil.copy(theirs, self.etc / name)
        (self.etc / "hosts").write_text("127.0.0.1 localhost\n")
        (self.etc / "hosts.deny").touch()
        for name in _DEVICES:
            (devices / name).touch()
            self.run("mount", "--bind", f"/dev/{name}", str(devices / name))
        self._log.bind(str(devices / "log"))
        (devices / "log").chmod(0o666)
        threading.Thread(target=self._listen, daemon=True).start()
        self.run("mount", "--rbind", str(devices), "/dev")
        self.run("mount", "--bind", str(self.etc), "/etc")

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while message := self._log.recv(8192):
                self.syslog.append(message.decode(errors="replace"))

    def _close(self) -> None:
        with contextlib.suppress(FatalError):
            self.stop()
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
        for namespace in (self._host, self._outside):
            with contextlib.suppress(FatalError):
                _do("ip", "netns", "delete", namespace)
        with contextlib.suppress(OSError):
            self._log.shutdown(socket.SHUT_RDWR)
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _on_host(self) -> list[str]:
        assert self._holder is not None
        return [process.find("nsenter", "util-linux"), "--target", str(self._holder.pid), "--net", "--mount", "--"]

    def _alive(self) -> list[int]:
        for running in self._started:
            running.poll()  # takes in the exit code, so that none is left a zombie
        return self.pids()

    def _proc(self, name: str) -> Iterator[str]:
        for pid in self.pids():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                yield Path(f"/proc/{pid}/{name}").read_text()

    def _received(self) -> int:
        (link,) = json.loads(_do("ip", "-n", self._host, "-s", "-json", "link", "show", "eth0"))
        return int(link["stats64"]["rx"]["packets"])


@contextlib.contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """Have this thread in a network namespace: a socket belongs for life to the one in which it was made."""
    with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{namespace}").open() as there:
        if _libc.setns(there.fileno(), _CLONE_NEWNET) != 0:
            raise FatalError(f"setns: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            if _libc.setns(home.fileno(), _CLONE_NEWNET) != 0:
                raise FatalError("this thread is left in the wrong network namespace")


def _mounts(pid: int) -> bool:
    """Tell whether a process has left this mount namespace."""
    return Path(f"/proc/{pid}/ns/mnt").readlink() != Path("/proc/self/ns/mnt").readlink() and (
        Path(f"/proc/{pid}/comm").read_text().strip() == "sleep"
    )


def _do(*argv: str, timeout_s: float = 30.0) -> str:
    result = process.run([process.find(argv[0], TOOLS.get(argv[0], argv[0])), *argv[1:]], timeout_s=timeout_s)
    if result.code != 0:
        raise FatalError(f"{' '.join(argv)}: {result.first_error}")
    return result.out
