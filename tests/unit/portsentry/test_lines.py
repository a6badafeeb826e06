from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_address

import pytest

from jailbridge.model.event import Kind, Protocol, ScanEvent, TcpFlags
from jailbridge.portsentry import lines

AT = datetime(2026, 11, 22, 6, 32, 8, 215000, tzinfo=UTC)
V4, V6 = ip_address("10.98.0.10"), ip_address("fd98::2")


def event(kind: Kind = Kind.SYN, **given: object) -> ScanEvent:
    fields = {"time": AT, "address": V4, "port": 11, "protocol": Protocol.TCP, "kind": kind, "ip_options": False}
    return ScanEvent(**{**fields, **given})  # type: ignore[arg-type]


# As Debian's PortSentry 1.2-14 wrote them to /dev/log, under nmap.
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Kind.SYN, "attackalert: TCP SYN/Normal scan from host: 10.98.0.10/10.98.0.10 to TCP port: 11"),
        (Kind.FIN, "attackalert: TCP FIN scan from host: 10.98.0.10/10.98.0.10 to TCP port: 11"),
        (Kind.NULL, "attackalert:  TCP NULL scan from host: 10.98.0.10/10.98.0.10 to TCP port: 11"),
        (Kind.XMAS, "attackalert: TCP XMAS scan from host: 10.98.0.10/10.98.0.10 to TCP port: 11"),
        (Kind.CONNECT, "attackalert: Connect from host: 10.98.0.10/10.98.0.10 to TCP port: 11"),
    ],
)
def test_each_kind_is_told_in_the_words_of_1_2(kind: Kind, expected: str) -> None:
    assert list(lines.attack_1(event(kind))) == [expected]


def test_udp_is_told_in_the_words_of_1_2() -> None:
    probe = event(Kind.UDP, protocol=Protocol.UDP, port=7)
    assert list(lines.attack_1(probe)) == ["attackalert: UDP scan from host: 10.98.0.10/10.98.0.10 to UDP port: 7"]


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (TcpFlags.SYN | TcpFlags.FIN, "SYN: 1 FIN: 1 ACK: 0 PSH: 0 URG: 0 RST: 0"),
        (TcpFlags.PSH | TcpFlags.URG, "SYN: 0 FIN: 0 ACK: 0 PSH: 1 URG: 1 RST: 0"),
        (None, "SYN: 0 FIN: 0 ACK: 0 PSH: 0 URG: 0 RST: 0"),
    ],
)
def test_odd_flags_are_told_one_by_one(flags: TcpFlags | None, shown: str) -> None:
    (line,) = lines.attack_1(event(Kind.OTHER, flags=flags))
    host = "10.98.0.10/10.98.0.10"
    assert line == f"attackalert: Unknown Type: TCP Packet Flags: {shown} from host: {host} to TCP port: 11"


def test_ip_options_are_told_in_a_second_line() -> None:
    _, second = lines.attack_1(event(ip_options=True))
    assert second == (
        "attackalert: Packet from host: 10.98.0.10/10.98.0.10 to TCP port: 11 "
        "has IP options set (detection avoidance technique)."
    )


def test_the_modes_of_1_2_have_their_own_words_for_already_blocked() -> None:
    stealth, connect = event(), event(Kind.CONNECT)
    assert (
        lines.already_blocked_1(stealth, "friend.example")
        == "attackalert: Host: friend.example/10.98.0.10 is already blocked Ignoring"
    )
    assert (
        lines.already_blocked_1(connect, "friend.example")
        == "attackalert: Host: 10.98.0.10 is already blocked. Ignoring"
    )


@pytest.mark.parametrize(
    "name", ["evil;$(touch/tmp/x)", "a b", "x\ny", "n" * 254, "", "10.0.0.1/10.0.0.1", "ä.example"]
)
def test_what_is_no_host_name_is_never_printed(name: str) -> None:
    (line,) = lines.attack_1(event(), name)
    assert line == "attackalert: TCP SYN/Normal scan from host: 10.98.0.10/10.98.0.10 to TCP port: 11"


def test_2_x_tells_a_probe_and_writes_it_with_the_time_of_writing() -> None:
    writing = AT.astimezone(timezone(timedelta(hours=2))) + timedelta(milliseconds=5)
    probe = event(address=V6, ignored=False, triggered=True, ip_options=None)
    told, record = lines.scan_2(probe, writing, noblock=False, blocked=True)
    assert told == (
        "Scan from: [fd98::2] (fd98::2) protocol: [TCP] port: [11] type: [TCP SYN/Normal scan] IP opts: [unknown] "
        "ignored: [false] triggered: [true] noblock: [false] blocked: [true]"
    )
    assert record == f"2026-11-22T08:32:08.220+0200 {told}"


def test_an_untriggered_probe_of_2_x_has_nothing_decided() -> None:
    told, _ = lines.scan_2(event(ignored=False, triggered=False), AT, noblock=False, blocked=True)
    assert told.endswith("ignored: [false] triggered: [false] noblock: [unset] blocked: [unset]")


def test_the_start_names_ports_in_use() -> None:
    assert list(lines.listening_1([1, 11], [11], Protocol.TCP, stealth=True)) == [
        "adminalert: Going into stealth listen mode on TCP port: 1",
        "adminalert: Going into stealth listen mode on TCP port: 11",
        "adminalert: ERROR: Socket 11 is in use and will not be monitored. Attempting to continue",
    ]
    assert list(lines.listening_1([7], [7], Protocol.UDP, stealth=False)) == [
        "adminalert: Going into listen mode on UDP port: 7",
        "adminalert: ERROR: could not bind UDP socket: 7. Attempting to continue",
    ]


def test_the_advanced_start_names_what_is_left_out() -> None:
    assert list(lines.advanced_1(1024, [113], [22], Protocol.TCP)) == [
        "adminalert: Advanced mode will monitor first 1024 ports",
        "adminalert: Advanced mode will manually exclude port: 113 ",
        "adminalert: Advanced Stealth scan detection mode activated. Ignored TCP port: 22",
        "adminalert: Advanced Stealth scan detection mode activated. Ignored TCP port: 113",
    ]
    assert "adminalert: Advanced mode will manually exclude no ports" in lines.advanced_1(9, [], [], Protocol.UDP)


def test_a_start_on_every_port_is_told_in_bounded_lines() -> None:
    told = list(lines.listening_1(range(1, 65536), [], Protocol.TCP, stealth=True))
    assert len(told) == lines.MAX_PORT_LINES + 1
    assert told[-1] == f"adminalert: Going into stealth listen mode on {65535 - lines.MAX_PORT_LINES} more TCP ports"
    assert len(list(lines.listening_2(range(1, 65536), Protocol.UDP))) == lines.MAX_PORT_LINES + 1
