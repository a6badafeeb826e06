from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from jailbridge.history.convert import Change, LeftOut, converted
from jailbridge.history.dialects import parse
from jailbridge.model.event import Dialect, Kind, Protocol, ScanEvent, TcpFlags

V1, V2 = Dialect.PORTSENTRY_1, Dialect.PORTSENTRY_2
LINE_1 = b"1795329128 - 11/22/2026 06:32:08 Host: scanner.example/192.0.2.7 Port: 23 TCP Blocked"
FROM_1, _ = parse(LINE_1)
FROM_2 = ScanEvent(
    time=datetime(2026, 11, 22, 6, 32, 8, 215000, tzinfo=UTC),
    address=ip_address("2001:db8::7"),
    port=53,
    protocol=Protocol.UDP,
    kind=Kind.UDP,
    ignored=False,
    triggered=True,
    ip_options=False,
)
FROM_KERNEL = FROM_2._replace(ignored=None, triggered=None, kind=Kind.SYN, protocol=Protocol.TCP, flags=TcpFlags.SYN)


def test_a_line_of_1_2_means_a_triggered_scan_of_unknown_kind() -> None:
    line, changes = converted(FROM_1, V1, V2, UTC)
    assert line == (
        "2026-11-22T06:32:08.000+0000 Scan from: [192.0.2.7] (192.0.2.7) protocol: [TCP] port: [23] "
        "type: [Unknown Type: TCP Packet Flags: SYN: 0 FIN: 0 ACK: 0 PSH: 0 URG: 0 RST: 0] IP opts: [unknown] "
        "ignored: [false] triggered: [true] noblock: [unset] blocked: [unset]"
    )
    assert changes == [
        Change("kind", "unknown", "other"),
        Change("ignored", "-", "false"),
        Change("triggered", "-", "true"),
    ]


def test_what_1_2_cannot_carry_is_told() -> None:
    line, changes = converted(FROM_2, V2, V1, UTC)
    assert line == "1795329128 - 11/22/2026 06:32:08 Host: 2001:db8::7/2001:db8::7 Port: 53 UDP Blocked"
    assert changes == [
        Change("time", "milliseconds", "-"),
        Change("kind", "udp", "unknown"),
        Change("ip_options", "false", "-"),
        Change("ignored", "false", "-"),
        Change("triggered", "true", "-"),
    ]


def test_flags_that_a_type_does_not_show_are_told() -> None:
    _, changes = converted(FROM_KERNEL, Dialect.KERNEL, V2, UTC)
    assert changes == [Change("flags", "S", "-")]


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (FROM_2._replace(ignored=True), "ignored"),
        (FROM_2._replace(triggered=False), "not triggered"),
        (FROM_2._replace(triggered=None), "does not tell whether it triggered"),
        (FROM_2._replace(ignored=None), "does not tell whether it triggered"),
        (FROM_KERNEL, "does not tell whether it triggered"),
        (FROM_2._replace(time=datetime(1999, 1, 1, tzinfo=UTC)), "its time or port cannot be written"),
        (FROM_2._replace(port=0), "its time or port cannot be written"),
    ],
)
def test_what_fail2ban_would_wrongly_ban_for_has_no_line_in_1_2(event: ScanEvent, reason: str) -> None:
    with pytest.raises(LeftOut, match=reason):
        converted(event, V2, V1, UTC)


def test_a_kernel_line_in_2_bans_nobody() -> None:
    line, _ = converted(FROM_KERNEL, Dialect.KERNEL, V2, UTC)
    assert "ignored: [unset] triggered: [unset]" in line


@pytest.mark.parametrize("year", [1, 999])
def test_a_year_that_cannot_be_written_is_left_out(year: int) -> None:
    with pytest.raises(LeftOut, match="its time"):
        converted(FROM_2._replace(time=datetime(year, 1, 1, tzinfo=UTC)), V2, V2, UTC)
