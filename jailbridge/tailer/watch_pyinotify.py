"""Folder events through pyinotify (unmaintained since 2015). Knows its quirks; decides nothing.

Its own threaded notifier is not used: it calls threading.Event.isSet, deprecated since Python 3.10, and one file
name in the folder that is not UTF-8 ends its thread.
"""

import logging
import os
import select
import threading
import warnings
from collections.abc import Callable
from typing import Any

with warnings.catch_warnings():
    # It imports asyncore, deprecated in Python 3.11 and gone from 3.12 on (there: pyasyncore).
    warnings.simplefilter("ignore", DeprecationWarning)
    import pyinotify

# It writes to standard error past the program's own logging.
logging.getLogger("pyinotify").handlers.clear()
_MASK = (
    pyinotify.IN_MODIFY
    | pyinotify.IN_CREATE
    | pyinotify.IN_DELETE
    | pyinotify.IN_MOVED_FROM
    | pyinotify.IN_MOVED_TO
    | pyinotify.IN_ONLYDIR
)
_log = logging.getLogger("jailbridge.tailer")


class PyinotifyBackend:
    """One watch manager, read by a thread of our own."""

    def __init__(self, changed: Callable[[str], None]) -> None:
        """Start the thread. Raises OSError at the kernel's limit of inotify instances."""
        self._changed = changed
        self._manager = pyinotify.WatchManager()
        self._notifier = pyinotify.Notifier(self._manager, default_proc_fun=self._report)
        self._stop_r, self._stop_w = os.pipe()
        self._thread = threading.Thread(target=self._run, name="jailbridge-pyinotify", daemon=True)
        self._thread.start()

    def add(self, folder: str) -> int:
        """Watch a folder. Raises pyinotify.WatchManagerError."""
        handles: dict[str, int] = self._manager.add_watch(folder, _MASK, quiet=False)
        return next(iter(handles.values()))

    def is_alive(self, handle: object) -> bool:
        """Tell whether the kernel still keeps the watch: it drops it with its folder."""
        return self._manager.get_watch(handle) is not None

    def remove(self, handle: object) -> None:
        """End the watch. Raises pyinotify.WatchManagerError for one that is not there."""
        self._manager.rm_watch(handle, quiet=False)

    def close(self) -> None:
        """End the thread and the inotify instance."""
        os.write(self._stop_w, b"!")
        self._thread.join()
        self._notifier.stop()
        os.close(self._stop_r)
        os.close(self._stop_w)

    def _report(self, event: Any) -> None:
        self._changed(os.fsdecode(event.pathname))

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._manager.get_fd(), select.POLLIN)
        poller.register(self._stop_r, select.POLLIN)
        is_logged = False
        while self._stop_r not in {fd for fd, _ in poller.poll()}:
            try:
                self._notifier.read_events()
                self._notifier.process_events()
            except Exception as error:  # noqa: BLE001 - a local user may create any file name; the poll sees the rest
                if not is_logged:
                    _log.warning("event=watch-event-lost reason=%s", type(error).__name__)
                is_logged = True
