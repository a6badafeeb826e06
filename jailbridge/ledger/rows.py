"""The ledger's rows and what they stand for: networks as text, times as epoch seconds, numbers with a sign. Pure."""

import json
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from jailbridge.model.ban import Ban, EndReason, Origin, ReadMark, Sightings, Tombstone
from jailbridge.model.event import Evidence
from jailbridge.model.network import Network, network_text, parse_network


@lru_cache(maxsize=1 << 18)
def to_network(text: str) -> Network:
    """Read a network that this module wrote. Raises ParseError."""
    return parse_network(text)


def to_signed(number: int) -> int:
    """SQLite's integers are signed, an inode's or a device's number is not; both have 64 bits."""
    return number - (1 << 64) if number >> 63 else number


def to_unsigned(number: int) -> int:
    """Return what `to_signed` was given."""
    return number & ((1 << 64) - 1)


def to_time(seconds: float) -> datetime:
    """Return an aware time, UTC."""
    return datetime.fromtimestamp(seconds, UTC)


def to_seconds(time: datetime | None) -> float | None:
    """Return a time as it is written; None, for ever, stays."""
    return time.timestamp() if time is not None else None


# The columns in the order of ban_row.
INSERT_BAN = "INSERT OR REPLACE INTO ban VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"


def ban_row(ban: Ban) -> tuple[object, ...]:
    """Return a ban's columns, as INSERT_BAN takes them."""
    return (
        network_text(ban.network),
        ban.since.timestamp(),
        to_seconds(ban.until),
        ban.origin.value,
        ban.reason,
        ban.evidence.value if ban.evidence is not None else None,
        ban.port,
        ban.file,
        ban.offset,
        ban.line,
        int(ban.forced),
        *seen_row(ban.seen),
    )


def seen_row(seen: Sightings | None) -> tuple[object, ...]:
    """Return the columns first_seen, last_seen, sightings, ports."""
    if seen is None:
        return None, None, None, None
    return seen.first.timestamp(), seen.last.timestamp(), seen.times, " ".join(seen.ports)


def to_ban(row: tuple[Any, ...]) -> Ban:
    """Read a whole row of `ban`. Raises ParseError, ValueError and others for what this module did not write."""
    network, since, until, origin, reason, evidence, port, file, offset, line, forced, first, last, count, ports = row
    return Ban(
        network=to_network(network),
        since=to_time(since),
        until=to_time(until) if until is not None else None,
        origin=Origin(origin),
        reason=reason,
        evidence=Evidence(evidence) if evidence is not None else None,
        port=port,
        file=file,
        offset=offset,
        line=line,
        forced=bool(forced),
        seen=Sightings(to_time(first), to_time(last), count, tuple(ports.split())) if first is not None else None,
    )


def to_tombstone(row: tuple[str, float, str, int, str]) -> Tombstone:
    """Read a whole row of `tombstone`."""
    network, ended, why, bans, marks = row
    read = {path: ReadMark(device=d, inode=i, offset=o) for path, (d, i, o) in json.loads(marks).items()}
    return Tombstone(network=to_network(network), ended=to_time(ended), why=EndReason(why), bans=bans, marks=read)
