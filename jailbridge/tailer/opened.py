"""One open file: its complete lines from an offset on. Knows nothing of names, rotation and line formats."""

import fcntl
import os
import signal
import stat
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from jailbridge.errors import RetryLater
from jailbridge.model.event import LogLine, TailPosition

# Ten times the longest line that any PortSentry writes (packet options included).
MAX_LINE = 4096
CHUNK = 256 * 1024
HEAD = 256
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one reading gave: `position` is the place after these lines, to be kept with what they caused.

    `refused` counts the lines beyond MAX_LINE bytes among them; a batch of nothing else has no lines.
    """

    lines: tuple[LogLine, ...]
    position: TailPosition
    refused: int


class OpenFile:
    """An open regular file and how much of it is accepted (`position`). Raises OSError where the disk does."""

    def __init__(self, fd: int, path: str, offset: int) -> None:
        """Take over `fd`; `path` is the name its lines are reported under, `offset` where they begin."""
        self._fd = fd
        self._path = path
        self.identity = identity(os.fstat(fd))
        self.position = self._position(offset)

    def __del__(self) -> None:
        # An error on the way to anywhere must not cost a descriptor each second.
        self.close()

    def read(self, limit: int) -> Batch:
        """Return at most `limit` complete lines after `position`, which stays where it is.

        A batch with the same position means nothing new.

        An offset inside of a line, be it a start from the end or a line too long, skips to the next line.
        """
        begin = max(self.position.offset - 1, 0)
        data = os.pread(self._fd, min(CHUNK, limit * (MAX_LINE + 1) + 1), begin)
        device, inode = self.identity
        at_line_start = self.position.offset == 0
        pieces, done, refused = cut(data, limit, at_line_start=at_line_start)
        lines = tuple(
            LogLine(path=self._path, device=device, inode=inode, offset=begin + at, text=text) for at, text in pieces
        )
        offset = max(begin + done, self.position.offset)
        return Batch(lines=lines, position=self._position(offset), refused=refused)

    def holds(self, position: TailPosition) -> bool:
        """Tell whether the file begins like the one of `position` and reaches as far, whatever its inode."""
        length = position.head.partition(":")[0]
        if self.stat().st_size < position.offset or not length.isdecimal():
            return False
        return fingerprint(os.pread(self._fd, min(int(length), HEAD), 0)) == position.head

    def move_to(self, offset: int) -> None:
        """Accept everything before `offset`."""
        self.position = self._position(offset)

    def has_writer(self) -> bool:
        """Tell whether somebody may still write to this file; True where that cannot be known.

        A read lease is granted only while nobody has the file open for writing (fcntl(2), F_SETLEASE). A writer
        that opens it in that instant waits for us; the kernel would tell us by SIGIO, which kills, so it is given
        SIGURG, which is ignored.
        """
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:
            return True
        return False

    def stat(self) -> os.stat_result:
        """Return what the kernel says of the open file."""
        return os.fstat(self._fd)

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _position(self, offset: int) -> TailPosition:
        device, inode = self.identity
        head = fingerprint(os.pread(self._fd, min(HEAD, offset), 0))
        return TailPosition(path=self._path, device=device, inode=inode, offset=offset, head=head)


def cut(data: bytes, limit: int, *, at_line_start: bool) -> tuple[list[tuple[int, bytes]], int, int]:
    """Return the complete lines of `data` as (place, text), how many bytes are done, how many lines too long.

    Unless `at_line_start`, the text up to the first newline belongs to a line that is not ours to tell.
    """
    lines: list[tuple[int, bytes]] = []
    refused = 0
    at = 0 if at_line_start else data.find(b"\n") + 1
    if not at_line_start and at == 0:
        return lines, len(data), refused
    while len(lines) < limit:
        end = data.find(b"\n", at)
        if (len(data) if end < 0 else end) - at > MAX_LINE:
            refused += 1
            if end < 0:
                return lines, len(data), refused
        elif end < 0:
            break
        else:
            lines.append((at, data[at:end]))
        at = end + 1
    return lines, at, refused


def fingerprint(head: bytes) -> str:
    """Return what tells files apart by their first bytes: `LENGTH:HASH`."""
    return f"{len(head)}:{sha256(head).hexdigest()[:16]}"


def open_file(path: Path, reported_as: Path, *, flags: int = 0) -> OpenFile | None:
    """Open a regular file at its start, None where there is none. Raises RetryLater where it cannot be read."""
    try:
        # Asked before opening too: to open a fifo or a device can itself have an effect.
        _refuse_irregular(path, os.stat(path))  # noqa: PTH116
        file = OpenFile(os.open(path, _FLAGS | flags), str(reported_as), 0)
        _refuse_irregular(path, file.stat())
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
