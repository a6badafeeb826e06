"""Ledgers that could not be read any more: each is kept, whole, beside the one that took its place.

Of what was in one the stores have the bans. The networks that operators allowed nobody else has: they are taken over
from it where that table is sound. Where it is not, nobody knows whom to spare for as long as the file lies there.
"""

import itertools
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, closing, suppress
from glob import escape
from pathlib import Path

from jailbridge.errors import FatalError, ParseError
from jailbridge.ledger.orders import Allowed, Orders
from jailbridge.ledger.rows import to_time
from jailbridge.ledger.schema import APPLICATION_ID
from jailbridge.model.network import Network, parse_network

log = logging.getLogger("jailbridge.ledger")

SUFFIX = ".damaged"
# SQLite's own beside a database (https://www.sqlite.org/tempfiles.html). The ledger itself is renamed last: what is cut
# short is then done again.
_PARTS = ("-wal", "-shm", "")
_TAKEN = "allowed networks taken over"


class Predecessors:
    """The damaged ledgers that lie beside one: `writing` begins a transaction of that one, safe on the disk."""

    def __init__(
        self, db: sqlite3.Connection, path: Path, orders: Orders, writing: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._db = db
        self._path = path
        self._orders = orders
        self._writing = writing
        self._untaken = self._not_taken()

    @property
    def problem(self) -> str | None:
        """Why nobody knows whom operators allowed, and how to mend it; None where that is known."""
        lying = next((file for file in self._untaken if file.exists()), None)
        if lying is None:
            return None
        return (
            f"whom `jailbridge allow` had in the damaged ledger {lying} cannot be read; nobody new is banned until it "
            f"is moved away: before that put a backup in the place of {self._path}, or allow them again"
        )

    def take_over(self) -> None:
        """Take over whom operators allowed; where that cannot be read, say so loudly."""
        # The newest first: what one of them had taken over itself is in it, as far as that was not taken back since.
        for file in sorted(self._untaken, key=_age, reverse=True):
            if file in self._untaken and (taken := self._take_over(file)) is not None:
                self._untaken = [other for other in self._untaken if other.name not in taken]
        if (problem := self.problem) is not None:
            log.error("%s", problem)

    def _take_over(self, file: Path) -> Set[str] | None:
        """Take over from one; return the names of those that are settled with it, None where it cannot be read."""
        if (found := _allowed(file)) is None:
            return None
        entries, taken = found
        taken = taken | {file.name}
        for network, order in entries.items():
            if network not in self._orders.allowed:
                self._orders.allow([network], order.reason, order.since)
        with self._writing():
            self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [(name, _TAKEN) for name in taken])
        log.warning("allowed networks taken over from %s: %d", file, len(entries))
        return taken

    def _not_taken(self) -> Sequence[Path]:
        taken = _taken(self._db)
        files = self._path.parent.glob(f"{escape(self._path.name)}{SUFFIX}*")
        return sorted(file for file in files if file.name not in taken and not file.name.endswith(_PARTS[:2]))


def set_aside(path: Path) -> None:
    """Rename a ledger that the caller holds, to a name that is free. Raises FatalError."""
    aside = next(name for name in _names(path) if not any(os.path.lexists(f"{name}{part}") for part in _PARTS))
    try:
        for part in _PARTS:
            with suppress(FileNotFoundError):
                Path(f"{path}{part}").rename(f"{aside}{part}")
    except OSError as error:
        raise FatalError(f"ledger {path} is damaged and cannot be renamed to {aside}: {error.strerror}") from None
    what = "ledger %s is damaged: it lies at %s now, and a new one takes over what the stores hold; %s"
    log.error(what, path, aside, f"if there is a backup, stop jailbridge and put that in the place of {path}")


def _names(path: Path) -> Iterator[Path]:
    yield (first := path.with_name(path.name + SUFFIX))
    yield from (first.with_name(f"{first.name}.{number}") for number in itertools.count(2))


def _age(file: Path) -> tuple[int, str]:
    """Order by the numbers that `_names` gives."""
    return len(file.name), file.name


def _taken(database: sqlite3.Connection) -> Set[str]:
    """Return the names of the damaged ledgers that a ledger has taken over from."""
    return {name for (name,) in database.execute("SELECT name FROM meta WHERE value = ?", (_TAKEN,))}


def _allowed(path: Path) -> tuple[Mapping[Network, Allowed], Set[str]] | None:
    """Return what operators had allowed in a damaged ledger, and `_taken`; None where nobody can tell."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            is_ours = database.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
            if not is_ours or database.execute("PRAGMA quick_check(allowed)").fetchall() != [("ok",)]:
                return None
            rows = database.execute("SELECT network, time, reason FROM allowed")
            allowed = {
                parse_network(network): Allowed(since=to_time(time), reason=reason) for network, time, reason in rows
            }
            taken: Set[str] = frozenset()
            # Of another table, which need not be sound.
            with suppress(sqlite3.Error):
                taken = _taken(database)
            return allowed, taken
    except (sqlite3.Error, ParseError, ValueError, OverflowError, TypeError, OSError):
        return None
