"""Whose a source is: asked by RDAP, seldom, and remembered in the queue's file. Holds up nothing but a message."""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from jailbridge.config.responding import WhoisSettings
from jailbridge.errors import ParseError, RetryLater
from jailbridge.model.network import Network, network_text
from jailbridge.respond.queue import Queue
from jailbridge.respond.rdap import Holder, ask, is_public

log = logging.getLogger("jailbridge.respond")

# That nobody knows is believed for so long.
KEEP_NOTHING = timedelta(hours=1)
# Who does not answer is spared for so long: a message waits for each question.
SPARE_S = 60.0
# What is said of one address is believed of its neighbours in these. Networks are given away in smaller parts, too,
# but a scanner's neighbours are asked of often, and nobody is cut off for what this says.
_AROUND = {4: 24, 6: 48}


class Whois:
    """Tells whose networks are. One question at a time, however many threads ask."""

    def __init__(
        self,
        settings: WhoisSettings,
        open_queue: Callable[[], Queue],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`open_queue`: where answers are kept; opened at the first question."""
        self._settings, self._open_queue = settings, open_queue
        self._clock, self._monotonic = clock, monotonic
        self._queue: Queue | None = None
        self._lock = threading.Lock()
        self._asked: deque[float] = deque()
        self._spared_until = 0.0

    def __call__(self, network: Network) -> Holder | None:
        """Return whose a network is; None where nobody knows, or nobody may be asked now.

        Raises FatalError where the queue cannot be used.
        """
        first = network.network_address
        if not (is_public(first) and is_public(type(first)(network.last))):
            return None
        with self._lock:
            if self._queue is None:
                self._queue = self._open_queue()
            if (known := self._queue.known((network, _around(network)), self._clock())) is not None:
                return Holder(**json.loads(known.holder)) if known.holder is not None else None
            return self._ask(network, self._queue) if self._may_ask() else None

    def _may_ask(self) -> bool:
        now = self._monotonic()
        while self._asked and self._asked[0] <= now - 60:
            self._asked.popleft()
        return now >= self._spared_until and len(self._asked) < self._settings.per_minute

    def _ask(self, network: Network, queue: Queue) -> Holder | None:
        settings, text = self._settings, network_text(network)
        self._asked.append(self._monotonic())
        try:
            found = ask(settings.server, network, settings.timeout.total_seconds())
        except RetryLater as error:
            self._spared_until = self._monotonic() + SPARE_S
            log.warning("whois not asked for %d s network=%s: %s", SPARE_S, text, error)
            return None
        except ParseError as error:
            log.info("whois has no answer network=%s: %s", text, error)
            now = self._clock()
            queue.learn(network, None, now + KEEP_NOTHING, now)
            return None
        now, around = self._clock(), _around(network)
        queue.learn(
            around if found.holds(around) else network, json.dumps(asdict(found.holder)), now + settings.keep, now
        )
        return found.holder


def whois_problems(settings: WhoisSettings) -> Iterator[tuple[str, str]]:
    """Yield (key, problem) for what cannot work."""
    try:
        url = urlsplit(settings.server)
        url.port  # noqa: B018 - it is looked at only when it is asked for
    except ValueError as error:
        yield "respond.whois.server", f"is no address: {error}"
        return
    if not url.hostname:
        yield "respond.whois.server", "names no host"
    if url.username is not None or url.query or url.fragment:
        yield "respond.whois.server", 'should be an address alone, like "https://rdap.org"'


def _around(network: Network) -> Network:
    return network.supernet(min(network.prefixlen, _AROUND[network.version]))
