"""What wakes the tailer: changes in the folders of the followed files, or nothing but the safety poll.

An event says only "look": whoever is woken reads the files themselves, so a lost or surplus event costs nothing.
Missed anyway, and left to the poll: writes from another host (NFS) and through another mount (overlay).
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from jailbridge.config.fields import PATTERN
from jailbridge.config.settings import Watch
from jailbridge.tailer.opened import identity
from jailbridge.tailer.pattern import matcher

_log = logging.getLogger("jailbridge.tailer")


class Watcher(Protocol):
    """Wakes its owner when something may have happened to one of the paths. Never raises."""

    def start(self, paths: Iterable[Path], wake: Callable[[], None]) -> None:
        """Watch the paths; `wake` is called from another thread, must not block, and may be called for nothing."""
        ...

    def rearm(self) -> None:
        """Watch again what was replaced or came into being since; cheap, for every safety poll."""
        ...

    def stop(self) -> None:
        """Watch nothing any more and end every thread."""
        ...


class Backend(Protocol):
    """A way to be told of changes in folders. Its methods raise whatever they like."""

    def add(self, folder: str) -> object:
        """Watch a folder (no symbolic link) and return a handle."""
        ...

    def is_alive(self, handle: object) -> bool:
        """Tell whether this folder is still watched."""
        ...

    def remove(self, handle: object) -> None:
        """Watch this folder no more."""
        ...

    def close(self) -> None:
        """End everything."""
        ...


def watcher(kind: Watch) -> Watcher:
    """Return the watcher that a setting asks for, not yet started; `auto` is watchdog."""
    match kind:
        case Watch.POLL:
            return PollWatcher()
        case Watch.PYINOTIFY:
            return FolderWatcher(_pyinotify)
        case Watch.AUTO | Watch.WATCHDOG:
            return FolderWatcher(_watchdog)


class PollWatcher:
    """Watches nothing: the owner's safety poll is all."""

    def start(self, paths: Iterable[Path], wake: Callable[[], None]) -> None:
        """Do nothing."""

    def rearm(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


class FolderWatcher:
    """Watches each path's folder and, where the path is a symbolic link, its target's folder.

    Folders, since a watch on a file stays with the renamed one; by name, since our own reading makes events too.
    """

    def __init__(self, connect: Callable[[Callable[[str], None]], Backend]) -> None:
        """`connect` starts a backend that reports each changed path to the function it is given."""
        self._connect = connect
        self._backend: Backend | None = None
        self._paths: tuple[Path, ...] = ()
        self._wake: Callable[[], None] = _nobody
        self._names: frozenset[str] = frozenset()
        self._matchers: dict[str, list[Callable[[str], bool]]] = {}
        self._armed: dict[str, tuple[object, tuple[int, int]]] = {}
        self._failed: set[str] = set()

    def start(self, paths: Iterable[Path], wake: Callable[[], None]) -> None:
        """Watch the paths; a failure is logged once and leaves them to the poll."""
        self._paths, self._wake = tuple(paths), wake
        try:
            self._backend = self._connect(self._changed)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a library, the poll goes on
            _log.warning("event=watch-failed reason=%s: only the poll is left", _one_line(error))
            return
        self.rearm()

    def rearm(self) -> None:
        """Watch what is there now."""
        if self._backend is None:
            return
        names = frozenset(_names(self._paths))
        self._names = names
        self._matchers = _matchers(self._paths)
        folders = {os.path.dirname(name) for name in names}  # noqa: PTH120
        for folder in self._armed.keys() - folders:
            self._disarm(folder)
        for folder in folders:
            self._arm(self._backend, folder)

    def stop(self) -> None:
        """End the backend."""
        backend, self._backend = self._backend, None
        self._armed.clear()
        if backend is not None:
            try:
                backend.close()
            except Exception as error:  # noqa: BLE001
                _log.warning("event=watch-not-closed reason=%s", _one_line(error))

    def _arm(self, backend: Backend, folder: str) -> None:
        present = _identity_of(folder)
        if folder in self._armed:
            handle, watched = self._armed[folder]
            if watched == present and backend.is_alive(handle):
                return
            self._disarm(folder)
        if present is None:
            return
        try:
            self._armed[folder] = backend.add(folder), present
        except Exception as error:  # noqa: BLE001
            if folder not in self._failed:
                self._failed.add(folder)
                _log.warning("event=watch-failed path=%s reason=%s: only the poll is left", folder, _one_line(error))
            return
        self._failed.discard(folder)
        self._wake()  # what was written before the watch stood

    def _disarm(self, folder: str) -> None:
        handle, _ = self._armed.pop(folder)
        if self._backend is not None:
            with contextlib.suppress(Exception):  # gone with its folder
                self._backend.remove(handle)

    def _changed(self, path: str) -> None:
        folder, name = os.path.split(path)
        if path in self._names or (name and any(matches(name) for matches in self._matchers.get(folder, ()))):
            self._wake()


def _names(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        yield os.path.join(os.path.realpath(path.parent), path.name)  # noqa: PTH118
        yield os.path.realpath(path)


def _matchers(paths: Iterable[Path]) -> dict[str, list[Callable[[str], bool]]]:
    """Return by folder what tells the names that a pattern in it means."""
    found: dict[str, list[Callable[[str], bool]]] = {}
    for path in paths:
        if not PATTERN.isdisjoint(path.name):
            found.setdefault(os.path.realpath(path.parent), []).append(matcher(path.name))
    return found


def _identity_of(folder: str) -> tuple[int, int] | None:
    try:
        return identity(os.stat(folder))  # noqa: PTH116
    except OSError:
        return None


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())


def _nobody() -> None:
    pass


def _watchdog(changed: Callable[[str], None]) -> Backend:
    from jailbridge.tailer.watch_watchdog import WatchdogBackend  # noqa: PLC0415 - loaded only where it is asked for

    return WatchdogBackend(changed)


def _pyinotify(changed: Callable[[str], None]) -> Backend:
    from jailbridge.tailer.watch_pyinotify import PyinotifyBackend  # noqa: PLC0415

    return PyinotifyBackend(changed)
