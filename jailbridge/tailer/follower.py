"""One path followed through all of its files: rotation, truncation, deletion, symbolic links, restarts.

Truth is what the kernel says of the files, read to the end; time only gives a late writer its grace.
One file is read at a time and to its end, so a single position always says what has been read.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from jailbridge.errors import RetryLater
from jailbridge.model.event import TailPosition
from jailbridge.tailer import rotated
from jailbridge.tailer.opened import MAX_LINE, Batch, OpenFile, identity, open_file, status_of, unreadable

GRACE_S = 2.0
_log = logging.getLogger("jailbridge.tailer")


class Follower:
    """Reads the lines written to `path` since `position`, each once.

    Without a position: from the present end if `from_end`, else everything. A batch counts only when it is
    committed; until then the same lines are read again. A file that cannot be read says so at `read`.
    """

    def __init__(
        self,
        path: Path,
        position: TailPosition | None,
        *,
        from_end: bool,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`grace_s`: how long a renamed file that somebody still writes to holds up its successor."""
        self._path = path
        self._grace_s = grace_s
        self._clock = clock
        self._file: OpenFile | None = None
        self._from = position or (None if from_end else self._nothing())
        self._replaced_at: float | None = None
        self._batch: Batch | None = None
        self._refused = 0
        self._refused_logged_at: float | None = None
        if self._from is None:
            # Where it cannot be read, `read` names the reason, and the first success begins at the end.
            with contextlib.suppress(RetryLater, OSError):
                self._open()

    @property
    def path(self) -> Path:
        """The path that is followed."""
        return self._path

    @property
    def position(self) -> TailPosition | None:
        """What has been committed; None while the end to start from could not be read yet."""
        return self._file.position if self._file is not None else self._from

    def read(self, limit: int) -> Batch | None:
        """Return the next lines, at most `limit`, or None where there is nothing new now.

        Raises RetryLater, naming the file and the remedy, where it cannot be read.
        """
        self._batch = None
        try:
            self._batch = self._read(limit)
        except OSError as error:
            self.close()
            raise unreadable(self._path, error) from None
        return self._batch

    def commit(self, batch: Batch) -> None:
        """Accept the batch that `read` returned last: the next one begins after it.

        Raises ValueError for any other batch.
        """
        if self._file is None or batch is not self._batch:
            raise ValueError(f"only the batch that was read last from {self._path} can be committed")
        self._file.position = batch.position
        self._batch = None
        self._report_refused(batch)

    def close(self) -> None:
        """Let go of the open file; a later `read` finds it again."""
        if self._file is not None:
            self._from = self._file.position
            self._file.close()
        self._file = self._batch = self._replaced_at = None

    def _read(self, limit: int) -> Batch | None:
        while self._file is not None or self._open():
            file = self._file
            assert file is not None
            # Asked before reading: once nobody writes to this file any more, one more reading is its last.
            is_finished = self._is_finished(file)
            batch = file.read(limit)
            if not file.holds(file.position):
                self.close()
            elif batch.position != file.position:
                return batch
            elif not is_finished or not self._go_on(file):
                return None
        return None

    def _open(self) -> bool:
        """Open the file in which reading goes on; False where there is none now."""
        wanted = self._from
        current = open_file(self._path, self._path)
        if wanted is None or wanted.inode == 0:
            if current is not None:
                current.move_to(current.stat().st_size if wanted is None else 0)
            self._from = self._nothing()
            self._file = current
        elif current is not None and current.identity[1] == wanted.inode and current.holds(wanted):
            current.move_to(wanted.offset)
            self._file = current
        elif (found := rotated.find(self._path, wanted) or current) is not None:
            if found.position.offset < wanted.offset:
                _log.warning(
                    "event=lines-maybe-lost path=%s offset=%d reason=what was read last is neither there nor in a "
                    "rotated file beside it, so what is there is read from its start",
                    self._path,
                    wanted.offset,
                )
            self._file = found
        return self._file is not None

    def _is_finished(self, file: OpenFile) -> bool:
        """Tell whether `file` has lost its name for good, and every writer has left it or had its time."""
        named = status_of(self._path)
        if named is not None and identity(named) == file.identity:
            self._replaced_at = None
            return False
        is_deleted = file.stat().st_nlink == 0
        following = rotated.next_after(self._path, file)
        if following is None and named is None and not is_deleted:
            return False
        if self._replaced_at is None:
            self._replaced_at = self._clock()
        if not file.has_writer():
            return True
        # While nothing is written to the new file, the writer has evidently not changed over yet.
        is_awaited = following is None and named is not None and named.st_size == 0 and not is_deleted
        return self._clock() - self._replaced_at >= self._grace_s and not is_awaited

    def _go_on(self, file: OpenFile) -> bool:
        """Change over from a finished file to the one written after it; False where there is none now."""
        following = rotated.open_after(self._path, file) or open_file(self._path, self._path)
        status = file.stat()
        if following is None and status.st_nlink > 0:
            return False
        if (rest := status.st_size - file.position.offset) > 0:
            _log.warning("event=half-line-dropped path=%s bytes=%d reason=its file was rotated", self._path, rest)
        self.close()
        self._from = self._nothing()
        self._file = following
        return following is not None

    def _nothing(self) -> TailPosition:
        return TailPosition(path=str(self._path), device=0, inode=0, offset=0, head="")

    def _report_refused(self, batch: Batch) -> None:
        """Say at most once a minute how many lines were too long."""
        self._refused += batch.refused
        now = self._clock()
        if self._refused and (self._refused_logged_at is None or now - self._refused_logged_at >= 60):
            _log.warning(
                "event=lines-refused path=%s count=%d reason=longer than %d bytes",
                self._path,
                self._refused,
                MAX_LINE,
            )
            self._refused, self._refused_logged_at = 0, now
