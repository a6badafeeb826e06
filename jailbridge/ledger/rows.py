"""The ledger's rows and what they stand for: networks as text, times as epoch seconds, numbers with a sign. Pure."""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any

from jailbridge.model.ban import Ban, EndReason, Origin, ReadMark, Sightings, Tombstone
from jailbridge.model.event import Evidence
from jailbridge.model.network import Network, network_text, parse_network

# A NamedTuple's own way to make one takes three times as long.
_new = tuple.__new__
_LENGTHS = {str(length): length for length in range(129)}
_ORIGINS = {origin.value: origin for origin in Origin}
_EVIDENCE: dict[str | None, Evidence | None] = {None: None, **{evidence.value: evidence for evidence in Evidence}}
# What an IPv4-mapped IPv6 address begins with (RFC 4291, 2.5.5.2): such a network is not in its normal form.
_MAPPED = 0xFFFF


def to_network(text: str) -> Network:
    """Read a network that this module wrote; what looks otherwise is parsed with care. Raises ParseError."""
    address, slash, size = text.partition("/")
    version, family, bits = (6, AF_INET6, 128) if ":" in address else (4, AF_INET, 32)
    try:
        start = int.from_bytes(inet_pton(family, address), "big")
        beside = bits - _LENGTHS[size] if slash else 0
    except (OSError, ValueError, KeyError):
        return parse_network(text)
    if beside < 0 or start & ((1 << beside) - 1) or (version == 6 and start >> 32 == _MAPPED):
        return parse_network(text)
    return _new(Network, (version, start, bits - beside))


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


def feed_row(ban: Ban) -> tuple[str, str | None, str | None]:
    """Return the feed's columns origin, evidence, ports."""
    ports = " ".join(ban.seen.ports) if ban.seen is not None else None
    return ban.origin.value, ban.evidence.value if ban.evidence is not None else None, ports


def to_bans(rows: Iterable[tuple[Any, ...]]) -> Iterator[Ban]:
    """Read whole rows of `ban`; equal texts, and a row's equal times, become one object.

    Raises ParseError, ValueError, KeyError and others for what this module did not write.
    """
    texts: dict[Any, Any] = {}
    ports_of: dict[str, tuple[str, ...]] = {}
    for row in rows:
        network, since, until, origin, reason, evidence, port, file, offset, line, forced, first, last, times, ports = (
            row
        )
        began, seen = to_time(since), None
        if first is not None:
            if (known := ports_of.get(ports)) is None:
                known = ports_of[ports] = tuple(ports.split())
            begin = began if first == since else to_time(first)
            seen = Sightings(begin, begin if last == first else to_time(last), times, known)
        yield _new(
            Ban,
            (
                to_network(network),
                began,
                to_time(until) if until is not None else None,
                _ORIGINS[origin],
                texts.setdefault(reason, reason),
                _EVIDENCE[evidence],
                port,
                texts.setdefault(file, file),
                offset,
                line,
                bool(forced),
                seen,
            ),
        )


def to_tombstone(row: tuple[str, float, str, int, str, int]) -> Tombstone:
    """Read a whole row of `tombstone`."""
    network, ended, why, bans, marks, logged = row
    read = {path: ReadMark(device=d, inode=i, offset=o) for path, (d, i, o) in json.loads(marks).items()}
    return Tombstone(
        network=to_network(network),
        ended=to_time(ended),
        why=EndReason(why),
        bans=bans,
        marks=read,
        logged=bool(logged),
    )
