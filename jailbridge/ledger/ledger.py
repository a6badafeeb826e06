"""Records bans, their ends, where they were placed, and how far the logs were read. Decides nothing.

Live bans are kept in memory beside the file; one process writes a ledger at a time (`hold`). Log-driven writes are
synchronous NORMAL, since their lines can be read again; an operator's are FULL.
"""

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from jailbridge.errors import FatalError, ParseError
from jailbridge.ledger.schema import connect, unsound
from jailbridge.model.ban import Ban, EndReason, Origin, ReadMark, Tombstone
from jailbridge.model.event import Evidence, TailPosition
from jailbridge.model.network import Network, network_text, shown
from jailbridge.model.plan import Placement
from jailbridge.model.token import Token

# Whoever reads the feed is seconds behind, not days; yet one command may end every ban that policy allows.
FEED_KEPT = 200_000
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
        except (sqlite3.DatabaseError, ValueError, OverflowError, TypeError):
            self._db.close()
            raise unsound(path) from None

    def _load(self) -> None:
        self.id: str = self._one("SELECT value FROM meta WHERE name = 'id'")
        self._bans = {ban.network: ban for ban in map(_ban, self._db.execute("SELECT * FROM ban"))}
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
        lock = self.path.with_name(self.path.name + ".lock")
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FatalError(f"ledger {self.path} cannot be held: {lock}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "?"
            os.close(descriptor)
            raise FatalError(
                f"another jailbridge (process {holder}) works on ledger {self.path}: wait, or stop it"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._holder = descriptor
        # Another may have written since this one was opened.
        with self._reading():
            self._load()

    # Bans

    def bans(self) -> Mapping[Network, Ban]:
        """Return every ban that has not been ended, as it stands now; later changes make a new mapping."""
        with self._lock:
            return MappingProxyType(self._bans)

    def covering(self, network: Network) -> Ban | None:
        """Return the ban of the largest network that holds `network`, or None."""
        with self._lock:
            return next((self._bans[around] for around in self._around(network) if around in self._bans), None)

    def tombstone(self, network: Network) -> Tombstone | None:
        """Return what the last ban of `network`, or of a network that holds it, left behind: the latest one."""
        with self._reading():
            texts = [network_text(around) for around in self._around(network)]
            rows = self._db.execute(
                f"SELECT * FROM tombstone WHERE network IN ({','.join('?' * len(texts))}) ORDER BY ended DESC LIMIT 1",  # noqa: S608
                texts,
            ).fetchall()
        return _tombstone(rows[0]) if rows else None

    def _around(self, network: Network) -> Iterator[Network]:
        """Yield the networks that hold this one, itself included, of every size in use; the largest first."""
        for length in sorted(self._lengths[network.version]):
            if length <= network.prefixlen:
                yield network.supernet(new_prefix=length)

    def _note_lengths(self, networks: Iterable[Network]) -> None:
        for version, length in {(network.version, network.prefixlen) for network in networks}:
            self._lengths[version].add(length)

    @property
    def next_end(self) -> datetime | None:
        """When the first ban ends; None where none does."""
        with self._reading():
            row = self._db.execute("SELECT min(until) FROM ban WHERE until IS NOT NULL").fetchone()
        return _time(row[0]) if row[0] is not None else None

    def record(
        self,
        bans: Iterable[Ban],
        positions: Iterable[TailPosition] = (),
        *,
        now: datetime,
        durable: bool = False,
    ) -> None:
        """Write new or changed bans together with the log positions whose lines caused them.

        Raises ParseError for a text that is no Unicode; then nothing is written.
        """
        bans = list(bans)
        with self._transaction(durable=durable):
            self._db.executemany("INSERT OR REPLACE INTO ban VALUES (?,?,?,?,?,?,?,?,?,?,?)", map(_ban_row, bans))
            self._db.executemany(
                "INSERT OR REPLACE INTO position VALUES (?,?,?,?,?)",
                [(p.path, _signed(p.device), _signed(p.inode), p.offset, p.head) for p in positions],
            )
            self._tell(now, "ban", [(ban.network, ban.reason) for ban in bans])
            if bans:
                self._bans = {**self._bans, **{ban.network: ban for ban in bans}}
                self._note_lengths(ban.network for ban in bans)

    def end(
        self, networks: Iterable[Network], why: EndReason, *, now: datetime, durable: bool = False
    ) -> list[Network]:
        """End the bans of exactly these networks, leaving tombstones; return those that were banned.

        What a person ends is pardoned: its bans so far do not make the next one longer.
        """
        pardon = why in {EndReason.OPERATOR, EndReason.ALLOW}
        with self._transaction(durable=durable):
            left = dict(self._bans)
            # Networks that are named twice end once.
            ended = [network for network in dict.fromkeys(networks) if network in left]
            marks = json.dumps({p.path: [p.device, p.inode, p.offset] for p in self.positions().values()})
            for network in ended:
                text = network_text(network)
                # The time of a natural end is the ban's own, whenever we come to notice it.
                until = left.pop(network).until
                when = min(until, now) if why is EndReason.EXPIRED and until is not None else now
                self._db.execute("DELETE FROM ban WHERE network = ?", (text,))
                self._db.execute(
                    "INSERT INTO tombstone VALUES (?, ?, ?, ?, ?) ON CONFLICT (network) DO UPDATE SET"
                    " ended = excluded.ended, why = excluded.why, marks = excluded.marks,"
                    " bans = (bans + 1) * excluded.bans",
                    (
                        text,
                        when.timestamp(),
                        why.value,
                        int(not pardon),
                        marks if why is not EndReason.EXPIRED else "{}",
                    ),
                )
            self._tell(now, "unban", [(network, why.value) for network in ended])
            if ended:
                self._bans = left
        return ended

    def prune(self, *, now: datetime, memory: timedelta, feed_kept: int = FEED_KEPT) -> None:
        """Forget tombstones older than `memory` (and LATE) which no store holds any more, and the feed's old end."""
        with self._transaction():
            self._db.execute(
                "DELETE FROM tombstone WHERE ended < ? AND network NOT IN (SELECT network FROM placement)",
                ((now - memory - LATE).timestamp(),),
            )
            self._db.execute("DELETE FROM feed WHERE sequence <= (SELECT max(sequence) FROM feed) - ?", (feed_kept,))

    # Stores

    def placements(self, store: str) -> Mapping[Network, Placement]:
        """Return what was written to a store, and whether it was read back."""
        with self._reading():
            rows = self._db.execute("SELECT network, state FROM placement WHERE store = ?", (store,))
            return {_network(network): Placement(state) for network, state in rows}

    def attempt(self, store: str, networks: Iterable[Network], *, boot: str, layout: int) -> Token:
        """Note that these bans are about to be written to a store; return the token to write last."""
        with self._transaction():
            sequence = int(self._one("SELECT value FROM meta WHERE name = 'sequence'")) + 1
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'sequence'", (str(sequence),))
            self._db.executemany(
                "INSERT OR IGNORE INTO placement VALUES (?, ?, ?)",
                [(store, network_text(network), Placement.ATTEMPTED.value) for network in networks],
            )
        return Token(ledger=self.id, boot=boot, layout=layout, sequence=sequence)

    def confirm(self, store: str, present: Iterable[Network], absent: Iterable[Network], token: Token | None) -> None:
        """Note what a store was seen with and without; `token` if it carries the one that was last given out for it."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO placement VALUES (?, ?, ?)",
                [(store, network_text(network), Placement.CONFIRMED.value) for network in present],
            )
            self._db.executemany(
                "DELETE FROM placement WHERE store = ? AND network = ?",
                [(store, network_text(n)) for n in absent],
            )
            if token is not None:
                self._db.execute("INSERT OR REPLACE INTO store VALUES (?, ?)", (store, str(token)))

    def recorded_token(self, store: str) -> Token | None:
        """Return the last token that was read back from a store; None where none ever was."""
        with self._reading():
            row = self._db.execute("SELECT token FROM store WHERE name = ?", (store,)).fetchone()
        return Token.parse(row[0]) if row else None

    @property
    def last_sequence(self) -> int:
        """The last sequence number that was given out in a token."""
        with self._reading():
            return int(self._one("SELECT value FROM meta WHERE name = 'sequence'"))

    # Logs

    def positions(self) -> Mapping[str, TailPosition]:
        """Return how far each followed file has been read, by path."""
        with self._reading():
            rows = self._db.execute("SELECT * FROM position")
            return {
                path: TailPosition(
                    path=path, device=_unsigned(device), inode=_unsigned(inode), offset=offset, head=head
                )
                for path, device, inode, offset, head in rows
            }

    def feed(self, after: int = 0, limit: int = 1000) -> Sequence[tuple[int, datetime, str, Network, str]]:
        """Return up to `limit` changes past a sequence number: (sequence, time, "ban" or "unban", network, why)."""
        with self._reading():
            rows = self._db.execute("SELECT * FROM feed WHERE sequence > ? ORDER BY sequence LIMIT ?", (after, limit))
            return [(n, _time(time), what, _network(network), why) for n, time, what, network, why in rows]

    @property
    def last_change(self) -> int:
        """The sequence number of the newest change in the feed; 0 where there is none."""
        with self._reading():
            return int(self._one("SELECT coalesce(max(sequence), 0) FROM feed"))

    def _tell(self, now: datetime, what: str, changes: Iterable[tuple[Network, str]]) -> None:
        self._db.executemany(
            "INSERT INTO feed (time, what, network, why) VALUES (?, ?, ?, ?)",
            [(now.timestamp(), what, network_text(network), why) for network, why in changes],
        )

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
    def _transaction(self, *, durable: bool = False) -> Iterator[None]:
        with self._lock:
            before = self._bans
            try:
                # Cannot change inside a transaction: https://www.sqlite.org/pragma.html#pragma_synchronous
                self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except BaseException as error:
                self._bans = before
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise FatalError(f"ledger {self.path} cannot be written: {error}") from None
                if isinstance(error, UnicodeEncodeError):
                    raise ParseError(f"{shown(error.object)} is not Unicode text: it cannot be recorded") from None
                raise


@lru_cache(maxsize=1 << 18)
def _network(text: str) -> Network:
    """Read a network that this module wrote: already normalised. Raises ValueError."""
    return IPv6Network(text) if ":" in text else IPv4Network(text)


def _signed(number: int) -> int:
    """SQLite's integers are signed, an inode's or a device's number is not; both have 64 bits."""
    return number - (1 << 64) if number >> 63 else number


def _unsigned(number: int) -> int:
    return number & ((1 << 64) - 1)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _ban_row(ban: Ban) -> tuple[object, ...]:
    return (
        network_text(ban.network),
        ban.since.timestamp(),
        ban.until.timestamp() if ban.until is not None else None,
        ban.origin.value,
        ban.reason,
        ban.evidence.value if ban.evidence is not None else None,
        ban.port,
        ban.file,
        ban.offset,
        ban.line,
        int(ban.forced),
    )


def _ban(row: tuple[Any, ...]) -> Ban:
    network, since, until, origin, reason, evidence, port, file, offset, line, forced = row
    return Ban(
        network=_network(network),
        since=_time(since),
        until=_time(until) if until is not None else None,
        origin=Origin(origin),
        reason=reason,
        evidence=Evidence(evidence) if evidence is not None else None,
        port=port,
        file=file,
        offset=offset,
        line=line,
        forced=bool(forced),
    )


def _tombstone(row: tuple[str, float, str, int, str]) -> Tombstone:
    network, ended, why, bans, marks = row
    read = {path: ReadMark(device=d, inode=i, offset=o) for path, (d, i, o) in json.loads(marks).items()}
    return Tombstone(network=_network(network), ended=_time(ended), why=EndReason(why), bans=bans, marks=read)
