"""The decoys in a network namespace of their own, tried by nmap and by real clients from another."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

DEADLINE_S = 30.0
CAP_SYS_RESOURCE = 24
HOST, PEER = f"jbd{os.getpid()}h", f"jbd{os.getpid()}p"
HOST_4, PEER_4, ASIDE_4 = "192.0.2.1", "192.0.2.2", "192.0.2.77"
HOST_6, PEER_6 = "2001:db8::1", "2001:db8::2"
SECOND_HOST_4, SECOND_PEER_4 = "198.51.100.1", "198.51.100.2"
NMAP = ["nmap", "-n", "-Pn", "--disable-arp-ping", "--max-retries", "1", "--host-timeout", "15s"]

DECOYS = """
import json, logging, os, resource, sys, threading
from ipaddress import ip_address
from jailbridge.config.values import parse_ports
from jailbridge.errors import FatalError
from jailbridge.sensor.decoys import Decoys

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
settings = json.loads(sys.argv[1])
probes, stop = [], threading.Event()

def take(batch, now):
    probes.extend(batch)

def told(probe):
    return [str(probe.address), probe.port, probe.protocol, probe.kind, probe.source_port,
            str(ip_address(probe.destination)), probe.version, probe.flags, probe.options]

def answer(word, argument):
    if word == "count":
        return len(probes)
    if word == "probes":
        return [told(probe) for probe in probes]
    if word == "files":
        soft = argument and int(argument) or resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        return soft
    if word == "usage":
        return {"files": len(os.listdir("/proc/self/fd")), "cpu_s": sum(os.times()[:2]), "dropped": decoys.dropped}

try:
    with Decoys(parse_ports(settings.pop("tcp", "")), parse_ports(settings.pop("udp", "")), **settings) as decoys:
        watch = threading.Thread(target=decoys.run, args=(stop, take))
        print(json.dumps("entered"), flush=True)
        for line in sys.stdin:
            word, _, argument = line.strip().partition(" ")
            if word == "run":
                watch.start()
                print(json.dumps(decoys.ready.wait(5)), flush=True)
            else:
                print(json.dumps(answer(word, argument)), flush=True)
        stop.set()
        watch.join()
        print(json.dumps(decoys.ready.is_set()), flush=True)
except FatalError as error:
    sys.exit(str(error))
"""

CONNECT = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
address, low, high, times, threads = sys.argv[1], *map(int, sys.argv[2:])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
def work(first):
    for n in range(first, times, threads):
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            # The kernel asks again after 1, 3, 7, 15 and 31 s: in a flood each of them may be dropped.
            sock.settimeout(45)
            sock.connect((address, low + n % (high + 1 - low)))
with ThreadPoolExecutor(threads) as pool: list(pool.map(work, range(threads)))
print("done")
"""

SEND_UDP = """
import socket, sys
source, address, low, high, times = *sys.argv[1:3], *map(int, sys.argv[3:])
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sock.bind((source, 0))
    for _ in range(times):
        for port in range(low, high + 1):
            sock.sendto(b"x", (address, port))
"""

FLOOD_UDP = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.connect((sys.argv[1], int(sys.argv[2])))
    print("flooding", flush=True)
    while True: sock.send(b"x" * 9)
"""

# Half-open connections of forged sources to every port from 1 to 200; nobody answers for these.
FLOOD_SYN = """
import socket, struct, sys
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
to = socket.inet_aton(sys.argv[1])
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
    print("flooding", flush=True)
    n = 0
    while True:
        n += 1
        source = bytes([203, 0, 113, n % 250 + 1])
        port = n % 200 + 1
        tcp = struct.pack("!HHIIBBHHH", 1024 + n % 60000, port, n, 0, 0x50, 2, 1024, 0, 0)
        tcp = tcp[:16] + struct.pack("!H", checksum(source + to + struct.pack("!HH", 6, 20) + tcp)) + tcp[18:]
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, 6, 0, source, to)
        sock.sendto(head + tcp, (sys.argv[1], 0))
"""

# Sends before it reads, goes on sending once the banner is there, and takes a reset for the failure it is.
TALK = """
import socket, sys
for _ in range(int(sys.argv[3])):
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) as sock:
        sock.sendall(b"GET / HTTP/1.0\\r\\n" * 200)
        got = sock.recv(1000)
        try: sock.sendall(b"more " * 100)
        except OSError as error: print(error)
        while more := sock.recv(1000): got += more
        print(got.decode())
"""

TALK_LATE = """
import json, socket, sys
with socket.create_connection((sys.argv[1], 7), 20) as sock:
    sock.sendall(b"x" * 5000)
    print("sent", flush=True)
    sys.stdin.readline()
    print(json.dumps([sock.recv(1000).decode(), sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)]))
"""

HANG = """
import socket, sys
held = [socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) for _ in range(int(sys.argv[3]))]
print("hanging", flush=True)
sys.stdin.read()
"""

SERVE = """
import socket, sys
with socket.create_server(("", 80)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
    datagrams.bind(("127.0.0.1", 81))
    print("serving", flush=True)
    while True:
        connection, _ = server.accept()
        with connection: connection.sendall(b"hello")
"""

# A program with a connection and no listening socket any more, as a service that is being restarted.
SESSION = """
import socket, sys
with socket.create_server((sys.argv[1], 90)) as server:
    far = socket.create_connection((sys.argv[1], 90))
    near, _ = server.accept()
print("connected", flush=True)
sys.stdin.read()
"""

# Has the kernel refuse every AF_INET6 socket with EAFNOSUPPORT, as one without IPv6 does (seccomp(2)).
WITHOUT_IPV6 = """
import ctypes, os, struct
call = {"x86_64": 41, "aarch64": 198}[os.uname().machine]
code = [(0x20, 0, 0, 0), (0x15, 0, 3, call), (0x20, 0, 0, 16), (0x15, 0, 1, 10), (0x06, 0, 0, 0x50000 | 97),
        (0x06, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
prog = ctypes.create_string_buffer(struct.pack("HP", len(code), ctypes.addressof(program)))
libc, number = ctypes.CDLL(None), ctypes.c_ulong
assert libc.prctl(38, number(1), number(0), number(0), number(0)) == 0
assert libc.prctl(22, number(2), ctypes.byref(prog), number(0), number(0)) == 0
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def inside(namespace: str, *argv: str) -> subprocess.CompletedProcess[str]:
    command = ["ip", "netns", "exec", namespace, *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S * 2, check=False)


def outside(script: str, *arguments: object) -> str:
    done = inside(PEER, sys.executable, "-c", script, *map(str, arguments))
    assert done.returncode == 0, done.stderr
    return done.stdout


def connect(address: str, low: int, high: int = 0, times: int = 1, threads: int = 1) -> None:
    assert outside(CONNECT, address, low, high or low, times, threads) == "done\n"


def nmap(*arguments: str) -> str:
    done = inside(PEER, *NMAP, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Program:
    """A Python script in a namespace; a line in, a JSON line out."""

    def __init__(self, namespace: str, script: str, *arguments: str, under: tuple[str, ...] = ()) -> None:
        command = ["ip", "netns", "exec", namespace, *under, sys.executable, "-c", script, *arguments]
        number, name = tempfile.mkstemp()
        self._errors, pipe = Path(name), subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=number, text=True)
        os.close(number)
        self.first = self.line()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def ask(self, question: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        answer = self.line()
        assert answer, self.errors
        return json.loads(answer)

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def end(self) -> float:
        """Close its input, wait for its end; return how long that took."""
        assert self.process.stdin is not None
        asked = time.monotonic()
        self.process.stdin.close()
        self.process.wait(DEADLINE_S)
        return time.monotonic() - asked

    def close(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self._errors.unlink()


class Watch:
    """Running decoys."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def count(self, least: int) -> int:
        """Return how many probes were seen, once they are as many as expected."""
        deadline = time.monotonic() + DEADLINE_S
        while (count := self.program.ask("count")) < least:
            assert time.monotonic() < deadline, f"{count} of {least} seen; {self.program.errors}"
            time.sleep(0.02)
        return int(count)

    def probes(self, least: int) -> list[list[Any]]:
        self.count(least)
        return list(self.program.ask("probes"))

    def ports(self, least: int) -> list[int]:
        return sorted(probe[1] for probe in self.probes(least))

    def usage(self) -> dict[str, float]:
        return dict(self.program.ask("usage"))

    def until_files(self, most: float) -> None:
        """Wait until no more files are open."""
        deadline = time.monotonic() + DEADLINE_S
        while self.usage()["files"] > most:
            assert time.monotonic() < deadline, "connections stay open"
            time.sleep(0.1)


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> Iterator[None]:
    names = (HOST, PEER)
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            inside(name, "sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done")
        for link in ("veth0", "veth1"):
            ip("link", "add", link, "netns", HOST, "type", "veth", "peer", "name", link, "netns", PEER)
        for name, link, addresses in (
            (HOST, "veth0", (HOST_4, ASIDE_4, HOST_6)),
            (HOST, "veth1", (SECOND_HOST_4,)),
            (PEER, "veth0", (PEER_4, PEER_6)),
            (PEER, "veth1", (SECOND_PEER_4,)),
        ):
            for address in addresses:
                bits = ["64", "nodad"] if ":" in address else ["24", "brd", "+"]
                ip("-n", name, "address", "add", f"{address}/{bits[0]}", "dev", link, *bits[1:])
            ip("-n", name, "link", "set", link, "up")
        ip("-n", PEER, "route", "add", ASIDE_4, "via", SECOND_HOST_4)
        # The flood's forged sources are nowhere: their answers go out and are lost.
        ip("-n", HOST, "route", "add", "203.0.113.0/24", "dev", "veth0")
        ip("-n", HOST, "neighbor", "add", "203.0.113.0", "lladdr", "02:00:00:00:00:01", "dev", "veth0")
        deadline = time.monotonic() + DEADLINE_S
        for name in names:
            while inside(name, "ip", "link").stdout.count("state UP") != 2:
                assert time.monotonic() < deadline, f"the links in {name} do not come up"
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    programs: list[Program] = []

    def begin(*arguments: str, **options: Any) -> Program:
        programs.append(Program(*arguments, **options))
        assert programs[-1].first, programs[-1].errors
        return programs[-1]

    yield begin
    for program in programs:
        program.close()


@pytest.fixture
def watch(start: Callable[..., Program]) -> Callable[..., Watch]:
    def begin(*, script: str = DECOYS, under: tuple[str, ...] = (), **settings: Any) -> Watch:
        program = start(HOST, script, json.dumps(settings), under=under)
        assert program.ask("run") is True
        return Watch(program)

    return begin


def refusal(*under: str, **settings: Any) -> str:
    """Return what it says when it cannot start."""
    done = inside(HOST, *under, sys.executable, "-c", DECOYS, json.dumps(settings))
    assert done.returncode == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(("version", "target", "source"), [("-4", HOST_4, PEER_4), ("-6", HOST_6, PEER_6)])
@pytest.mark.parametrize(
    ("scan", "protocol", "kind", "flags"), [("-sT", "tcp", "connect", None), ("-sU", "udp", "udp", 0)]
)
def test_a_scan_by_nmap_is_seen(
    watch: Callable[..., Watch],
    *,
    version: str,
    target: str,
    source: str,
    scan: str,
    protocol: str,
    kind: str,
    flags: int | None,
) -> None:
    decoys = watch(tcp="1-100", udp="1-100")
    nmap(version, scan, "-p", "11,15,79,101", target)
    probes = decoys.probes(3)
    assert {probe[1] for probe in probes} == {11, 15, 79}
    assert {(*probe[:1], *probe[2:4], *probe[5:]) for probe in probes} == {
        (source, protocol, kind, target, int(version[1]), flags, None)
    }
    assert all(probe[4] > 0 for probe in probes)


def test_a_half_open_scan_proves_no_source_and_is_not_seen(watch: Callable[..., Watch]) -> None:
    decoys = watch(tcp="1-100")
    assert "11/tcp open" in nmap("-sS", "-p", "11,15,79", HOST_4)
    connect(HOST_4, 20)
    assert decoys.ports(1) == [20]


def test_a_probe_from_the_loopback_network_never_counts(watch: Callable[..., Watch]) -> None:
    decoys = watch(tcp="7-8", udp="7")
    for script, arguments in ((CONNECT, "127.0.0.1 7 7 1 1"), (SEND_UDP, "::1 ::1 7 7 1")):
        assert inside(HOST, sys.executable, "-c", script, *arguments.split()).returncode == 0
    connect(HOST_4, 8)
    assert decoys.ports(1) == [8]


@pytest.mark.parametrize("address", [HOST_4, HOST_6])
def test_the_banner_reaches_a_client_that_has_sent_data_and_sends_more(
    watch: Callable[..., Watch], address: str
) -> None:
    banner = "SSH-2.0-Go away\r\n" + "x" * 480
    decoys = watch(tcp="7", banner=banner)
    began = time.monotonic()
    assert outside(TALK, address, 7, 40).replace("\n\n", "\n") == (banner.replace("\r\n", "\n") + "\n") * 40
    assert time.monotonic() - began < 20.0, "the end comes late"
    assert decoys.count(40) == 40


def test_a_client_that_does_not_read_is_left_with_the_banner_and_no_reset(
    watch: Callable[..., Watch], start: Callable[..., Program]
) -> None:
    decoys = watch(tcp="7", banner="hello")
    before = decoys.usage()["files"]
    client = start(PEER, TALK_LATE, HOST_4)
    decoys.count(1)
    decoys.until_files(before)
    assert client.ask("read") == ["hello", 0]


def test_without_a_banner_the_connection_is_closed_at_once(watch: Callable[..., Watch]) -> None:
    watch(tcp="7")
    assert (
        outside("import socket, sys; print(socket.create_connection((sys.argv[1], 7), 9).recv(9))", HOST_4) == "b''\n"
    )


def test_no_banner_is_ever_sent_over_udp(watch: Callable[..., Watch]) -> None:
    decoys = watch(udp="7", banner="hello")
    script = (
        "import socket, sys\n"
        "sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "sock.connect((sys.argv[1], 7)); sock.send(b'x'); sys.stdin.readline(); sock.setblocking(False)\n"
        "try: print(sock.recv(9))\n"
        "except BlockingIOError: print('silence')\n"
    )
    with subprocess.Popen(
        ["ip", "netns", "exec", PEER, sys.executable, "-c", script, HOST_4],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        decoys.count(1)
        assert client.communicate("\n", DEADLINE_S)[0] == "silence\n"


def test_two_thousand_ports_are_watched_at_once(watch: Callable[..., Watch]) -> None:
    decoys = watch(tcp="1-2000", udp="1-2000", under=("prlimit", "--nofile=256:20000"))
    connect(HOST_4, 1, 2000, 2000, 4)
    connect(HOST_6, 1, 2000, 2000, 4)
    outside(SEND_UDP, PEER_4, HOST_4, 1, 2000, 1)
    outside(SEND_UDP, PEER_6, HOST_6, 1, 2000, 1)
    probes = decoys.probes(8000)
    assert len(probes) == 8000
    assert len({(probe[1], probe[2], probe[6]) for probe in probes}) == 8000


def test_a_port_with_a_service_is_left_alone_in_both_versions_and_named_once(
    watch: Callable[..., Watch], start: Callable[..., Program]
) -> None:
    start(HOST, SERVE)
    decoys = watch(tcp="78-82", udp="79-82")
    script = f"import socket; print(socket.create_connection(('{HOST_4}', 80), 5).recv(9))"
    assert [outside(script) for _ in range(3)] == ["b'hello'\n"] * 3
    for port in (78, 79, 81, 82):
        connect(HOST_4, port)
    assert "80/tcp closed" in nmap("-6", "-sT", "-p", "80", HOST_6)
    assert decoys.ports(4) == [78, 79, 81, 82]
    assert decoys.program.errors.splitlines() == [
        "INFO ports with a live service are left alone protocol=tcp ports=80",
        "INFO ports with a live service are left alone protocol=udp ports=81",
        "INFO watching decoys=14 interfaces=all",
    ]


def test_a_service_cannot_be_pushed_aside_and_cannot_push_a_decoy_aside(watch: Callable[..., Watch]) -> None:
    decoys = watch(tcp="80", udp="80")
    done = inside(HOST, sys.executable, "-c", SERVE)
    assert "Address already in use" in done.stderr
    connect(HOST_4, 80)
    assert decoys.ports(1) == [80]


def test_no_port_left_is_an_error(start: Callable[..., Program]) -> None:
    start(HOST, SERVE)
    assert refusal(tcp="80", udp="81").splitlines()[-1] == (
        "every port to watch has a live service: name others in sensor.tcp_ports and sensor.udp_ports"
    )


@pytest.mark.parametrize(("first", "addresses"), [(201, (HOST_4, HOST_6)), (211, (HOST_4,)), (221, (HOST_6,))])
def test_the_remains_of_its_own_connections_do_not_keep_a_port_from_the_next_run(
    watch: Callable[..., Watch], first: int, addresses: tuple[str, ...]
) -> None:
    last = first + 2
    decoys = watch(tcp=f"{first}-{last}", banner="hello")
    for address in addresses:
        for port in range(first, last + 1):
            outside(TALK, address, port, 3)
    decoys.count(9 * len(addresses))
    decoys.program.end()
    for address in addresses:
        shown = f"[{address}]" if ":" in address else address
        assert inside(HOST, "ss", "-Htan", "state", "time-wait", f"src {shown} and sport {first}").stdout
    again = watch(tcp=f"{first}-{last}")
    for address in (HOST_4, HOST_6):
        connect(address, first, last, 3)
    assert again.ports(6) == sorted(2 * [first, first + 1, last])


def test_a_port_where_a_program_still_has_a_connection_is_left_alone(
    watch: Callable[..., Watch], start: Callable[..., Program]
) -> None:
    start(HOST, SESSION, HOST_4)
    decoys = watch(tcp="89-91")
    assert "protocol=tcp ports=90\n" in decoys.program.errors


def test_a_limit_of_open_files_that_is_too_low_is_raised_or_named() -> None:
    bound = ("setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource")
    said = refusal("prlimit", "--nofile=300:300", *bound, tcp="1-100", udp="1-100")
    needed = said.split()[3]
    assert 656 < int(needed) < 700
    assert said == (
        f"the decoys need {needed} open files and the limit is 300: raise it (LimitNOFILE={needed} in the service's "
        "unit, ulimit -Hn), or name fewer ports in sensor.tcp_ports and sensor.udp_ports\n"
    )


def test_root_raises_the_hard_limit_of_open_files_too(watch: Callable[..., Watch]) -> None:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    if not int(status.partition("CapEff:")[2].split()[0], 16) >> CAP_SYS_RESOURCE & 1:
        pytest.skip("root has no CAP_SYS_RESOURCE in this container")
    decoys = watch(tcp="1-100", udp="1-100", under=("prlimit", "--nofile=300:300"))
    assert decoys.usage()["files"] > 400


def test_without_the_right_to_low_ports_it_says_what_it_needs() -> None:
    said = refusal("setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service", tcp="7")
    assert said == "the sensor cannot listen on tcp port 7: run as root or with CAP_NET_BIND_SERVICE\n"


def test_an_unknown_interface_is_an_error_that_names_it() -> None:
    said = refusal(tcp="7", interfaces=["nosuch0"])
    assert said == "sensor.interfaces names 'nosuch0', which is not on this host: it has lo veth0 veth1\n"


def test_a_host_without_ipv6_is_watched_over_ipv4(watch: Callable[..., Watch]) -> None:
    decoys = watch(script=WITHOUT_IPV6 + DECOYS, tcp="7", udp="7")
    connect(HOST_4, 7)
    outside(SEND_UDP, PEER_4, HOST_4, 7, 7, 1)
    assert [probe[2] for probe in decoys.probes(2)] == ["tcp", "udp"]
    assert "7/tcp closed" in nmap("-6", "-sT", "-p", "7", HOST_6)


@pytest.mark.parametrize("banner", ["", "hello"])
def test_every_one_of_five_thousand_quick_connections_is_seen(watch: Callable[..., Watch], banner: str) -> None:
    decoys = watch(tcp="1-10", banner=banner)
    connect(HOST_4, 7, 7, 5000, 4)
    assert decoys.count(5000) == 5000


def test_peers_that_connect_and_hang_hold_up_nothing_and_hold_no_files(
    watch: Callable[..., Watch], start: Callable[..., Program]
) -> None:
    decoys = watch(tcp="1-100", banner="hello")
    before = decoys.usage()["files"]
    start(PEER, HANG, HOST_4, "7", "900")
    assert decoys.count(900) == 900
    assert decoys.usage()["files"] - before <= 128
    connect(HOST_4, 8)
    assert 8 in decoys.ports(901)
    decoys.until_files(before)
    assert decoys.program.end() < 1.5


def test_a_flood_of_datagrams_at_one_port_hides_no_other_port(
    watch: Callable[..., Watch], start: Callable[..., Program]
) -> None:
    decoys = watch(tcp="1-100", udp="1-100")
    start(PEER, FLOOD_UDP, HOST_4, "7")
    connect(HOST_4, 11, 30, 20)
    outside(SEND_UDP, PEER_4, HOST_4, 11, 30, 1)
    deadline = time.monotonic() + DEADLINE_S
    missing = {(protocol, port) for protocol in ("tcp", "udp") for port in range(11, 31)}
    while missing:
        assert time.monotonic() < deadline, missing
        missing -= {(probe[2], probe[1]) for probe in decoys.probes(1)}


def test_a_flood_of_half_open_connections_hides_no_complete_one(
    watch: Callable[..., Watch], start: Callable[..., Program]
) -> None:
    decoys = watch(tcp="1-2000")
    start(PEER, FLOOD_SYN, HOST_4)
    connect(HOST_4, 1, 200, 2000, 4)
    assert decoys.count(2000) == 2000
    assert {probe[0] for probe in decoys.probes(2000)} == {PEER_4}
    half_open = inside(HOST, "ss", "-Htan", "state", "syn-recv").stdout
    assert "203.0.113." in half_open


def test_without_a_file_to_spare_a_connection_waits_and_the_processor_rests(watch: Callable[..., Watch]) -> None:
    decoys = watch(tcp="7-8")
    decoys.program.ask("files 3")
    connect(HOST_4, 7)
    deadline = time.monotonic() + DEADLINE_S
    while "Too many open files" not in decoys.program.errors:
        assert time.monotonic() < deadline, "nothing is said"
        time.sleep(0.05)
    began = cpu_s(decoys.program.process.pid)
    # The measured time itself, not a wait for something.
    time.sleep(2.0)
    assert cpu_s(decoys.program.process.pid) - began <= 0.2
    decoys.program.ask("files")
    assert decoys.ports(1) == [7]
    assert decoys.program.errors.count("Too many open files") == 1


def test_datagrams_to_broadcast_and_multicast_addresses_never_count(watch: Callable[..., Watch]) -> None:
    decoys = watch(udp="7-9")
    inside(PEER, "ip", "route", "add", "224.0.0.0/4", "dev", "veth0")
    for address in ("192.0.2.255", "255.255.255.255", "224.0.0.1"):
        outside(SEND_UDP, PEER_4, address, 7, 7, 1)
    outside(SEND_UDP, PEER_6, "ff02::1%veth0", 8, 8, 1)
    outside(SEND_UDP, PEER_4, HOST_4, 9, 9, 1)
    assert decoys.ports(1) == [9]


@pytest.mark.parametrize(
    ("interfaces", "expected"),
    [
        (["all"], {"tcp 7 192.0.2.1", "tcp 7 192.0.2.77", "udp 7 192.0.2.1", "udp 7 192.0.2.77"}),
        (["all-but-loopback"], {"tcp 7 192.0.2.1", "tcp 7 192.0.2.77", "udp 7 192.0.2.1", "udp 7 192.0.2.77"}),
        (["veth0", "lo"], {"tcp 7 192.0.2.1", "udp 7 192.0.2.1"}),
        (["veth1"], {"tcp 7 192.0.2.77", "udp 7 192.0.2.77"}),
    ],
)
def test_a_probe_counts_by_the_interface_it_came_in_by_not_by_its_destination(
    watch: Callable[..., Watch], interfaces: list[str], expected: set[str]
) -> None:
    decoys = watch(tcp="7", udp="7", interfaces=interfaces)
    # Both are addresses of veth0, but the way to the second leads over veth1.
    for address in (HOST_4, ASIDE_4):
        connect(address, 7)
        outside(SEND_UDP, "0.0.0.0", address, 7, 7, 1)
    probes = decoys.probes(len(expected))
    assert {f"{probe[2]} {probe[1]} {probe[5]}" for probe in probes} == expected
    assert len(probes) == len(expected)


def test_an_interface_counts_for_ipv6_connections_too(watch: Callable[..., Watch]) -> None:
    decoys, others = watch(tcp="7", interfaces=["veth0"]), watch(tcp="8", interfaces=["veth1"])
    connect(HOST_6, 7)
    connect(HOST_6, 8)
    connect(HOST_4, 7)
    connect(ASIDE_4, 8)
    assert [probe[6] for probe in decoys.probes(2)] == [6, 4]
    assert [probe[6] for probe in others.probes(1)] == [4]


def test_an_interface_that_goes_and_comes_again_counts(watch: Callable[..., Watch]) -> None:
    def link() -> None:
        ip("-n", HOST, "link", "add", "veth7", "type", "veth", "peer", "name", "veth7", "netns", PEER)
        for name, address in ((HOST, "192.0.2.65"), (PEER, "192.0.2.66")):
            ip("-n", name, "address", "add", f"{address}/30", "dev", "veth7")
            ip("-n", name, "link", "set", "veth7", "up")

    link()
    try:
        decoys = watch(tcp="7-9", interfaces=["veth7"])
        connect("192.0.2.65", 7)
        assert decoys.ports(1) == [7]
        ip("-n", HOST, "link", "delete", "veth7")
        link()
        connect("192.0.2.65", 8)
        assert decoys.ports(2) == [7, 8]
    finally:
        ip("-n", HOST, "link", "delete", "veth7")


def test_datagrams_without_room_are_counted(start: Callable[..., Program]) -> None:
    program = start(HOST, DECOYS, json.dumps({"udp": "7"}))
    outside(SEND_UDP, PEER_4, HOST_4, 7, 7, 3000)
    assert program.ask("run") is True
    decoys = Watch(program)
    deadline = time.monotonic() + DEADLINE_S
    while (seen := decoys.count(1)) + (dropped := decoys.usage()["dropped"]) < 3000:
        assert time.monotonic() < deadline, (seen, dropped)
    assert dropped > 0
    assert seen + dropped == 3000


def test_decoys_that_cover_the_ports_for_outgoing_traffic_warn(watch: Callable[..., Watch]) -> None:
    inside(HOST, "sh", "-c", "echo 40000 40009 > /proc/sys/net/ipv4/ip_local_port_range")
    try:
        decoys = watch(tcp="40000-40005", udp="40000-40004")
    finally:
        inside(HOST, "sh", "-c", "echo 32768 60999 > /proc/sys/net/ipv4/ip_local_port_range")
    assert decoys.program.errors == (
        "WARNING decoys stand on most of the ports for this host's outgoing traffic, which may run out of them "
        "protocol=tcp ports=6 of=10\n"
        "INFO watching decoys=22 interfaces=all\n"
    )


def test_they_stop_within_a_second_and_use_no_cpu_while_idle(watch: Callable[..., Watch]) -> None:
    decoys = watch(tcp="1-1023", udp="1-1023")
    before = cpu_s(decoys.program.process.pid)
    # The measured time itself, not a wait for something.
    time.sleep(3.0)
    assert cpu_s(decoys.program.process.pid) - before <= 0.02
    assert decoys.program.end() < 1.5
    assert decoys.program.line() == "false\n"


def cpu_s(pid: int) -> float:
    """Return the processor time of a process; `ip netns exec` becomes the program it starts."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:  # noqa: PTH123
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
