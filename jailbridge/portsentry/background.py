"""Goes to the background the way daemon(7) says, and lets the caller know whether the daemon watches."""

import os
import sys
from collections.abc import Callable

from jailbridge.errors import FatalError, JailBridgeError

_WATCHES = b"\0"


def run(serve: Callable[[Callable[[], None]], int]) -> int:
    """Run `serve` in a process of its own; return 0 when it has called what it is given.

    Raises FatalError with the reason when it ends before. Call it while there is one thread.
    """
    told, tell = os.pipe()
    if (child := os.fork()) != 0:
        os.close(tell)
        os.waitpid(child, 0)
        return _outcome(told)
    os.close(told)
    os.setsid()
    # A session's leader may get a terminal.
    if os.fork() != 0:
        os._exit(0)
    os._exit(_served(serve, tell))


def _outcome(told: int) -> int:
    with os.fdopen(told, "rb") as pipe:
        answer = pipe.read()
    if answer == _WATCHES:
        return 0
    raise FatalError(answer.decode("utf-8", "replace") or "it ended before it watched: see the system's log")


def _served(serve: Callable[[Callable[[], None]], int], tell: int) -> int:
    told = False

    def ready() -> None:
        nonlocal told
        told = True
        os.write(tell, _WATCHES)
        os.close(tell)

    # Whoever started it may wait for the end of its output, and have started it anywhere.
    os.chdir("/")
    sys.stdout.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    try:
        return serve(ready)
    except JailBridgeError as error:
        # Once it watched, the log has the reason.
        if not told:
            os.write(tell, str(error).encode("utf-8", "replace"))
        return 1
