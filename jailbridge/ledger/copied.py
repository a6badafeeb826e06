"""A copy of a ledger, to restore from where the file itself cannot be written. What is noted there is lost with it."""

import fcntl
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path

from jailbridge.errors import FatalError
from jailbridge.ledger.ledger import Ledger


@contextmanager
def copied(path: Path) -> Iterator[Ledger]:
    """Open a copy of a ledger that nobody works on. Raises FatalError.

    Whatever bears one of its tokens the ledger itself takes for an older writing of its own: nothing is inferred from
    that, and what has ended meanwhile is no find.
    """
    # Only its owner may enter it; for a service it is in memory (TMPDIR).
    try:
        folder = tempfile.TemporaryDirectory(prefix="jailbridge-")
    except OSError as error:
        raise FatalError(f"ledger {path} cannot be copied: {error.strerror}") from None
    with folder as name, _claimed(path):
        copy = Path(name, path.name)
        try:
            shutil.copyfile(path, copy)
            with suppress(FileNotFoundError):
                # What was written last is here (https://www.sqlite.org/wal.html), and not all of it in the file.
                shutil.copyfile(f"{path}-wal", f"{copy}-wal")
        except OSError as error:
            raise FatalError(f"ledger {path} cannot be copied to {name}: {error.strerror}") from None
        with Ledger(copy, create=False) as ledger:
            with closing(sqlite3.connect(copy, isolation_level=None)) as db:
                db.execute("UPDATE meta SET value = '0' WHERE name = 'sequence'")
            ledger.places.is_copy = True
            yield ledger


def _claimed(path: Path) -> AbstractContextManager[object]:
    """Keep others from working on a ledger until this is left; its lock is taken without writing. Raises FatalError."""
    try:
        lock = Path(f"{path}.lock").open("rb")  # noqa: SIM115
    except OSError:
        # Nobody holds a ledger who has not made one.
        return nullcontext()
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise FatalError(f"another jailbridge works on ledger {path}") from None
    return lock
