import errno
import socket
from pathlib import Path

import pytest

from jailbridge.errors import FatalError
from jailbridge.model.event import Protocol
from jailbridge.sensor.listening import Listening, listening_ports, sockets

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LINE = "   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 1 1 0\n"


def table(*sockets: tuple[str, str]) -> str:
    return HEAD + "".join(LINE.format(local=local, state=state) for local, state in sockets)


def no_sock_diag(protocol: Protocol) -> frozenset[int]:
    raise FileNotFoundError(2, "netlink")


@pytest.fixture
def net(tmp_path: Path) -> Path:
    (tmp_path / "tcp").write_text(table(("00000000:0016", "0A"), ("0100007F:0277", "0A"), ("0A000001:C000", "01")))
    (tmp_path / "tcp6").write_text(table(("0" * 32 + ":0050", "0A")))
    (tmp_path / "udp").write_text(table(("00000000:0035", "07"), ("0A000001:007B", "01")))
    (tmp_path / "udp6").write_text(table())
    return tmp_path


@pytest.fixture
def from_proc(net: Path) -> Listening:
    listening = Listening(net, no_sock_diag)
    listening.refresh(0.0)
    return listening


def now_live() -> Listening:
    listening = Listening()
    listening.refresh(0.0)
    return listening


def test_without_sock_diag_the_ports_of_both_families_come_from_proc(from_proc: Listening) -> None:
    assert from_proc.tcp == {22, 631, 80}
    assert from_proc.udp == {53, 123}


def test_the_change_to_proc_is_logged_once(net: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    listening = Listening(net, no_sock_diag)
    listening.refresh(0.0)
    listening.refresh(1.0)
    assert [record.message for record in caplog.records] == [
        "no sock_diag for tcp (netlink), live ports are read from /proc"
    ]


def changing(*lives: set[int]) -> Listening:
    """What is live at each reading, of either protocol."""
    readings = iter([live for live in lives for _ in Protocol])
    return Listening(ask=lambda _: frozenset(next(readings)))


def test_a_port_stays_live_for_a_minute_after_its_service_went() -> None:
    listening = changing({22, 80}, {22}, {22}, {22})
    live = []
    for now in (0.0, 100.0, 159.9, 160.0):
        listening.refresh(now, 0.0)
        live.append(listening.tcp)
        assert listening.udp == listening.tcp
    # At 100 it may have been there until just then: nobody looked since.
    assert live == [{22, 80}, {22, 80}, {22, 80}, {22}]


def test_a_port_that_comes_again_within_the_minute_goes_on() -> None:
    listening = changing({80}, set(), {80}, set(), set())
    live = []
    for now in (0.0, 50.0, 60.0, 61.0, 121.0):
        listening.refresh(now, 0.0)
        live.append(80 in listening.tcp)
    assert live == [True, True, True, True, False]


def test_connections_after_the_listening_sockets_are_not_read() -> None:
    many = iter(table(("00000000:0016", "0A"), *[("0A000001:C000", "01")] * 9).splitlines())
    assert list(listening_ports(many)) == [22]
    assert len(list(many)) == 8


def test_a_service_that_comes_is_known_a_second_later(from_proc: Listening, net: Path) -> None:
    (net / "tcp").write_text(table(("00000000:08AE", "0A")))
    from_proc.refresh(0.9)
    assert from_proc.tcp == {22, 631, 80}
    from_proc.refresh(1.0)
    assert from_proc.tcp == {22, 631, 2222, 80}


def test_the_caller_may_want_it_fresher(from_proc: Listening, net: Path) -> None:
    (net / "tcp").write_text(table(("00000000:08AE", "0A")))
    from_proc.refresh(0.1, age_s=0.1)
    assert 2222 in from_proc.tcp


def test_a_kernel_without_ipv6_has_no_second_files(net: Path) -> None:
    (net / "tcp6").unlink()
    (net / "udp6").unlink()
    listening = Listening(net, no_sock_diag)
    listening.refresh(0.0)
    assert listening.tcp == {22, 631}
    assert listening.udp == {53, 123}


def test_without_sock_diag_and_proc_it_is_an_error_rather_than_no_service(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match=f"{tmp_path}/tcp is not there: mount /proc"):
        Listening(tmp_path, no_sock_diag).refresh(0.0)


def test_a_later_failure_keeps_the_last_known_ports_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fails = False

    def ask(protocol: Protocol) -> frozenset[int]:
        if fails:
            raise OSError(errno.ENFILE, "Too many open files in system")
        return frozenset({22 if protocol is Protocol.TCP else 53})

    listening = Listening(tmp_path, ask)
    listening.refresh(0.0)
    fails = True
    for now in (2.0, 4.0):
        listening.refresh(now)
        assert listening.tcp == {22}
        assert listening.udp == {53}
    fails = False
    listening.refresh(6.0)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert caplog.messages[1] == "live ports are read again"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_listening_socket_is_live_whatever_its_address_until_it_is_closed(family: socket.AddressFamily) -> None:
    loopback = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with (
        socket.socket(family, socket.SOCK_STREAM) as server,
        socket.socket(family, socket.SOCK_STREAM) as only_bound,
        socket.socket(family, socket.SOCK_DGRAM) as datagrams,
    ):
        server.bind((loopback, 0))
        server.listen()
        only_bound.bind((loopback, 0))
        datagrams.bind((loopback, 0))
        tcp, bound, udp = (sock.getsockname()[1] for sock in (server, only_bound, datagrams))
        live = now_live()
        assert tcp in live.tcp
        assert bound not in live.tcp
        assert udp in live.udp
    live = now_live()
    assert tcp not in live.tcp
    assert udp not in live.udp


def test_a_tcp_connection_does_not_make_its_port_live() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getsockname()[1] not in now_live().tcp


def test_a_connected_udp_socket_is_live() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as question:
        question.connect(("127.0.0.1", 53))
        assert question.getsockname()[1] in now_live().udp


def test_a_dual_stack_service_is_live() -> None:
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        assert server.getsockname()[1] in now_live().tcp


def test_sock_diag_and_proc_tell_the_same_of_this_kernel() -> None:
    with socket.socket() as early, socket.socket() as late:
        early.bind(("127.0.0.1", 0))
        early.listen()
        with socket.create_connection(early.getsockname()):
            late.bind(("127.0.0.1", 0))
            late.listen()
            ports = {early.getsockname()[1], late.getsockname()[1]}
            by_proc = Listening(ask=no_sock_diag)
            by_proc.refresh(0.0)
            assert ports <= by_proc.tcp
            assert ports <= sockets(Protocol.TCP)
