"""Records bans, their ends, and how far the logs were read. Decides nothing.

Live bans are kept in memory beside the file; one process writes a ledger at a time (`hold`). Log-driven writes are
synchronous NORMAL, since their lines can be read again; an operator's are FULL.
"""

import fcntl
import gc
import json
import logging
import os
import sqlite3
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Self

from jailbridge.errors import FatalError, ParseError
from jailbridge.ledger.damaged import Predecessors, set_aside
from jailbridge.ledger.orders import Orders
from jailbridge.ledger.places import Places
from jailbridge.ledger.rows import (
    INSERT_BAN,
    ban_row,
    feed_row,
    seen_row,
    to_bans,
    to_network,
    to_seconds,
    to_signed,
    to_time,
    to_tombstone,
    to_unsigned,
)
from jailbridge.ledger.schema import DamagedLedger, connect, damaged, is_damage, unsound
from jailbridge.ledger.story import Story, trim_tombstones
from jailbridge.model.ban import Ban, EndReason, Sighting, Sightings, Tombstone
from jailbridge.model.event import Evidence, TailPosition
from jailbridge.model.network import Network, network_text, shown

log = logging.getLogger("jailbridge.ledger")

# Whoever reads the feed is seconds behind, not days; yet one command may end every ban that policy allows.
FEED_KEPT = 200_000
# The last changes, and those of the last transaction, are kept in memory too.
RECENT = 10_000
# References to what only the ledger holds, as sys.getrefcount tells: the attribute's, and the call's own.
ALONE = 2
# A tombstone may be needed this much longer than its bans are remembered: a log's time may be off by a day.
LATE = timedelta(days=1)


class Ledger:
    """One open ledger. Every method that writes is one transaction. Safe to use from several threads."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Open the ledger at `path`. Raises FatalError in one line for what is not one."""
        self.path = path
        self._lock = threading.RLock()
        self._holder: int | None = None
        self._db = connect(path, create=create)
        try:
            self._load()
            self.story = Story(self._db, self._reading, self._transaction)
            self.places = Places(self._db, self.id, lambda: self._bans, self._reading, self._transaction)
            writing = partial(self._transaction, durable=True)
            self.orders = Orders(self._db, writing)
            self.predecessors = Predecessors(self._db, path, self.orders, writing)
        except (sqlite3.DatabaseError, ParseError, ValueError, KeyError, OverflowError, TypeError) as error:
            self._db.close()
            is_rows = not isinstance(error, sqlite3.Error) or is_damage(error)
            raise (damaged(path) if is_rows else unsound(path)) from None

    @classmethod
    def held(cls, path: Path, *, create: bool = True) -> Self:
        """Open and hold a ledger; a damaged one is set aside, loudly, and a new one begun. Raises FatalError."""
        # Who may not look into its folder is told so below.
        with suppress(PermissionError):
            if create and not path.exists():
                log.info("there is no ledger at %s: a new one begins, with what the stores hold", path)
        with ExitStack() as stack:
            try:
                ledger = cls(path, create=create)
            except DamagedLedger:
                # Where none was ever held it is likelier that ledger.path names somebody else's file.
                if not _lock_file(path).exists():
                    raise
                ledger = cls._in_place_of_damaged(path)
                stack.callback(ledger.close)
            else:
                stack.callback(ledger.close)
                ledger.hold()
            ledger.predecessors.take_over()
            stack.pop_all()
        return ledger

    @classmethod
    def _in_place_of_damaged(cls, path: Path) -> Self:
        with ExitStack() as stack:
            holder = _hold(path)
            stack.callback(os.close, holder)
            try:
                # Another process may have been quicker.
                ledger = cls(path)
            except DamagedLedger:
                set_aside(path)
                ledger = cls(path)
            ledger._holder = holder
            stack.pop_all()
        return ledger

    def _load(self) -> None:
        # Asked first: what another process writes meanwhile is newer than what is read here.
        self._version = self._one("PRAGMA data_version")
        self.id: str = self._one("SELECT value FROM meta WHERE name = 'id'")
        # The end of the feed, without a gap.
        self._recent: list[tuple[int, datetime, str, Network, str]] = []
        with _no_collecting():
            self._bans = {ban.network: ban for ban in to_bans(self._db.execute("SELECT * FROM ban"))}
        # The prefix lengths, by IP version, that a ban or a tombstone may have: look-ups try no others.
        self._lengths: dict[int, set[int]] = {4: {32}, 6: {128}}
        self._note_lengths(self._bans)
        sizes = "SELECT DISTINCT instr(network, ':') > 0, substr(network, instr(network, '/') + 1) FROM tombstone"
        for is_six, size in self._db.execute(sizes + " WHERE instr(network, '/') > 0"):
            self._lengths[6 if is_six else 4].add(int(size))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let go of it."""
        with self._lock:
            self._db.close()
            if self._holder is not None:
                os.close(self._holder)
                self._holder = None

    def hold(self) -> None:
        """Become the one process that writes this ledger, until close. Raises FatalError that names the holder."""
        self._holder = _hold(self.path)
        with self._reading():
            # Changes when another has written: https://www.sqlite.org/pragma.html#pragma_data_version
            if self._one("PRAGMA data_version") != self._version:
                self._load()
                self.places.forget()
                self.orders.load()

    # Bans

    def bans(self) -> Mapping[Network, Ban]:
        """Return every ban that has not been ended, as it stands now. Kept over a change, it costs that one a copy."""
        with self._lock:
            return MappingProxyType(self._bans)

    def covering(self, network: Network) -> Ban | None:
        """Return the ban of the largest network that holds `network`, or None."""
        with self._lock:
            for around in self._around(network):
                if (ban := self._bans.get(around)) is not None:
                    return ban
            return None

    def tombstone(self, network: Network) -> Tombstone | None:
        """Return what the last ban of `network`, or of a network that holds it, left behind: the latest one."""
        return self.tombstones([network]).get(network)

    def tombstones(self, networks: Iterable[Network]) -> Mapping[Network, Tombstone]:
        """Return, for those of these networks that have one, the same as `tombstone`, in one look for all."""
        with self._reading():
            if self._db.execute("SELECT 1 FROM tombstone LIMIT 1").fetchone() is None:
                return {}
            around = [(network, [network_text(wider) for wider in self._around(network)]) for network in networks]
            asked = json.dumps(list({text for _, texts in around for text in texts}))
            rows = self._db.execute(
                "SELECT tombstone.* FROM json_each(?) CROSS JOIN tombstone ON network = json_each.value", (asked,)
            )
            found = {stone.network: stone for stone in map(to_tombstone, rows)}
        if not found:
            return {}
        texts = {network_text(network): stone for network, stone in found.items()}
        left = [(network, [texts[text] for text in wider if text in texts]) for network, wider in around]
        return {network: max(stones, key=attrgetter("ended")) for network, stones in left if stones}

    def _around(self, network: Network) -> Iterator[Network]:
        """Yield the networks that hold this one, itself included, of every size in use; the largest first."""
        for length in sorted(self._lengths[network.version]):
            if length < network.prefixlen:
                yield network.supernet(length)
            elif length == network.prefixlen:
                yield network

    def soonest(self, evidence: Evidence, limit: int) -> list[Ban]:
        """Return up to `limit` bans of this evidence, those that end soonest first."""
        with self._reading():
            # Two looks, since the index on the ends leaves permanent bans out.
            rows: list[tuple[str]] = []
            for which in ("NOT NULL ORDER BY until, network", "NULL ORDER BY network"):
                query = f"SELECT network FROM ban WHERE evidence = ? AND until IS {which} LIMIT ?"  # noqa: S608
                rows += self._db.execute(query, (evidence.value, limit - len(rows))).fetchall()
            return [self._bans[to_network(network)] for (network,) in rows]

    def _note_lengths(self, networks: Iterable[Network]) -> None:
        for version, length in {(network.version, network.prefixlen) for network in networks}:
            self._lengths[version].add(length)

    def over(self, now: datetime) -> list[Network]:
        """Return the networks whose bans' time has passed."""
        with self._reading():
            rows = self._db.execute("SELECT network FROM ban WHERE until <= ?", (now.timestamp(),)).fetchall()
            return [to_network(network) for (network,) in rows]

    @property
    def next_end(self) -> datetime | None:
        """When the first ban, or a pause, ends; None where none does."""
        with self._reading():
            row = self._db.execute("SELECT min(until) FROM ban WHERE until IS NOT NULL").fetchone()
            ends = [to_time(row[0])] if row[0] is not None else []
        return min([*ends, *filter(None, [self.orders.pause_ends])], default=None)

    def paused(self, now: datetime) -> bool:
        """Tell whether an operator wants nothing held in any store now."""
        return self.orders.paused(now)

    def record(
        self,
        bans: Iterable[Ban],
        positions: Iterable[TailPosition] = (),
        *,
        now: datetime,
        durable: bool = False,
        merged: Mapping[Network, Sightings] = MappingProxyType({}),
        story: Iterable[Sighting] = (),
    ) -> None:
        """Write new or changed bans together with the log positions whose lines caused them.

        merged  what was seen of networks that were banned before, all told: no change of their bans
        story   the lines' own part of the story

        Raises ParseError for a text that is no Unicode; then nothing is written.
        """
        bans, positions, story = list(bans), list(positions), list(story)
        if not (bans or positions or merged or story):
            return
        with self._lock, self._changing() as changed, self._transaction(durable=durable):
            self._db.executemany(INSERT_BAN, map(ban_row, bans))
            self._db.executemany(
                "INSERT OR REPLACE INTO position VALUES (?,?,?,?,?)",
                [(p.path, to_signed(p.device), to_signed(p.inode), p.offset, p.head) for p in positions],
            )
            made: dict[Network, Ban] = {}
            changes = []
            for ban in bans:
                what = "change" if ban.network in self._bans or ban.network in made else "ban"
                made[ban.network] = ban
                changes.append((what, ban, ban.reason, ban.until))
            self._tell(now, changes)
            self.places.doubt(made)
            self.story.seen(story, now)
            self._db.executemany(
                "UPDATE ban SET first_seen = ?, last_seen = ?, sightings = ?, ports = ? WHERE network = ?",
                [(*seen_row(seen), network_text(network)) for network, seen in merged.items()],
            )
            changed.update({network: self._bans[network]._replace(seen=seen) for network, seen in merged.items()})
            changed.update(made)

    def end(
        self, networks: Iterable[Network], why: EndReason, *, now: datetime, durable: bool = False
    ) -> list[Network]:
        """End the bans of exactly these networks, leaving tombstones; return those that were banned.

        What a person ends is pardoned: its bans so far do not make the next one longer.
        """
        pardon = why in {EndReason.OPERATOR, EndReason.ALLOW, EndReason.STORE}
        # Networks that are named twice end once.
        asked = dict.fromkeys(networks)
        with self._lock:
            if not (ended := [network for network in asked if network in self._bans]):
                return []
            with self._changing() as changed, self._transaction(durable=durable):
                read = self.positions().values() if why is not EndReason.EXPIRED else ()
                marks = json.dumps({p.path: [p.device, p.inode, p.offset] for p in read})
                stones = []
                for network in ended:
                    ban = self._bans[network]
                    # The time of a natural end is the ban's own, whenever we come to notice it.
                    when = min(ban.until, now) if why is EndReason.EXPIRED and ban.until is not None else now
                    logged = ban.file is not None or ban.seen is not None
                    stone = network_text(network), when.timestamp(), why.value, int(not pardon), marks, int(logged)
                    stones.append(stone)
                self._db.executemany("DELETE FROM ban WHERE network = ?", [(stone[0],) for stone in stones])
                self._db.executemany(
                    "INSERT INTO tombstone VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (network) DO UPDATE SET"
                    " ended = excluded.ended, why = excluded.why, marks = excluded.marks,"
                    " bans = (bans + 1) * excluded.bans, logged = max(logged, excluded.logged)",
                    stones,
                )
                self._tell(now, [("unban", self._bans[network], why.value, None) for network in ended])
                changed.update(dict.fromkeys(ended))
        return ended

    def prune(self, *, now: datetime, memory: timedelta, feed_kept: int = FEED_KEPT) -> None:
        """Forget tombstones older than `memory` (and LATE) which no store holds any more, and the feed's old end."""
        with self._transaction():
            self._db.execute(
                "DELETE FROM tombstone WHERE ended < ? AND network NOT IN (SELECT network FROM placement)",
                ((now - memory - LATE).timestamp(),),
            )
            trim_tombstones(self._db)
            self._db.execute("DELETE FROM feed WHERE sequence <= (SELECT max(sequence) FROM feed) - ?", (feed_kept,))
            del self._recent[:-feed_kept]

    # Logs

    def positions(self) -> Mapping[str, TailPosition]:
        """Return how far each followed file has been read, by path."""
        with self._reading():
            rows = self._db.execute("SELECT * FROM position")
            return {
                path: TailPosition(
                    path=path, device=to_unsigned(device), inode=to_unsigned(inode), offset=offset, head=head
                )
                for path, device, inode, offset, head in rows
            }

    def forget_positions(self, paths: Iterable[str]) -> None:
        """Forget how far files were read that nobody will follow again."""
        with self._transaction():
            self._db.executemany("DELETE FROM position WHERE path = ?", [(path,) for path in paths])

    def feed(self, after: int = 0, limit: int = 1000) -> Sequence[tuple[int, datetime, str, Network, str]]:
        """Return up to `limit` changes past a sequence number: (sequence, time, what, network, why).

        What: "ban", "change" of one that stands, "unban".
        """
        with self._reading():
            if self._recent and self._recent[0][0] <= after + 1:
                begin = after + 1 - self._recent[0][0]
                return self._recent[begin : begin + limit]
            rows = self._db.execute(
                "SELECT sequence, time, what, network, why FROM feed WHERE sequence > ? ORDER BY sequence LIMIT ?",
                (after, limit),
            )
            return [(n, to_time(time), what, to_network(network), why) for n, time, what, network, why in rows]

    @property
    def last_change(self) -> int:
        """The sequence number of the newest change in the feed; 0 where there is none."""
        with self._reading():
            return int(self._one("SELECT coalesce(max(sequence), 0) FROM feed"))

    def _tell(self, now: datetime, changes: Sequence[tuple[str, Ban, str, datetime | None]]) -> None:
        if not changes:
            return
        stamp = now.timestamp()
        self._db.executemany(
            "INSERT INTO feed (time, what, network, why, until, origin, evidence, ports)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (stamp, what, network_text(ban.network), why, to_seconds(until), *feed_row(ban))
                for what, ban, why, until in changes
            ],
        )
        # The rest of the process hears of them from memory.
        first = self.last_change - len(changes) + 1
        del self._recent[:-RECENT]
        self._recent += [(n, now, what, ban.network, why) for n, (what, ban, why, _) in enumerate(changes, first)]

    def _one(self, query: str) -> str:
        return str(self._db.execute(query).fetchone()[0])

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise FatalError(f"ledger {self.path} cannot be read: {error}") from None

    @contextmanager
    def _changing(self) -> Iterator[dict[Network, Ban | None]]:
        """Take the changes that are put in (None: ended) over into memory, once the file has them."""
        changed: dict[Network, Ban | None] = {}
        yield changed
        # A mapping that somebody was given must not change; whether one is still held, the references tell.
        if changed and sys.getrefcount(self._bans) > ALONE:
            self._bans = dict(self._bans)
        for network, ban in changed.items():
            if ban is None:
                del self._bans[network]
            else:
                self._bans[network] = ban
        self._note_lengths(changed)

    @contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[None]:
        with self._lock:
            try:
                # Cannot change inside a transaction: https://www.sqlite.org/pragma.html#pragma_synchronous
                self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except BaseException as error:
                self.places.forget()
                self._recent.clear()
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise FatalError(f"ledger {self.path} cannot be written: {error}") from None
                if isinstance(error, UnicodeEncodeError):
                    raise ParseError(f"{shown(error.object)} is not Unicode text: it cannot be recorded") from None
                raise


def _lock_file(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _hold(path: Path) -> int:
    """Lock a ledger, be it there or not, for as long as the descriptor is open. Raises FatalError."""
    lock = _lock_file(path)
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FatalError(f"ledger {path} cannot be held: {lock}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "?"
        os.close(descriptor)
        raise FatalError(f"another jailbridge (process {holder}) works on ledger {path}: wait, or stop it") from None
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        os.close(descriptor)
        raise FatalError(f"ledger {path} cannot be held: {lock}: {error.strerror}") from None
    return descriptor


@contextmanager
def _no_collecting() -> Iterator[None]:
    """Look for no garbage meanwhile: among many new values without cycles that costs a quarter of the time."""
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_collecting:
            gc.enable()
