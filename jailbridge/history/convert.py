"""What a line of one dialect becomes in another, and what is lost on the way. Pure.

Two things are decided here, since consumers ban on what is written. A line of 1.2's history means a source that has
triggered and is not ignored: PortSentry writes no other. And 1.2 has a line for such a source only: what is ignored,
has not triggered, or does not tell (kernel logs) has none, or fail2ban's jail for 1.2 would ban for it.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta, tzinfo
from functools import lru_cache
from typing import NamedTuple

from jailbridge.errors import ParseError
from jailbridge.history.dialects import format_1, format_2, parse
from jailbridge.model.event import Dialect, ScanEvent, TcpFlags

_KEPT = "address", "port", "protocol"
_ALTERED = "kind", "flags", "ip_options", "ignored", "triggered"


class Change(NamedTuple):
    """What a line said of one thing, and what the converted one says; `-` is that it does not tell."""

    what: str
    before: str
    after: str


class LeftOut(ParseError):
    """The dialect has no line for this event; the text is the reason."""


def converted(event: ScanEvent, dialect: Dialect, to: Dialect, zone: tzinfo | None = None) -> tuple[str, list[Change]]:
    """Return the line (without newline) that tells an event in the dialect `to`, 1.2 or 2, and what changed.

    `dialect` is the one it was read in, perhaps the same; `zone` (None: this host's) the one that times are shown in.
    Of a source only its address is written; noblock and blocked, which an event does not keep, are unset. Raises
    LeftOut.
    """
    told = event
    if dialect is Dialect.PORTSENTRY_1:
        told = event._replace(ignored=False, triggered=True)
    if to is Dialect.PORTSENTRY_1:
        if told.ignored:
            raise LeftOut("ignored")
        if told.triggered is False:
            raise LeftOut("not triggered")
        if told.triggered is None or told.ignored is None:
            raise LeftOut("does not tell whether it triggered")
    try:
        local = _local(told.time.replace(microsecond=0), zone).replace(microsecond=told.time.microsecond)
        line = (
            format_1(told, local) if to is Dialect.PORTSENTRY_1 else format_2(told, local, noblock=None, blocked=None)
        )
        # What does not read back as the same probe is not written.
        again, _ = parse(line.encode("ascii"), to)
    except (ParseError, ValueError, OverflowError, OSError):
        raise LeftOut("its time or port cannot be written") from None
    late = abs(again.time - event.time) >= timedelta(seconds=1)
    if late or any(getattr(again, name) != getattr(event, name) for name in _KEPT):
        raise LeftOut("its time or port cannot be written")
    return line, list(_changes(event, again))


def _changes(before: ScanEvent, after: ScanEvent) -> Iterator[Change]:
    if before.time != after.time:
        yield Change("time", "milliseconds" if after.time.microsecond == 0 else "microseconds", "-")
    for name in _ALTERED:
        was, now = getattr(before, name), getattr(after, name)
        if was != now:
            yield Change(name, _said(was), _said(now))


# For each time this host's zone is asked for, its file is looked at; in a storm many lines share a second.
@lru_cache(maxsize=64)
def _local(second: datetime, zone: tzinfo | None) -> datetime:
    return second.astimezone(zone)


def _said(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "true" if value else "false"
        case TcpFlags():
            return value.letters
        case _:
            return str(value)
