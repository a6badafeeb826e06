"""A copy of a ledger for safekeeping, made while others write it: a single file, of one moment, known to be sound.

The file itself must not be copied: what was written last stands beside it (https://www.sqlite.org/wal.html).
"""

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from jailbridge.errors import FatalError
from jailbridge.ledger.schema import APPLICATION_ID, DamagedLedger, damaged, is_damage, unsound

TIMEOUT_S = 10.0


def backup(path: Path, to: Path, *, force: bool = False) -> int:
    """Copy the ledger to a file, its owner's alone, that is there whole or not at all; return how many bans it has.

    `force`: in the place of a file that is there. Nobody who writes the ledger is held up. Raises FatalError.
    """
    if to.resolve() == path.resolve():
        raise FatalError(f"{to} is the ledger itself: name another file")
    if os.path.lexists(to) and not force:
        raise FatalError(f"{to} is there already: name another file, or replace it with --force")
    try:
        # Beside it, so that it can be renamed; only its owner may enter.
        with tempfile.TemporaryDirectory(prefix=".jailbridge-", dir=to.parent) as folder:
            copy = Path(folder, "ledger")
            copy.touch(mode=0o600)
            with _reading(path, f"copied to {to}") as source, closing(sqlite3.connect(copy)) as target:
                # In one step, so of one moment.
                source.backup(target)
                # Needs nothing beside it, nor a folder that can be written.
                target.execute("PRAGMA journal_mode = DELETE")
            bans = _checked(copy, path)
            _sync(copy)
            copy.replace(to)
        _sync(to.parent)
    except OSError as error:
        raise FatalError(f"{to} cannot be written: {error.strerror}") from None
    return bans


def check(path: Path) -> int:
    """See that a ledger is one, and sound; return how many bans it has. Nothing in it changes. Raises FatalError."""
    with _reading(path, "read") as database:
        if database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise damaged(path)
        return int(database.execute("SELECT count(*) FROM ban").fetchone()[0])


def _checked(copy: Path, path: Path) -> int:
    try:
        return check(copy)
    except DamagedLedger:
        # As it was read.
        raise damaged(path) from None


@contextmanager
def _reading(path: Path, what: str) -> Iterator[sqlite3.Connection]:
    """Open a ledger to be read. Raises FatalError: it cannot be `what`."""
    try:
        path.stat()
        where = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(where, uri=True, timeout=TIMEOUT_S)) as database:
            if database.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise unsound(path)
            yield database
    except FileNotFoundError:
        raise FatalError(f"there is no ledger at {path} yet: start `jailbridge run`, or ban something") from None
    except sqlite3.Error as error:
        raise (damaged(path) if is_damage(error) else FatalError(f"ledger {path} cannot be {what}: {error}")) from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
