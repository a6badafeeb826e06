"""What waits to be done, on the disk: commands, events to be told, messages to be sent. Decides nothing.

It outlives a crash and a reboot: what was taken from the feed is done at least once. One process works on it at a time
(`hold`), any number of its threads. Times are epoch seconds, UTC.
"""

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self

from jailbridge.errors import FatalError
from jailbridge.model.network import Network, network_text, parse_network
from jailbridge.respond.digest import Pending, Sent
from jailbridge.respond.event import Event

# "JBrq": tells our file from any other SQLite database (https://www.sqlite.org/pragma.html#pragma_application_id).
APPLICATION_ID = 0x4A427271
# Commands that wait, and events that wait for each postbox: some hundred bytes each.
MOST = 100_000
# Of networks it is kept whose they are.
MOST_KNOWN = 10_000

_FORM = 1
_TABLES = """
    -- the ledger whose feed is read, and how far
    CREATE TABLE place (
        one INTEGER PRIMARY KEY CHECK (one = 1), ledger TEXT NOT NULL, sequence INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE task (
        id INTEGER PRIMARY KEY AUTOINCREMENT, words TEXT NOT NULL, event TEXT NOT NULL, timeout REAL NOT NULL,
        first INTEGER NOT NULL, starts INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE pending (id INTEGER PRIMARY KEY AUTOINCREMENT, postbox TEXT NOT NULL, event TEXT NOT NULL) STRICT;
    CREATE INDEX pending_postbox ON pending (postbox, id);
    -- how many events were too many to be kept
    CREATE TABLE passed_over (postbox TEXT PRIMARY KEY, number INTEGER NOT NULL) STRICT;
    CREATE TABLE outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT, postbox TEXT NOT NULL, message BLOB NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0, next_try REAL NOT NULL
    ) STRICT;
    -- what was composed when, and which networks (a JSON list) it told of one by one
    CREATE TABLE sent (postbox TEXT NOT NULL, time REAL NOT NULL, networks TEXT NOT NULL) STRICT;
    CREATE INDEX sent_postbox ON sent (postbox, time);
    -- whose a network is, as whois has it (NULL: nobody knows), and until when that is believed
    CREATE TABLE known (network TEXT PRIMARY KEY, holder TEXT, until REAL NOT NULL) STRICT;
    CREATE INDEX known_until ON known (until)
"""


class Place(NamedTuple):
    """How far a ledger's feed was read."""

    ledger: str
    sequence: int


class Command(NamedTuple):
    """A command to be run for an event: its words with their placeholders, as the configuration has them."""

    words: tuple[str, ...]
    event: Event
    timeout_s: float
    first: bool


class Task(NamedTuple):
    """A command that waits; `starts`: how often it was started before, and never seen to end."""

    id: int
    command: Command
    starts: int


class Letter(NamedTuple):
    """A message that waits to be sent."""

    id: int
    message: bytes
    attempts: int
    next_try: datetime


class Known(NamedTuple):
    """What is known of a network: whose it is, as `learn` was told; None: that nobody knows."""

    holder: str | None


class Queue:
    """One open queue. Every method that writes is one transaction, safe on the disk when it returns."""

    def __init__(self, path: Path) -> None:
        """Open the queue at `path`, made where there is none. Raises FatalError in one line for what is not one."""
        self.path = path
        self._lock = threading.RLock()
        self._holder: int | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise FatalError(f"queue {path} cannot be opened: {reason}") from None
        try:
            self._prepare()
        except sqlite3.OperationalError as error:
            self._db.close()
            raise FatalError(f"queue {path} cannot be used: {error}") from None
        except sqlite3.DatabaseError:
            self._db.close()
            raise _unsound(path) from None
        except FatalError:
            self._db.close()
            raise

    def _prepare(self) -> None:
        # What is not ours is not touched.
        self._db.execute("BEGIN IMMEDIATE")
        application = self._db.execute("PRAGMA application_id").fetchone()[0]
        form = self._db.execute("PRAGMA user_version").fetchone()[0]
        is_empty = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if is_empty and not application and not form:
            for statement in _TABLES.split(";\n"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version = {_FORM}")
        elif application != APPLICATION_ID:
            raise _unsound(self.path)
        elif form != _FORM:
            raise FatalError(f"queue {self.path} was written by another JailBridge: upgrade, or move it away")
        self._db.execute("COMMIT")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        if self._db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise _unsound(self.path)

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

    def hold(self) -> bool:
        """Become the one process that works on it, until close; tell whether that came about. Raises FatalError."""
        lock = self.path.with_name(self.path.name + ".lock")
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FatalError(f"queue {self.path} cannot be held: {lock}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._holder = descriptor
        return True

    # From the feed

    @property
    def place(self) -> Place | None:
        """How far the feed was read; None where it never was."""
        with self._working():
            row = self._db.execute("SELECT ledger, sequence FROM place").fetchone()
            return Place(*row) if row is not None else None

    def take(
        self, place: Place, commands: Iterable[Command] = (), pending: Mapping[str, Sequence[Event]] | None = None
    ) -> None:
        """Note that the feed was read so far, and what is to be done for that: commands, events by postbox.

        Of a postbox with more than MOST events the oldest are only counted.
        """
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO place VALUES (1, ?, ?)", place)
            self._db.executemany(
                "INSERT INTO task (words, event, timeout, first) VALUES (?, ?, ?, ?)",
                [(json.dumps(c.words), c.event.to_json(), c.timeout_s, int(c.first)) for c in commands],
            )
            for postbox, events in (pending or {}).items():
                self._db.executemany(
                    "INSERT INTO pending (postbox, event) VALUES (?, ?)",
                    [(postbox, event.to_json()) for event in events],
                )
                self._pass_over(postbox, self._count("pending WHERE postbox = ?", postbox) - MOST)

    def _pass_over(self, postbox: str, surplus: int) -> None:
        if surplus > 0:
            oldest = "SELECT id FROM pending WHERE postbox = ? ORDER BY id LIMIT ?"
            self._db.execute(f"DELETE FROM pending WHERE id IN ({oldest})", (postbox, surplus))  # noqa: S608
            self._db.execute(
                "INSERT INTO passed_over VALUES (?1, ?2) ON CONFLICT (postbox) DO UPDATE SET number = number + ?2",
                (postbox, surplus),
            )

    # Commands

    @property
    def waiting(self) -> int:
        """How many commands wait or run."""
        with self._working():
            return self._count("task")

    def tasks(self, after: int, limit: int) -> list[Task]:
        """Return up to `limit` commands past the one with the number `after`, in order."""
        with self._working():
            rows = self._db.execute(
                "SELECT id, words, event, timeout, first, starts FROM task WHERE id > ? ORDER BY id LIMIT ?",
                (after, limit),
            ).fetchall()
        return [
            Task(
                number,
                Command(tuple(json.loads(words)), Event.from_json(event), timeout_s, bool(first)),
                starts,
            )
            for number, words, event, timeout_s, first, starts in rows
        ]

    def started(self, task: Task) -> None:
        """Note that a command is about to be started."""
        with self._transaction():
            self._db.execute("UPDATE task SET starts = starts + 1 WHERE id = ?", (task.id,))

    def ended(self, task: Task) -> None:
        """Forget a command: it has come to its end, or is given up."""
        with self._transaction():
            self._db.execute("DELETE FROM task WHERE id = ?", (task.id,))

    # Postboxes

    def pending(self, postbox: str) -> Pending:
        """Return what a postbox has to tell."""
        with self._working():
            waits = "SELECT id, event FROM pending WHERE postbox = ? ORDER BY id"
            rows = self._db.execute(waits, (postbox,)).fetchall()
            passed = self._db.execute("SELECT number FROM passed_over WHERE postbox = ?", (postbox,)).fetchone()
        events = [Event.from_json(event) for _, event in rows]
        return Pending(events, rows[-1][0] if rows else 0, passed[0] if passed else 0)

    def counted(self, postbox: str) -> int:
        """Return how many events a postbox has to tell, those too that were too many to be kept."""
        with self._working():
            passed = self._db.execute("SELECT number FROM passed_over WHERE postbox = ?", (postbox,)).fetchone()
            return self._count("pending WHERE postbox = ?", postbox) + (passed[0] if passed else 0)

    def composed(
        self, postbox: str, pending: Pending, messages: Iterable[bytes], networks: Iterable[Network], now: datetime
    ) -> None:
        """Put messages in the outbox in the place of the events of which they tell; `networks`: those told one by one.

        Without a message the events are dropped, and nothing counts as sent.
        """
        messages = list(messages)
        with self._transaction():
            self._db.execute("DELETE FROM pending WHERE postbox = ? AND id <= ?", (postbox, pending.last))
            # More may have been passed over meanwhile.
            self._db.execute(
                "UPDATE passed_over SET number = number - ? WHERE postbox = ?", (pending.passed_over, postbox)
            )
            self._db.execute("DELETE FROM passed_over WHERE number <= 0")
            self._db.executemany(
                "INSERT INTO outbox (postbox, message, next_try) VALUES (?, ?, ?)",
                [(postbox, message, now.timestamp()) for message in messages],
            )
            if messages:
                told = json.dumps(sorted({network_text(network) for network in networks}))
                self._db.execute("INSERT INTO sent VALUES (?, ?, ?)", (postbox, now.timestamp(), told))

    def outbox(self, postbox: str) -> list[Letter]:
        """Return the messages of a postbox that are not sent yet, oldest first."""
        with self._working():
            rows = self._db.execute(
                "SELECT id, message, attempts, next_try FROM outbox WHERE postbox = ? ORDER BY id", (postbox,)
            ).fetchall()
        return [Letter(number, message, attempts, _time(at)) for number, message, attempts, at in rows]

    def postponed(self, letter: Letter, until: datetime) -> None:
        """Note that a message could not be sent, and is to be tried again then."""
        with self._transaction():
            self._db.execute(
                "UPDATE outbox SET attempts = attempts + 1, next_try = ? WHERE id = ?", (until.timestamp(), letter.id)
            )

    def delivered(self, postbox: str, letter: Letter, now: datetime) -> None:
        """Forget a message that was sent: what it tells was told now, not when it was composed."""
        with self._transaction():
            self._db.execute("DELETE FROM outbox WHERE id = ?", (letter.id,))
            last = "SELECT max(rowid) FROM sent WHERE postbox = ?"
            self._db.execute(f"UPDATE sent SET time = ? WHERE rowid = ({last})", (now.timestamp(), postbox))  # noqa: S608

    def dropped(self, letter: Letter) -> None:
        """Forget a message that is given up."""
        with self._transaction():
            self._db.execute("DELETE FROM outbox WHERE id = ?", (letter.id,))

    def sent(self, postbox: str, since: datetime) -> list[Sent]:
        """Return what a postbox composed since then, oldest first; what is older is forgotten."""
        with self._transaction():
            self._db.execute("DELETE FROM sent WHERE postbox = ? AND time < ?", (postbox, since.timestamp()))
            rows = self._db.execute(
                "SELECT time, networks FROM sent WHERE postbox = ? ORDER BY time", (postbox,)
            ).fetchall()
        return [Sent(_time(at), frozenset(map(parse_network, json.loads(networks)))) for at, networks in rows]

    def forget_others(self, postboxes: Iterable[str]) -> Mapping[str, int]:
        """Forget what waits for all other postboxes; return how many events and messages that were, by postbox."""
        names = json.dumps(list(postboxes))
        with self._transaction():
            gone: dict[str, int] = {}
            for table in ("pending", "outbox", "passed_over", "sent"):
                where = f"FROM {table} WHERE postbox NOT IN (SELECT value FROM json_each(?))"  # noqa: S608
                rows = self._db.execute(f"SELECT postbox, count(*) {where} GROUP BY postbox", (names,)).fetchall()
                for postbox, number in rows if table in {"pending", "outbox"} else ():
                    gone[postbox] = gone.get(postbox, 0) + number
                self._db.execute(f"DELETE {where}", (names,))
        return gone

    # Whois

    def known(self, networks: Iterable[Network], now: datetime) -> Known | None:
        """Return what is known of the first of these networks of which anything is."""
        with self._working():
            row = self._db.execute(
                "SELECT holder FROM json_each(?) CROSS JOIN known ON network = value WHERE until > ? ORDER BY key",
                (json.dumps([network_text(network) for network in networks]), now.timestamp()),
            ).fetchone()
        return Known(*row) if row is not None else None

    def learn(self, network: Network, holder: str | None, until: datetime, now: datetime) -> None:
        """Note whose a network is. What is not believed any more goes, and of too much what would go first."""
        with self._transaction():
            self._db.execute("DELETE FROM known WHERE until <= ?", (now.timestamp(),))
            row = (network_text(network), holder, until.timestamp())
            self._db.execute("INSERT OR REPLACE INTO known VALUES (?, ?, ?)", row)
            if (surplus := self._count("known") - MOST_KNOWN) > 0:
                self._db.execute(
                    "DELETE FROM known WHERE network IN (SELECT network FROM known ORDER BY until LIMIT ?)", (surplus,)
                )

    def _count(self, which: str, *values: str) -> int:
        return int(self._db.execute(f"SELECT count(*) FROM {which}", values).fetchone()[0])  # noqa: S608

    @contextmanager
    def _working(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise FatalError(f"queue {self.path} cannot be used: {error}") from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._working():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _unsound(path: Path) -> FatalError:
    return FatalError(f"{path} is not a sound queue of JailBridge's: move it away (what waits there is lost)")
