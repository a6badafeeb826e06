"""Who is "already blocked": PortSentry's blocked file, of either version, byte for byte.

1.2   `BLOCKED_FILE.MODE`, text, the history's own line per source. It is emptied at the start and asked at each
      sighting: a line that an editor or a cron job takes out counts at once.
2.x   `BLOCKED_FILE`, binary: per source a uint16 address family in host byte order (2 or 10), then 4 or 16 bytes of
      address. It is read at the start; from then on memory decides. A damaged end is cut off.

Anybody who can forge a source adds to these lists: both hold `MAX_SOURCES` at most, the oldest go first, and one that
went is acted on again when it returns. A source whose record cannot be written is blocked all the same.
"""

import errno
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

from jailbridge.config.portsentry_conf import Mode, PortsentryConf
from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.network import Address
from jailbridge.stores.blocked_records import LINE, record, sources

MAX_SOURCES = 100_000
"""About 15 MB of memory, and of disk in 1.2's form."""
# The longest line that 1.2 writes: a name of NI_MAXHOST bytes and the rest.
MAX_LINE = 1200
# Of 2.x's form; ours keeps to a tenth of it.
MAX_BYTES = 16 << 20
# As both versions make it under the usual umask.
MODE = 0o644
FOLDER_MODE = 0o755

_REMEDY = "name another BLOCKED_FILE in portsentry.conf"


log = logging.getLogger("jailbridge.portsentry")


class Blocked(Protocol):
    """The sources that were acted on."""

    def start(self) -> None:
        """Begin as this version does: an empty list, or the one of last time. Raises FatalError."""

    def holds(self, address: Address) -> bool:
        """Tell whether this source was acted on; never raises."""

    def add(self, address: Address, line: str) -> None:
        """Take a source in, with its line of 1.2's history (no newline).

        Raises RetryLater where its record could not be written; it is held all the same.
        """


def blocked(conf: PortsentryConf, mode: Mode) -> Blocked:
    """Return the list that this mode keeps; none is read or emptied yet."""
    path = conf.blocked_path(mode)
    if path is None:
        return NoList()
    return TextList(path) if mode.version == 1 else BinaryList(path)


class NoList:
    """2.x's `BLOCKED_FILE=""`: every sighting is acted on."""

    def start(self) -> None:
        """Begin; there is nothing to do."""

    def holds(self, address: Address) -> bool:  # noqa: ARG002 - Blocked's shape
        """Tell that nobody was acted on."""
        return False

    def add(self, address: Address, line: str) -> None:
        """Forget it."""


class TextList:
    """1.2's file. For one thread."""

    def __init__(self, path: Path, max_sources: int = MAX_SOURCES) -> None:
        self._path = path
        self._max = max_sources
        self._members: dict[bytes, None] = {}
        self._seen: _State | None = None

    def start(self) -> None:
        """Empty the file. Raises FatalError."""
        try:
            with _opened(self._path, os.O_WRONLY | os.O_CREAT) as file:
                os.ftruncate(file, 0)
        except OSError as error:
            raise FatalError(f"{_told(self._path, error)}: {_REMEDY}") from None

    def holds(self, address: Address) -> bool:
        """Tell whether a line of the file, as it is now, has this source."""
        self._look()
        return str(address).encode() in self._members

    def add(self, address: Address, line: str) -> None:
        """Append the line. Raises RetryLater where that fails."""
        self._look()
        self._members[str(address).encode()] = None
        full = _trim(self._members, self._max)
        try:
            before, after = _append(self._path, f"{line}\n".encode("ascii", "backslashreplace"), torn_by=b"\n")
            # What somebody else changed meanwhile is still to be read.
            if before == self._seen or (self._seen is None and before.size == 0):
                self._seen = after
            if full:
                self._seen = _replace(self._path, self._kept())
        except OSError as error:
            raise RetryLater(_told(self._path, error)) from None

    def _look(self) -> None:
        try:
            if _state(os.lstat(self._path)) == self._seen:
                return
            with _opened(self._path, os.O_RDONLY) as file:
                seen = _state(os.fstat(file))
                members: dict[bytes, None] = {}
                for _, source in _lines(file):
                    members[source] = None
                    _trim(members, self._max)
                self._seen, self._members = seen, members
        except FileNotFoundError:
            # Who removes the file means an empty list.
            self._seen, self._members = None, {}
        except OSError:
            # What was read before still holds: better not to act on anybody twice.
            return

    def _kept(self) -> Iterator[bytes]:
        with _opened(self._path, os.O_RDONLY) as file:
            yield from (line for line, source in _lines(file) if source in self._members)


class BinaryList:
    """2.x's file. For one thread."""

    def __init__(self, path: Path, max_sources: int = MAX_SOURCES) -> None:
        self._path = path
        self._max = max_sources
        self._members: dict[bytes, None] = {}

    def start(self) -> None:
        """Read the sources of last time; a damaged end is cut off. Raises FatalError."""
        try:
            with _opened(self._path, os.O_RDONLY | os.O_CREAT) as file, open(file, "rb", closefd=False) as stream:
                data = stream.read(MAX_BYTES + 1)
            found, understood = sources(data)
            self._members = dict.fromkeys(found)
            if len(data) > MAX_BYTES or (data and not understood):
                raise FatalError(f"{self._path} is no blocked list of PortSentry 2.x: move it away, or {_REMEDY}")
            if _trim(self._members, self._max) or understood < len(data):
                log.warning(
                    "blocked list cut path=%s sources=%d damaged_bytes=%d",
                    self._path, len(self._members), len(data) - understood,
                )  # fmt: skip
                _replace(self._path, map(record, self._members))
        except OSError as error:
            raise FatalError(f"{_told(self._path, error)}: {_REMEDY}") from None

    def holds(self, address: Address) -> bool:
        """Tell whether this source was acted on, whatever the file says by now."""
        return address.packed in self._members

    def add(self, address: Address, line: str) -> None:  # noqa: ARG002 - Blocked's shape
        """Append a record. Raises RetryLater where that fails."""
        source = address.packed
        self._members[source] = None
        try:
            if _trim(self._members, self._max):
                _replace(self._path, map(record, self._members))
            else:
                _append(self._path, record(source))
        except OSError as error:
            raise RetryLater(_told(self._path, error)) from None


def _lines(file: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield (line, address) of a text list; what is no record of PortSentry names nobody."""
    with open(file, "rb", closefd=False) as stream:
        while line := stream.readline(MAX_LINE):
            if match := LINE.fullmatch(line.rstrip(b"\r\n")):
                yield match[0] + b"\n", match["address"]


def _trim(members: dict[bytes, None], most: int) -> bool:
    """Drop the oldest tenth of a list that is over `most`; tell whether it was."""
    if len(members) <= most:
        return False
    for source in list(islice(members, len(members) - most * 9 // 10)):
        del members[source]
    return True


class _State(NamedTuple):
    """What differs when a file's content does."""

    inode: int
    size: int
    changed_ns: int


def _state(status: os.stat_result) -> _State:
    return _State(status.st_ino, status.st_size, status.st_ctime_ns)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """Open a regular file, never through a symbolic link. Raises OSError."""
    # A pipe would be waited for.
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        file = os.open(path, flags, MODE)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
        path.parent.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        file = os.open(path, flags, MODE)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file")
        yield file
    finally:
        os.close(file)


def _append(path: Path, data: bytes, torn_by: bytes = b"") -> tuple[_State, _State]:
    """Write `data` at the end in one piece, or nothing; return the file's states before and after. Raises OSError.

    With `torn_by`, a file that does not end so is ended first.
    """
    with _opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as file:
        before = os.fstat(file)
        if torn_by and before.st_size and os.pread(file, 1, before.st_size - 1) != torn_by:
            data = torn_by + data
        if os.write(file, data) != len(data):
            os.ftruncate(file, before.st_size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return _state(before), _state(os.fstat(file))


def _replace(path: Path, records: Iterable[bytes]) -> _State:
    """Put a file with these records in the place of `path`; return its state. Raises OSError."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    try:
        with _opened(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
            with open(file, "wb", closefd=False) as stream:
                stream.writelines(records)
            new.rename(path)
            return _state(os.fstat(file))
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _told(path: Path, error: OSError) -> str:
    # ELOOP is what O_NOFOLLOW says of a symbolic link (open(2)).
    reason = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror
    return f"blocked file {path} cannot be kept: {reason}"
