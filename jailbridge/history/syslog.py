"""A line of a syslog file: who said what, and when; and what PortSentry's messages tell of scans. Pure.

Knows the forms in which syslog daemons and journalctl write a line to a file:

classic   `Nov 22 06:31:13 host portsentry[54]: …`, RFC 3164, 4.1.2; as sent, with `<29>` before and without a host
RFC 3339  `2026-11-22T06:31:13.123456+00:00 host portsentry[54]: …`, rsyslog's default; journalctl -o short-iso
RFC 5424  `<29>1 2026-11-22T06:31:13.003Z host portsentry 54 - - …`, 6
dmesg     `[Sun Nov 22 06:31:13 2026] …` (-T), `2026-11-22T06:31:13,123456+00:00 …` (--time-format iso): the kernel's

Only the tag says whose a line is, and nothing in a file proves it: any user can be `portsentry` or `kernel` with
logger(1), and so can whoever may send to a syslog daemon that listens. A journal knows better (`history.journal`).
What an outsider has other programs say stands behind their tags and is never read. Another host's lines count.
"""

import re
from collections.abc import Collection
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple

from jailbridge.errors import ParseError
from jailbridge.history import dialects
from jailbridge.model.event import Dialect, Kind, Protocol, ScanEvent
from jailbridge.model.network import parse_address

PORTSENTRY = "portsentry"
KERNEL = "kernel"
AHEAD = timedelta(days=1)
"""So far may a classic time lie after now, for clocks that differ: of the years it may mean it has the latest."""
# February 29th of a line may be so many years old: 1900 and 2100 are no leap years.
_YEARS = 8

_MONTHS = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_DATE = rb"(?P<%%b>%b) (?P<%%b>[ 0-3]\d) (?P<%%b>\d\d:\d\d:\d\d(?:\.\d{1,6})?)" % _MONTHS.encode()
_CLASSIC = _DATE % (b"month", b"day", b"clock")
_DMESG = rb"\[(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) %b (?P<year>\d{4})\]" % (_DATE % (b"month_k", b"day_k", b"clock_k"))
_ISO = rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"
_ZONE = rb"(?:Z|[+-]\d\d:?\d\d)"
# Not a history line of the 2.x dialect, which would name a host `Scan`.
_LINE = re.compile(
    rb"(?:<\d{1,3}>)?(?:1 )?(?:%(classic)b|(?P<iso>%(iso)b(?:\.\d{1,6})?%(zone)b)) (?!Scan )(?P<logged>\S+ .*)"
    rb"|(?:%(dmesg)b|(?P<iso_k>%(iso)b,\d{1,6}%(zone)b)) (?!Scan )(?P<kernels>.*)"
    % {b"classic": _CLASSIC, b"iso": _ISO, b"zone": _ZONE, b"dmesg": _DMESG},
    re.DOTALL,
)
# Never what may be another program's tag: where no host is written, that would make its message a tag and a message.
_HOST = rb"[0-9A-Za-z._:-]{0,254}[0-9A-Za-z._-]"
_PROGRAM = rb"(?P<%%b>%b|%b)" % (PORTSENTRY.encode(), KERNEL.encode())
# Possessive: what has been read of it is never read in another way. PARAM-VALUE escapes `"`, `\` and `]` (6.3.3).
_DATA = rb"(?:-|(?:\[[!#-<>-\\^-~]{1,32}+(?: [!#-<>-\\^-~]{1,32}+=\"(?:[^\"\\\]]|\\.)*+\")*+\])++)"
_SAID = re.compile(
    rb"(?:%(host)b )?%(tag)b(?:\[\d{1,10}\])?: ?(?P<message>.*)"
    rb"|%(host)b %(name)b [!-~]{1,128} [!-~]{1,32} %(data)b (?:\xef\xbb\xbf)?(?P<text>.*)"
    % {b"host": _HOST, b"tag": _PROGRAM % b"tag", b"name": _PROGRAM % b"name", b"data": _DATA},
    re.DOTALL,
)

_SCAN_1 = re.compile(
    rb"attackalert: (?P<type>TCP (?:SYN/Normal|FIN|XMAS) scan| TCP NULL scan|UDP scan|Connect|"
    rb"Unknown Type: TCP Packet Flags: %(flags)b) "
    rb"from host: %(name)b/(?P<address>%(address)b) to (?P<protocol>TCP|UDP) port: (?P<port>%(port)b)"
    % {b"name": dialects.NAME, b"address": dialects.ADDRESS, b"flags": dialects.FLAGS, b"port": dialects.PORT}
)
_TYPES = {**dialects.KINDS, b" TCP NULL scan": (Kind.NULL, None), b"UDP scan": (Kind.UDP, None)}
# 2.x says what its history says, but for the time: with one it is a line of that.
_SCAN_2 = re.compile(rb"(?:attackalert: )?(?P<history>Scan from: .*)", re.DOTALL)
_ANY_TIME = b"2000-01-01T00:00:00.000+0000 "
# What PortSentry did about a scan that another line tells, and what is the matter with itself.
_NO_SCAN = re.compile(
    rb"(?!attackalert: )|attackalert: (?:Host:? |External command run |Packet from host: |Ignoring |ERROR: |"
    rb"Illegal IP header |Possible stealth scan from unknown host )"
)


class Said(NamedTuple):
    """What a program said, and when (UTC)."""

    program: str
    message: bytes
    time: datetime


def is_line(line: bytes) -> bool:
    """Tell whether a syslog daemon, or dmesg, writes lines like this one."""
    return _LINE.fullmatch(line) is not None


def said(line: bytes, now: datetime, programs: Collection[str]) -> Said | None:
    """Return what one of the programs (PORTSENTRY, KERNEL) said in this line (without newline), None for others.

    A time without a zone is one of this system's zone. The hour that comes twice when clocks go back is the second
    one as soon as that has come. Raises ParseError for what is no line of syslog, and for an impossible time.
    """
    match = _LINE.fullmatch(line.rstrip(b"\r"))
    if match is None:
        raise ParseError("not a line of syslog with a time in a known form")
    if (message := match["kernels"]) is not None:
        return Said(KERNEL, message, _time(match, now)) if KERNEL in programs else None
    told = _SAID.fullmatch(match["logged"])
    if told is None:
        return None
    program = (told["tag"] or told["name"]).decode()
    if program not in programs:
        return None
    return Said(program, told["message"] if told["tag"] else told["text"], _time(match, now))


def scan(message: bytes, when: datetime) -> ScanEvent | None:
    """Return the scan that a message of PortSentry (1.2 or 2.x) tells, None for its other messages.

    Raises ParseError for what begins like a message of a scan and is none.
    """
    if match := _SCAN_1.fullmatch(message):
        return _event(match, when)
    if match := _SCAN_2.fullmatch(message):
        event, _ = dialects.parse(_ANY_TIME + match["history"], Dialect.PORTSENTRY_2)
        # Where it leaves both open it has decided nothing; without them it would look like 1.2's, which acts first.
        return event._replace(time=when) if (event.ignored, event.triggered) != (None, None) else None
    if _NO_SCAN.match(message):
        return None
    raise ParseError("not a message of PortSentry's")


def _event(match: re.Match[bytes], when: datetime) -> ScanEvent:
    protocol = Protocol(match["protocol"].decode().lower())
    kind, flags = _TYPES[match["type"]]
    if kind is not Kind.CONNECT and (kind is Kind.UDP) is not (protocol is Protocol.UDP):
        raise ParseError("its type and its protocol contradict each other")
    port, address = dialects.to_port(match["port"]), parse_address(match["address"].decode("ascii"))
    return ScanEvent(time=when, address=address, port=port, protocol=protocol, kind=kind, flags=flags)


def _time(match: re.Match[bytes], now: datetime) -> datetime:
    try:
        if (iso := match["iso"] or match["iso_k"]) is not None:
            return datetime.fromisoformat(iso.decode()).astimezone(UTC)
        if match["year"] is not None:
            return _local(int(match["year"]), match["month_k"], match["day_k"], match["clock_k"], now)
    except (ValueError, OverflowError, OSError):
        raise ParseError("not a time") from None
    latest = (now + AHEAD).astimezone().year
    for year in range(latest, latest - _YEARS - 1, -1):
        try:
            when = _local(year, match["month"], match["day"], match["clock"], now)
        except (ValueError, OverflowError, OSError):
            continue
        if when - now <= AHEAD:
            return when
    raise ParseError("not a time")


def _local(year: int, month: bytes, day: bytes, clock: bytes, now: datetime) -> datetime:
    number = _MONTHS.split("|").index(month.decode()) + 1
    naive = datetime.combine(date(year, number, int(day)), time.fromisoformat(clock.decode()))
    later = naive.replace(fold=1).astimezone(UTC)
    return later if later <= now else naive.astimezone(UTC)
