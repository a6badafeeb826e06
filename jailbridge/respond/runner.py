"""Runs the queue's commands: so many at once, each when it is its turn. In threads of its own."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.network import Network
from jailbridge.respond import commands
from jailbridge.respond.commands import Outcome
from jailbridge.respond.queue import Queue
from jailbridge.respond.turns import Standing, Turns, Waiting

log = logging.getLogger("jailbridge.respond")

# Of the commands that wait so many are looked at: these come before all others.
SEEN = 1000
# A command that was started so often, and never came to its end, may be what ends us.
STARTS = 3
# How often it is asked whether sources are cut off.
ASK_S = 0.1


class Runner:
    """The commands of one queue. `standing` tells how networks stand; it may raise RetryLater."""

    def __init__(
        self, queue: Queue, parallel: int, standing: Callable[[Collection[Network]], Mapping[Network, Standing]]
    ) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self._queue = queue
        self._parallel = parallel
        self._standing = standing
        self._turns = Turns()
        self._last = 0
        self._asked_s = float("-inf")
        self._running: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._error: FatalError | None = None

    def wake(self) -> None:
        """Have it look whether there is more to do."""
        self._wake.set()

    def run(self, stop: threading.Event, abort: threading.Event) -> None:
        """Run commands until `stop` is set and those that run have ended; after `abort` they are killed, to run again.

        Raises FatalError where the queue cannot be used.
        """
        while not stop.is_set():
            self._wake.clear()
            with self._lock:
                self._fill()
                self._learn()
                for waiting in list(self._turns.ready()):
                    if len(self._running) >= self._parallel:
                        break
                    self._start(waiting, abort)
                is_waiting = bool(self._turns)
            if self._error is not None:
                raise self._error
            self._wake.wait(ASK_S if is_waiting else 1.0)
        for thread in list(self._running):
            thread.join()

    def _fill(self) -> None:
        if len(self._turns) <= SEEN // 2:
            for task in self._queue.tasks(self._last, SEEN - len(self._turns)):
                self._last = task.id
                self._turns.add(task, time.monotonic())

    def _learn(self) -> None:
        now_s = time.monotonic()
        if now_s - self._asked_s < ASK_S or not (unknown := self._turns.unknown()):
            return
        self._asked_s = now_s
        networks = {waiting.task.command.event.network for waiting in unknown}
        try:
            standings = self._standing(networks)
        except RetryLater as error:
            log.debug("it is not known whether sources are cut off: %s", error)
            standings = dict.fromkeys(networks, Standing.COMING)
        self._turns.learn(standings, now_s)

    def _start(self, waiting: Waiting, abort: threading.Event) -> None:
        waiting.runs = True
        thread = threading.Thread(target=self._do, args=(waiting, abort), name="command", daemon=True)
        self._running.add(thread)
        thread.start()

    def _do(self, waiting: Waiting, abort: threading.Event) -> None:
        outcome, task = Outcome.FAILED, waiting.task
        try:
            if task.starts >= STARTS:
                log.error(
                    "command given up program=%s: started %d times, never ended", task.command.words[0], task.starts
                )
            else:
                self._queue.started(task)
                outcome = commands.respond(task.command, abort, blocked=bool(waiting.blocked))
            if outcome is not Outcome.INTERRUPTED:
                self._queue.ended(task)
        except FatalError as error:
            self._error = error
        finally:
            with self._lock:
                self.outcomes[outcome] += 1
                self._running.discard(threading.current_thread())
                if outcome is not Outcome.INTERRUPTED:
                    self._turns.end(waiting)
            self._wake.set()
