"""Reads the feed into the queue, and has commands run and messages sent from there.

A server or a program that hangs holds up nobody else: the feed, the commands and each postbox have their own threads.
"""

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import NamedTuple, Protocol

from jailbridge.config.responding import CommandSettings, RespondSettings, WebhookSettings
from jailbridge.errors import FatalError, JailBridgeError, RetryLater
from jailbridge.model.network import Network
from jailbridge.respond.commands import Outcome
from jailbridge.respond.event import Event
from jailbridge.respond.postbox import Postbox
from jailbridge.respond.posting import Posting
from jailbridge.respond.queue import MOST, Command, Place, Queue
from jailbridge.respond.runner import Runner
from jailbridge.respond.syslog import SystemLog
from jailbridge.respond.turns import Standing

log = logging.getLogger("jailbridge.respond")

# How often the feed is looked at.
POLL_S = 0.2
# Changes that are taken over at once.
BATCH = 1000
# How often it is seen whether another responder has ended.
HELD_S = 1.0


class News(NamedTuple):
    """A part of the feed: how far it reaches, what is answered of it, how many changes before it are forgotten."""

    last: int
    events: Sequence[Event]
    lost: int = 0


class Feed(Protocol):
    """Where events come from. Its methods raise RetryLater."""

    def end(self) -> Place:
        """Return where the feed ends."""

    def beginning(self) -> News:
        """Return where one begins who has read nothing yet, and what is news to him already."""

    def after(self, sequence: int, limit: int) -> News:
        """Return what follows a sequence number; that part is empty if `last` is the same."""

    def standings(self, networks: Collection[Network]) -> Mapping[Network, Standing]:
        """Return how networks stand. Called by another thread."""


class Responder:
    """Answers to one feed, as the settings have it. `run` is for one thread, once."""

    def __init__(self, settings: RespondSettings, feed: Feed, postboxes: Sequence[Postbox] = ()) -> None:
        self._settings = settings
        self._feed = feed
        self._postboxes = postboxes
        self._system_log = SystemLog(settings.syslog) if settings.syslog.enabled else None
        self._told: dict[str, str] = {}
        self._error: JailBridgeError | None = None

    def run(
        self, stop: threading.Event, abort: threading.Event, passed: Callable[[str], None] = lambda _: None
    ) -> None:
        """Answer until `stop` is set, and what is being done has ended; `abort` makes that soon.

        Where another process works on the queue, wait for its end. Raises FatalError. Calls `passed` after each look,
        with how things stand.
        """
        with Queue(self._settings.queue) as queue:
            while not queue.hold():
                self._tell("queue", f"queue {queue.path} is another responder's: waiting until that ends")
                passed("another responder works")
                if stop.wait(HELD_S):
                    return
            self._tell("queue", "")
            for postbox, number in queue.forget_others(postbox.name for postbox in self._postboxes).items():
                log.warning("postbox=%s is in the configuration no more: forgotten=%d", postbox, number)
            runner = Runner(queue, self._settings.parallel, self._feed.standings)
            postings = [Posting(queue, postbox, self._settings.limits) for postbox in self._postboxes]
            with self._threads(abort, runner, postings):
                log.info("responding commands=%d postboxes=%d", len(self._settings.command), len(postings))
                while not stop.is_set() and self._error is None:
                    if self._read(queue, stop):
                        runner.wake()
                        for posting in postings:
                            posting.wake()
                    passed(_standing(queue, runner, postings))
                    stop.wait(POLL_S)
        if self._error is not None:
            raise self._error

    def _read(self, queue: Queue, stop: threading.Event) -> bool:
        """Take what is new over into the queue; tell whether there was something."""
        place = queue.place
        try:
            end = self._feed.end()
            if place is None or place.ledger != end.ledger or place.sequence > end.sequence:
                news = self._feed.beginning()
                log.info("answering what changes from now on sequence=%d ledger=%s", news.last, end.ledger)
                self._take(queue, end._replace(sequence=news.last), news)
                return bool(news.events)
            began = place
            while place.sequence < end.sequence and not stop.is_set():
                if queue.waiting >= MOST:
                    self._tell("full", f"{MOST} commands wait: no more are taken from the ledger until some have run")
                    break
                self._tell("full", "")
                news = self._feed.after(place.sequence, BATCH)
                place = place._replace(sequence=max(news.last, place.sequence))
                self._take(queue, place, news)
        except RetryLater as error:
            self._tell("feed", str(error))
            return False
        self._tell("feed", "")
        return place != began

    def _take(self, queue: Queue, place: Place, news: News) -> None:
        if news.lost:
            log.error("changes lost=%d: the ledger has forgotten them before they could be answered", news.lost)
        if self._system_log is not None:
            self._say(self._system_log, news.events)
        commands = [
            Command(one.run, event, one.timeout.total_seconds(), one.first)
            for event in news.events
            for one in sorted(self._settings.command, key=lambda command: not command.first)
            if is_for(one, event)
        ]
        pending = {box.name: [event for event in news.events if box.wants(event)] for box in self._postboxes}
        queue.take(place, commands, {name: events for name, events in pending.items() if events})

    def _say(self, system_log: SystemLog, events: Sequence[Event]) -> None:
        # The first that it does not take is the last to be tried of so many at once: each may take its time.
        try:
            for event in events:
                system_log.write(event, datetime.now().astimezone())
        except RetryLater as error:
            self._tell("syslog", f"the system log takes nothing, lines are lost: {error}")
        else:
            self._tell("syslog", "")

    def _tell(self, about: str, problem: str) -> None:
        """Log a problem when it begins and when it ends."""
        if problem and self._told.get(about, "") != problem:
            log.warning("%s", problem)
        elif not problem and self._told.get(about):
            log.info("over: %s", self._told[about])
        self._told[about] = problem

    @contextmanager
    def _threads(self, abort: threading.Event, runner: Runner, postings: Sequence[Posting]) -> Iterator[None]:
        ending = threading.Event()
        parts = [partial(runner.run, ending, abort), *(partial(posting.run, ending) for posting in postings)]
        threads = [
            threading.Thread(target=self._guarded, args=(part,), name="responding", daemon=True) for part in parts
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ending.set()
            runner.wake()
            for posting in postings:
                posting.wake()
            for thread in threads:
                # What hangs must not keep us; it is done again.
                while thread.is_alive() and not abort.is_set():
                    thread.join(POLL_S)
                thread.join(2 * POLL_S)

    def _guarded(self, do: Callable[[], None]) -> None:
        error: JailBridgeError | None = FatalError("the responder broke down: please report the trace above")
        try:
            do()
            error = None
        except JailBridgeError as known:
            error = known
        finally:
            self._error = self._error or error


def is_for(settings: CommandSettings | WebhookSettings, event: Event) -> bool:
    """Tell whether an event is among those that are asked for."""
    chosen = settings.networks
    return event.what in settings.on and (not chosen or any(network.holds(event.network) for network in chosen))


def _standing(queue: Queue, runner: Runner, postings: Sequence[Posting]) -> str:
    ended, failed = runner.outcomes[Outcome.DONE], runner.outcomes[Outcome.FAILED]
    given_up = sum(posting.given_up for posting in postings)
    told = f"; {given_up} messages given up" if given_up else ""
    return f"{queue.waiting} commands wait, {ended} ended well, {failed} failed{told}"
