"""What a mail server and a web server have in common: a secret that only root may read, and an end to all patience."""

import os
import re
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.network import shown

# A login, or a handful of headers.
_MAX_SECRET = 64 << 10
_LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+|::1")


class RetryAfter(RetryLater):
    """The other side has said how long to wait at least."""

    def __init__(self, text: str, after: timedelta) -> None:
        super().__init__(text)
        self.after = after


def secret(path: Path) -> str:
    """Return what a file says that nobody but root (or whoever we are) may read. Raises FatalError."""
    try:
        # A pipe would be waited for.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            of_file = os.fstat(file.fileno())
            data = file.read(_MAX_SECRET + 1) if stat.S_ISREG(of_file.st_mode) else None
    except OSError as error:
        raise FatalError(f"{path} cannot be read: {error.strerror}") from None
    if data is None:
        raise FatalError(f"{path} is not a regular file")
    if of_file.st_uid not in {0, os.geteuid()} or of_file.st_mode & 0o077:
        raise FatalError(f"{path} may be read by others: chown root {path}; chmod 600 {path}")
    if len(data) > _MAX_SECRET:
        raise FatalError(f"{path} is over {_MAX_SECRET >> 10} KiB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FatalError(f"{path} is not UTF-8 text at byte {error.start}") from None


def what_is_wrong(error: Exception) -> str:
    """Return in a few words why a connection failed, fit for a line of ours."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate cannot be trusted: {error.verify_message}"
        case TimeoutError():
            return "no answer in time"
        case OSError() if error.strerror:
            return error.strerror
        case _:
            return shown(str(error) or type(error).__name__, 200)


def is_loopback(host: str) -> bool:
    """Tell whether what goes to this host never leaves the machine."""
    return _LOOPBACK.fullmatch(host) is not None


@contextmanager
def patience(limit_s: float, current: Callable[[], socket.socket | None]) -> Iterator[None]:
    """Cut the connection off when all of it takes too long: a time limit for each answer ends no endless one.

    `current` returns the connection's socket as it is then. Whoever waits for it gets its end, or an OSError.
    """

    def cut() -> None:
        if (connection := current()) is not None:
            # Not the TLS layer's own, which takes the other thread's state away from under it.
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    timer = threading.Timer(limit_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
