"""The systemd journal followed through `journalctl`: one JSON object a line, each once. Refuses to know what it says.

What is there is read to its end before anything is followed: `journalctl --follow` knows this boot alone (systemd 252).

A position's `head` is the cursor of the last line that was accepted, its `offset` how many bytes of lines were
accepted in all, so that a later line always has a greater one; inode 1 stands for the journal.
"""

import json
import logging
import os
import re
import select
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO, NoReturn

from jailbridge import process
from jailbridge.config.settings import TailSettings
from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.event import LogLine, TailPosition
from jailbridge.model.network import shown
from jailbridge.tailer.source import Batch

FIELDS = ("MESSAGE", "SYSLOG_IDENTIFIER", "_UID", "_TRANSPORT", "_PID")
# journalctl writes a field of more than 4,096 bytes as null; of a shorter one each byte takes at most six
# characters (a control character is `\u0001`), and the other fields of FIELDS and the cursor stay below 2 KiB.
MAX_LINE = 32 * 1024
KERNEL = "kernel"
INODE = 1
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
_CHUNK = 256 * 1024
_STOP_S = 5.0
_CURSOR = re.compile(r"[A-Za-z0-9=;]{1,400}")
_log = logging.getLogger("jailbridge.tailer")


class Journal:
    """Reads what the journal gets under one SYSLOG_IDENTIFIER, or from the kernel, since `position`.

    Without a position: from the journal's present end. A journalctl that ends is started again, at growing pauses.
    """

    def __init__(
        self,
        tail: TailSettings,
        position: TailPosition | None,
        *,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        arguments: Sequence[str] = (),
    ) -> None:
        """`wake` is called from another thread when lines are there; `arguments` say journalctl which journal."""
        assert tail.journal is not None
        self._tail = tail
        self._wake = wake
        self._clock = clock
        match = "_TRANSPORT=kernel" if tail.journal == KERNEL else f"SYSLOG_IDENTIFIER={tail.journal}"
        self._argv = ["--output=json", f"--output-fields={','.join(FIELDS)}", "--boot=all", *arguments, match]
        self._position = position
        self._child: _Child | None = None
        self._is_behind = True
        self._buffer = b""
        self._taken = 0
        self._batch: Batch | None = None
        self._awaited: str | None = None
        self._pause_s = FIRST_PAUSE_S
        self._not_before = clock()
        self._reason = ""
        self.refused = 0

    @property
    def name(self) -> str:
        """`journal:` and the identifier."""
        return self._tail.name

    @property
    def position(self) -> TailPosition | None:
        """What has been committed; None while the end to start from could not be read yet."""
        return self._position

    def read(self, limit: int) -> Batch | None:
        """Return the next lines, at most `limit`, or None where there is nothing new now; the same until a commit.

        Raises RetryLater with what journalctl says where it has ended, until it runs again.
        """
        self._batch = None
        child = self._child or self._start()
        has_ended = False
        if len(self._buffer) >= _CHUNK and b"\n" not in self._buffer:
            self._fail("journalctl gave a line without end")
        if self._buffer.count(b"\n") < limit and len(self._buffer) < _CHUNK:
            more, has_ended = child.read(_CHUNK)
            self._buffer += more
        batch = self._next(limit)
        if batch is None and has_ended:
            if not self._is_behind or child.code != 0:
                self._fail(child.last_words())
            if self._awaited is not None:
                self._say_lost()
            self.close()
            self._is_behind = False
            self._start()
        self._batch = batch
        return batch

    def commit(self, batch: Batch) -> None:
        """Accept the batch that `read` returned last. Raises ValueError for any other."""
        if batch is not self._batch:
            raise ValueError(f"only the batch that was read last from {self.name} can be committed")
        self._position, self._batch = batch.position, None
        self._buffer = self._buffer[self._taken :]
        self.refused += batch.refused
        self._pause_s = FIRST_PAUSE_S
        if batch.refused:
            _log.warning(
                "event=lines-refused path=%s count=%d reason=not a line of journalctl's", self.name, batch.refused
            )

    def close(self) -> None:
        """End journalctl; a later `read` starts it again where the last commit left it."""
        if self._child is not None:
            self._child.end()
        self._child, self._buffer, self._batch, self._is_behind = None, b"", None, True

    def _start(self) -> "_Child":
        if self._clock() < self._not_before:
            raise RetryLater(self._reason)
        try:
            journalctl = process.find("journalctl", "systemd")
            if self._position is None:
                self._position = self._end(journalctl)
            cursor = self._position.head
            is_known = _CURSOR.fullmatch(cursor) is not None
            if self._is_behind:
                # The line at the cursor too: that it is the first one tells that the journal still has it.
                how = [f"--cursor={cursor}"] if is_known else []
            else:
                how = ["--follow", "--no-tail", *([f"--after-cursor={cursor}"] if is_known else [])]
            self._awaited = cursor if self._is_behind and is_known else None
            self._child = _Child([journalctl, "--no-pager", *how, *self._argv], self._wake)
        except (RetryLater, FatalError) as error:
            self._fail(str(error))
        return self._child

    def _end(self, journalctl: str) -> TailPosition:
        """Return the place after the last line that is there now; without one, the journal's beginning."""
        done = process.run([journalctl, "--lines=1", "--no-pager", *self._argv])
        lines = done.out.splitlines()
        if done.code != 0 and not lines:
            raise RetryLater(f"{self.name} cannot be read: {done.first_error}")
        cursor = _cursor(lines[-1].encode()) if lines else ""
        if cursor is None:
            raise RetryLater(f"{self.name} cannot be read: journalctl gave {shown(lines[-1])}")
        return TailPosition(path=self.name, device=0, inode=INODE, offset=0, head=cursor)

    def _fail(self, reason: str) -> NoReturn:
        self.close()
        self._reason = f"{reason}: journalctl is started again at growing pauses"
        self._not_before = self._clock() + self._pause_s
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
        raise RetryLater(self._reason)

    def _next(self, limit: int) -> Batch | None:
        """Cut the next lines from the buffer, where they stay until they are committed."""
        assert self._position is not None
        self._meet_awaited()
        at, offset, cursor, refused = 0, self._position.offset, self._position.head, 0
        lines: list[LogLine] = []
        for text in self._buffer.split(b"\n")[:-1][:limit]:
            at += len(text) + 1
            if len(text) > MAX_LINE or (there := _cursor(text)) is None:
                refused += 1
                continue
            lines.append(LogLine(self.name, 0, INODE, offset, text))
            offset += len(text) + 1
            cursor = there
        if at == 0:
            return None
        self._taken = at
        position = TailPosition(path=self.name, device=0, inode=INODE, offset=offset, head=cursor)
        return Batch(tail=self._tail, lines=tuple(lines), position=position, refused=refused)

    def _meet_awaited(self) -> None:
        """Drop the line that was accepted before journalctl was started; where another comes first, say so."""
        if self._awaited is None or b"\n" not in self._buffer:
            return
        first, _, rest = self._buffer.partition(b"\n")
        if _cursor(first) == self._awaited:
            self._buffer = rest
        else:
            self._say_lost()
        self._awaited = None

    def _say_lost(self) -> None:
        _log.warning(
            "event=lines-maybe-lost path=%s reason=the journal no longer has the line that was read last, so what it "
            "has from there on is read",
            self.name,
        )


class _Child:
    """A running journalctl: what it has written, without waiting, and a thread that says when there is something."""

    def __init__(self, argv: Sequence[str], wake: Callable[[], None]) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        try:
            self._running = process.start_producing(argv, errors=self._errors)
        except RetryLater:
            self._errors.close()
            raise
        assert self._running.stdout is not None
        self._out = self._running.stdout.fileno()
        os.set_blocking(self._out, False)
        self._wake = wake
        self._is_wanted = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._watch, name="jailbridge-journal", daemon=True)
        self._is_wanted.set()
        self._thread.start()

    def read(self, size: int) -> tuple[bytes, bool]:
        """Return what is there, at most `size` bytes, and whether nothing more will come."""
        pieces: list[bytes] = []
        while size > 0:
            try:
                piece = os.read(self._out, size)
            except BlockingIOError:
                self._is_wanted.set()
                break
            if not piece:
                return b"".join(pieces), True
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces), False

    @property
    def code(self) -> int:
        """With what it ended."""
        return self._running.wait(_STOP_S)

    def last_words(self) -> str:
        """Return why it ended, in one line."""
        code = self.code
        self._errors.seek(0)
        said = self._errors.read(4096).decode(errors="replace").strip().splitlines()
        return f"journalctl ended with code {code}" + (f": {shown(said[-1])}" if said else "")

    def end(self) -> None:
        """End it and the thread."""
        self._is_over = True
        self._running.kill()
        self._running.wait()
        self._is_wanted.set()
        self._thread.join()
        if self._running.stdout is not None:
            self._running.stdout.close()
        self._errors.close()

    def _watch(self) -> None:
        poller = select.poll()
        poller.register(self._out, select.POLLIN)
        while not self._is_over:
            self._is_wanted.wait()
            poller.poll()
            self._is_wanted.clear()
            self._wake()


def _cursor(line: bytes) -> str | None:
    """Return the cursor of a line of journalctl's, None where it is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    cursor = found.get("__CURSOR") if isinstance(found, dict) else None
    return cursor if isinstance(cursor, str) and _CURSOR.fullmatch(cursor) else None
