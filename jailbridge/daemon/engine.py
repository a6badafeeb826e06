"""The daemon's passes, one after another: read the logs, decide, write the ledger, bring the stores in line."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from jailbridge.daemon import wiring
from jailbridge.daemon.operations import Operations, utc_now
from jailbridge.errors import JailBridgeError, RetryLater
from jailbridge.model.ban import Ban
from jailbridge.model.event import TailPosition
from jailbridge.model.network import network_text
from jailbridge.model.plan import Plan
from jailbridge.sensor.sensor import Sensor
from jailbridge.stores import leftovers
from jailbridge.tailer.tailer import POLL_S, Tailer

log = logging.getLogger("jailbridge.daemon")

# Lines decided on and written to the ledger at once.
BATCH = 5000
# Bans of one batch that are told one by one.
TOLD = 100
# Files whose next lines are read in one pass.
FILES = 64
# How soon it is tried again to take away what another firewall backend left.
LEFTOVERS_S = 60.0
# How often the stores are asked whether another got at them.
NOTICE_S = 1.0
# Between two batches the lock is free for so long: commands get their turn in a storm.
TURN_S = 0.01


class Engine:
    """One pass after another: read the logs, decide, write the ledger, reconcile when that is due."""

    def __init__(self, operations: Operations, tailer: Tailer, sensor: Sensor | None) -> None:
        self._operations = operations
        self._tailer = tailer
        self._sensor = sensor
        self._interval_s = operations.settings.reconcile.interval.total_seconds()
        self._heard = operations.ledger.last_change
        self._read_to: Mapping[str, TailPosition] = {}
        self._due = self._notice_at = 0.0
        self._leftovers_at = 0.0 if operations.settings.policy.enforce else float("inf")

    def loop(self, stop: threading.Event, wake: threading.Event, passed: Callable[[], None]) -> None:
        """Make passes until told to stop, but one: that settles where reading begins. Call `passed` after each."""
        while True:
            has_more = self.make_pass()
            passed()
            if not stop.is_set():
                wake.wait(TURN_S if has_more else self._rest_s())
            if stop.is_set():
                return
            wake.clear()

    @property
    def standing(self) -> str:
        """How things stand, in one line."""
        problems = {**self._operations.controller.problems, **self._operations.troubles()}
        told = [f"{name}: {problem}" for name, problem in problems.items()]
        if (problem := self._operations.judge.problem) is not None:
            told.insert(0, problem)
        return "; ".join([f"{len(self._operations.ledger.bans())} bans", *told])

    def _rest_s(self) -> float:
        """Return how long there is nothing to do, if nothing happens: until a store's turn, or the end of a ban."""
        turn, end = self._operations.controller.next_turn, self._operations.ledger.next_end
        rest_s = POLL_S if turn is None else min(POLL_S, turn - time.monotonic())
        return max(TURN_S, rest_s if end is None else min(rest_s, (end - self._operations.ended_by()).total_seconds()))

    def make_pass(self) -> bool:
        """Read one batch, decide, and bring the stores in line if that is due; tell whether there was a batch."""
        with self._operations.lock:
            # Where reading begins is settled before anything is read: a crash must not move it.
            self._note_positions()
            has_read = self._read_some()
            self._notice()
            if self._is_due():
                plan = self._operations.settle(patient=True)
                self._due = time.monotonic() + self._interval_s
                if plan is not None and not plan.agrees:
                    log.info("not in agreement yet: changes=%d", len(plan.changes))
                self._clear_leftovers(plan)
                self._operations.forget()
            self._forget_ended()
        return has_read

    def _read_some(self) -> bool:
        """Read at most BATCH lines, of several files where each has few; tell whether there were any."""
        left = BATCH
        for _ in range(FILES):
            lines = self._read(left)
            if lines is None or (left := left - lines) <= 0:
                return lines is not None or left < BATCH
        return True

    def _read(self, limit: int) -> int | None:
        """Read and decide on one file's next lines; return how many, None where there is nothing to be had."""
        if (batch := self._tailer.read(limit)) is None:
            return None
        now = utc_now()
        try:
            judged = self._operations.judge.weigh(batch.lines, batch.tail, now, self._operations.ended_by())
        except RetryLater as error:
            # The lines stay unread; the judge has said so loudly.
            log.debug("lines wait: %s", error)
            return None
        self._operations.ledger.record(judged.bans, [batch.position], now=now, merged=judged.merged, story=judged.story)
        self._tailer.commit(batch)
        _tell(judged.bans)
        return len(batch.lines)

    def _note_positions(self) -> None:
        """Keep the ledger at the files' own place where no line tells it: at the start, and after a rotation."""
        if (positions := self._tailer.positions()) != self._read_to:
            moved = [place for name, place in positions.items() if self._read_to.get(name) != place]
            self._operations.ledger.record([], moved, now=utc_now())
            self._read_to = positions
        if gone := self._tailer.take_gone():
            self._operations.ledger.forget_positions(gone)

    def _clear_leftovers(self, plan: Plan | None) -> None:
        """Once our firewall is in force, take away what another backend left when the configuration was changed."""
        seen = plan.stores.get("firewall") if plan is not None else None
        if seen is None or not seen.enforcing or time.monotonic() < self._leftovers_at:
            return
        try:
            for what in leftovers.clear(wiring.backend(self._operations.settings.stores.firewall)):
                log.warning("%s was another backend's: taken away", what)
            self._leftovers_at = float("inf")
        except JailBridgeError as error:
            log.warning("what another backend may have left stays for now: %s", error)
            self._leftovers_at = time.monotonic() + LEFTOVERS_S

    def _notice(self) -> None:
        """Ask the stores once a second whether another got at them."""
        if time.monotonic() >= self._notice_at:
            self._notice_at = time.monotonic() + NOTICE_S
            self._operations.controller.notice()

    def _is_due(self) -> bool:
        now = time.monotonic()
        turn = self._operations.controller.next_turn
        reading = self._operations.controller.next_reading
        if any(now >= at for at in (self._due, turn, reading) if at is not None):
            return True
        ledger = self._operations.ledger
        return ledger.last_change != self._operations.settled or (
            (end := ledger.next_end) is not None and end <= self._operations.ended_by()
        )

    def _forget_ended(self) -> None:
        """Have the sensor notice those again whose ban ended."""
        while self._sensor is not None and (changes := self._operations.ledger.feed(self._heard)):
            for sequence, _, what, network, _ in changes:
                self._heard = sequence
                if what == "unban":
                    self._sensor.forget(network)


def _tell(bans: Sequence[Ban]) -> None:
    """Log each ban; of many at once only their number, and each of them at the level debug."""
    level = logging.INFO if len(bans) <= TOLD else logging.DEBUG
    if level == logging.DEBUG:
        log.info("banned sources=%d, see `jailbridge list`", len(bans))
    if log.isEnabledFor(level):
        for ban in bans:
            log.log(level, "banned address=%s until=%s why=%s", network_text(ban.network), ban.until, ban.reason)
