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
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from jailbridge.errors import ParseError
from jailbridge.model.event import Dialect, Kind, Protocol, ScanEvent, TcpFlags
from jailbridge.model.network import parse_address

_T = TypeVar("_T")
# What all of PortSentry's lines have in common, in syslog too. A name: wider than what glibc's resolver lets through
# (res_hnok); NI_MAXHOST bounds it.
NAME = rb"[^\x00-\x20\x7f]{1,1025}"
# With a zone: an interface's name.
ADDRESS = rb"[0-9A-Fa-f:.]{2,45}(?:%[0-9A-Za-z._-]{1,15})?"
PORT = rb"[1-9]\d{0,4}"
_PROTOCOL = rb"TCP|UDP"
_FLAG_ORDER = (TcpFlags.SYN, TcpFlags.FIN, TcpFlags.ACK, TcpFlags.PSH, TcpFlags.URG, TcpFlags.RST)
FLAGS = b" ".join(rb"%b: [01]" % str(flag.name).encode() for flag in _FLAG_ORDER)
# Groups in the order in which `_event_1` and `_event_2` take them.
_LINE_1 = re.compile(
    rb"([1-9]\d{9}) - \d\d/\d\d/\d{4} \d\d:\d\d:\d\d "
    rb"Host: %(name)b/(%(address)b) Port: (%(port)b (?:%(protocol)b)) Blocked"
    % {b"name": NAME, b"address": ADDRESS, b"port": PORT, b"protocol": _PROTOCOL}
)
_LINE_2 = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4}) "
    rb"Scan from: \[(%(address)b)\] \(%(name)b\) "
    rb"protocol: \[(%(protocol)b)\] port: \[(%(port)b)\] "
    rb"type: \[(Connect|UDP|TCP (?:SYN/Normal|FIN|NULL|XMAS) scan|Unknown Type: TCP Packet Flags: %(flags)b)\] "
    rb"IP opts: \[(set|not set|unknown)\] ignored: \[(true|false|unset)\] triggered: \[(true|false|unset)\] "
    rb"noblock: \[(?:true|false|unset)\] blocked: \[(?:true|false|unset)\]"
    % {b"name": NAME, b"address": ADDRESS, b"port": PORT, b"protocol": _PROTOCOL, b"flags": FLAGS}
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
_UNKNOWN_TYPE = "Unknown Type: TCP Packet Flags: "
_TRUTH = {"true": True, "false": False, "unset": None}
_TRUTH_TEXT = {value: text for text, value in _TRUTH.items()}
_OPTIONS = {"set": True, "not set": False, "unknown": None}
_OPTIONS_TEXT = {value: text for text, value in _OPTIONS.items()}
# The longest name of a host (RFC 1035, 2.3.4), in what its name may hold (RFC 952) and the underscore that is met.
_WRITTEN_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")


def parse(line: bytes, only: Dialect | None = None) -> tuple[ScanEvent, Dialect]:
    """Return what one history line (without its newline) tells, and in which dialect; `only` refuses the other one.

    Carriage returns at its end are no part of it. Raises ParseError with the reason.
    """
    line = line.rstrip(b"\r")
    if only is not _V2 and (match := _LINE_1.fullmatch(line)):
        return _event_1(*match.groups()), _V1
    if only is not _V1 and (match := _LINE_2.fullmatch(line)):
        return _event_2(*match.groups()), _V2
    raise ParseError(f"not a line of PortSentry's history ({only or 'either'} dialect)")


def format_1(event: ScanEvent, local: datetime, name: str = "") -> str:
    """Return the 1.2 line (without newline) of an event; `local` is its time in the zone that the date shows.

    `name` is its source's name in the DNS; the address stands in its place where there is none, or what is no name.
    """
    return line_1(event, stamp_1(local), str(event.address), name)


def format_2(
    event: ScanEvent, local: datetime, *, name: str = "", noblock: bool | None = True, blocked: bool | None = False
) -> str:
    """Return the 2.x line (without newline) of an event; `local` is its time in the zone that the line shows.

    `name` as in `format_1`. `noblock` and `blocked` are unset where None, and where the event has not triggered: then
    PortSentry has not come to decide on them. As they stand here, they say what PortSentry says with BLOCK_* at 0.
    """
    return line_2(event, stamp_2(local), str(event.address), name, noblock=noblock, blocked=blocked)


def stamp_1(local: datetime) -> str:
    """Return what a 1.2 line shows of a time before `Host:`; it is the same throughout a second."""
    return f"{int(local.timestamp())} - {local:%m/%d/%Y %H:%M:%S}"


def stamp_2(local: datetime) -> tuple[str, str]:
    """Return what a 2.x line shows of a time before and after the milliseconds; it is the same throughout a second."""
    return f"{local:%Y-%m-%dT%H:%M:%S}", f"{local:%z}"


def line_1(event: ScanEvent, stamp: str, address: str, name: str = "") -> str:
    """Return what `format_1` does, of a time and an address already made text: in a storm that is most of the work."""
    return f"{stamp} Host: {shown_name(name, address)}/{address} Port: {event.port} {event.protocol.upper()} Blocked"


def line_2(
    event: ScanEvent,
    stamp: tuple[str, str],
    address: str,
    name: str = "",
    *,
    noblock: bool | None = True,
    blocked: bool | None = False,
) -> str:
    """Return what `format_2` does, of a time and an address already made text."""
    kind = _TYPE_TEXT.get(event.kind) or _unknown_type(event.flags or TcpFlags(0))
    if not event.triggered:
        noblock = blocked = None
    return (
        f"{stamp[0]}.{event.time.microsecond // 1000:03d}{stamp[1]} "
        f"Scan from: [{address}] ({shown_name(name, address)}) "
        f"protocol: [{event.protocol.upper()}] port: [{event.port}] "
        f"type: [{kind}] IP opts: [{_OPTIONS_TEXT[event.ip_options]}] ignored: [{_TRUTH_TEXT[event.ignored]}] "
        f"triggered: [{_TRUTH_TEXT[event.triggered]}] "
        f"noblock: [{_TRUTH_TEXT[noblock]}] blocked: [{_TRUTH_TEXT[blocked]}]"
    )


def shown_name(name: str, address: str) -> str:
    """Return what is written as a source's name: its address, unless it has a plain name."""
    # Whoever has looked it up: nothing that could end a line or begin another record is ever written.
    return name if name and _WRITTEN_NAME.fullmatch(name) else address


def _unknown_type(flags: TcpFlags) -> str:
    return _UNKNOWN_TYPE + " ".join(f"{flag.name}: {int(flag in flags)}" for flag in _FLAG_ORDER)


def _kind_and_flags(flags: TcpFlags) -> tuple[Kind, TcpFlags | None]:
    # None set is what stands for flags that were not seen: had they been seen, the type would be NULL.
    return (Kind.ACK if flags == TcpFlags.ACK else Kind.OTHER), flags or None


_V1, _V2 = Dialect.PORTSENTRY_1, Dialect.PORTSENTRY_2
# Every text that these fields may have.
_PROTOCOL_OF = {protocol.upper().encode(): protocol for protocol in Protocol}
KINDS: dict[bytes, tuple[Kind, TcpFlags | None]] = {text.encode(): (kind, None) for text, kind in _TYPES.items()}
KINDS |= {_unknown_type(flags).encode(): _kind_and_flags(flags) for flags in map(TcpFlags, range(1 << len(TcpFlags)))}
_OPTIONS_OF = {text.encode(): value for text, value in _OPTIONS.items()}
_TRUTH_OF = {text.encode(): value for text, value in _TRUTH.items()}
_UNKNOWN = Kind.UNKNOWN
_EPOCH = datetime.fromtimestamp(0, UTC)
# A named tuple's own constructor takes half as long again.
_made = tuple.__new__


def _event_1(epoch: bytes, address: bytes, probed: bytes) -> ScanEvent:
    port, protocol = _PROBED[probed]
    return _made(ScanEvent, (_TIMES[epoch], _ADDRESSES[address], port, protocol, _UNKNOWN, None, None, None, None))


def _event_2(
    time: bytes, address: bytes, protocol: bytes, port: bytes, how: bytes, options: bytes, *said: bytes
) -> ScanEvent:
    kind, flags = KINDS[how]
    ignored, triggered = said
    return _made(
        ScanEvent,
        (
            _time_2(time.decode()),
            _ADDRESSES[address],
            to_port(port),
            _PROTOCOL_OF[protocol],
            kind,
            _TRUTH_OF[ignored],
            _TRUTH_OF[triggered],
            flags,
            _OPTIONS_OF[options],
        ),
    )


class _Known(dict[bytes, _T]):
    """What a field's text says, worked out once. Bounded, since outsiders choose the texts: a full one starts anew."""

    def __init__(self, read: Callable[[str], _T], most: int) -> None:
        super().__init__()
        self._read, self._most = read, most

    def __missing__(self, text: bytes) -> _T:
        if len(self) >= self._most:
            self.clear()
        value = self[text] = self._read(text.decode())
        return value


def _probed(text: str) -> tuple[int, Protocol]:
    port, _, protocol = text.partition(" ")
    return to_port(port), Protocol(protocol.lower())


def _time_1(epoch: str) -> datetime:
    return _EPOCH + timedelta(0, int(epoch))


def _time_2(text: str) -> datetime:
    try:
        # Far quicker than strptime; unlike that it lets such zones pass, and some versions an hour 24.
        time = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ParseError("not a time") from None
    if text[11:13] > "23" or text[-2:] > "59":
        raise ParseError("not a time")
    return time


def to_port(text: str | bytes) -> int:
    """Return the port that a field's text (PORT) names. Raises ParseError."""
    if (port := int(text)) > 65535:
        raise ParseError(f"{port} is not a port")
    return port


# Many lines share a second; the watched ports are mostly 1 to 1023, of two protocols.
_TIMES = _Known(_time_1, 256)
_PROBED = _Known(_probed, 4096)
_ADDRESSES = _Known(parse_address, 4096)
