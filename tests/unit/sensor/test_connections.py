import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest

from jailbridge.errors import FatalError
from jailbridge.sensor.connections import CLOSING_S, MAX_KNOWN, Connections, ephemeral_ports

LOOPBACK = int(ip_address("127.0.0.1"))
SIXTH = int(ip_address("::1"))


@pytest.fixture
def connections() -> Iterator[Connections]:
    with closing(Connections()) as connections:
        yield connections


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client and the server's end of its connection, with the listening socket closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    with client, accepted:
        yield client, accepted


def ports(pair: tuple[socket.socket, socket.socket]) -> tuple[int, int]:
    client, accepted = pair
    return accepted.getsockname()[1], client.getsockname()[1]


def test_both_ends_of_a_connection_exist_and_no_other_port_does(
    connections: Connections, pair: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    near, far = ports(pair)
    assert connections.exists(4, LOOPBACK, near, LOOPBACK, far, 0.0)
    assert connections.exists(4, LOOPBACK, far, LOOPBACK, near, 0.0)
    assert not connections.exists(4, LOOPBACK, near, LOOPBACK, 1, 0.0)
    assert not connections.exists(4, LOOPBACK, 1, LOOPBACK, far, 0.0)
    assert not connections.exists(4, LOOPBACK + 1, near, LOOPBACK, far, 0.0)
    assert not connections.exists(6, SIXTH, near, SIXTH, far, 0.0)
    assert not caplog.records, "a doubt"


def test_a_listening_socket_counts(connections: Connections) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert connections.exists(4, LOOPBACK, port, LOOPBACK, 1, 0.0)
    assert not connections.exists(4, LOOPBACK, port, LOOPBACK, 2, 0.0)


def reset(pair: tuple[socket.socket, socket.socket]) -> None:
    """Take the connection away at both ends, without TIME_WAIT."""
    client, accepted = pair
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    accepted.close()


def test_a_connection_that_went_is_told_as_there_for_a_minute_after_it_was_last_seen(
    connections: Connections, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = ports(pair)
    assert connections.exists(4, LOOPBACK, near, LOOPBACK, far, 100.0)
    reset(pair)
    assert connections.exists(4, LOOPBACK, near, LOOPBACK, far, 100.0 + CLOSING_S - 0.1)
    assert not connections.exists(4, LOOPBACK, near, LOOPBACK, far, 100.0 + CLOSING_S)


def test_one_that_was_never_seen_is_not(connections: Connections, pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = ports(pair)
    reset(pair)
    assert not connections.exists(4, LOOPBACK, near, LOOPBACK, far, 100.0)


def test_one_that_was_seen_within_a_second_is_not_asked_for_again(
    connections: Connections, pair: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    near, far = ports(pair)
    assert connections.exists(4, LOOPBACK, near, LOOPBACK, far, 100.0)
    connections.close()
    assert connections.exists(4, LOOPBACK, near, LOOPBACK, far, 100.9)
    assert not caplog.records
    assert connections.exists(4, LOOPBACK, near, LOOPBACK, far, 101.0)
    assert caplog.records


def test_what_is_remembered_is_bounded(connections: Connections) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for remote in range(1, MAX_KNOWN + 1):
            assert connections.exists(4, LOOPBACK, port, LOOPBACK, remote, 0.0)
        assert connections.exists(4, LOOPBACK, port, LOOPBACK, 2, 1.0)
        for remote in range(MAX_KNOWN + 1, MAX_KNOWN + 100):
            assert connections.exists(4, LOOPBACK, port, LOOPBACK, remote, 1.0)
    assert len(connections._known) == MAX_KNOWN
    assert [r for r in (1, 2, 3, MAX_KNOWN) if connections.exists(4, LOOPBACK, port, LOOPBACK, r, 2.5)] == [
        2,
        MAX_KNOWN,
    ]


def test_link_local_connections_are_taken_for_granted_without_the_interface(connections: Connections) -> None:
    for address, granted in (("fe80::1", True), ("febf::1", True), ("fec0::1", False), ("2001:db8::1", False)):
        remote = int(ip_address(address))
        assert connections.exists(6, SIXTH, 1, remote, 1, 0.0) == granted
        assert not connections.exists(6, SIXTH, 1, remote, 1, 0.0, interface=1)


def test_doubt_is_no_alarm_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    connections = Connections()
    connections.close()
    assert connections.exists(4, LOOPBACK, 1, LOOPBACK, 1, 0.0)
    assert connections.exists(4, LOOPBACK, 2, LOOPBACK, 1, 0.0)
    assert [record.message for record in caplog.records] == [
        "the kernel does not tell whether a connection exists, ACK scans are not seen: Bad file descriptor"
    ]


def test_a_question_that_the_kernel_refuses_is_doubt(
    connections: Connections, caplog: pytest.LogCaptureFixture
) -> None:
    unknown_type = struct.pack("=IHHII56x", 72, 99, 1, 1, 0)
    assert connections._ask(unknown_type)
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == ["Invalid argument"]


def test_a_kernel_without_tcp_diag_is_an_error() -> None:
    def without_module(protocol: object) -> object:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    with pytest.raises(FatalError, match=r"modprobe tcp_diag, or leave sensor\.ack_scans off"):
        Connections(without_module)


def test_the_ephemeral_ports_are_the_kernels(tmp_path: Path) -> None:
    low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()
    assert ephemeral_ports() == range(int(low), int(high) + 1)
    with pytest.raises(FatalError, match="mount /proc"):
        ephemeral_ports(tmp_path / "none")


def test_the_last_ephemeral_port_is_one_of_them(tmp_path: Path) -> None:
    (tmp_path / "range").write_text("1024\t65535\n")
    assert ephemeral_ports(tmp_path / "range") == range(1024, 65536)
