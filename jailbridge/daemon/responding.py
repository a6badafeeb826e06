"""Joins the ledger's feed to the responder: in a thread of `jailbridge run`, or alone as `jailbridge respond`."""

import logging
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import NamedTuple, Self

from jailbridge.config import Settings
from jailbridge.config.load import ConfigError
from jailbridge.config.responding import On, RespondSettings
from jailbridge.config.values import MAX_REASON
from jailbridge.daemon.run import Stop, read_anew, signals
from jailbridge.daemon.supervisor import Supervisor
from jailbridge.errors import JailBridgeError, RetryLater
from jailbridge.ledger.feed import FeedChange, FeedEnd, FeedReader, Placed
from jailbridge.model.ban import Origin
from jailbridge.model.network import Network
from jailbridge.respond import commands
from jailbridge.respond.event import Event
from jailbridge.respond.mail import mail_postboxes, mail_problems
from jailbridge.respond.postbox import Postbox
from jailbridge.respond.queue import Place, Queue
from jailbridge.respond.responder import BATCH, News, Responder
from jailbridge.respond.turns import Standing
from jailbridge.respond.webhook import webhook_postboxes, webhook_problems
from jailbridge.respond.whois import Whois, whois_problems

log = logging.getLogger("jailbridge.respond")

# What runs when we are told to end has so long to come to its own end.
GRACE_S = 5.0
# A responder that cannot work is tried again: bans go on without it.
AGAIN_S = 60.0


class FirstPass(NamedTuple):
    """The part of a feed that the daemon's first pass has written: its ends before and after."""

    before: FeedEnd
    after: FeedEnd


class LedgerFeed:
    """The ledger's feed and placements, as the responder asks for them."""

    def __init__(self, settings: Settings, first_pass: FirstPass | None = None) -> None:
        self._first_pass = first_pass
        # One for the thread that reads the feed, one for the one that runs commands.
        self._changes = FeedReader(settings.ledger.path)
        self._places = FeedReader(settings.ledger.path)
        self._stores = _cut_off_by(settings)

    def end(self) -> Place:
        """Return where the feed ends. Raises RetryLater."""
        return Place(*self._changes.end())

    def beginning(self) -> News:
        """Return where one begins who has read nothing yet: behind the first pass, where there was one.

        What that found in the stores is no news, what it decided otherwise is. Raises RetryLater.
        """
        end, first = self._changes.end(), self._first_pass
        if first is None or not first.before.ledger == first.after.ledger == end.ledger:
            return News(end.sequence, [])
        news, events, lost = News(first.before.sequence, []), list[Event](), 0
        while (left := first.after.sequence - news.last) > 0:
            before, news = news.last, self.after(news.last, min(left, BATCH))
            if news.last == before:
                # Another ledger stands there now.
                break
            lost += news.lost
            events += (event for event in news.events if event.what is On.UNBAN or event.origin is not Origin.STORE)
        return News(news.last, events, lost)

    def after(self, sequence: int, limit: int) -> News:
        """Return what follows a sequence number. Raises RetryLater."""
        changes = self._changes.after(sequence, limit)
        if not changes:
            return News(sequence, [])
        lost = changes[0].sequence - sequence - 1
        return News(changes[-1].sequence, [_event(change) for change in changes if change.what in set(On)], lost)

    def standings(self, networks: Collection[Network]) -> Mapping[Network, Standing]:
        """Return how networks stand in what cuts sources off. Raises RetryLater."""
        if not self._stores:
            return dict.fromkeys(networks, Standing.FREE)
        return {network: _stands(placed) for network, placed in self._places.placed(networks, self._stores).items()}


def _cut_off_by(settings: Settings) -> Collection[str]:
    """Return the stores that cut a source off: the firewall where there is one, else what there is."""
    stores = settings.stores
    if not settings.policy.enforce:
        return ()
    if stores.firewall.enabled:
        return ("firewall",)
    beside = (("fail2ban", stores.fail2ban.enabled), ("hosts_deny", stores.hosts_deny.enabled))
    return [name for name, is_enabled in beside if is_enabled]


def _stands(placed: Placed) -> Standing:
    if placed.banned:
        return Standing.HELD if placed.seen else Standing.COMING
    return Standing.GOING if placed.noted else Standing.FREE


def _event(change: FeedChange) -> Event:
    # An operator's words, a store's: no control letter of theirs gets into an argument, a mail or a log.
    reason = "".join(letter if letter.isprintable() else " " for letter in change.why[:MAX_REASON])
    return Event(
        sequence=change.sequence,
        time=change.time,
        what=On(change.what),
        network=change.network,
        until=change.until,
        reason=reason,
        origin=change.origin,
        evidence=change.evidence,
        ports=change.ports,
    )


def responder(settings: Settings, first_pass: FirstPass | None = None) -> Responder:
    """Return the responder that the settings ask for. Raises FatalError for what a person must mend."""
    for key, problem in commands.missing(settings.respond.command):
        log.error("%s: %s", key, problem)
    return Responder(settings.respond, LedgerFeed(settings, first_pass), postboxes(settings.respond))


def postboxes(settings: RespondSettings) -> list[Postbox]:
    """Return the postboxes that the settings ask for. Raises ConfigError for what they need and a person must mend."""
    if problems := list(_unsendable(settings)):
        raise ConfigError("respond", problems)
    host = socket.gethostname()
    whois = Whois(settings.whois, partial(Queue, settings.queue)) if settings.whois.enabled else None
    return [*mail_postboxes(settings.mail, host=host, whois=whois), *webhook_postboxes(settings.webhook, host=host)]


def unanswerable(settings: RespondSettings) -> Iterator[str]:
    """Yield what of it cannot work now: programs, templates and secrets that are not there."""
    yield from (f"{key}: {problem}" for key, problem in commands.missing(settings.command))
    yield from _unsendable(settings)


def _unsendable(settings: RespondSettings) -> Iterator[str]:
    problems = (
        *mail_problems(settings.mail),
        *webhook_problems(settings.webhook),
        *whois_problems(settings.whois),
    )
    return (f"{key}: {problem}" for key, problem in problems)


def answer(settings: Settings, stop: threading.Event, passed: Callable[[str], None]) -> None:
    """Answer until `stop` is set; what runs then is given some time. Raises FatalError."""
    abort, done = threading.Event(), threading.Event()

    def end() -> None:
        stop.wait()
        if not done.wait(GRACE_S):
            abort.set()

    threading.Thread(target=end, name="ending", daemon=True).start()
    try:
        responder(settings).run(stop, abort, passed)
    finally:
        done.set()


def run(load: Callable[[], Settings]) -> None:
    """Answer to what another process decides, until SIGTERM or SIGINT; at SIGHUP begin anew. Raises FatalError."""

    def checked() -> Settings:
        settings = load()
        postboxes(settings.respond)
        return settings

    settings, stop = checked(), Stop()
    with Supervisor() as supervisor, signals(stop, threading.Event()):

        def passed(standing: str) -> None:
            supervisor.tell(standing)
            supervisor.alive()
            supervisor.ready()

        while not stop.is_final:
            answer(settings, stop.event, passed)
            if not stop.is_final:
                supervisor.reloading()
                settings = read_anew(checked, settings)
            # Who ends it from now on sets the event after this; who has done so, has said so before.
            stop.event.clear()


class Responding:
    """The responder beside the daemon: one at a time, in a thread. It holds up nothing, and ends nobody."""

    def __init__(self) -> None:
        self._settings: Settings | None = None
        self._before: FeedEnd | None = None
        self._stop, self._abort = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(GRACE_S)
        self._abort.set()
        for thread in self._threads:
            thread.join(1.0)

    def check(self, settings: Settings) -> None:
        """Before the first pass: what is decided from now on is news. Raise FatalError for what a person must mend."""
        postboxes(settings.respond)
        self._before = _end(settings)

    def begin(self, settings: Settings) -> None:
        """After a pass: answer as these settings have it from now on; what others began is brought to its end."""
        if settings is self._settings:
            return
        self._settings = settings
        self._stop.set()
        self._stop = threading.Event()
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        # A queue that is there is read on, so that later nothing old is answered.
        if settings.respond.is_asked_for or settings.respond.queue.exists():
            after = _end(settings)
            first_pass = FirstPass(self._before, after) if self._before is not None and after is not None else None
            arguments = (settings, self._stop, first_pass)
            thread = threading.Thread(target=self._respond, args=arguments, name="responder", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _respond(self, settings: Settings, stop: threading.Event, first_pass: FirstPass | None) -> None:
        while not stop.is_set():
            try:
                responder(settings, first_pass).run(stop, self._abort)
            except JailBridgeError as error:
                log.error("nothing is answered, tried again in %g s: %s", AGAIN_S, error)
                stop.wait(AGAIN_S)


def _end(settings: Settings) -> FeedEnd | None:
    with suppress(RetryLater), FeedReader(settings.ledger.path) as feed:
        return feed.end()
    return None
