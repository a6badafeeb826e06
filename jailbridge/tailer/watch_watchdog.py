"""Folder events through watchdog. Knows its observer; decides nothing."""

import os
from collections.abc import Callable
from typing import cast

from watchdog.events import (
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import ObservedWatch
from watchdog.observers.inotify import InotifyObserver

# The rest (opened, closed without writing, changed folder) comes from our own reading too.
_TYPES: list[type[FileSystemEvent]] = [FileModifiedEvent, FileCreatedEvent, FileMovedEvent, FileDeletedEvent]
_STOP_S = 5.0


class WatchdogBackend:
    """One observer with a watch for each folder."""

    def __init__(self, changed: Callable[[str], None]) -> None:
        """Start the observer's threads. Raises OSError at the kernel's limit of inotify instances."""
        self._handler = _Handler(changed)
        self._observer = InotifyObserver()
        self._observer.start()

    def add(self, folder: str) -> ObservedWatch:
        """Watch a folder. Raises OSError."""
        return self._observer.schedule(self._handler, folder, recursive=False, event_filter=_TYPES)

    def is_alive(self, handle: object) -> bool:
        """Tell whether the watch's thread still runs: it ends silently when its folder is removed."""
        return any(emitter.watch == handle and emitter.is_alive() for emitter in self._observer.emitters)

    def remove(self, handle: object) -> None:
        """End the watch. Raises KeyError for one that is not there."""
        self._observer.unschedule(cast("ObservedWatch", handle))

    def close(self) -> None:
        """End the observer's threads."""
        self._observer.stop()
        self._observer.join(_STOP_S)


class _Handler(FileSystemEventHandler):
    def __init__(self, changed: Callable[[str], None]) -> None:
        self._changed = changed

    def dispatch(self, event: FileSystemEvent) -> None:
        self._changed(os.fsdecode(event.src_path))
        if event.dest_path:
            self._changed(os.fsdecode(event.dest_path))
