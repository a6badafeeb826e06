"""The history file on its disk: whole lines appended, a rotation followed by name, one writer for each protocol.

Knows nothing of a line's form.
"""

import errno
import fcntl
import logging
import os
import pwd
import stat
import struct
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.event import Protocol

log = logging.getLogger("jailbridge.history")

# Readable by a group (adm, by the folder's or an admin's choice), by nobody else: it names those who probed us.
MODE = 0o640
# As PortSentry's own package makes it.
FOLDER_MODE = 0o755
CLAIMS_AT = 1 << 62
"""Where the locks stand, in bytes: no history grows to there, so no other program's lock means one of ours."""
_CLAIM_OF = {Protocol.TCP: CLAIMS_AT + 6, Protocol.UDP: CLAIMS_AT + 17}
# struct flock of fcntl(2): type, whence, start, length, pid; the last is 0 for open file description locks.
_FLOCK = struct.Struct("hhqqi0q")
_HELD = {errno.EAGAIN, errno.EACCES}
TRIES, PAUSE_S = 5, 0.002
"""A rotation takes a moment: between its renaming the old file and its giving us the new one, we have none."""
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
_REMEDIES = {
    errno.EISDIR: "set {setting} to the file itself",
    errno.ENOTDIR: "set {setting} to the file itself",
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "rotate it, or raise the limit on file sizes",
}


class HistoryFile:
    """Appends lines to one file, which it keeps open; `setting` is what names it. Safe to use from several threads."""

    def __init__(self, path: Path, setting: str = "history.path") -> None:
        self._path = path
        self._setting = setting
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._identity = 0, 0
        self._claims: list[int] = []
        self._made_folder = False
        self._warned = False

    def append(self, lines: Sequence[str]) -> int:
        """Append lines of ASCII (without newlines), in one write where the disk takes it; return how many are whole.

        Fewer than all when the disk is full: what then stands there of the next one is ended before anything else is
        written. Raises RetryLater when there is not one.
        """
        if not lines:
            return 0
        with self._lock, self._explained():
            descriptor, size = self._follow()
            # What a crash left without its end would swallow the next line.
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            data = "\n".join([*[""] * torn, *lines, ""]).encode("ascii")
            sent = 0
            try:
                while sent < len(data):
                    sent += os.write(descriptor, data[sent:])
            except OSError:
                if (whole := data.count(b"\n", 0, sent) - torn) > 0:
                    return whole
                raise
            return len(lines)

    def claim(self, protocols: Collection[Protocol]) -> None:
        """Say that this process alone writes of these protocols, here and in the files that a rotation puts here.

        Raises FatalError when another one does. If one takes a later file first, `append` raises RetryLater.
        """
        claims = [_CLAIM_OF[protocol] for protocol in protocols]
        with self._lock, _fatal(), self._explained():
            descriptor, _ = self._follow()
            self._hold(descriptor, claims)
            self._claims = claims

    def hand_over(self, uid: int, gid: int) -> None:
        """As root: make the file, and its folder, where they are missing, and give the file to a user.

        A folder is given only if it was made here; a group that somebody chose for the file stays. Raises FatalError.
        """
        with self._lock, _fatal(), self._explained():
            descriptor, _ = self._follow()
            status = os.fstat(descriptor)
            if status.st_nlink != 1:
                # The other name may be a file that the user must not have.
                raise RetryLater(
                    f"history {self._path} is the same file as another name (a hard link): "
                    f"set {self._setting} to the file itself"
                )
            os.fchown(descriptor, uid, gid if status.st_gid == 0 else -1)
            if self._made_folder:
                folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    os.fchown(folder, uid, gid)
                finally:
                    os.close(folder)
                self._made_folder = False

    def check(self) -> None:
        """See that the file can be opened and appended to by the user that this process is now. Raises FatalError."""
        with self._lock, _fatal(), self._explained():
            self._follow()
            os.close(self._open())

    def close(self) -> None:
        """Close the file, which ends the claim on it; the next line opens and claims it again."""
        with self._lock:
            self._take(None)

    def _follow(self) -> tuple[int, int]:
        """Return a descriptor of the file that now has the name, and the file's size."""
        if self._descriptor is not None:
            try:
                status = self._path.lstat()
            except FileNotFoundError:
                pass
            else:
                if (status.st_dev, status.st_ino) == self._identity:
                    return self._descriptor, status.st_size
        descriptor = self._open() if self._descriptor is None else self._open_next()
        try:
            self._hold(descriptor, self._claims)
        except BaseException:
            os.close(descriptor)
            raise
        self._take(descriptor)
        status = os.fstat(descriptor)
        self._identity = status.st_dev, status.st_ino
        return descriptor, status.st_size

    def _open(self) -> int:
        try:
            # O_CREAT would be refused by fs.protected_regular where the file is already the sensor's user's.
            descriptor = os.open(self._path, _FLAGS)
        except FileNotFoundError:
            missing = [folder for folder in self._path.parents if not folder.exists()]
            for folder in reversed(missing):
                folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
            self._made_folder = self._made_folder or bool(missing)
            descriptor = os.open(self._path, _FLAGS | os.O_CREAT, MODE)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        raise RetryLater(f"history {self._path} is not a regular file: set {self._setting} to the file itself")

    def _open_next(self) -> int:
        for _ in range(TRIES):
            try:
                return self._open()
            except PermissionError:
                time.sleep(PAUSE_S)
        return self._open()

    def _take(self, descriptor: int | None) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = descriptor

    def _hold(self, descriptor: int, claims: Collection[int]) -> None:
        for claim in claims:
            try:
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, claim, 1, 0))
            except OSError as error:
                if error.errno in _HELD:
                    # The kernel does not tell whose such a lock is (fcntl(2): l_pid is -1).
                    raise RetryLater(
                        f"history {self._path} is written by another process ('fuser {self._path}' tells which): "
                        f"end it, or set {self._setting}"
                    ) from None
                if not self._warned:
                    log.warning(
                        "history %s cannot be locked, so nothing keeps a second process from writing it too: %s",
                        self._path,
                        error.strerror,
                    )
                self._warned = True

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason, remedy = error.strerror, _REMEDIES.get(error.errno or 0, "mend that, or set {setting}")
            # What O_NOFOLLOW says of a symbolic link (open(2)).
            if error.errno == errno.ELOOP:
                reason, remedy = "is a symbolic link", _REMEDIES[errno.EISDIR]
            elif error.errno in {errno.EACCES, errno.EPERM} and os.geteuid() != 0:
                remedy = f"chown {_user()} {self._path}, in folders that {_user()} may enter, or set sensor.user"
            told = remedy.replace("{setting}", self._setting)
            raise RetryLater(f"history {self._path} cannot be written: {reason}: {told}") from None


@contextmanager
def _fatal() -> Iterator[None]:
    try:
        yield
    except RetryLater as error:
        raise FatalError(str(error)) from None


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
