import socket
from pathlib import Path

import pytest

from jailbridge.errors import FatalError
from jailbridge.model.event import Protocol
from jailbridge.sensor.listening import Listening, listening_ports

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LINE = "   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 1 1 0\n"


def table(*sockets: tuple[str, str]) -> str:
    return HEAD + "".join(LINE.format(local=local, state=state) for local, state in sockets)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    (tmp_path / "tcp").write_text(table(("00000000:0016", "0A"), ("0100007F:0277", "0A"), ("0A000001:C000", "01")))
    (tmp_path / "tcp6").write_text(table(("0" * 32 + ":0050", "0A")))
    (tmp_path / "udp").write_text(table(("00000000:0035", "07"), ("0A000001:007B", "01")))
    (tmp_path / "udp6").write_text(table())
    return tmp_path


def live(listening: Listening, protocol: Protocol, *ports: int, now: float = 0.0) -> list[int]:
    return [port for port in ports if listening.is_live(protocol, port, now)]


def test_listening_tcp_ports_of_both_families_are_live_whatever_their_address(net: Path) -> None:
    assert live(Listening(net), Protocol.TCP, 22, 80, 631, 23) == [22, 80, 631]


def test_a_tcp_connection_does_not_make_its_port_live(net: Path) -> None:
    assert live(Listening(net), Protocol.TCP, 0xC000) == []


def test_connections_after_the_listening_sockets_are_not_read() -> None:
    many = iter(table(("00000000:0016", "0A"), *[("0A000001:C000", "01")] * 9).splitlines())
    assert list(listening_ports(many)) == [22]
    assert len(list(many)) == 8


def test_every_bound_udp_port_is_live_connected_or_not(net: Path) -> None:
    assert live(Listening(net), Protocol.UDP, 53, 123, 22) == [53, 123]


def test_a_service_that_comes_and_one_that_goes_are_known_a_second_later(net: Path) -> None:
    listening = Listening(net)
    assert live(listening, Protocol.TCP, 22, 2222) == [22]
    (net / "tcp").write_text(table(("00000000:08AE", "0A")))
    assert live(listening, Protocol.TCP, 22, 2222, now=0.9) == [22]
    assert live(listening, Protocol.TCP, 22, 2222, now=1.0) == [2222]


def test_a_kernel_without_ipv6_has_no_second_files(net: Path) -> None:
    (net / "tcp6").unlink()
    (net / "udp6").unlink()
    assert live(Listening(net), Protocol.TCP, 22, 80) == [22]


def test_without_proc_it_is_an_error_rather_than_no_service(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match=f"{tmp_path}/tcp is not there: mount /proc"):
        Listening(tmp_path).is_live(Protocol.TCP, 22, 0.0)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_this_kernels_own_tables_are_understood(family: socket.AddressFamily) -> None:
    loopback = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with (
        socket.socket(family, socket.SOCK_STREAM) as server,
        socket.socket(family, socket.SOCK_DGRAM) as datagrams,
    ):
        server.bind((loopback, 0))
        server.listen()
        datagrams.bind((loopback, 0))
        tcp, udp = server.getsockname()[1], datagrams.getsockname()[1]
        assert live(Listening(), Protocol.TCP, tcp) == [tcp]
        assert live(Listening(), Protocol.UDP, udp) == [udp]
    assert live(Listening(), Protocol.TCP, tcp) == []
    assert live(Listening(), Protocol.UDP, udp) == []


def test_this_kernel_lists_listening_sockets_before_connections() -> None:
    with socket.socket() as early, socket.socket() as late:
        early.bind(("127.0.0.1", 0))
        early.listen()
        with socket.create_connection(early.getsockname()):
            late.bind(("127.0.0.1", 0))
            late.listen()
            port = late.getsockname()[1]
            assert live(Listening(), Protocol.TCP, port) == [port]
