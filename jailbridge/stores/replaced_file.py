"""A file that others write too, replaced whole: nobody reads half of it, and what others write meanwhile is kept.

The new file changes places with the old one in one step (renameat2(2)), so what it displaces is always at hand:
another's new file goes back to its place, and what was added to the old one is taken along. For that the kernel is
asked, by a lease (fcntl(2)), whether somebody still has the old file open for writing. There is no lock that others
would heed.

What may still be lost is what is written to the old file through a descriptor that stays open for over PATIENCE_S after
we replaced it, or by an open(2) that is halfway through the kernel in that very moment. Where another puts its file in
place between our last look and our exchange, so may what is read and written in the 20 us until we put it back (longer
only if the kernel gives our processor away just then); where the file system knows no exchange, so may such a file
itself: between look and renaming are some 50 us.
"""

import contextlib
import ctypes
import errno
import fcntl
import functools
import grp
import logging
import os
import pwd
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from jailbridge.errors import FatalError, RetryLater
from jailbridge.host import files
from jailbridge.host.files import Sign

log = logging.getLogger("jailbridge.stores.replaced_file")

# Such files are read for every connection: something larger is none of them.
MAX_BYTES = 64 << 20
ATTEMPTS = 10
# How long one that is just writing is waited for: `sed -i` on 10,000 lines takes some 10 ms, an editor's saving less.
PATIENCE_S = 0.25
_POLL_S = 0.001
# linux/fs.h; fcntl.h.
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
# What file systems and kernels say that have no exchange.
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
# Equals no sign.
_UNSURE: Sign = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Late:
    """What another made of a file that we had replaced already: `old` became `new`, while `ours` stood in its place."""

    ours: bytes
    old: bytes
    new: bytes

    def brought_to(self, content: bytes) -> bytes | None:
        """Return `content` with the other's change, None where that cannot be told."""
        if content == self.ours:
            return self.new
        return content + self.new[len(self.old) :] if self.new.startswith(self.old) else None


class ReplacedFile:
    """One file, for one thread. `remedy` is what to do where something else than a file stands at its path."""

    def __init__(self, path: Path, remedy: str) -> None:
        self.path = path
        self._remedy = remedy
        self._late: _Late | None = None
        self._noted: Sign | None = None

    def touched(self) -> bool:
        """Tell whether another may have written it since it was read or rewritten here; never raises."""
        return files.sign(self.path) != self._noted

    def read(self) -> bytes:
        """Return what it holds, and note that this was seen. A missing file holds nothing. Raises as `content`."""
        # The sign first: what comes between is seen as a touch.
        self._noted = files.sign(self.path)
        return self.content()

    def content(self) -> bytes:
        """Return what it holds. Raises RetryLater (cannot be read) and FatalError (no file, or far too large)."""
        with self._opened() as file:
            return self._content(file)

    def rewrite(self, edit: Callable[[bytes], bytes]) -> None:
        """Replace what it holds by what `edit` makes of it; the same is not written.

        `edit` is called again where another wrote meanwhile. Raises RetryLater, FatalError, and what `edit` raises.
        """
        noted = self._noted
        for _ in range(ATTEMPTS):
            before = files.sign(self.path)
            with self._opened() as file:
                content = self._content(file)
                whole = self._with_late(content)
                text = edit(whole)
                if text == content:
                    self._late = None
                    return
                self._noted = _UNSURE
                own = self._replace(file, content, text)
                if own is None:
                    continue
                self._late = self._written_to(file, content, whole, text)
                if self._late is None:
                    # What was found here and never read by anybody is a touch as well.
                    self._noted = own if noted in {None, before} else _UNSURE
                    return
        raise RetryLater(f"{self.path} is being written by something else all the time")

    def remove(self) -> None:
        """Take the file away; none is no error. Raises RetryLater."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise RetryLater(f"{self.path} cannot be removed: {error.strerror}") from None
        self._noted = files.sign(self.path)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[FileIO | None]:
        """Open the file that stands there now; None where there is none."""
        try:
            # A pipe would be waited for.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            raise RetryLater(f"{self.path} cannot be read: {error.strerror}") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
                raise FatalError(f"{self.path} is not a regular file of at most {MAX_BYTES >> 20} MiB: {self._remedy}")
            with FileIO(descriptor, closefd=False) as file:
                yield file
        finally:
            os.close(descriptor)

    def _content(self, file: FileIO | None) -> bytes:
        if file is None:
            return b""
        try:
            file.seek(0)
            return file.readall()
        except OSError as error:
            raise RetryLater(f"{self.path} cannot be read: {error.strerror}") from None

    def _with_late(self, content: bytes) -> bytes:
        if self._late is None:
            return content
        brought = self._late.brought_to(content)
        if brought is None:
            log.warning("file=%s was rewritten by two others at once: look whether it lacks a change", self.path)
            return content
        return brought

    def _replace(self, file: FileIO | None, content: bytes, text: bytes) -> Sign | None:
        """Put a file with `text` in the place of `file`, if that stands there with `content`.

        Return its sign; None where another was quicker.
        """
        try:
            target = self.path.resolve()
            with _alone(target), _draft(target) as (name, draft):
                _write(draft, text, file)
                if file is not None:
                    _wait_for_writers(file)
                if not self._stands(target, file, content) or not _put(name, draft, target, file):
                    return None
                name.unlink(missing_ok=True)
                sign = _sign(draft, len(text))
            _sync_folder(target.parent)
        except BlockingIOError:
            raise RetryLater(f"another jailbridge is writing {self.path}") from None
        except _Foreign as why:
            raise RetryLater(f"{self.path} is left as it is: {why}") from None
        except OSError as error:
            raise RetryLater(f"{self.path} cannot be written: {error.strerror}") from None
        return sign

    def _stands(self, target: Path, file: FileIO | None, content: bytes) -> bool:
        try:
            present = target.stat()
        except FileNotFoundError:
            return file is None
        # Sizes and times are not enough: another's edit may keep the size, and fall into the clock's same tick.
        return (
            file is not None and os.path.samestat(present, os.fstat(file.fileno())) and self._content(file) == content
        )

    def _written_to(self, file: FileIO | None, content: bytes, whole: bytes, text: bytes) -> _Late | None:
        """Return what another did to the file that was replaced, None for nothing; `whole` is `content` and what came
        late to an earlier one.
        """
        if file is None:
            return None
        _wait_for_writers(file)
        left = self._content(file)
        if left == content:
            return None
        if content.startswith(left):
            # Somebody was about to write it anew. Rather its lines too many than lost.
            log.warning(
                "file=%s was cut short in place while it was being replaced: look whether it lacks a change", self.path
            )
            return None
        new = whole + left[len(content) :] if left.startswith(content) else self._with_late(left)
        return _Late(ours=text, old=whole, new=new)


class _Foreign(Exception):
    """A file's owner or group that a new one cannot have."""


def _whose(status: os.stat_result, drafted: os.stat_result) -> str:
    """Say whose the old file is, by name or number, and what to do where the new one cannot be theirs."""
    owner, group = str(status.st_uid), str(status.st_gid)
    with contextlib.suppress(KeyError):
        owner = pwd.getpwuid(status.st_uid).pw_name
    with contextlib.suppress(KeyError):
        group = grp.getgrgid(status.st_gid).gr_name
    remedy = "chown root it"
    if status.st_uid == drafted.st_uid:
        # To a group of its own a process may give its files without a capability (chown(2)).
        needed = f'"SupplementaryGroups={group}" and "SystemCallFilter=@chown"'
        remedy = f"chgrp root it, or give the service {needed} in a drop-in (systemctl edit)"
    return f"it belongs to {owner}:{group}, to whom this process may give no file: {remedy}"


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Keep our own kind out, by a lock on a file beside the target that only root may open.

    A folder, or a file that all may read, anybody can lock. Raises BlockingIOError while another has it.
    """
    path = target.with_name(f".{target.name}.jailbridge")
    with FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "w") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(path, file):
            raise BlockingIOError
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _draft(target: Path) -> Iterator[tuple[Path, FileIO]]:
    """Make the file that will be the new one, empty; what a killed process left goes. The name is gone afterwards."""
    path = target.with_name(f".{target.name}.jailbridge-new")
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with FileIO(os.open(path, flags, 0o600), "w") as file:
        try:
            yield path, file
        finally:
            path.unlink(missing_ok=True)


def _is_at(path: Path, file: FileIO) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _write(draft: FileIO, text: bytes, old: FileIO | None) -> None:
    """Write the new file, with the old one's owner, mode and extended attributes (an SELinux label among them)."""
    left = memoryview(text)
    while left:
        left = left[draft.write(left) :]
    if old is None:
        os.fchmod(draft.fileno(), 0o644)
    else:
        status, drafted = os.fstat(old.fileno()), os.fstat(draft.fileno())
        # A hardened service may not, and most often need not. Rather not written than another's to read or write.
        if (drafted.st_uid, drafted.st_gid) != (status.st_uid, status.st_gid):
            try:
                os.fchown(draft.fileno(), status.st_uid, status.st_gid)
            except PermissionError:
                raise _Foreign(_whose(status, drafted)) from None
        os.fchmod(draft.fileno(), stat.S_IMODE(status.st_mode))
        # Not every file system has them, and not each may be written.
        with contextlib.suppress(OSError):
            for attribute in os.listxattr(old.fileno()):
                with contextlib.suppress(OSError):
                    os.setxattr(draft.fileno(), attribute, os.getxattr(old.fileno(), attribute))
    os.fsync(draft.fileno())


def _put(name: Path, draft: FileIO, target: Path, old: FileIO | None) -> bool:
    """Put the draft, called `name`, in the place of `old`; tell whether it was `old` that stood there."""
    try:
        if old is None:
            os.link(name, target)
            return True
        if not _exchange(name, target):
            name.replace(target)
            return True
        if _is_at(name, old):
            return True
        _exchange(name, target)
        if not _is_at(name, draft):
            # Meanwhile a newer one had come.
            _exchange(name, target)
    except (FileExistsError, FileNotFoundError):
        pass
    return False


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return function  # type: ignore[no-any-return]


def _exchange(one: Path, other: Path) -> bool:
    """Have two files change places in one step; False where that cannot be done here. Raises OSError."""
    if (rename := _renameat2()) is None:
        return False
    # Whoever has an eye on this process sees it as what it is (PEP 578).
    sys.audit("os.rename", os.fspath(one), os.fspath(other), -1, -1)
    if rename(_AT_FDCWD, bytes(one), _AT_FDCWD, bytes(other), _RENAME_EXCHANGE) == 0:
        return True
    if (number := ctypes.get_errno()) in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number))


def _wait_for_writers(file: FileIO) -> None:
    """Wait until nobody has the file open for writing, or patience ends."""
    deadline = time.monotonic() + PATIENCE_S
    while _is_being_written(file) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _is_being_written(file: FileIO) -> bool:
    """Ask for a read lease, which the kernel grants where nobody has the file open for writing; not known is no."""
    try:
        # Who opens it in just this moment has a signal sent to us; the default one, SIGIO, would end the process.
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _sign(draft: FileIO, size: int) -> Sign:
    """Return the sign of the file that we have just put in place, unless another has written to it since."""
    if os.fstat(draft.fileno()).st_size != size:
        return _UNSURE
    return files.sign(Path(f"/proc/thread-self/fd/{draft.fileno()}"))


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
