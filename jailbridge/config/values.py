"""The values that settings and commands take as text: durations, port lists, networks. Pure."""

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeAlias

from jailbridge.errors import ParseError
from jailbridge.model.network import shown

PERMANENT = "permanent"
_UNITS_S = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:(\d{1,6})w)?(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?", re.ASCII)
# It stands in log lines, lists and comments beside others' text.
MAX_REASON = 200
MAX_DURATION = timedelta(days=36500)

PortRange: TypeAlias = tuple[int, int]
"""First and last port, both included."""


def parse_duration(text: str) -> timedelta:
    """Return the time that `90s`, `10m`, `2h`, `1d`, `4w` or `1h30m` name. Raises ParseError; zero is none."""
    match = _DURATION.fullmatch(text.strip())
    seconds = sum(int(n or 0) * unit for n, unit in zip(match.groups(), _UNITS_S.values(), strict=True)) if match else 0
    if not 0 < seconds <= MAX_DURATION.total_seconds():
        raise ParseError(f"{shown(text)} is not a duration: write it like 90s, 10m, 2h, 1d, 4w or 1h30m")
    return timedelta(seconds=seconds)


def parse_ban_duration(text: str) -> timedelta | None:
    """Return the time that a ban lasts, None for `permanent`. Raises ParseError."""
    if text.strip() == PERMANENT:
        return None
    try:
        return parse_duration(text)
    except ParseError as error:
        raise ParseError(f"{error}, or {PERMANENT}") from None


def duration_text(duration: timedelta | None) -> str:
    """Return the shortest text that `parse_ban_duration` reads back as this time (whole seconds)."""
    if duration is None:
        return PERMANENT
    left, text = int(duration.total_seconds()), ""
    for unit, seconds in _UNITS_S.items():
        count, left = divmod(left, seconds)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def parse_reason(text: str) -> str:
    """Return an operator's words as they are. Raises ParseError for what a log line, or a list, cannot carry."""
    if not text.isprintable() or len(text) > MAX_REASON:
        raise ParseError(f"a reason should be one line of printable text, at most {MAX_REASON} characters")
    return text


def parse_ports(text: str) -> tuple[PortRange, ...]:
    """Return the ranges of a port list in PortSentry's syntax: `1,5-11, 79`; sorted, joined where they touch.

    Empty text is no port. Raises ParseError.
    """
    ranges = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = part.partition("-")
        if not re.fullmatch(r"\d{1,5}", first.strip(), re.ASCII) or (
            dash and not re.fullmatch(r"\d{1,5}", last.strip(), re.ASCII)
        ):
            raise ParseError(f"{shown(part)} is not a port or a range of ports")
        low, high = int(first), int(last or first)
        if not 0 < low <= high <= 65535:
            raise ParseError(f"{shown(part)} is not a range within 1-65535")
        ranges.append((low, high))
    return _joined(sorted(ranges))


def without(ranges: Sequence[PortRange], excluded: Sequence[PortRange]) -> tuple[PortRange, ...]:
    """Return the ports of `ranges` that are not in `excluded`; both sorted and joined."""
    left: list[PortRange] = []
    for low, high in ranges:
        start = low
        for gap_low, gap_high in excluded:
            if gap_high < start or gap_low > high:
                continue
            if gap_low > start:
                left.append((start, gap_low - 1))
            start = gap_high + 1
        if start <= high:
            left.append((start, high))
    return tuple(left)


def _joined(ranges: Sequence[PortRange]) -> tuple[PortRange, ...]:
    joined: list[PortRange] = []
    for low, high in ranges:
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return tuple(joined)
