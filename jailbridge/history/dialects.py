"""The two dialects of PortSentry's history: one line of text to a scan event, and back. Pure.

Every grammar covers the whole line and is linear in its length. The address comes only from the field that PortSentry
itself writes; the name beside it is the attacker's (reverse DNS) and is not kept. It may be any bytes but blanks and
control characters: no name saves its owner from a ban, and none can play a record of somebody else.

1.2   `1795329059 - 11/22/2026 06:30:59 Host: NAME/ADDRESS Port: 15 TCP Blocked`; the epoch counts, the date is local.
2.x   `2026-11-22T06:32:08.215+0000 Scan from: [ADDRESS] (NAME) protocol: [TCP] port: [23] type: [TCP SYN/Normal scan]
      IP opts: [not set] ignored: [false] triggered: [true] noblock: [true] blocked: [false]`
Both as written by PortSentry 1.2 (Debian) and 2.0.7.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from jailbridge.errors import ParseError
from jailbridge.model.event import Dialect, Kind, Protocol, ScanEvent
from jailbridge.model.network import parse_address

# Wider than what glibc's resolver lets through (res_hnok); NI_MAXHOST bounds it.
_NAME = rb"[^\x00-\x20\x7f]{1,1025}"
# With a zone: an interface's name.
_ADDRESS = rb"[0-9A-Fa-f:.]{2,45}(?:%[0-9A-Za-z._-]{1,15})?"
_PORT = rb"[1-9]\d{0,4}"
_FLAGS = rb"SYN: [01] FIN: [01] ACK: [01] PSH: [01] URG: [01] RST: [01]"
_LINE_1 = re.compile(
    rb"(?P<epoch>[1-9]\d{9}) - \d\d/\d\d/\d{4} \d\d:\d\d:\d\d "
    rb"Host: %(name)b/(?P<address>%(address)b) Port: (?P<port>%(port)b) (?P<protocol>TCP|UDP) Blocked"
    % {b"name": _NAME, b"address": _ADDRESS, b"port": _PORT}
)
_LINE_2 = re.compile(
    rb"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4}) "
    rb"Scan from: \[(?P<address>%(address)b)\] \(%(name)b\) "
    rb"protocol: \[(?P<protocol>TCP|UDP)\] port: \[(?P<port>%(port)b)\] "
    rb"type: \[(?P<type>Connect|UDP|TCP (?:SYN/Normal|FIN|NULL|XMAS) scan|Unknown Type: TCP Packet Flags: %(flags)b)\] "
    rb"IP opts: \[(?:set|not set|unknown)\] ignored: \[(?P<ignored>true|false|unset)\] "
    rb"triggered: \[(?P<triggered>true|false|unset)\] "
    rb"noblock: \[(?:true|false|unset)\] blocked: \[(?:true|false|unset)\]"
    % {b"name": _NAME, b"address": _ADDRESS, b"port": _PORT, b"flags": _FLAGS}
)
_TYPES = {
    "Connect": Kind.CONNECT,
    "TCP SYN/Normal scan": Kind.SYN,
    "TCP FIN scan": Kind.FIN,
    "TCP NULL scan": Kind.NULL,
    "TCP XMAS scan": Kind.XMAS,
    "UDP": Kind.UDP,
}
_TYPE_TEXT = {kind: text for text, kind in _TYPES.items()}
# Our events keep no flags: none is set here, which PortSentry would have called NULL.
_UNKNOWN_TYPE = "Unknown Type: TCP Packet Flags: SYN: 0 FIN: 0 ACK: 0 PSH: 0 URG: 0 RST: 0"
_TRUTH = {"true": True, "false": False, "unset": None}
_TRUTH_TEXT = {value: text for text, value in _TRUTH.items()}


def parse(line: bytes, only: Dialect | None = None) -> tuple[ScanEvent, Dialect]:
    """Return what one history line (without its newline) tells, and in which dialect; `only` refuses the other one.

    Carriage returns at its end are no part of it. Raises ParseError with the reason.
    """
    line = line.rstrip(b"\r")
    if only is not Dialect.PORTSENTRY_2 and (match := _LINE_1.fullmatch(line)):
        return _event_1(_fields(match)), Dialect.PORTSENTRY_1
    if only is not Dialect.PORTSENTRY_1 and (match := _LINE_2.fullmatch(line)):
        return _event_2(_fields(match)), Dialect.PORTSENTRY_2
    raise ParseError(f"not a line of PortSentry's history ({only or 'either'} dialect)")


def format_1(event: ScanEvent, local: datetime) -> str:
    """Return the 1.2 line (without newline) of an event; `local` is its time in the zone that the date shows."""
    seconds = int(event.time.timestamp())
    return (
        f"{seconds} - {local:%m/%d/%Y %H:%M:%S} Host: {event.address}/{event.address} "
        f"Port: {event.port} {event.protocol.upper()} Blocked"
    )


def format_2(event: ScanEvent, local: datetime) -> str:
    """Return the 2.x line (without newline) of an event; `local` is its time in the zone that the line shows.

    Our sensor does not block by itself: noblock is true and blocked false, as PortSentry writes with BLOCK_* at 0.
    """
    kind = _TYPE_TEXT.get(event.kind, _UNKNOWN_TYPE)
    decided = "true" if event.triggered else "unset"
    return (
        f"{local:%Y-%m-%dT%H:%M:%S}.{local.microsecond // 1000:03d}{local:%z} "
        f"Scan from: [{event.address}] ({event.address}) protocol: [{event.protocol.upper()}] port: [{event.port}] "
        f"type: [{kind}] IP opts: [unknown] ignored: [{_TRUTH_TEXT[event.ignored]}] "
        f"triggered: [{_TRUTH_TEXT[event.triggered]}] "
        f"noblock: [{decided}] blocked: [{'false' if event.triggered else 'unset'}]"
    )


def _fields(match: re.Match[bytes]) -> dict[str, str]:
    return {name: value.decode("ascii") for name, value in match.groupdict().items()}


def _event_1(fields: Mapping[str, str]) -> ScanEvent:
    return ScanEvent(
        time=datetime.fromtimestamp(int(fields["epoch"]), UTC),
        address=parse_address(fields["address"]),
        port=_port(fields["port"]),
        protocol=Protocol(fields["protocol"].lower()),
        kind=Kind.UNKNOWN,
    )


def _event_2(fields: Mapping[str, str]) -> ScanEvent:
    try:
        time = datetime.strptime(fields["time"], "%Y-%m-%dT%H:%M:%S.%f%z").astimezone(UTC)
    except (ValueError, OverflowError):
        raise ParseError("not a time") from None
    return ScanEvent(
        time=time,
        address=parse_address(fields["address"]),
        port=_port(fields["port"]),
        protocol=Protocol(fields["protocol"].lower()),
        kind=_TYPES.get(fields["type"], Kind.OTHER),
        ignored=_TRUTH[fields["ignored"]],
        triggered=_TRUTH[fields["triggered"]],
    )


def _port(text: str) -> int:
    port = int(text)
    if port > 65535:
        raise ParseError(f"{port} is not a port")
    return port
