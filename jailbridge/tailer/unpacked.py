"""The text of a compressed log file, read through a temporary file without a name. Knows gzip, bzip2 and xz.

A position in such a file is one in its text.
"""

import bz2
import contextlib
import gzip
import lzma
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from jailbridge.errors import ParseError
from jailbridge.model.network import shown
from jailbridge.tailer.opened import FLAGS, OpenFile

READABLE = frozenset({".gz", ".bz2", ".xz"})
# What logrotate may be told to use besides (compressext), and Python 3.11 cannot read.
UNREADABLE = frozenset({".zst", ".lz4", ".lzo", ".br", ".zip", ".Z"})
# Far beyond any history; a file that unpacks to more is not one.
MAX_TEXT = 1 << 30
_PIECE = 1 << 20


def begins_with(path: Path, length: int) -> bytes:
    """Return the first `length` bytes of the text, of a plain file too. Raises ParseError, OSError."""
    with _text(path) as (text, _):
        return text.read(length)


def open_text(path: Path, reported_as: Path) -> OpenFile:
    """Open the text of a compressed file at its start; the file's own identity and time stay.

    Raises ParseError for a file that is damaged or unpacks to more than MAX_TEXT bytes, OSError where the disk does.
    """
    with tempfile.TemporaryFile(prefix="jailbridge-") as copy, _text(path) as (text, status):
        done = 0
        while piece := text.read(_PIECE):
            done += len(piece)
            if done > MAX_TEXT:
                raise ParseError(f"{shown(str(path))} unpacks to more than {MAX_TEXT} bytes")
            copy.write(piece)
        copy.flush()
        return OpenFile(os.dup(copy.fileno()), str(reported_as), packed=status)


@contextlib.contextmanager
def _text(path: Path) -> Iterator[tuple[IO[bytes], os.stat_result]]:
    with os.fdopen(os.open(path, FLAGS | os.O_NOFOLLOW), "rb") as raw:
        try:
            with _unpacking(raw, path.suffix) as text:
                yield text, os.fstat(raw.fileno())
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise ParseError(f"{shown(str(path))} is damaged: {error}") from None
        except OSError as error:
            # What gzip and bz2 themselves raise has no number.
            if error.errno is None:
                raise ParseError(f"{shown(str(path))} is damaged: {error}") from None
            raise


def _unpacking(raw: IO[bytes], suffix: str) -> IO[bytes]:
    match suffix:
        case ".gz":
            return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
        case ".bz2":
            return bz2.BZ2File(raw)
        case ".xz":
            return lzma.LZMAFile(raw)
        case _:
            return raw
