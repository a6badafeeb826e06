"""What our action in fail2ban's jail tells of, as datagrams: that something is done there, never what is true.

A datagram is `ban ADDRESS`, `unban ADDRESS`, `flush`, `start` or `stop`. Most of them answer what we had fail2ban do,
and say nothing new. Of too many at once some are lost: then the next reading of the jail finds what they told.
"""

import logging
import os
import socket
import weakref
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger("jailbridge.stores.fail2ban")

# Datagrams read in one go: more are left to the next.
MOST = 10_000
_BYTES = 256


class JailNews:
    """The socket that the action tells. It is opened when it is first asked: only who stays has news."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._is_news = False
        self._problem: str | None = None

    def heard(self) -> bool:
        """Tell whether another did something in the jail since this was asked last; never raises."""
        if self._socket is None:
            # Nobody listened until now.
            return self._open()
        self.disregard(())
        is_news, self._is_news = self._is_news, False
        return is_news

    def disregard(self, told: Iterable[str]) -> None:
        """Hear what is there already, and hold these for answers to what we had done: fail2ban gives them at once."""
        if self._socket is None:
            return
        own = {text.encode() for text in told}
        try:
            for _ in range(MOST):
                self._is_news = self._socket.recv(_BYTES) not in own or self._is_news
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        """Listen no more. The path stays: who tells it something learns that nobody listens."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> bool:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            # The control socket tells whether another daemon lives here; this one is what that left.
            if self._path.is_socket():
                self._path.unlink()
            before = os.umask(0o177)
            try:
                listening.bind(str(self._path))
            finally:
                os.umask(before)
        except OSError as error:
            listening.close()
            self._fail(error)
            return False
        self._socket, self._problem = listening, None
        # With the store it goes, which nobody closes.
        weakref.finalize(self, listening.close)
        return True

    def _fail(self, error: OSError) -> None:
        self.close()
        if error.strerror != self._problem:
            what = "%s: %s: what others do in fail2ban is seen only when it is read: set control.socket"
            log.warning(what, self._path, error.strerror)
        self._problem = error.strerror
