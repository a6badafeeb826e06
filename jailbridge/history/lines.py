"""The lines of a log that is read once, from beginning to end, in bounded memory. Knows nothing of what they say."""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Self

from jailbridge.errors import GiveUp
from jailbridge.model.event import MAX_LINE

# Large enough that what is done for a chunk costs nothing beside its 2,000 lines and more.
CHUNK = 256 * 1024
STDIN = Path("-")


class LogFile:
    """An open log: a file, unpacked where its name ends in .gz, .xz or .bz2, or the standard input for `-`.

    Entering it opens it. Raises GiveUp where it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.name = "standard input" if path == STDIN else str(path)
        self.has_half_line = False
        """Whether the last line that was yielded has no end; known when all are."""
        self.size: int | None = None
        """Bytes on the disk; None where that is not known."""
        self._path = path
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        try:
            if self._path == STDIN:
                self._raw: BinaryIO = sys.stdin.buffer
            else:
                self._raw = self._opened.enter_context(self._path.open("rb"))
            status = os.fstat(self._raw.fileno())
            self.size = status.st_size if stat.S_ISREG(status.st_mode) else None
            self._read, self._errors = _reading(self._raw, self._path.suffix)
        except OSError as error:
            self._opened.close()
            raise self._unreadable(error) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def place(self) -> int:
        """How many bytes of `size` have been read."""
        return self._raw.tell()

    def batches(self) -> Iterator[list[bytes]]:
        """Yield the lines in order, without their newlines, many at once; a last one without an end is a line too.

        Of a line over MAX_LINE bytes there are more than MAX_LINE, but perhaps not all: neither it nor anything else
        makes more than two chunks be held. Raises GiveUp.
        """
        rest = b""
        while chunk := self._chunk():
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[: MAX_LINE + 1]
            if lines:
                yield lines
        self.has_half_line = rest != b""
        if rest:
            yield [rest]

    def _chunk(self) -> bytes:
        try:
            # What is there, at most so much: what is piped in is read as it comes.
            return self._read(CHUNK)
        except self._errors as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> GiveUp:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return GiveUp(f"{self.name} cannot be read: {reason}")


def _reading(raw: BinaryIO, suffix: str) -> tuple[Callable[[int], bytes], tuple[type[Exception], ...]]:
    """Return what reads the next bytes of a file, unpacked, and the errors of it."""
    match suffix:
        case ".gz":
            import gzip  # noqa: PLC0415 - each of these is loaded only where there is such a file
            import zlib  # noqa: PLC0415

            return gzip.GzipFile(fileobj=raw).read1, (OSError, EOFError, zlib.error)
        case ".xz":
            import lzma  # noqa: PLC0415

            return lzma.LZMAFile(raw).read1, (OSError, EOFError, lzma.LZMAError)
        case ".bz2":
            import bz2  # noqa: PLC0415

            return bz2.BZ2File(raw).read1, (OSError, EOFError)
        case _:
            return raw.read1, (OSError,)  # type: ignore[attr-defined]
