"""Brings one postbox's events out as messages: when they are due, one after another, again until they are taken."""

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from jailbridge.config.responding import LimitSettings
from jailbridge.errors import GiveUp, RetryLater
from jailbridge.respond import digest
from jailbridge.respond.postbox import Batch, Postbox
from jailbridge.respond.queue import Letter, Queue
from jailbridge.respond.sending import RetryAfter

log = logging.getLogger("jailbridge.respond")

# A server that is away is asked again after this, doubled each time.
RETRY = timedelta(seconds=10)
LONGEST = timedelta(minutes=10)
_LOOK = timedelta(seconds=1)
# What lies further ahead than anything that is waited for was noted before the clock was set back.
_FAR = timedelta(hours=2)


class Posting:
    """One postbox and what waits for it."""

    def __init__(
        self,
        queue: Queue,
        postbox: Postbox,
        limits: LimitSettings,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._queue = queue
        self._postbox = postbox
        self._limits = limits
        self._clock = clock
        self._wake = threading.Event()
        # The same events are looked at again then, more of them earlier.
        self._again: datetime | None = None
        self._seen = 0
        self.given_up = 0

    def wake(self) -> None:
        """Have it look whether there is more to do."""
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Send until told to stop. Raises FatalError where the queue cannot be used."""
        while not stop.is_set():
            self._wake.clear()
            due = self.step()
            rest = _LOOK if due is None else min(_LOOK, due - self._clock())
            self._wake.wait(max(rest.total_seconds(), 0.0))

    def step(self) -> datetime | None:
        """Do what is due; return when something will be, if nothing happens, None where nothing waits."""
        for letter in self._queue.outbox(self._postbox.name):
            if self._clock() < letter.next_try <= self._clock() + _FAR:
                # What comes later is told later.
                return letter.next_try
            if not self._send(letter):
                return self._clock()
        return self._compose()

    def _send(self, letter: Letter) -> bool:
        name = self._postbox.name
        try:
            self._postbox.send(letter.message)
        except RetryLater as error:
            wait = min(RETRY * 2 ** min(letter.attempts, 10), LONGEST)
            if isinstance(error, RetryAfter):
                wait = max(wait, error.after)
            self._queue.postponed(letter, self._clock() + wait)
            log.warning("message not sent postbox=%s again_in=%ds: %s", name, wait.total_seconds(), error)
            return False
        except GiveUp as error:
            self.given_up += 1
            self._queue.dropped(letter)
            log.error("message given up postbox=%s: %s", name, error)
            return True
        self._queue.delivered(name, letter, self._clock())
        log.info("message sent postbox=%s", name)
        return True

    def _compose(self) -> datetime | None:
        name, now = self._postbox.name, self._clock()
        due = self._due(now)
        if due is None or due > now:
            return due
        pending, sent = self._queue.pending(name), self._queue.sent(name, now - digest.memory(self._limits))
        answer = digest.next_batch(pending, sent, now, self._limits)
        if isinstance(answer, Batch):
            return self._post(pending, answer, now)
        self._seen, self._again = len(pending.events) + pending.passed_over, answer
        return answer

    def _due(self, now: datetime) -> datetime | None:
        """Return before when there is nothing to compose, without a look at the events."""
        if not (waiting := self._queue.counted(self._postbox.name)):
            return None
        if self._again is not None and waiting == self._seen and now < self._again <= now + _FAR:
            return self._again
        sent = self._queue.sent(self._postbox.name, now - digest.memory(self._limits))
        return digest.earliest(waiting, sent, now, self._limits)

    def _post(self, pending: digest.Pending, batch: Batch, now: datetime) -> datetime:
        name, messages = self._postbox.name, []
        try:
            messages = list(self._postbox.compose(batch))
            log.info("message composed postbox=%s events=%d", name, batch.total)
        except RetryLater as error:
            log.warning("message not composed postbox=%s events=%d: %s", name, batch.total, error)
            self._seen, self._again = batch.total, now + RETRY
            return self._again
        except GiveUp as error:
            self.given_up += 1
            log.error("message given up postbox=%s events=%d: %s", name, batch.total, error)
        self._queue.composed(name, pending, messages, {event.network for event in batch.listed}, now)
        return now
