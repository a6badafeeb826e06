"""What happened to each network, told later by `explain`: sightings, changes of its ban, of its place in every store.

Knows no policy. Outsiders fill it, so it is bounded: of one network the first and the last rows, and so many in all.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

from jailbridge.ledger.rows import to_network, to_time
from jailbridge.model.ban import Sighting
from jailbridge.model.network import Network, network_text
from jailbridge.model.plan import Change

# Of one network's rows these are kept: how it began, and how it goes on.
FIRST, LAST = 20, 80
# Rows in all, some hundred bytes each. They are cut down to this once there are SLACK more: bulk costs less.
ROWS, SLACK = 200_000, 50_000
# Tombstones: a forger who fills the brake (600 a minute) needs half a day for as many.
TOMBSTONES = 500_000
# More changes of a store at once are no story of any one network: it was filled, emptied or lost.
REFILL = 10_000
# What is told at once.
TOLD = 1000


# In the order in which we came to know: a log's own time may have whole seconds, or be another clock's. Of what was
# noted at one time the sighting led to the ban, and that to its place.
_OF = """
    SELECT time, what, network, detail, NULL, file, "offset", line,
        noted, CASE what WHEN 'seen' THEN 0 ELSE 2 END AS turn, sequence
    FROM story WHERE network IN (SELECT value FROM json_each(?1))
    UNION ALL
    SELECT time, CASE what WHEN 'ban' THEN 'banned' WHEN 'change' THEN 'changed' ELSE 'unbanned' END, network, why,
        until, NULL, NULL, NULL, time, 1, sequence
    FROM feed WHERE network IN (SELECT value FROM json_each(?1))
    ORDER BY noted DESC, turn DESC, sequence DESC LIMIT ?2
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One thing that happened: `what` is seen, banned, changed, unbanned or placed. `line` is an outsider's text."""

    time: datetime
    what: str
    network: str
    detail: str
    until: datetime | None = None
    file: str | None = None
    offset: int | None = None
    line: str | None = None


class Story:
    """The story's part of one ledger: `reading` and `writing` are the ledger's own."""

    def __init__(
        self,
        db: sqlite3.Connection,
        reading: Callable[[], AbstractContextManager[None]],
        writing: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._db = db
        self._reading = reading
        self._writing = writing
        self._rows = _count(db, "story")

    def placed(self, store: str, changes: Sequence[Change], now: datetime) -> None:
        """Note changes that were made in a store; not more than REFILL, which would drive out what was seen of all."""
        if len(changes) > REFILL:
            return
        noted = now.timestamp()
        rows = [
            (noted, noted, "placed", network_text(c.network), f"{store}: {c.action}: {c.why}", None, None, None)
            for c in changes
            if c.network is not None
        ]
        if rows:
            with self._writing():
                self._add(rows)

    def seen(self, sightings: Iterable[Sighting], now: datetime) -> None:
        """Note sightings, in the transaction of what they led to."""
        noted = now.timestamp()
        rows = [
            (
                noted,
                time.timestamp(),
                "seen",
                network,
                detail,
                line.path,
                line.offset,
                line.text.decode("ascii", "backslashreplace"),
            )
            for network, time, detail, line in sightings
        ]
        if rows:
            self._add(rows)

    def of(self, network: Network) -> Sequence[Told]:
        """Return what happened to a network, to those around it and to those within it: the last TOLD, oldest first."""
        around = [network.supernet(length) for length in range(network.prefixlen + 1)]
        with self._reading():
            texts = {network_text(one) for one in around} | set(self._within(network))
            rows = self._db.execute(_OF, (json.dumps(sorted(texts)), TOLD)).fetchall()
        return [_told(*row[:8]) for row in reversed(rows)]

    def _within(self, network: Network) -> Iterable[str]:
        if network.prefixlen == network.max_prefixlen:
            return
        # Hundreds of thousands of texts that we wrote: what begins within, other than what is around, lies within.
        for (text,) in self._db.execute("SELECT network FROM story UNION SELECT network FROM feed"):
            if (":" in text) is (network.version == 6) and network.holds(to_network(text)):
                yield text

    def _add(self, rows: Sequence[tuple[object, ...]]) -> None:
        self._db.executemany(
            'INSERT INTO story (noted, time, what, network, detail, file, "offset", line)'
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        self._rows += len(rows)
        if self._rows > ROWS + SLACK:
            self._rows = trim_story(self._db)


def trim_story(db: sqlite3.Connection, *, first: int = FIRST, last: int = LAST, most: int = ROWS) -> int:
    """Forget the middle of long stories, then the oldest rows beyond `most`; return how many rows are left.

    Those of networks that were never banned go first: no flood of forged sources makes a ban's own story go.
    """
    long = db.execute("SELECT network FROM story GROUP BY network HAVING count(*) > ?", (first + last,)).fetchall()
    db.executemany(
        "DELETE FROM story WHERE network = ?1"
        " AND sequence > (SELECT sequence FROM story WHERE network = ?1 ORDER BY sequence LIMIT 1 OFFSET ?2)"
        " AND sequence < (SELECT sequence FROM story WHERE network = ?1 ORDER BY sequence DESC LIMIT 1 OFFSET ?3)",
        [(network, first - 1, last - 1) for (network,) in long],
    )
    never_banned = "WHERE network NOT IN (SELECT network FROM ban) AND network NOT IN (SELECT network FROM tombstone)"
    for which in (never_banned, ""):
        surplus = _count(db, "story") - most
        if surplus > 0:
            db.execute(
                f"DELETE FROM story WHERE sequence IN (SELECT sequence FROM story {which} ORDER BY sequence LIMIT ?)",  # noqa: S608
                (surplus,),
            )
    return _count(db, "story")


def trim_tombstones(db: sqlite3.Connection, *, most: int = TOMBSTONES) -> None:
    """Forget tombstones beyond `most`: the oldest, but those that a person made last, and none of what a store holds.

    For the ledger's own prune. What goes with one is the memory for longer repeats, and for log lines older than it.
    """
    surplus = _count(db, "tombstone") - most
    if surplus > 0:
        db.execute(
            "DELETE FROM tombstone WHERE network IN (SELECT network FROM tombstone"
            " WHERE network NOT IN (SELECT network FROM placement)"
            " ORDER BY why IN ('operator', 'allow', 'store'), ended LIMIT ?)",
            (surplus,),
        )


def _count(db: sqlite3.Connection, table: str) -> int:
    return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608


def _told(
    time: float,
    what: str,
    network: str,
    detail: str,
    until: float | None,
    file: str | None,
    offset: int | None,
    line: str | None,
) -> Told:
    return Told(
        time=to_time(time),
        what=what,
        network=network,
        detail=detail,
        until=to_time(until) if until is not None else None,
        file=file,
        offset=offset,
        line=line,
    )
