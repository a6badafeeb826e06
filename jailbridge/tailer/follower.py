"""One path followed through all of its files: rotation, truncation, deletion, symbolic links, restarts.

Truth is what the kernel says of the files, read to the end; time only gives a late writer its grace.
One file is read at a time and to its end, so a single position always says what has been read.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from jailbridge.config.settings import TailSettings
from jailbridge.errors import RetryLater
from jailbridge.model.event import MAX_LINE, TailPosition
from jailbridge.tailer.opened import OpenFile, Reading, identity, mark, open_file, status_of, told, unreadable
from jailbridge.tailer.rotated import Rotated
from jailbridge.tailer.source import Batch

GRACE_S = 2.0
_log = logging.getLogger("jailbridge.tailer")


class Follower:
    """Reads the lines written to `path` since `position`, each once.

    Without a position: from the present end if `from_end`, else everything. A batch counts only when it is
    committed; until then the same lines are read again. A file that cannot be read says so at `read`.
    """

    def __init__(
        self,
        tail: TailSettings,
        path: Path,
        position: TailPosition | None,
        *,
        from_end: bool,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`grace_s`: how long a renamed file that somebody still writes to holds up its successor."""
        self._tail = tail
        self._path = path
        self._grace_s = grace_s
        self._clock = clock
        self._rotated = Rotated(path)
        self._file: OpenFile | None = None
        self._from = position or (None if from_end else nothing(path))
        self._replaced_at: float | None = None
        # When the file at whose start we are was last written to, as of the last look for what goes before it.
        self._looked_ns: int | None = None
        self._batch: Batch | None = None
        self.refused = 0
        self._unreported = 0
        self._refused_logged_at: float | None = None
        if self._from is None:
            # Where it cannot be read, `read` names the reason, and the first success begins at the end.
            with contextlib.suppress(RetryLater, OSError):
                self._open()

    @property
    def name(self) -> str:
        """The path that is followed."""
        return str(self._path)

    @property
    def position(self) -> TailPosition | None:
        """What has been committed; None while the end to start from could not be read yet."""
        return self._file.position if self._file is not None else self._from

    @property
    def is_over(self) -> bool:
        """Whether nothing has the path's name, all that was written is read, and nobody writes any more."""
        try:
            if status_of(self._path) is not None or (self._file is None and self._open()):
                return False
            file = self._file
            if file is None:
                return True
            is_read = file.read(1).position == file.position and self._rotated.next_after(file) is None
            return is_read and not file.has_writer()
        except (RetryLater, OSError):
            return False

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
        self._file = self._batch = self._replaced_at = self._looked_ns = None

    def _read(self, limit: int) -> Batch | None:
        while self._file is not None or self._open():
            file = self._file
            assert file is not None
            # Asked before reading: once nobody writes to this file any more, one more reading is its last.
            is_finished = self._is_finished(file)
            batch = file.read(limit)
            if not file.holds(file.position) or self._was_emptied_unread(file, batch):
                self._look_again(file)
            elif batch.position != file.position:
                return Batch(tail=self._tail, lines=batch.lines, position=batch.position, refused=batch.refused)
            elif not is_finished or not self._go_on(file):
                return None
        return None

    def _open(self) -> bool:
        """Open the file in which reading goes on; False where there is none now."""
        file = open_file(self._path, self._path)
        wanted = self._from or nothing(self._path)
        if self._from is None and file is not None:
            file.move_to(file.size)
        elif wanted.offset and file is not None and file.identity[1] == wanted.inode and file.holds(wanted):
            file.move_to(wanted.offset)
        else:
            if not wanted.head:
                wanted = self._from = replace(wanted, head=self._rotated.all_read())
            # A number that is free may be given again at once: a rotated file that goes before this one decides.
            file = self._unread_before(wanted, file) or file
            if file is not None and file.position.offset == 0:
                file.begin_after(wanted.head)
                self._say_if_lost(wanted, file)
        self._file = file
        return file is not None

    def _look_again(self, file: OpenFile) -> None:
        """Let go of an emptied file to find what it held; of a deleted one the text since then is nowhere else."""
        if file.is_deleted and self._unread_before(file.position, file) is None:
            file.begin_after(file.position.head)
        else:
            self.close()

    def _unread_before(self, position: TailPosition, file: OpenFile | None) -> OpenFile | None:
        """Open the rotated file that goes before `file`, which is at its start; None where there is none."""
        found = self._rotated.find(position)
        if found is None or file is None or found.position.offset or not found.size:
            return found
        # A copy of what `file` itself still holds: copytruncate empties it only then.
        is_copy = found.identity[1] != position.inode and found.begins_like(file)
        is_later = file.is_deleted and found.written_ns > file.written_ns
        return None if is_copy or is_later else found

    def _was_emptied_unread(self, file: OpenFile, reading: Reading) -> bool:
        """Tell whether what a file first held was copied away before anything of it was read (copytruncate)."""
        written_ns = file.written_ns
        if file.position.offset or (not reading.position.offset and written_ns == self._looked_ns):
            return False
        self._looked_ns = written_ns
        found = self._unread_before(file.position, file)
        return found is not None and found.identity != file.identity

    def _is_finished(self, file: OpenFile) -> bool:
        """Tell whether `file` has lost its name for good, and every writer has left it or had its time."""
        named = status_of(self._path)
        if named is not None and identity(named) == file.identity:
            self._replaced_at = None
            return False
        is_deleted = file.is_deleted
        following = self._rotated.next_after(file)
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
        following = self._rotated.open_after(file) or open_file(self._path, self._path)
        if following is None and not file.is_deleted:
            return False
        if (rest := file.size - file.position.offset) > 0:
            _log.warning("event=half-line-dropped path=%s bytes=%d reason=its file was rotated", self._path, rest)
        # What a rotated file that is not there yet must be newer than, should it go before the next one.
        head = mark(told(file.position.head)[0], self._rotated.last_written_ns(file))
        self.close()
        self._from = replace(nothing(self._path), head=head)
        if following is not None:
            following.begin_after(head)
        self._file = following
        return following is not None

    def _say_if_lost(self, wanted: TailPosition, file: OpenFile) -> None:
        """Say, where `file` is read from its start after `wanted`, that lines between them may be missing."""
        if wanted.offset:
            reason = "what was read last is neither there nor in a rotated file beside it, so what is there is read "
            reason += "from its start"
        elif wanted.inode not in {0, file.identity[1]}:
            reason = "the empty file that was followed is gone"
        else:
            return
        if unreadable_ones := self._rotated.unreadable_ones():
            reason += f" (compressed so that it cannot be read here: {', '.join(unreadable_ones[:3])})"
        _log.warning("event=lines-maybe-lost path=%s offset=%d reason=%s", self._path, wanted.offset, reason)

    def _report_refused(self, batch: Batch) -> None:
        """Say at most once a minute how many lines were too long."""
        self.refused += batch.refused
        self._unreported += batch.refused
        now = self._clock()
        if self._unreported and (self._refused_logged_at is None or now - self._refused_logged_at >= 60):
            _log.warning(
                "event=lines-refused path=%s count=%d reason=longer than %d bytes",
                self._path,
                self._unreported,
                MAX_LINE,
            )
            self._unreported, self._refused_logged_at = 0, now


def nothing(path: Path) -> TailPosition:
    """Return the position of a file that does not exist yet: all of it will be new."""
    return TailPosition(path=str(path), device=0, inode=0, offset=0, head="")
