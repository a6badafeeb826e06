"""hosts.deny as a store: reads and rewrites our block of it. The text itself is deny_file's business.

The file is replaced, never edited in place, so that libwrap always reads a whole one. What another writer changes
between our reading and our writing is seen and kept; so is what one appends to the old file while we replace it. Later
lines, written through a file that was opened before, are lost: there is no lock that other writers would heed.
"""

import contextlib
import fcntl
import logging
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from io import FileIO
from pathlib import Path

from jailbridge.config.settings import HostsDenySettings
from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.network import Network
from jailbridge.model.plan import Action, Capabilities, Change, Observation, ObservedBan, Rejection
from jailbridge.model.token import Token
from jailbridge.stores.deny_file import DenyFile, put_together, take_apart
from jailbridge.stores.protocol import Drifted

log = logging.getLogger("jailbridge.stores.hosts_deny")

# libwrap reads the file for every connection: something larger than this is not a hosts.deny.
MAX_BYTES = 64 << 20
ATTEMPTS = 10


class HostsDenyStore:
    """Bans as lines of hosts.deny. Whether anything that listens obeys TCP wrappers is not known here."""

    name = "hosts_deny"

    def __init__(self, settings: HostsDenySettings) -> None:
        self._path = settings.path
        self._rule = settings.rule
        # What another appended to a file that we had replaced already: the next writing takes it along.
        self._late = b""
        # Under another rule our lines have another form, and are written anew. A token takes nine digits of it.
        layout = zlib.crc32(self._rule.encode()) % 10**9
        self.capabilities = Capabilities(
            overlaps=True, ends=False, volatile=False, early=False, layout=layout, limit=settings.max, pause_s=1.0
        )

    def observe(self, now: datetime) -> Observation:  # noqa: ARG002 - the file keeps no times
        """Read our block. A missing file holds nothing. Raises RetryLater, FatalError (broken marks)."""
        with self._opened() as file:
            parts = take_apart(self._content(file), str(self._path), self._rule)
        return Observation(
            token=parts.token,
            enforcing=None,
            bans=tuple(ObservedBan(network=network) for network in parts.bans),
            foreign=parts.foreign,
        )

    def apply(
        self,
        changes: Sequence[Change],
        token: Token,
        now: datetime,  # noqa: ARG002
        *,
        expected: str | None = None,
    ) -> Sequence[Rejection]:
        """Rewrite our block in one replacement of the file. Raises RetryLater, Drifted, FatalError (broken marks)."""
        for _ in range(ATTEMPTS):
            with self._opened() as file:
                content = self._content(file)
                parts = take_apart(content + self._late, str(self._path), self._rule)
                if expected is not None and parts.token != expected:
                    raise Drifted(f"{self._path} is not as it was left")
                if self._replace(file, content, put_together(parts, _bans(parts, changes), self._rule, str(token))):
                    self._late = self._appended(file, content)
                    if not self._late:
                        return ()
        raise RetryLater(f"{self._path} is being written by something else all the time")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[FileIO | None]:
        """Open the file that stands there now; None where there is none."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            raise RetryLater(f"{self._path} cannot be read: {error.strerror}") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
                raise FatalError(
                    f"{self._path} is not a regular file of at most {MAX_BYTES >> 20} MiB: set stores.hosts_deny.path"
                )
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
            raise RetryLater(f"{self._path} cannot be read: {error.strerror}") from None

    def _replace(self, file: FileIO | None, content: bytes, text: bytes) -> bool:
        """Put a file with `text` in the place of `file`, if that still stands there with `content`; tell whether."""
        try:
            target = self._path.resolve()
            with _draft(target) as draft:
                if draft is None:
                    return False
                _write(draft, text, file)
                if not self._stands(target, file, content):
                    return False
                if file is not None:
                    _beside(target).replace(target)
                else:
                    os.link(_beside(target), target)
            _sync_folder(target.parent)
        except BlockingIOError:
            raise RetryLater(f"another jailbridge is writing {self._path}") from None
        except FileExistsError:
            return False
        except OSError as error:
            raise RetryLater(f"{self._path} cannot be written: {error.strerror}") from None
        return True

    def _stands(self, target: Path, file: FileIO | None, content: bytes) -> bool:
        try:
            present = target.stat()
        except FileNotFoundError:
            return file is None
        # Sizes and times are not enough: another's edit may keep the size, and fall into the clock's same tick.
        return (
            file is not None and os.path.samestat(present, os.fstat(file.fileno())) and self._content(file) == content
        )

    def _appended(self, file: FileIO | None, content: bytes) -> bytes:
        """Return what was appended to the replaced file since it was read."""
        late = self._content(file)
        if not late.startswith(content):
            log.warning(
                "file=%s was rewritten in place while it was being replaced: look whether it lacks a change", self._path
            )
            return b""
        return late[len(content) :]


def _bans(parts: DenyFile, changes: Sequence[Change]) -> list[Network]:
    bans = dict.fromkeys(parts.bans)
    for change in changes:
        if change.network is None:
            continue
        if change.action is Action.REMOVE:
            bans.pop(change.network, None)
        else:
            bans[change.network] = None
    return list(bans)


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.jailbridge")


@contextlib.contextmanager
def _draft(target: Path) -> Iterator[FileIO | None]:
    """Open the empty file beside the target in which the new one is written; None where another has just used it.

    It is the lock against our own kind as well, since nobody but root may open it (a folder, or a file that all may
    read, anybody can lock). What a killed process left is used again. Raises BlockingIOError while another has it.
    """
    path = _beside(target)
    with FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "w") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(path, file):
            yield None
            return
        try:
            file.truncate(0)
            yield file
        finally:
            if _is_at(path, file):
                path.unlink()


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
        status = os.fstat(old.fileno())
        os.fchown(draft.fileno(), status.st_uid, status.st_gid)
        os.fchmod(draft.fileno(), stat.S_IMODE(status.st_mode))
        # Not every file system has them, and not each may be written.
        with contextlib.suppress(OSError):
            for attribute in os.listxattr(old.fileno()):
                with contextlib.suppress(OSError):
                    os.setxattr(draft.fileno(), attribute, os.getxattr(old.fileno(), attribute))
    os.fsync(draft.fileno())


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
