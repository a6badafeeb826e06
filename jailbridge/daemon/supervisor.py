"""What a supervisor is told (sd_notify(3)): that we are ready, how things stand, that we are alive."""

import os
import time
from contextlib import closing
from types import TracebackType
from typing import Self

import sdnotify

# systemd recommends half of what it allows (sd_watchdog_enabled(3)); a pass may take its time too.
_SHARE = 4


class Supervisor:
    """Who started us and listens; where nobody does nothing is said. For one thread; use it as a context."""

    def __init__(self) -> None:
        # Without one the library leaves a socket open.
        self._notifier = sdnotify.SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None
        self._alive_s = _watchdog_s() / _SHARE
        self._alive_at = 0.0
        self._told = ""
        self._is_ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._say("STOPPING=1")
        if self._notifier is not None and self._notifier.socket is not None:
            with closing(self._notifier.socket):
                self._notifier = None

    def ready(self) -> None:
        """Say that all that was asked for is up, unless that is known."""
        if not self._is_ready:
            self._is_ready = True
            self._say("READY=1")

    def reloading(self) -> None:
        """Say that the configuration is read anew; `ready` ends it."""
        if self._is_ready:
            self._is_ready = False
            self._say("RELOADING=1")

    def tell(self, status: str) -> None:
        """Say in one line how things stand, if that is new."""
        if status != self._told:
            self._told = status
            self._say(f"STATUS={status}")

    def alive(self) -> None:
        """Say that the work goes on, as often as is asked for."""
        if self._alive_s and time.monotonic() >= self._alive_at:
            self._alive_at = time.monotonic() + self._alive_s
            self._say("WATCHDOG=1")

    def _say(self, state: str) -> None:
        if self._notifier is not None:
            # The library knows Latin-1, systemd UTF-8.
            self._notifier.notify(state.encode("ascii", "replace").decode().replace("\n", " "))


def _watchdog_s() -> float:
    """Return within how many seconds a sign of life is wanted; 0 where none is."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    usec = os.environ.get("WATCHDOG_USEC", "")
    return int(usec) / 1e6 if usec.isascii() and usec.isdigit() else 0.0
