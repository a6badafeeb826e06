from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from jailbridge.model.event import Kind, Protocol, ScanEvent, TcpFlags


@pytest.mark.parametrize(
    ("flags", "letters"),
    [
        (TcpFlags(0), "-"),
        (TcpFlags.SYN, "S"),
        (TcpFlags.SYN | TcpFlags.FIN, "FS"),
        (TcpFlags.FIN | TcpFlags.PSH | TcpFlags.URG, "FPU"),
        (TcpFlags(63), "FSRPAU"),
    ],
)
def test_flags_are_named_by_their_letters(flags: TcpFlags, letters: str) -> None:
    assert flags.letters == letters


@pytest.mark.parametrize(
    ("kind", "flags", "name"),
    [
        (Kind.SYN, TcpFlags.SYN, "syn scan"),
        (Kind.UNKNOWN, None, "scan"),
        (Kind.OTHER, TcpFlags.SYN | TcpFlags.FIN, "FS scan"),
        (Kind.OTHER, None, "other scan"),
    ],
)
def test_a_scan_with_odd_flags_is_called_by_their_letters(kind: Kind, flags: TcpFlags | None, name: str) -> None:
    event = ScanEvent(
        time=datetime(2026, 11, 22, tzinfo=UTC),
        address=ip_address("192.0.2.7"),
        port=23,
        protocol=Protocol.TCP,
        kind=kind,
        flags=flags,
    )
    assert event.scan == name
