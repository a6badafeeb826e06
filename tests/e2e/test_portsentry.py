"""`jailbridge portsentry` and Debian's PortSentry 1.2, each on a host of its own, under the same scans.

A host is a network namespace whose programs see another /etc, /var/lib and /dev: nothing of the machine is touched.
PortSentry 2.x is not in Debian 12; what 2.0.7 did under the same scans stands here as it was recorded.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.needs("portsentry")]

DEADLINE_S = 30.0
HOST, HOST6 = "10.98.0.1", "fd98::1"
LAST = "10.98.0.99"
"""Whoever comes last: once it is written down, everything before it is."""
IGNORED = "10.98.0.77"
SOURCES = [f"10.98.0.{number}" for number in (*range(10, 30), 77, 99)]
OURS = [sys.executable, "-m", "jailbridge", "portsentry"]
REAL = ["portsentry"]
CONF = {
    "TCP_PORTS": "1,11,15,79,111,540",
    "UDP_PORTS": "1,7,9,69,161",
    "ADVANCED_PORTS_TCP": "1024",
    "ADVANCED_PORTS_UDP": "1024",
    "ADVANCED_EXCLUDE_TCP": "113,139",
    "ADVANCED_EXCLUDE_UDP": "67,137,138,520",
    "IGNORE_FILE": "/etc/portsentry/portsentry.ignore",
    "HISTORY_FILE": "/var/lib/portsentry/portsentry.history",
    "BLOCKED_FILE": "/var/lib/portsentry/portsentry.blocked",
    "RESOLVE_HOST": "0",
    "BLOCK_UDP": "1",
    "BLOCK_TCP": "1",
    # No rule that drops: the real one's raw socket would not see what comes after it, or would, as time has it.
    "KILL_ROUTE": "/usr/sbin/iptables -w -A NOTED -s $TARGET$ -j DROP",
    "KILL_HOSTS_DENY": "ALL: $TARGET$ : DENY",
    "KILL_RUN_CMD": "/bin/echo run $TARGET$ $PORT$ $MODE$ >> /var/lib/portsentry/ran",
    "SCAN_TRIGGER": "0",
}
CONF_2 = {key: value for key, value in CONF.items() if not key.startswith("ADVANCED")} | {
    "TCP_PORTS": "1-30",
    "UDP_PORTS": "1-30",
    "IGNORE_FILE": "/var/lib/portsentry/portsentry.ignore",
    "KILL_ROUTE": "/bin/true $TARGET$",
    "KILL_HOSTS_DENY": "ALL: $TARGET$",
}
BELONGS = ["alternatives", "group", "ld.so.cache", "localtime", "nsswitch.conf", "passwd", "protocols", "services"]
ENTER = """
set -e
cd "$1"
for node in null zero urandom random; do touch dev/$node; mount --bind /dev/$node dev/$node; done
mount --rbind dev /dev
mount --bind etc /etc
mount --bind lib /var/lib
shift
exec "$@"
"""
SERVICE = """
import socket, time
sockets = [socket.socket(socket.AF_INET, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
for sock, port in zip(sockets, (540, 161)): sock.bind(("0.0.0.0", port))
sockets[0].listen()
print("ready", flush=True)
time.sleep(600)
"""
CONNECT = """
import socket, sys
source, target, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
with socket.create_connection((target, port), 5, (source, 0)) as sock: print(sock.recv(100).decode())
"""
# One SYN from each of as many sources, as fast as one core sends them.
STORM = """
import socket, struct, sys
from ipaddress import ip_address
def folded(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
target = ip_address(sys.argv[1]).packed
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
    for number in range(int(sys.argv[2])):
        source = (ip_address(sys.argv[3]) + number).packed
        tcp = struct.pack("!HHIIBBHHH", 40000, 11, number, 0, 0x50, 2, 1024, 0, 0)
        check = folded(source + target + struct.pack("!HH", 6, len(tcp)) + tcp)
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, 6, 0, source, target)
        sock.sendto(head + tcp[:16] + struct.pack("!H", check) + tcp[18:], (sys.argv[1], 0))
"""
LOG_LINE = re.compile(r"<29>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d portsentry\[\d+\]: (.*?)\n?", re.DOTALL)
TIME_1 = re.compile(r"\d{10} - \d\d/\d\d/\d{4} \d\d:\d\d:\d\d ")
TIME_2 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4} ")
MARK = b"<29>Nov 22 06:30:57 portsentry[1]: mark"
ABOUT_THE_SHELL = "adminalert: KILL_RUN_CMD has shell syntax and is run by /bin/sh -c: "


def do(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0 or not check, (argv, done.stdout, done.stderr)
    return done.stdout + done.stderr


def until(what: str, holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


class Host:
    """A host that runs one of the two, and an outside that scans it."""

    def __init__(self, name: str, folder: Path, conf: dict[str, str | None] | None = None, version: int = 1) -> None:
        self.host, self.outside = f"jbp{os.getpid()}{name}h", f"jbp{os.getpid()}{name}o"
        self.folder = folder
        self.log: list[str] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        for part in ("dev", "etc/portsentry", "lib/portsentry"):
            (folder / part).mkdir(parents=True)
        for part in BELONGS:
            if (source := Path("/etc") / part).is_dir():
                shutil.copytree(source, folder / "etc" / part, symlinks=True)
            elif source.exists():
                shutil.copy(source, folder / "etc" / part)
        (folder / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
        self.hosts_deny.write_text("# mine\n")
        values = {**(CONF if version == 1 else CONF_2), **(conf or {})}
        text = "".join(f'{key}="{value}"\n' for key, value in values.items() if value is not None)
        (folder / "etc" / "portsentry" / "portsentry.conf").write_text(text)
        for ignore in ("etc/portsentry/portsentry.ignore", "lib/portsentry/portsentry.ignore"):
            (folder / ignore).write_text(f"# ours\n{IGNORED}/32\n127.0.0.1\n{HOST}\nfd98::77/128\n")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "Host":
        self._socket.bind(str(self.folder / "dev" / "log"))
        self._reader.start()
        for namespace in (self.host, self.outside):
            do("ip", "netns", "add", namespace)
            do("ip", "-n", namespace, "link", "set", "lo", "up")
        do("ip", "link", "add", "eth0", "netns", self.host, "type", "veth", "peer", "eth0", "netns", self.outside)
        for namespace, addresses in ((self.host, [HOST, HOST6]), (self.outside, [*SOURCES, "fd98::2", "fd98::77"])):
            for address in addresses:
                size, extra = (64, ["nodad"]) if ":" in address else (24, [])
                do("ip", "-n", namespace, "address", "add", f"{address}/{size}", "dev", "eth0", *extra)
            do("ip", "-n", namespace, "link", "set", "eth0", "up")
            for name in ("all", "eth0"):
                do("ip", "netns", "exec", namespace, "sysctl", "-qw", f"net.ipv4.conf.{name}.rp_filter=0")
        do("ip", "netns", "exec", self.host, "iptables", "-w", "-N", "NOTED")
        return self

    def __exit__(self, *_: object) -> None:
        for namespace in (self.host, self.outside):
            for pid in do("ip", "netns", "pids", namespace, check=False).split():
                with suppress(ProcessLookupError, ValueError):
                    os.kill(int(pid), signal.SIGKILL)
        for process in self.processes:
            process.wait()
        for namespace in (self.host, self.outside):
            do("ip", "netns", "delete", namespace, check=False)
        # Ends the reader's waiting, which close() alone does not.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._socket.close()

    def _read(self) -> None:
        while data := self._socket.recv(65536):
            match = LOG_LINE.fullmatch(data.rstrip(b"\0").decode())
            self.log.append(match[1] if match else f"not as syslog writes it: {data!r}")

    @property
    def hosts_deny(self) -> Path:
        return self.folder / "etc" / "hosts.deny"

    def kept(self, name: str) -> str:
        """Return the text of a file of PortSentry's, "" if there is none, without the times in it."""
        path = self.folder / "lib" / "portsentry" / name
        return TIME_2.sub("", TIME_1.sub("", path.read_text())) if path.exists() else ""

    def spawn(self, *argv: str, output: IO[bytes] | int = subprocess.DEVNULL) -> "subprocess.Popen[bytes]":
        entered = ["ip", "netns", "exec", self.host, "sh", "-c", ENTER, "sh", str(self.folder), *argv]
        process = subprocess.Popen(entered, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        self.processes.append(process)
        return process

    def run(self, *argv: str) -> tuple[int, str]:
        """Run to its end; return the exit code and the output."""
        with tempfile.TemporaryFile() as file:
            code = self.spawn(*argv, output=file).wait(DEADLINE_S)
            file.seek(0)
            return code, file.read().decode()

    def start(self, *argv: str) -> None:
        """Start one that goes to the background, and wait until it watches."""
        assert self.run(*argv) == (0, "")
        until("it watches", lambda: any("is now active and listening" in line for line in self.log))

    def pids(self) -> list[int]:
        return [int(pid) for pid in do("ip", "netns", "pids", self.host).split()]

    def stop(self) -> float:
        """Ask its only program to end; return how long that took, in seconds."""
        (pid,) = self.pids()
        began = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        until("it ends", lambda: not self.pids())
        return time.monotonic() - began

    def service(self) -> None:
        """Have TCP port 540 and UDP port 161 in use: the last, since after one in use 1.2 names the wrong ports."""
        with open(self.folder / "service", "wb") as output:  # noqa: PTH123
            self.spawn(sys.executable, "-c", SERVICE, output=output)
        until("the service listens", lambda: (self.folder / "service").read_text() == "ready\n")

    def outside_do(self, *argv: str) -> str:
        return do("ip", "netns", "exec", self.outside, *argv)

    def scan(self, source: str, kind: str, ports: str, *options: str) -> None:
        target, family = (HOST6, ["-6"]) if ":" in source else (HOST, [])
        by = ["-S", source, *(["-e", "eth0"] if kind != "-sT" else [])]
        # fmt: off
        argv = ["nmap", *family, kind, "-n", "-Pn", "-r", "-T4", "--disable-arp-ping", "--max-retries", "0",
                "--host-timeout", "15s", *options, *by, "-p", ports, target]
        # fmt: on
        self.outside_do(*argv)

    def settle(self, protocol: str, port: int) -> None:
        """Wait until everything so far is told and written."""
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        script = (
            "import socket, sys\n"
            f"sock = socket.socket(socket.AF_INET, {int(kind)})\n"
            f"sock.settimeout(5)\nsock.bind(('{LAST}', 0))\n"
            f"try:\n    sock.connect(('{HOST}', {port}))\n    sock.send(b'x')\nexcept OSError: pass\n"
        )
        self.outside_do(sys.executable, "-c", script)
        until("the last one is written", lambda: LAST in self.kept("portsentry.history"))
        # Behind all that was logged before it.
        self._socket.sendto(MARK, str(self.folder / "dev" / "log"))
        until("the log is read", lambda: "mark" in self.log)
        self.log.remove("mark")

    def iptables(self, *arguments: str) -> str:
        return do("ip", "netns", "exec", self.host, "iptables", "-w", *arguments)

    def rules(self) -> list[str]:
        return self.iptables("-S", "NOTED").splitlines()


def told(host: Host) -> list[str]:
    """Return what was logged, without the one line that PortSentry has not; the start's lines come in any order."""
    lines = [line for line in host.log if not line.startswith(ABOUT_THE_SHELL)]
    active = lines.index("adminalert: PortSentry is now active and listening.")
    return [*sorted(lines[:active]), *lines[active:]]


def everything(host: Host, mode: str) -> dict[str, object]:
    return {
        "log": told(host),
        "history": host.kept("portsentry.history"),
        "blocked": host.kept(f"portsentry.blocked.{mode}"),
        "hosts.deny": host.hosts_deny.read_text(),
        "rules": host.rules(),
        "commands": host.kept("ran"),
    }


Act = Callable[[Host], None]
Both = Callable[..., tuple[dict[str, object], dict[str, object]]]


@pytest.fixture
def make_host(open_folder: Path) -> Callable[..., Host]:
    def make(name: str = "o", version: int = 1, **conf: str | None) -> Host:
        return Host(name, open_folder / name, conf, version)

    return make


@pytest.fixture
def both(make_host: Callable[..., Host]) -> Both:
    """What becomes of two hosts, the real one's and ours, when the same is done to both."""

    def run(mode: str, act: Act, before: Act = lambda _: None, **conf: str | None) -> tuple[dict[str, object], ...]:
        def one(name: str, argv: list[str]) -> dict[str, object]:
            with make_host(name, **conf) as host:
                before(host)
                host.start(*argv, f"-{mode}")
                act(host)
                host.settle("tcp" if mode.endswith("tcp") else "udp", 111 if mode.endswith("tcp") else 69)
                return everything(host, mode)

        with ThreadPoolExecutor(2) as pool:
            return tuple(pool.map(one, "ro", (REAL, OURS)))

    return run  # type: ignore[return-value]


def scans_of(mode: str) -> Act:
    """Return the scans of one mode, each from a host of its own."""
    advanced = mode.startswith("a")
    if mode.endswith("tcp"):
        ports = "11,113,540,1023-1025" if advanced else "11,12,15,540"
    else:
        ports = "7,67,161,1023-1025" if advanced else "7,8,9,161"
    kinds: Sequence[tuple[str, ...]]
    if mode.endswith("udp"):
        kinds = [("-sU",), ("-sU", "--ip-options", "R")]
    elif mode == "tcp":
        kinds = [("-sT",), ("-sS",), ("-sF",)]
    else:
        kinds = [("-sS",), ("-sF",), ("-sN",), ("-sX",), ("-sT",), ("-sA",), ("-sS", "--ip-options", "R")]
        kinds += [
            ("-sS", "--scanflags", flags) for flags in ("SYNFIN", "URGPSH", "SYNFINURGPSH", "SYNECECWR", "SYNRST")
        ]

    def scan(host: Host) -> None:
        for source, (kind, *options) in zip(SOURCES, kinds, strict=False):
            host.scan(source, kind, ports, *options)
        host.scan(IGNORED, kinds[0][0], ports)
        # Once more: it is blocked already.
        host.scan(SOURCES[0], kinds[0][0], "1")

    return scan


@pytest.mark.parametrize("mode", ["tcp", "udp", "stcp", "sudp", "atcp", "audp"])
def test_debians_portsentry_and_ours_tell_write_and_do_the_same(both: Both, mode: str) -> None:
    real, ours = both(mode, scans_of(mode), Host.service)
    assert ours == real
    # Both saw something: at least two lines of an attack, and one source in every place.
    assert len([line for line in str(real["log"]).split("', '") if " from host: " in line]) > 2
    assert all(SOURCES[0] in str(real[part]) for part in ("history", "blocked", "hosts.deny", "rules", "commands"))


@pytest.mark.parametrize("mode", ["stcp", "tcp"])
@pytest.mark.parametrize(
    "conf",
    [
        {"BLOCK_TCP": "0"},
        {"BLOCK_TCP": "2"},
        {"KILL_RUN_CMD_FIRST": "1"},
        {"KILL_ROUTE": None},
        {"KILL_HOSTS_DENY": None, "KILL_RUN_CMD": None},
        {"SCAN_TRIGGER": "1"},
        {"RESOLVE_HOST": "1", "KILL_HOSTS_DENY": "ALL: $TARGET$ # $PORT$ $MODE$"},
    ],
    ids=lambda conf: ",".join(f"{key}={value}" for key, value in conf.items()),
)
def test_each_option_does_what_it_does_with_debians_portsentry(
    both: Both, conf: dict[str, str | None], mode: str
) -> None:
    def name_them(host: Host) -> None:
        (host.folder / "etc" / "hosts").write_text(f"{SOURCES[0]} friend.example\n")

    def scan(host: Host) -> None:
        for source in SOURCES[:2]:
            host.scan(source, "-sT", "11,15")

    real, ours = both(mode, scan, name_them, **conf)
    assert ours == real
    assert SOURCES[0] in str(real["history"])


def test_the_trigger_counts_packets_as_debians_portsentry_does(both: Both) -> None:
    def scan(host: Host) -> None:
        host.scan(SOURCES[0], "-sS", "11")
        host.scan(SOURCES[1], "-sS", "11,15,79")
        host.scan(SOURCES[0], "-sS", "11")
        host.scan(LAST, "-sS", "15")

    real, ours = both("stcp", scan, SCAN_TRIGGER="2")
    assert ours == real
    assert [line.split("/")[0] for line in str(real["history"]).splitlines()] == [
        f"Host: {source}" for source in (SOURCES[1], SOURCES[0], LAST)
    ]


def test_a_line_taken_out_of_the_blocked_file_counts_as_with_debians_portsentry(both: Both) -> None:
    def scan(host: Host) -> None:
        host.scan(SOURCES[0], "-sS", "11")
        until("it is blocked", lambda: SOURCES[0] in host.kept("portsentry.history"))
        (host.folder / "lib" / "portsentry" / "portsentry.blocked.stcp").write_text("")
        host.scan(SOURCES[0], "-sS", "11")

    # Not in hosts.deny: ours writes no line there twice.
    real, ours = both("stcp", scan, KILL_HOSTS_DENY=None)
    assert ours == real
    assert str(real["history"]).count(SOURCES[0]) == 4


@pytest.mark.parametrize("mode", ["stcp", "atcp"])
def test_who_comes_to_a_service_while_it_restarts_is_left_alone_as_by_debians_portsentry(both: Both, mode: str) -> None:
    def come(host: Host) -> None:
        host.processes[0].kill()
        until("the port is free", lambda: ":540" not in do("ip", "netns", "exec", host.host, "ss", "-Hltn"))
        # Ours may have noticed.
        time.sleep(0.3)
        host.scan(SOURCES[0], "-sT", "540")

    real, ours = both(mode, come, Host.service)
    assert ours == real
    assert SOURCES[0] not in str(real["history"])


def test_a_forged_packet_from_our_own_address_blocks_nobody_as_with_debians_portsentry(both: Both) -> None:
    def forge(host: Host) -> None:
        host.outside_do(sys.executable, "-c", STORM, HOST, "1", HOST)

    def forget(host: Host) -> None:
        # What Debian's script makes where ifconfig no longer says "addr:".
        (host.folder / "etc" / "portsentry" / "portsentry.ignore").write_text("127.0.0.1/32\n0.0.0.0\n")

    real, ours = both("stcp", forge, forget)
    assert ours == real
    assert HOST not in str(real["history"])


# PortSentry 2.0.7, as recorded


def start_2(host: Host, *flags: str) -> "subprocess.Popen[bytes]":
    with (host.folder / "stdout").open("wb") as output:
        process = host.spawn(*OURS, *flags, output=output)
    until("it watches", lambda: "Portsentry is now active and listening.\n" in stdout(host))
    return process


def stdout(host: Host) -> str:
    return (host.folder / "stdout").read_text()


def scan_line(source: str, protocol: str, port: int, kind: str, options: str, *answers: str) -> str:
    names = ("ignored", "triggered", "noblock", "blocked")
    ends = " ".join(f"{name}: [{answer}]" for name, answer in zip(names, answers, strict=True))
    return (
        f"Scan from: [{source}] ({source}) protocol: [{protocol}] port: [{port}] type: [{kind}] "
        f"IP opts: [{options}] {ends}"
    )


def blocked_line(source: str, port: int, mode: str) -> list[str]:
    # The recorded one wrote "ALL: fd98::2", which TCP wrappers do not understand.
    shown = f"[{source}]" if ":" in source else source
    command = f"/bin/echo run {source} {port} {mode} >> /var/lib/portsentry/ran"
    return [
        f'attackalert: Host {source} has been blocked via wrappers with string: "ALL: {shown}"',
        f'attackalert: Host {source} has been blocked via dropped route using command: "/bin/true {source}"',
        f'attackalert: External command run for host: {source} using command: "{command}"',
    ]


STEALTH_SCANS = [
    ("10.98.0.10", "-sS", "TCP", "TCP SYN/Normal scan", "not set"),
    ("10.98.0.11", "-sF", "TCP", "TCP FIN scan", "not set"),
    ("10.98.0.12", "-sN", "TCP", "TCP NULL scan", "not set"),
    ("10.98.0.13", "-sX", "TCP", "TCP XMAS scan", "not set"),
    ("10.98.0.14", "-sT", "TCP", "TCP SYN/Normal scan", "not set"),
    ("10.98.0.15", "-sU", "UDP", "UDP", "not set"),
    ("fd98::2", "-sS", "TCP", "TCP SYN/Normal scan", "unknown"),
]


def test_stealth_mode_does_what_portsentry_2_0_7_did(make_host: Callable[..., Host]) -> None:
    expected, blocks = [], ("true", "false", "true")
    for source, _, protocol, kind, options in STEALTH_SCANS:
        expected.append(scan_line(source, protocol, 1, kind, options, "false", "false", "unset", "unset"))
        expected += blocked_line(source, 2, "stealth")
        expected.append(scan_line(source, protocol, 2, kind, options, "false", *blocks))
        for port in range(3, 31):
            expected.append(f"attackalert: Host: {source}/{source} is already blocked Ignoring")
            expected.append(scan_line(source, protocol, port, kind, options, "false", *blocks))
    for port in (1, 2):
        unset = ("true", "unset", "unset", "unset")
        expected.append(scan_line(IGNORED, "TCP", port, "TCP SYN/Normal scan", "not set", *unset))
    with make_host(version=2, SCAN_TRIGGER="2") as host:
        process = start_2(host, "--stealth", "-m", "raw")
        for source, kind, *_ in STEALTH_SCANS:
            host.scan(source, kind, "1-30")
        host.scan(IGNORED, "-sS", "1,2")
        until("the last is told", lambda: expected[-1] in stdout(host))
        assert host.stop() < 1.0
        assert process.wait() == 0
        told = stdout(host).split("listening.\n")[1].splitlines()
        assert told == [*expected, "Portsentry is shutting down"]
        assert host.kept("portsentry.history").splitlines() == [line for line in expected if line.startswith("Scan")]
        kept = (host.folder / "lib" / "portsentry" / "portsentry.blocked").read_bytes()
        assert kept == bytes.fromhex(
            "02000a62000a 02000a62000b 02000a62000c 02000a62000d 02000a62000e 02000a62000f"
            "0a00fd980000000000000000000000000002"
        )
        assert host.hosts_deny.read_text().splitlines() == [
            "# mine",
            *(f"ALL: {source}" for source, *_ in STEALTH_SCANS[:-1]),
            "ALL: [fd98::2]",
        ]


def test_connect_mode_does_what_portsentry_2_0_7_did(make_host: Callable[..., Host]) -> None:
    expected, answers = [], ("false", "true", "false", "true")
    for source, protocol in (("10.98.0.14", "TCP"), ("10.98.0.15", "UDP")):
        expected += blocked_line(source, 1, "connect")
        expected.append(scan_line(source, protocol, 1, "Connect", "unknown", *answers))
        for port in range(2, 31):
            expected.append(f"attackalert: Host: {source}/{source} is already blocked Ignoring")
            expected.append(scan_line(source, protocol, port, "Connect", "unknown", *answers))
    with make_host(version=2) as host:
        start_2(host, "--connect")
        host.scan("10.98.0.14", "-sT", "1-30")
        host.scan("10.98.0.15", "-sU", "1-30")
        until("the last is told", lambda: expected[-1] in stdout(host))
        began, told = stdout(host).split("Portsentry is now active and listening.\n")
        assert told.splitlines() == expected
        listens = [
            f"Listen on AF_INET6: {protocol} port: {port}" for protocol in ("TCP", "UDP") for port in range(1, 31)
        ]
        assert began.splitlines()[: len(listens)] == listens
        kept = (host.folder / "lib" / "portsentry" / "portsentry.blocked").read_bytes()
        assert kept == bytes.fromhex("02000a62000e 02000a62000f")


def test_log_only_mode_does_what_portsentry_2_0_7_did(make_host: Callable[..., Host]) -> None:
    line = scan_line("10.98.0.10", "TCP", 5, "TCP SYN/Normal scan", "not set", "false", "true", "true", "false")
    with make_host(version=2, BLOCK_TCP="0", BLOCK_UDP="0") as host:
        start_2(host)
        host.scan("10.98.0.10", "-sS", "5")
        until("it is told", lambda: line in stdout(host))
        assert stdout(host).splitlines()[-1] == line
        assert host.kept("portsentry.history") == f"{line}\n"
        assert (host.folder / "lib" / "portsentry" / "portsentry.blocked").read_bytes() == b""
        assert host.hosts_deny.read_text() == "# mine\n"


def test_what_2_x_has_blocked_stays_blocked_after_a_restart(make_host: Callable[..., Host]) -> None:
    already = "attackalert: Host: 10.98.0.10/10.98.0.10 is already blocked Ignoring"
    with make_host(version=2) as host:
        start_2(host)
        host.scan("10.98.0.10", "-sS", "5")
        until("it is blocked", lambda: "blocked: [true]" in stdout(host))
        host.stop()
        start_2(host)
        host.scan("10.98.0.10", "-sS", "5")
        until("it is told", lambda: already in stdout(host))
        assert host.kept("ran").count("run") == 1


# What is ours


def test_2_x_in_the_background_logs_to_syslog(make_host: Callable[..., Host]) -> None:
    with make_host(version=2, BLOCK_TCP="0") as host:
        assert host.run(*OURS, "-D", "-l", "syslog", "--stealth") == (0, "")
        host.scan("fd98::2", "-sS", "5")
        until("it is told", lambda: any("Scan from: [fd98::2]" in line for line in host.log))
        assert "Portsentry is now active and listening." in host.log
        host.stop()
        until("it says so", lambda: host.log[-1] == "Portsentry is shutting down")


def test_it_goes_to_the_background_when_it_watches_and_ends_within_a_second(make_host: Callable[..., Host]) -> None:
    with make_host() as host:
        host.start(*OURS, "-stcp")
        assert host.stop() < 1.0
        until("it says so", lambda: host.log[-1] == "adminalert: PortSentry is shutting down")
        assert host.log[-2:] == [
            "securityalert: PortSentry is shutting down",
            "adminalert: PortSentry is shutting down",
        ]


def test_it_does_not_start_beside_a_real_one(make_host: Callable[..., Host]) -> None:
    with make_host() as host:
        host.start(*REAL, "-audp")
        code, output = host.run(*OURS, "-stcp")
        assert code == 1
        assert output.startswith("jailbridge portsentry: PortSentry runs here already")


def test_one_for_each_protocol_writes_the_history_and_no_second(make_host: Callable[..., Host]) -> None:
    with make_host() as host:
        host.start(*OURS, "-stcp")
        assert host.run(*OURS, "-sudp") == (0, "")
        code, output = host.run(*OURS, "-tcp")
        assert code == 1
        assert "is written by another process" in output
        host.scan("10.98.0.10", "-sS", "11")
        host.scan("10.98.0.11", "-sU", "7")
        until("both are written", lambda: host.kept("portsentry.history").count("Blocked") == 2)


def test_a_malformed_portsentry_conf_is_named_with_its_line_at_the_start_and_in_the_log(
    make_host: Callable[..., Host],
) -> None:
    with make_host(BLOCK_TCP="yes") as host:
        code, output = host.run(*OURS, "-stcp")
        assert code == 1
        assert re.search(r"portsentry\.conf: line \d+: BLOCK_TCP: should be 0 .* not 'yes'", output)
        until("it is logged", lambda: any("BLOCK_TCP: should be 0" in line for line in host.log))


def test_a_command_with_shell_syntax_is_run_as_written_and_told_once_at_the_start(
    make_host: Callable[..., Host],
) -> None:
    mail = ">> /var/lib/portsentry/mail"
    command = f"/bin/echo 'scan from $TARGET$ on $PORT$' | cat {mail}; echo $MODE$ {mail}"
    with make_host(KILL_RUN_CMD=command) as host:
        host.start(*OURS, "-stcp")
        host.scan("10.98.0.10", "-sS", "11")
        host.scan("10.98.0.11", "-sS", "15")
        host.settle("tcp", 111)
        assert host.kept("mail").splitlines()[:4] == [
            "scan from 10.98.0.10 on 11", "stcp", "scan from 10.98.0.11 on 15", "stcp",
        ]  # fmt: skip
        assert host.log.count(f"{ABOUT_THE_SHELL}{command}") == 1


def test_commands_get_an_environment_of_their_own(make_host: Callable[..., Host]) -> None:
    with make_host(KILL_RUN_CMD="/usr/bin/env > /var/lib/portsentry/env") as host:
        host.start(*OURS, "-stcp")
        host.settle("tcp", 111)
        names = {line.partition("=")[0] for line in host.kept("env").splitlines()}
        assert names <= {"PATH", "PWD", "OLDPWD", "SHLVL", "_", "TZ", "LC_CTYPE"}


def test_a_hostile_name_in_the_dns_is_not_written(make_host: Callable[..., Host]) -> None:
    with make_host(RESOLVE_HOST="1") as host:
        (host.folder / "etc" / "hosts").write_text("10.98.0.10 evil;$(touch/x)/10.0.0.1\n10.98.0.11 friend.example\n")
        host.start(*OURS, "-stcp")
        host.scan("10.98.0.10", "-sS", "11")
        host.scan("10.98.0.11", "-sS", "11")
        host.settle("tcp", 111)
        assert host.kept("portsentry.history").splitlines()[:2] == [
            "Host: 10.98.0.10/10.98.0.10 Port: 11 TCP Blocked",
            "Host: friend.example/10.98.0.11 Port: 11 TCP Blocked",
        ]
        assert "evil" not in "".join(host.log)


def test_a_route_that_drops_is_put_back_when_the_blocked_line_is_taken_out(make_host: Callable[..., Host]) -> None:
    with make_host(KILL_ROUTE="/usr/sbin/iptables -w -I INPUT -s $TARGET$ -j DROP") as host:
        host.start(*OURS, "-stcp")
        for _ in range(2):
            host.scan("10.98.0.10", "-sS", "11")
            until("it is dropped", lambda: "10.98.0.10/32 -j DROP" in host.iptables("-S", "INPUT"))
            until("it is blocked", lambda: "10.98.0.10" in host.kept("portsentry.blocked.stcp"))
            host.iptables("-F", "INPUT")
            (host.folder / "lib" / "portsentry" / "portsentry.blocked.stcp").write_text("")


def test_a_parent_that_ignores_the_end_of_its_children_does_not_end_the_responses(
    make_host: Callable[..., Host],
) -> None:
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    with make_host(KILL_ROUTE="/bin/true $TARGET$", KILL_RUN_CMD="/bin/false") as host:
        do("ip", "-n", host.host, "route", "add", "10.99.0.0/16", "via", "10.98.0.10")
        host.start(sys.executable, "-c", ignoring, *OURS, "-stcp")
        host.outside_do(sys.executable, "-c", STORM, HOST, "100", "10.99.0.1")
        until("all are written", lambda: host.kept("portsentry.history").count("Blocked") == 100)
        until("the last is told", lambda: sum("/bin/false ended with exit code 1" in line for line in host.log) == 100)


def test_every_source_of_a_storm_is_blocked_and_written(make_host: Callable[..., Host]) -> None:
    many = 400
    with make_host(KILL_RUN_CMD=None) as host:
        do("ip", "-n", host.host, "route", "add", "10.99.0.0/16", "via", "10.98.0.10")
        host.start(*OURS, "-stcp")
        host.outside_do(sys.executable, "-c", STORM, HOST, str(many), "10.99.0.1")
        until("all are written", lambda: host.kept("portsentry.history").count("Blocked") == many)
        assert len(host.rules()) == many + 1
        assert len(set(host.hosts_deny.read_text().splitlines())) == many + 1
        assert not [line for line in host.log if "ERROR" in line or "lost" in line]


def test_a_command_that_hangs_does_not_hold_up_the_end(make_host: Callable[..., Host]) -> None:
    with make_host(version=2, KILL_ROUTE="/bin/sh -c 'sleep 60' $TARGET$") as host:
        process = start_2(host)
        host.scan("10.98.0.10", "-sS", "11")
        until("it hangs", lambda: len(host.pids()) > 1)
        began = time.monotonic()
        process.terminate()
        process.wait(DEADLINE_S)
        assert time.monotonic() - began < 1.0
        assert stdout(host).splitlines()[-2:] == [
            "adminalert: 1 hosts were still to be blocked",
            "Portsentry is shutting down",
        ]
