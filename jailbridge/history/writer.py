"""Appends scan events to the history file. Knows files; the form of a line is the dialects' business."""

import errno
import os
import stat
import threading
from pathlib import Path

from jailbridge.config.settings import HistoryDialect, HistorySettings
from jailbridge.errors import RetryLater
from jailbridge.history.dialects import format_1, format_2
from jailbridge.model.event import ScanEvent

# Readable by a group (adm, by the folder's or an admin's choice), by nobody else: it names those who probed us.
MODE = 0o640
# As PortSentry's own package makes it.
FOLDER_MODE = 0o755
_REMEDY = "set history.path to the file itself"


class HistoryWriter:
    """Appends one line at a time, each in one write; follows a rotation by name. Safe to use from several threads."""

    def __init__(self, settings: HistorySettings) -> None:
        self._path: Path = settings.path
        self._dialect = settings.dialect
        self._lock = threading.Lock()

    def report(self, event: ScanEvent, newly_triggered: bool) -> None:
        """Append what the dialect writes of this event: 1.2 a source's trigger only, 2.x each. Raises RetryLater."""
        local = event.time.astimezone()
        if self._dialect is HistoryDialect.PORTSENTRY_2:
            self._append(format_2(event, local))
        elif newly_triggered:
            self._append(format_1(event, local))

    def _append(self, line: str) -> None:
        try:
            with self._lock:
                # Opened anew for each line: a sensor writes few, and a rotated file is never written by mistake.
                descriptor = self._open()
                try:
                    status = os.fstat(descriptor)
                    if not stat.S_ISREG(status.st_mode):
                        raise RetryLater(f"history {self._path} cannot be written: is not a regular file: {_REMEDY}")
                    size = status.st_size
                    torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                    data = f"{chr(10) if torn else ''}{line}\n".encode("ascii")
                    if os.write(descriptor, data) != len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                finally:
                    os.close(descriptor)
        except OSError as error:
            # What O_NOFOLLOW says of a symbolic link (open(2)).
            reason = f"is a symbolic link: {_REMEDY}" if error.errno == errno.ELOOP else error.strerror
            raise RetryLater(f"history {self._path} cannot be written: {reason}") from None

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self._path, flags, MODE)
        except FileNotFoundError:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
            return os.open(self._path, flags, MODE)
