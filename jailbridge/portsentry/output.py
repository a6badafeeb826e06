"""Where PortSentry's lines go: syslog, standard output.

A slow reader is waited for a little, one that stands still is not; what nobody takes is counted. No failure is fatal.

The socket of syslog(3) takes datagrams, `<PRIORITY>TIME TAG[PID]: TEXT`, as glibc writes them (RFC 3164, 4.1).
"""

import errno
import os
import select
import socket
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

DEV_LOG = Path("/dev/log")
PRIORITY = 3 * 8 + 5
"""Facility daemon, level notice."""
TAG = "portsentry"
MAX_BYTES = 2000
"""What any syslog daemon takes (RFC 5424, 6.1); names from the DNS are cut before."""
WAIT_MS = 100
"""For room: a datagram socket holds 10 lines by default (net.unix.max_dgram_qlen)."""


class Output(Protocol):
    """Takes a line without its newline."""

    def line(self, text: str) -> None:
        """Put the line out, or count it as lost."""


class Syslog:
    """The system's log. What it has no room for is lost; the next line that it takes says how many were."""

    def __init__(self, path: Path = DEV_LOG, clock: Callable[[], datetime] = datetime.now) -> None:
        self.lost = 0
        """Lines that were not taken since the last one that was."""
        self._path = path
        self._clock = clock
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def line(self, text: str) -> None:
        """Send the line."""
        with self._lock:
            if self.lost and self._sent(f"adminalert: {self.lost} log lines were lost: {self._path} did not take them"):
                self.lost = 0
            if not self._sent(text):
                self.lost += 1

    def close(self) -> None:
        """Close the socket; the next line opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _sent(self, text: str) -> bool:
        now = self._clock()
        # As in RFC 3164: the month's English name, whatever the locale, and a blank before a day of one digit.
        head = f"<{PRIORITY}>{_MONTHS[now.month - 1]} {now.day:2d} {now:%H:%M:%S} {TAG}[{os.getpid()}]: "
        data = (head + text).encode("utf-8", "replace")[:MAX_BYTES]
        try:
            return self._send(data)
        except OSError:
            # A syslog daemon that was restarted has a new socket.
            self.close()
        try:
            return self._send(data)
        except OSError:
            self.close()
            return False

    def _send(self, data: bytes) -> bool:
        if self._socket is None:
            opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                opened.connect(str(self._path))
            except OSError:
                opened.close()
                raise
            self._socket = opened
        if not _has_room(self._socket.fileno(), 0 if self.lost else WAIT_MS):
            return False
        try:
            self._socket.send(data)
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.ENOBUFS}:
                return False
            raise
        return True


class Stdout:
    """Standard output."""

    def __init__(self, descriptor: int = 1) -> None:
        self.lost = 0
        """Lines that were not taken since the last one that was."""
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def line(self, text: str) -> None:
        """Write the line."""
        # A pipe that is ready takes this much in one piece (pipe(7), PIPE_BUF).
        data = text.encode("utf-8", "replace")[: select.PIPE_BUF - 1] + b"\n"
        with self._lock:
            try:
                if _has_room(self._descriptor, 0 if self.lost else WAIT_MS):
                    os.write(self._descriptor, data)
                    self.lost = 0
                    return
            except OSError:
                pass
            self.lost += 1


def _has_room(descriptor: int, wait_ms: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(wait_ms))


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
