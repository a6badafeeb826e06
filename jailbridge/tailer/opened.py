"""One open file: its complete lines from an offset on. Knows nothing of names, rotation and line formats."""

import fcntl
import os
import re
import signal
import stat
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import accumulate, repeat
from operator import add
from pathlib import Path
from typing import NamedTuple

from jailbridge.errors import RetryLater
from jailbridge.model.event import MAX_LINE, LogLine, TailPosition

# Some 5,000 of the longest usual lines: a storm is read in few system calls.
CHUNK = 1024 * 1024
HEAD = 256
# What LogLine(...) does, from an iterable and without a Python call for each of very many lines.
_line = partial(tuple.__new__, LogLine)
FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class Reading(NamedTuple):
    """Complete lines, the place after them, and how many among them were longer than MAX_LINE bytes."""

    lines: tuple[LogLine, ...]
    position: TailPosition
    refused: int


class OpenFile:
    """An open regular file and how much of it is accepted (`position`). Raises OSError where the disk does."""

    def __init__(self, fd: int, path: str, *, packed: os.stat_result | None = None) -> None:
        """Take over `fd`; `path` is the name its lines are reported under.

        `packed` is what the kernel says of the compressed file whose text `fd` holds: the file it stands for.
        """
        self._fd = fd
        self._path = path
        self._packed = packed
        self.identity = identity(packed or os.fstat(fd))
        self.position = self._position(0)

    def __del__(self) -> None:
        # An error on the way to anywhere must not cost a descriptor each second.
        self.close()

    def read(self, limit: int) -> Reading:
        """Return at most `limit` complete lines after `position`, which stays where it is.

        The same position in return means nothing new. An offset inside of a line, be it a start from the end or a
        line too long, skips to the next line.
        """
        # Asked first: a buffer for what is not there costs more than all the rest of an idle file's turn.
        if (there := self.size) <= self.position.offset:
            return Reading((), self.position, 0)
        begin = max(self.position.offset - 1, 0)
        data = os.pread(self._fd, min(CHUNK, limit * (MAX_LINE + 1) + 1, there - begin), begin)
        places, texts, done, refused = cut(data, limit, begin, at_line_start=self.position.offset == 0)
        offset = max(begin + done, self.position.offset)
        if offset == self.position.offset:
            return Reading((), self.position, 0)
        device, inode = self.identity
        fields = zip(repeat(self._path), repeat(device), repeat(inode), places, texts, strict=False)
        return Reading(tuple(map(_line, fields)), self._position(offset), refused)

    def holds(self, position: TailPosition) -> bool:
        """Tell whether the file begins like the one of `position` and reaches as far, whatever its inode."""
        if position.offset == 0 or self.size < position.offset:
            return position.offset == 0
        begins, _ = told(position.head)
        length = head_length(begins)
        return length > 0 and fingerprint(os.pread(self._fd, length, 0)) == begins

    def begins_like(self, other: "OpenFile") -> bool:
        """Tell whether another file begins with the same bytes as this one."""
        head = os.pread(self._fd, HEAD, 0)
        return os.pread(other._fd, len(head), 0) == head  # noqa: SLF001 - of its own kind

    def move_to(self, offset: int) -> None:
        """Accept everything before `offset`."""
        self.position = self._position(offset)

    def begin_after(self, head: str) -> None:
        """Begin at the start; `head` says there what was read before."""
        self.position = replace(self._position(0), head=head)

    def has_writer(self) -> bool:
        """Tell whether somebody may still write to this file; True where that cannot be known.

        A read lease is granted only while nobody has the file open for writing (fcntl(2), F_SETLEASE). A writer
        that opens it in that instant waits for us; the kernel would tell us by SIGIO, which kills, so it is given
        SIGURG, which is ignored.
        """
        if self._packed is not None:
            return False
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:
            return True
        return False

    @property
    def size(self) -> int:
        """How many bytes of text there are now."""
        return os.fstat(self._fd).st_size

    @property
    def written_ns(self) -> int:
        """When it was last written to (nanoseconds since the epoch)."""
        return (self._packed or os.fstat(self._fd)).st_mtime_ns

    @property
    def is_deleted(self) -> bool:
        """Whether no name leads to it any more."""
        return self._packed is None and os.fstat(self._fd).st_nlink == 0

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _position(self, offset: int) -> TailPosition:
        device, inode = self.identity
        head = mark(fingerprint(os.pread(self._fd, min(HEAD, offset), 0)), self.written_ns)
        return TailPosition(path=self._path, device=device, inode=inode, offset=offset, head=head)


def cut(data: bytes, limit: int, begin: int, *, at_line_start: bool) -> tuple[list[int], list[bytes], int, int]:
    """Return the complete lines of `data`: their places, their texts, how many bytes are done, how many lines too long.

    `begin` is the place of the data's first byte. Unless `at_line_start`, the text up to the first newline belongs to
    a line that is not ours to tell.
    """
    at = 0 if at_line_start else data.find(b"\n") + 1
    if not at_line_start and at == 0:
        return [], [], len(data), 0
    texts = data[at:].split(b"\n", limit)
    rest = texts.pop()
    if max(map(len, texts), default=0) > MAX_LINE or (len(texts) < limit and len(rest) > MAX_LINE):
        return _cut_slowly(data, at, limit, begin)
    places = map(add, accumulate(map(len, texts), initial=begin + at), range(len(texts)))
    return list(places), texts, len(data) - len(rest), 0


def _cut_slowly(data: bytes, at: int, limit: int, begin: int) -> tuple[list[int], list[bytes], int, int]:
    """The same where some line is too long."""
    places: list[int] = []
    texts: list[bytes] = []
    refused = 0
    while len(texts) < limit:
        end = data.find(b"\n", at)
        if (len(data) if end < 0 else end) - at > MAX_LINE:
            refused += 1
            if end < 0:
                return places, texts, len(data), refused
        elif end < 0:
            break
        else:
            places.append(begin + at)
            texts.append(data[at:end])
        at = end + 1
    return places, texts, at, refused


def fingerprint(head: bytes) -> str:
    """Return what tells files apart by their first bytes: `LENGTH:HASH`."""
    return f"{len(head)}:{sha256(head).hexdigest()[:16]}"


def head_length(begins: str) -> int:
    """Return of how many bytes a fingerprint is, 0 where it tells nothing."""
    length = begins.partition(":")[0]
    return min(int(length), HEAD) if length.isdecimal() else 0


def mark(begins: str, written_ns: int) -> str:
    """Return the head of a position: how the file read last begins, and when it, or an older one, was last written to.

    A position at a start says there what was read before, if anything.
    """
    return f"{begins}:{written_ns}"


def told(head: str) -> tuple[str, int | None]:
    """Return what `mark` was given; a time of None where a position has none."""
    match = re.fullmatch(r"([0-9]{1,3}:[0-9a-f]{16}):(-?[0-9]{1,30})", head)
    return (head, None) if match is None else (match[1], int(match[2]))


def open_file(path: Path, reported_as: Path, *, flags: int = 0) -> OpenFile | None:
    """Open a regular file at its start, None where there is none. Raises RetryLater where it cannot be read."""
    try:
        # Asked before opening too: to open a fifo or a device can itself have an effect.
        _refuse_irregular(path, os.stat(path))  # noqa: PTH116
        fd = os.open(path, FLAGS | flags)
        file = OpenFile(fd, str(reported_as))
        _refuse_irregular(path, os.fstat(fd))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(path, error) from None
    return file


def status_of(path: Path) -> os.stat_result | None:
    """Return what `path` names, links followed; None where it names nothing. Raises RetryLater."""
    try:
        return os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(path, error) from None


def identity(status: os.stat_result) -> tuple[int, int]:
    """Return what tells open files apart: (device, inode)."""
    return status.st_dev, status.st_ino


def unreadable(path: Path, error: OSError) -> RetryLater:
    """Return the error that names the file, the reason and the remedy."""
    if isinstance(error, PermissionError):
        return RetryLater(f"{path} cannot be read: {error.strerror}: let user id {os.geteuid()} read it (chmod, chown)")
    return RetryLater(f"{path} cannot be read: {error.strerror}: check the path and its disk")


def _refuse_irregular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a fifo"}.get(stat.S_IFMT(found.st_mode), "a special file")
        raise RetryLater(f"{path} is {kind}, not a log file: name a regular file under [[tail]]")
