"""The sensor in a network namespace of its own, scanned by the real nmap from another."""

import json
import os
import queue
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

DEADLINE_S = 20.0
HOST, PEER = f"jbs{os.getpid()}h", f"jbs{os.getpid()}p"
HOST_4, PEER_4, OTHER_4, LATER_4 = "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.9"
HOST_6, PEER_6 = "2001:db8::1", "2001:db8::2"
NODAD: dict[str, tuple[str, ...]] = {HOST_4: ("brd", "+"), HOST_6: ("nodad",)}
NMAP = ["nmap", "-n", "-Pn", "--disable-arp-ping", "--max-retries", "1", "--host-timeout", "15s"]

SENSOR = """
import json, logging, os, sys, threading
from jailbridge.config.settings import SensorSettings
from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.network import parse_network
from jailbridge.sensor.sensor import Sensor

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
switches = {"full": False, "banned": False}

def say(**what):
    print(json.dumps(what), flush=True)

def report(batch):
    if switches["full"]:
        raise RetryLater("disk full")
    for event, newly, _ in batch:
        say(address=str(event.address), port=event.port, protocol=event.protocol, kind=event.kind,
            triggered=event.triggered, newly=newly, options=event.ip_options,
            flags=None if event.flags is None else event.flags.letters)
    return len(batch)

sensor = Sensor(SensorSettings(**json.loads(sys.argv[1])), 64, lambda _: switches["banned"])
stop = threading.Event()

def obey():
    sensor.ready.wait()
    say(ready=True)
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "forget":
            sensor.forget(parse_network(rest))
        else:
            switches[word] = rest == "on"
        say(done=line.strip())
    stop.set()

threading.Thread(target=obey, daemon=True).start()
try:
    with sensor:
        sensor.run(stop, report)
except FatalError as error:
    sys.exit(str(error))
times = os.times()
say(stopped=not sensor.ready.is_set(), cpu_s=times.user + times.system)
"""

CAPTURE = """
import json, socket, sys, threading
from jailbridge.sensor.stealth import Stealth

seen, stop = [], threading.Event()
def take(probes, now):
    seen.extend(probe.port for probe in probes)
    if 502 in seen:
        stop.set()

with Stealth([], [(1, 1023)], interfaces=json.loads(sys.argv[1]), skip_own=False) as stealth:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("192.0.2.1", 7))
    print(json.dumps({"ready": True}), flush=True)
    stealth.run(stop, take)
print(json.dumps({"seen": sorted(seen)}))
"""

FLOOD = """
import logging, socket
from contextlib import closing
from jailbridge.sensor import bpf
from jailbridge.sensor.capture import Capture

logging.basicConfig(format="%(levelname)s %(message)s")
program = bpf.program(bpf.Watched(tcp=[], udp=[(7, 7)]))
with closing(Capture(program, frames=256)) as capture:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(1000):
            sock.sendto(b"x", ("127.0.0.1", 7))
    kept = sum(len(batch) for batch in capture.batches())
    print(capture.count_drops(), capture.count_drops(), capture.dropped, kept)
"""

SERVICE = """
import socket
with socket.create_server(("", 80)) as server:
    print("{}", flush=True)
    while True:
        connection, _ = server.accept()
        connection.sendall(b"hello")
        connection.close()
"""

ONE_CONNECTION_EACH = f"""
import socket
control = socket.create_server(("{HOST_4}", 2121))
print("{{}}", flush=True)
peer, _ = control.accept()
for port in range(20001, 20011):
    with socket.create_server(("{HOST_4}", port)) as passive:
        peer.sendall(b"%d\\n" % port)
        data, _ = passive.accept()
    with data:
        while data.recv(4096): pass
peer.close()
"""
UPLOADS = f"""
import socket
with socket.create_connection(("{HOST_4}", 2121)) as control, control.makefile("r") as ports:
    for port in ports:
        with socket.create_connection(("{HOST_4}", int(port))) as data:
            data.sendall(b"x")
"""
MANY_LIVE = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (3000, 3000))
live = [socket.create_server(("127.0.0.1", port)) for port in range(3001, 8201, 2)]
print("{}", flush=True)
sys.stdin.read()
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def inside(namespace: str, *argv: str) -> subprocess.CompletedProcess[str]:
    command = ["ip", "netns", "exec", namespace, *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S * 2, check=False)


def nmap(*arguments: str) -> str:
    done = inside(PEER, *NMAP, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def send_udp(address: str, port: int, *, source: str = OTHER_4, namespace: str = PEER) -> None:
    script = (
        "import socket, sys\n"
        "sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)\n"
        "sock.bind((sys.argv[1], 0))\n"
        "sock.sendto(b'x', (sys.argv[2], int(sys.argv[3])))\n"
    )
    done = inside(namespace, sys.executable, "-c", script, source, address, str(port))
    assert done.returncode == 0, done.stderr


def send_frames(*frames: bytes, ethertype: int = 0x86DD) -> None:
    """Send frames as they are from the peer's link to the host's; each begins after the Ethernet header."""
    link = json.loads(inside(HOST, "ip", "-json", "link", "show", "veth0").stdout)[0]["address"]
    script = (
        "import socket, sys\n"
        "to = ('veth0', int(sys.argv[2]), 0, 0, bytes.fromhex(sys.argv[1].replace(':', '')))\n"
        "with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sock:\n"
        "    for frame in sys.argv[3:]:\n"
        "        sock.sendto(bytes.fromhex(frame), to)\n"
    )
    done = inside(PEER, sys.executable, "-c", script, link, str(ethertype), *(frame.hex() for frame in frames))
    assert done.returncode == 0, done.stderr


def ipv6_udp(source: str, port: int, *, extensions: bytes = b"", following: int = 17) -> bytes:
    payload = extensions + struct.pack("!HHHH", 9999, port, 8, 0)
    head = struct.pack("!IHBB", 6 << 28, len(payload), following, 64)
    return head + ip_address(source).packed + ip_address(HOST_6).packed + payload


class Program:
    """A Python script in the host's namespace: JSON lines come out, lines go in."""

    def __init__(self, script: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", HOST, sys.executable, "-c", script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.errors: list[str] = []
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for reader in self._readers:
            reader.start()

    def next(self) -> dict[str, Any]:
        try:
            return self._lines.get(timeout=DEADLINE_S)
        except queue.Empty:
            raise AssertionError(f"nothing came within {DEADLINE_S} s; stderr: {self.errors}") from None

    def until(self, is_last: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Return the lines before the first one for which `is_last` holds."""
        lines = []
        while not is_last(line := self.next()):
            lines.append(line)
        return lines

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self) -> list[dict[str, Any]]:
        """Close its input, wait for its end, and return the lines it still had to say."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(DEADLINE_S)
        self._join()
        return list(self._lines.queue)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)
        self._join()

    def _join(self) -> None:
        for reader in self._readers:
            reader.join(DEADLINE_S)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(json.loads(line))

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(line.rstrip() for line in self.process.stderr)


class Watch:
    """A running sensor. A marker, a probe from another source, shows that all before it has been seen."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._marker = 1000

    def events(self) -> list[dict[str, Any]]:
        self._marker += 1
        port = self._marker
        send_udp(HOST_4, port)
        return self.program.until(lambda line: line.get("port") == port and line["address"] == OTHER_4)

    def ports(self) -> list[int]:
        return sorted(event["port"] for event in self.events())

    def tell(self, line: str) -> None:
        self.program.tell(line)
        assert self.program.until(lambda said: said.get("done") == line) == []


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> Iterator[None]:
    names = (HOST, PEER)
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "veth0", "netns", HOST, "type", "veth", "peer", "name", "veth0", "netns", PEER)
        for name, addresses in ((HOST, (HOST_4, HOST_6)), (PEER, (PEER_4, OTHER_4, PEER_6))):
            for address in addresses:
                bits = ["64", "nodad"] if ":" in address else ["24", "brd", "+"]
                ip("-n", name, "address", "add", f"{address}/{bits[0]}", "dev", "veth0", *bits[1:])
            ip("-n", name, "link", "set", "veth0", "up")
        ip("-n", PEER, "route", "add", "198.51.100.0/24", "via", HOST_4)
        deadline = time.monotonic() + DEADLINE_S
        for name in names:
            while "state UP" not in inside(name, "ip", "link", "show", "veth0").stdout:
                assert time.monotonic() < deadline, f"the link in {name} does not come up"
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    programs: list[Program] = []

    def begin(script: str, *arguments: str) -> Program:
        programs.append(Program(script, *arguments))
        assert programs[-1].next() is not None
        return programs[-1]

    yield begin
    for program in programs:
        if program.process.returncode is None:
            program.kill()


@pytest.fixture
def watch(start: Callable[..., Program]) -> Callable[..., Watch]:
    def begin(**settings: Any) -> Watch:
        return Watch(start(SENSOR, json.dumps({"udp_ports": "1-2000", **settings})))

    return begin


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize(
    ("scan", "kind"), [("-sS", "syn"), ("-sU", "udp"), ("-sF", "fin"), ("-sN", "null"), ("-sX", "xmas")]
)
def test_the_third_port_of_a_scan_triggers(watch: Callable[..., Watch], scan: str, kind: str, family: str) -> None:
    sensor = watch()
    version, target, source = ([], HOST_4, PEER_4) if family == "ipv4" else (["-6"], HOST_6, PEER_6)
    nmap(*version, scan, "-p", "11,15,79", target)
    events = sensor.events()
    assert sorted(event["port"] for event in events) == [11, 15, 79]
    assert {event["address"] for event in events} == {source}
    assert {(event["kind"], event["protocol"]) for event in events} == {(kind, "udp" if kind == "udp" else "tcp")}
    assert [event["triggered"] for event in events] == [False, False, True]
    assert [event["newly"] for event in events] == [False, False, True]


def test_two_ports_do_not_trigger_however_often_they_are_probed(watch: Callable[..., Watch]) -> None:
    sensor = watch()
    for scan in ("-sS", "-sF", "-sX"):
        nmap(scan, "-p", "11,15", HOST_4)
    events = sensor.events()
    assert sorted((event["port"], event["newly"]) for event in events) == [(11, False), (15, False)]


def test_excluded_and_unlisted_ports_are_not_counted(watch: Callable[..., Watch]) -> None:
    sensor = watch(tcp_ports="1-100", exclude_tcp_ports="22-25,79")
    nmap("-sS", "-p", "11,22,23,24,25,79,100,101", HOST_4)
    assert sensor.ports() == [11, 100]


def test_answers_and_stray_acks_are_not_counted(watch: Callable[..., Watch]) -> None:
    sensor = watch()
    nmap("-sA", "-p", "11,15,79", HOST_4)
    nmap("-sM", "-p", "11,15,79", HOST_4)
    assert sensor.ports() == []


def test_a_scan_in_tiny_fragments_is_seen(watch: Callable[..., Watch]) -> None:
    sensor = watch()
    nmap("-sS", "-f", "-p", "11,15,79", HOST_4)
    events = sensor.events()
    assert sorted(event["port"] for event in events) == [11, 15, 79]
    assert {event["kind"] for event in events} == {"other"}
    assert events[-1]["newly"]


def test_a_live_service_is_neither_counted_nor_disturbed(
    watch: Callable[..., Watch], start: Callable[..., Program]
) -> None:
    sensor = watch()
    start(SERVICE)  # bound after the sensor began
    scanned = nmap("-sS", "-p", "79,80,81", HOST_4)
    assert "80/tcp open" in scanned
    assert sensor.ports() == [79, 81]
    script = f"import socket; print(socket.create_connection(('{HOST_4}', 80), 5).recv(9))"
    assert inside(PEER, sys.executable, "-c", script).stdout == "b'hello'\n"
    assert sensor.ports() == []


def test_broadcast_multicast_foreign_destinations_and_own_packets_never_count(watch: Callable[..., Watch]) -> None:
    sensor = watch()
    for address in ("192.0.2.255", "255.255.255.255", "224.0.0.1", "198.51.100.7"):
        send_udp(address, 11, source=PEER_4)
    send_udp(HOST_4, 12, source=HOST_4, namespace=HOST)
    assert sensor.ports() == []


def test_a_forged_ipv6_source_that_reads_as_an_ipv4_address_is_not_reported(watch: Callable[..., Watch]) -> None:
    sensor = watch()
    send_frames(ipv6_udp("::ffff:192.0.2.77", 11), ipv6_udp("2001:db8::77", 12))
    assert [(event["address"], event["port"]) for event in sensor.events()] == [("2001:db8::77", 12)]


def test_behind_ipv6_extension_headers_only_watched_ports_count(watch: Callable[..., Watch]) -> None:
    sensor = watch(udp_ports="1-100,1001-1023", tcp_ports="")
    padding = bytes([0, 1, 4, 0, 0, 0, 0, 0])  # PadN, and the next header's number first
    for following in (17, 60):
        chain = bytes([following]) + bytes([0]) + padding[2:]
        if following == 60:
            chain += bytes([17, 1]) + bytes([1, 12]) + bytes(12)
        send_frames(*(ipv6_udp(PEER_6, port, extensions=chain, following=0) for port in (following, 500)))
    assert sensor.ports() == [17, 60]


def test_a_frame_with_a_vlan_tag_of_nobody_here_does_not_count(watch: Callable[..., Watch]) -> None:
    sensor = watch()
    # Priority 7 in each; the second is of no VLAN, and the host answers it.
    for vlan, port in ((10, 11), (0, 12)):
        send_frames(struct.pack("!HH", 0xE000 | vlan, 0x86DD) + ipv6_udp(PEER_6, port), ethertype=0x8100)
    send_frames(ipv6_udp(PEER_6, 13))
    assert sensor.ports() == [12, 13]


def test_a_packet_to_a_bridge_counts_once(start: Callable[..., Program]) -> None:
    addresses = (HOST_4, HOST_6)
    ip("-n", HOST, "link", "add", "br0", "type", "bridge")
    try:
        ip("-n", HOST, "address", "flush", "dev", "veth0")
        ip("-n", HOST, "link", "set", "veth0", "master", "br0")
        for address in addresses:
            ip("-n", HOST, "address", "add", f"{address}/{64 if ':' in address else 24}", "dev", "br0", *NODAD[address])
        ip("-n", HOST, "link", "set", "br0", "up")
        capture = start(CAPTURE, '["all-but-loopback"]')
        for port in (500, 501, 502):
            send_udp(HOST_4, port)
        assert capture.next() == {"seen": [500, 501, 502]}
    finally:
        ip("-n", HOST, "link", "delete", "br0")
        for address in addresses:
            size = 64 if ":" in address else 24
            ip("-n", HOST, "address", "add", f"{address}/{size}", "dev", "veth0", *NODAD[address])


def test_ip_options_and_odd_flags_are_told(watch: Callable[..., Watch]) -> None:
    sensor = watch()
    nmap("-sS", "--ip-options", "R", "-p", "11", HOST_4)
    nmap("-sS", "--scanflags", "SYNFIN", "-p", "12", HOST_4)
    nmap("-sU", "-p", "13", HOST_4)
    told = [(event["port"], event["kind"], event["options"], event["flags"]) for event in sensor.events()]
    assert told == [(11, "syn", True, "S"), (12, "other", False, "FS"), (13, "udp", False, "-")]


@pytest.mark.parametrize(("scan", "kind", "flags"), [("-sA", "ack", "A"), ("-sW", "ack", "A"), ("-sM", "other", "FA")])
def test_ack_window_and_maimon_scans_are_seen_where_asked_for(
    watch: Callable[..., Watch], scan: str, kind: str, flags: str
) -> None:
    sensor = watch(ack_scans=True, tcp_ports="1-65535")
    nmap(scan, "-p", "11,15,79,45000", HOST_4)  # 45000: there the host's own connections begin
    events = sensor.events()
    assert sorted(event["port"] for event in events) == [11, 15, 79]
    assert {(event["kind"], event["flags"]) for event in events} == {(kind, flags)}
    assert [event["newly"] for event in events] == [False, False, True]


def test_connections_and_live_services_are_no_ack_scans(
    watch: Callable[..., Watch], start: Callable[..., Program]
) -> None:
    sensor = watch(ack_scans=True)
    service = start(SERVICE)
    nmap("-sA", "-p", "80", HOST_4)
    script = (
        "import socket, sys\n"
        f"peer = socket.create_connection(('{HOST_4}', 80), 5)\n"
        "print(peer.recv(9), flush=True)\n"
        "sys.stdin.readline()\n"
        "peer.sendall(b'more')\n"
    )
    client = subprocess.Popen(
        ["ip", "netns", "exec", PEER, sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == "b'hello'\n"
        # The connection goes on (here: is being closed) after the service has stopped listening.
        service.kill()
        client.communicate("go\n", timeout=DEADLINE_S)
    finally:
        client.kill()
        client.wait()
    assert sensor.ports() == []


@pytest.mark.parametrize("ack_scans", [False, True])
def test_ports_that_listened_for_one_connection_each_count_for_nobody_whom_they_let_in(
    watch: Callable[..., Watch], start: Callable[..., Program], ack_scans: bool
) -> None:
    # As FTP's passive mode: when the sensor looks, the listening socket is closed, and the connection too, often.
    sensor = watch(tcp_ports="1-65535", ack_scans=ack_scans)
    start(ONE_CONNECTION_EACH)
    uploads = inside(PEER, sys.executable, "-c", UPLOADS)
    assert uploads.returncode == 0, uploads.stderr
    assert sensor.ports() == []
    # Those above never had a service.
    nmap("-sS", "-p", "20011,20012", HOST_4)
    assert sensor.ports() == [20011, 20012]


def test_more_live_ports_than_the_filter_has_room_for_end_nothing(
    watch: Callable[..., Watch], start: Callable[..., Program]
) -> None:
    sensor = watch(tcp_ports="1-65535", ack_scans=True)
    # Any user may open so many.
    start(MANY_LIVE)
    # The filter is to fit them once a second.
    time.sleep(2.0)
    nmap("-sA", "-p", "3001,3002,3003,3004", HOST_4)
    assert sensor.ports() == [3002, 3004]


def test_a_filter_that_takes_most_of_the_room_for_filters_is_exchanged_for_another(
    watch: Callable[..., Watch],
) -> None:
    ip("-n", HOST, "link", "add", "veth6", "type", "veth", "peer", "name", "veth6", "netns", PEER)
    # Before Linux 6.8 this is the limit of the whole machine, and not to be seen in here.
    inside(HOST, "sysctl", "-w", "net.core.optmem_max=20480")
    sensor = watch(tcp_ports=",".join(map(str, range(1, 1300, 2))), interfaces=["veth0", "veth6"])
    ip("-n", HOST, "link", "delete", "veth6")
    changed = time.monotonic()
    while not any("interfaces changed" in line for line in sensor.program.errors):
        assert time.monotonic() - changed < DEADLINE_S
        time.sleep(0.05)
    nmap("-sS", "-p", "1,4,5", HOST_4)
    assert sensor.ports() == [1, 5]


def test_peers_that_a_service_leaves_behind_are_no_ack_scanners(
    watch: Callable[..., Watch], start: Callable[..., Program]
) -> None:
    service = start(SERVICE)
    sensor = watch(ack_scans=True)
    # The filter has taken the port out and put it in again; as from a connection that a crash has reset.
    time.sleep(1.5)
    service.kill()
    time.sleep(1.5)
    nmap("-sA", "-p", "80,81", HOST_4)
    assert sensor.ports() == [81]


def test_late_answers_to_a_resolver_that_picks_its_own_ports_are_no_probes(watch: Callable[..., Watch]) -> None:
    sensor = watch(udp_ports="1-65535")
    script = (
        "import socket\n"
        "for port in (1053, 9053, 30053):\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:\n"
        "        sock.bind(('', port))\n"
        f"        sock.sendto(b'question', ('{PEER_4}', 53))\n"
    )
    assert inside(HOST, sys.executable, "-c", script).returncode == 0
    for port in (1053, 9053, 30053):
        send_udp(HOST_4, port, source=PEER_4)
    assert sensor.ports() == []


def test_answers_to_the_hosts_own_questions_are_no_probes(watch: Callable[..., Watch]) -> None:
    sensor = watch(udp_ports="1-65535")
    script = (
        "import socket, struct\n"
        # From no UDP socket: that would be a service for a minute, if the sensor looks in just that moment.
        "with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as sock:\n"
        f"    sock.sendto(struct.pack('!4H8s', 40001, 53, 16, 0, b'question'), ('{PEER_4}', 0))\n"
    )
    done = inside(HOST, sys.executable, "-c", script)
    assert done.returncode == 0, done.stderr
    # The answers come from the server's port and from another (TFTP).
    send_udp(HOST_4, 40001, source=PEER_4)
    send_udp(HOST_4, 40002, source=PEER_4)
    send_udp(HOST_4, 40001, source=OTHER_4)
    assert sorted((event["address"], event["port"]) for event in sensor.events()) == [(PEER_4, 40002), (OTHER_4, 40001)]


def test_an_interface_may_vanish_and_come_again(watch: Callable[..., Watch]) -> None:
    ip("-n", HOST, "link", "add", "veth7", "type", "veth", "peer", "name", "veth7", "netns", PEER)
    try:
        sensor = watch(interfaces=["veth0", "veth7"])
        for n in (1, 2):
            address = f"203.0.113.{n}"
            if n == 2:
                ip("-n", HOST, "link", "delete", "veth7")
                ip("-n", HOST, "link", "add", "veth7", "type", "veth", "peer", "name", "veth7", "netns", PEER)
            ip("-n", HOST, "address", "add", f"{address}/24", "dev", "veth7")
            ip("-n", PEER, "address", "add", "203.0.113.9/24", "dev", "veth7")
            for namespace in (HOST, PEER):
                ip("-n", namespace, "link", "set", "veth7", "up")
            deadline, seen = time.monotonic() + DEADLINE_S, []
            while 20 + n not in seen:
                assert time.monotonic() < deadline
                send_udp(address, 20 + n, source="203.0.113.9")
                seen = sensor.ports()
        # Gone and back may be one event, or several.
        told = [line for line in sensor.program.errors if "interfaces changed" in line]
        assert told[-1] == "INFO interfaces changed watching=veth0,veth7 missing="
    finally:
        ip("-n", HOST, "link", "delete", "veth7")


def test_an_address_that_the_host_gets_later_is_watched_too(watch: Callable[..., Watch]) -> None:
    sensor = watch()
    send_udp("198.51.100.7", 11, source=PEER_4)
    ip("-n", HOST, "address", "add", f"{LATER_4}/24", "dev", "veth0")
    try:
        deadline = time.monotonic() + DEADLINE_S
        seen: list[int] = []
        while 12 not in seen:
            assert time.monotonic() < deadline
            send_udp(LATER_4, 12, source=PEER_4)
            seen = sensor.ports()
    finally:
        ip("-n", HOST, "address", "delete", f"{LATER_4}/24", "dev", "veth0")


def test_a_scanner_is_news_again_only_when_forgotten(watch: Callable[..., Watch]) -> None:
    sensor = watch()
    nmap("-sS", "-p", "11,15,79", HOST_4)
    assert [event["newly"] for event in sensor.events()].count(True) == 1
    nmap("-sS", "-p", "11,15,79,80", HOST_4)
    assert [(event["port"], event["newly"]) for event in sensor.events()] == [(80, False)]
    sensor.tell(f"forget {PEER_4}")
    nmap("-sS", "-p", "11,15,79", HOST_4)
    assert [event["newly"] for event in sensor.events()] == [False, False, True]


def test_a_banned_source_is_triggered_but_not_newly(watch: Callable[..., Watch]) -> None:
    sensor = watch()
    sensor.tell("banned on")
    nmap("-sS", "-p", "11,15,79", HOST_4)
    events = sensor.events()
    assert [(event["triggered"], event["newly"]) for event in events] == [(False, False)] * 2 + [(True, False)]


def test_a_scan_that_could_not_be_reported_is_reported_at_the_next_try(watch: Callable[..., Watch]) -> None:
    sensor = watch()
    sensor.tell("full on")
    nmap("-sS", "-p", "11,15,79", HOST_4)
    sensor.tell("full off")
    assert sensor.events() == []
    nmap("-sS", "-p", "11,15,79", HOST_4)
    assert [event["newly"] for event in sensor.events()] == [False, False, True]
    sensor.program.end()
    failures = [line for line in sensor.program.errors if "disk full" in line]
    assert failures == ["ERROR scans cannot be reported, trying again with each probe: disk full"]


def test_it_stops_soon_after_it_is_told_and_uses_no_cpu_while_idle(watch: Callable[..., Watch]) -> None:
    sensor = watch()
    began = time.monotonic()
    before = cpu_s(sensor.program.process.pid)
    # The measured time itself, not a wait for something.
    time.sleep(3.0)
    assert cpu_s(sensor.program.process.pid) - before <= 0.02
    asked = time.monotonic()
    last = sensor.program.end()[-1]
    assert last["stopped"] is True
    assert time.monotonic() - asked < 2.0
    assert asked - began >= 3.0


def cpu_s(pid: int) -> float:
    """Return the processor time of a process; `ip netns exec` becomes the program it starts."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:  # noqa: PTH123
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    ("interfaces", "expected"),
    [
        (["all"], [7, 500, 501, 502]),
        (["all", "veth0"], [7, 500, 501, 502]),
        (["all-but-loopback"], [500, 501, 502]),
        (["lo", "veth0"], [7, 500, 501, 502]),
        (["veth0"], [500, 501, 502]),
    ],
)
def test_each_packet_is_captured_once_on_the_interfaces_asked_for(
    start: Callable[..., Program], interfaces: list[str], expected: list[int]
) -> None:
    capture = start(CAPTURE, json.dumps(interfaces))
    for port in (500, 501, 502):
        send_udp(HOST_4, port)
    assert capture.next() == {"seen": expected}


def test_packets_that_the_kernel_drops_are_counted_and_logged() -> None:
    done = inside(HOST, sys.executable, "-c", FLOOD)
    first, second, total, kept = (int(number) for number in done.stdout.split())
    assert first == total == 1000 - kept > 0
    assert second == 0
    assert done.stderr == f"WARNING kernel drops dropped={first} seen=1000\n"


def test_an_unknown_interface_is_an_error_that_names_it() -> None:
    done = inside(HOST, sys.executable, "-c", SENSOR, '{"interfaces": ["nosuch0"]}')
    assert done.returncode == 1
    assert done.stderr == "sensor.interfaces names 'nosuch0', which is not on this host: it has lo veth0\n"


def test_without_the_capability_it_says_what_it_needs() -> None:
    dropped = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw"]
    done = inside(HOST, *dropped, sys.executable, "-c", SENSOR, "{}")
    assert done.returncode == 1
    assert done.stderr == "the sensor may not capture packets: run as root or with CAP_NET_RAW\n"


def test_it_needs_no_other_capability_than_net_raw() -> None:
    alone = ["setpriv", "--bounding-set=-all,+net_raw", "--inh-caps=-all", "--reuid=0"]
    script = SENSOR.replace("sensor.ready.wait()", "sensor.ready.wait(); stop.set()")
    done = inside(HOST, *alone, sys.executable, "-c", script, "{}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "INFO watching interfaces=all\n"
