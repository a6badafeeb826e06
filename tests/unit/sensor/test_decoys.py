import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from jailbridge.errors import FatalError
from jailbridge.sensor import decoy_sockets
from jailbridge.sensor.decoy_sockets import abandoned_ports, arrived, backlog_of, listen
from jailbridge.sensor.decoys import Decoys

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LINE = "   0: {local} 0200000A:9C40 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 0 100\n"
OURS = socket.inet_aton("192.0.2.1")


def pktinfo(local: bytes, destination: bytes, index: int = 2) -> tuple[int, int, bytes]:
    return socket.IPPROTO_IP, 8, struct.pack("=i4s4s", index, local, destination)


def pktinfo6(destination: str, index: int = 2) -> tuple[int, int, bytes]:
    data = socket.inet_pton(socket.AF_INET6, destination) + struct.pack("=i", index)
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, data


def table(*sockets: tuple[str, str, int]) -> list[str]:
    lines = [LINE.format(local=local, state=state, inode=inode) for local, state, inode in sockets]
    return [HEAD, *lines]


def test_a_unicast_destination_is_told_with_its_interface() -> None:
    assert arrived([pktinfo(OURS, OURS, 3)]) == (3, 0xC0000201)
    assert arrived([pktinfo6("2001:db8::1", 4)]) == (4, 0x20010DB8 << 96 | 1)


def test_the_destination_is_found_beside_other_news() -> None:
    assert arrived([(socket.SOL_SOCKET, 40, b"\0" * 4), pktinfo(OURS, OURS, 3)]) == (3, 0xC0000201)


@pytest.mark.parametrize("destination", ["192.0.2.255", "255.255.255.255", "224.0.0.1"])
def test_a_broadcast_or_multicast_address_is_no_destination(destination: str) -> None:
    assert arrived([pktinfo(OURS, socket.inet_aton(destination))]) is None


def test_an_ipv6_multicast_address_is_no_destination() -> None:
    assert arrived([pktinfo6("ff02::1")]) is None


@pytest.mark.parametrize(
    "ancillary",
    [[], [(socket.IPPROTO_IP, 8, b"\0" * 11)], [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, b"\0" * 19)]],
)
def test_without_a_whole_pktinfo_nothing_is_told(ancillary: list[tuple[int, int, bytes]]) -> None:
    assert arrived(ancillary) is None


def test_a_port_that_only_closed_connections_use_is_abandoned() -> None:
    closed = ("0100000A:0007", "06", 0), ("0" * 24 + "0100000A:0009", "05", 0)
    assert abandoned_ports(table(*closed)) == {7, 9}


def test_a_port_that_a_program_uses_too_is_not_abandoned() -> None:
    used = ("00000000:0007", "0A", 4711), ("0100000A:0009", "01", 4712)
    closed = ("0100000A:0007", "06", 0), ("0100000A:0009", "06", 0), ("0100000A:000B", "06", 0)
    assert abandoned_ports(table(*used, *closed)) == abandoned_ports(table(*closed, *used)) == {11}


def test_all_queues_together_are_bounded_and_none_is_tiny_or_beyond_use() -> None:
    assert backlog_of(1) == 4096
    assert backlog_of(2046) == 256
    assert backlog_of(131070) == 128
    assert backlog_of(0) == 4096


def open_files() -> int:
    return sum(1 for _ in decoy_sockets.FILES.iterdir())


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago, below those for outgoing traffic."""
    for port in range(21000, 32000):
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("", port))
                udp.bind(("", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


def test_all_that_was_opened_is_closed(port: int) -> None:
    before = open_files()
    with Decoys([(port, port)], [(port, port)]):
        assert open_files() >= before + 3
    assert open_files() == before


def test_all_that_was_opened_is_closed_when_it_cannot_begin(port: int) -> None:
    with socket.create_server(("", port)):
        before = open_files()
        with pytest.raises(FatalError, match="every port to watch has a live service"):
            Decoys([(port, port)], []).__enter__()
        assert open_files() == before


def test_the_ports_left_alone_are_named_once_as_ranges(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level("INFO", "jailbridge.sensor"),
        socket.create_server(("127.0.0.1", port)),
        Decoys([(port, port)], [(port, port)]),
    ):
        assert caplog.messages == [f"ports with a live service are left alone protocol=tcp ports={port}"]


def test_it_is_ready_while_it_watches(port: int) -> None:
    stop = threading.Event()
    with Decoys([(port, port)], []) as watcher:
        assert not watcher.ready.is_set()
        thread = threading.Thread(target=watcher.run, args=(stop, lambda probes, now: None))
        thread.start()
        assert watcher.ready.wait(10)
        stop.set()
        thread.join(10)
        assert not watcher.ready.is_set()


@pytest.fixture
def decoy() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        yield made


def test_a_port_that_becomes_free_while_it_is_looked_at_is_listened_on(decoy: socket.socket) -> None:
    used = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    used.bind(("", 0))
    port = used.getsockname()[1]

    def abandoned(_family: socket.AddressFamily) -> frozenset[int]:
        # The last remains of a connection go after their minute.
        used.close()
        return frozenset()

    listen(decoy, port, 1, abandoned)
    assert decoy.getsockname()[1] == port


def test_a_port_that_a_program_uses_is_left_to_it(decoy: socket.socket) -> None:
    with socket.create_server(("", 0)) as used, pytest.raises(OSError, match="in use"):
        listen(decoy, used.getsockname()[1], 1, lambda _family: frozenset())
