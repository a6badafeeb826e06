"""Between sensor and history: adds the name that the DNS has for a source, if it comes in time.

The name is printed and nothing else: the source's owner chooses it, and how slowly his server answers. So each look-up
has a time limit, sources that wait for one are few, and what is no plain host name is dropped. The DNS never decides
whether a scan is told.
"""

import logging
import re
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from jailbridge.errors import FatalError, JailBridgeError, RetryLater
from jailbridge.model.event import Report
from jailbridge.model.network import Address

log = logging.getLogger("jailbridge.sensor")

MAX_REPORTS = 10_000
"""How many reports are held at most, those that wait for a name and those that wait for the history."""
MAX_CACHED = 4096
CACHED_S = 300.0
BATCH = 1000
RETRY_S = 0.5
CLOSE_S = 0.3
# The longest name of a host (RFC 1035, 2.3.4), in what its name may hold (RFC 952) and the underscore that is met.
_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")
# What inet_aton(3) and many programs take for an address, as 192.0.513 or 0xc0000201; no top-level domain is a number.
_NUMBER = re.compile(r"\d+|0[xX][0-9A-Fa-f]*")


def name_of(address: Address) -> str:
    """Return the name that the host's resolver has for an address. Raises OSError; may take very long."""
    flags = socket.NI_NAMEREQD | socket.NI_NUMERICSERV | socket.NI_DGRAM
    return socket.getnameinfo((str(address), 0), flags)[0]


def plain_name(name: str) -> str:
    """Return a name from the DNS if it is a plain host name and nothing that reads as an address, else ""."""
    last_label = name.rstrip(".").rpartition(".")[2]
    return name if _NAME.fullmatch(name) and last_label and not _NUMBER.fullmatch(last_label) else ""


@dataclass(slots=True)
class _Source:
    """A source whose name is looked up, and its reports."""

    until: float
    asked: bool = False
    reports: list[Report] = field(default_factory=list)


class Named:
    """Passes reports on with their sources' names. `report` returns at once; the first one starts the threads.

    What `report` here takes goes to the `report` it was made with, as soon as the name is there or `limit_s` is over;
    a source's reports keep their order. Only sources of reports for which `needs_name` answers True are looked up: at
    most `max_waiting` at a time by `workers` threads, the others go on without a name at once.
    """

    def __init__(
        self,
        report: Callable[[Sequence[Report]], int],
        lookup: Callable[[Address], str] = name_of,
        *,
        limit_s: float = 1.0,
        workers: int = 4,
        max_waiting: int = 256,
        needs_name: Callable[[Report], bool] = lambda _: True,
    ) -> None:
        self._pass_on = report
        self._lookup = lookup
        self._limit_s = limit_s
        self._max_waiting = max_waiting
        self._needs_name = needs_name
        # One lock; `_work` wakes those who look up, `_news` the one who passes on.
        lock = threading.Lock()
        self._work, self._news = threading.Condition(lock), threading.Condition(lock)
        # The one that has waited longest stands first, in all of these.
        self._waiting: OrderedDict[Address, _Source] = OrderedDict()
        self._ready: deque[Report] = deque()
        self._cache: OrderedDict[Address, tuple[str, float]] = OrderedDict()
        self._held = 0
        self._closing = threading.Event()
        self._trouble: JailBridgeError | None = None
        # Daemons: a look-up that hangs must not keep the process from ending. Not started here: privileges are dropped
        # while there is one thread.
        self._threads = [
            threading.Thread(target=self._pass_all_on, name="names", daemon=True),
            *(threading.Thread(target=self._look_up, name=f"names-{n}", daemon=True) for n in range(workers)),
        ]
        self._started = False

    def report(self, batch: Sequence[Report]) -> int:
        """Take reports; return how many, from the batch's beginning: all, while fewer than MAX_REPORTS are held.

        Raises RetryLater when none can be taken, with the reason that the history gave if there is one, and what else
        the history raised.
        """
        now = time.monotonic()
        with self._news:
            if self._trouble is not None and not isinstance(self._trouble, RetryLater):
                raise self._trouble
            taken = min(len(batch), MAX_REPORTS - self._held)
            if self._closing.is_set() or (batch and not taken):
                raise RetryLater(str(self._trouble or "the history does not keep up with the scans: they wait"))
            for report in islice(batch, taken):
                self._take(report, now)
            self._held += taken
            if taken and not self._started:
                self._started = True
                for thread in self._threads:
                    thread.start()
            self._news.notify()
            self._work.notify_all()
        return taken

    def close(self) -> None:
        """Pass on what waits, without the names that are not there yet, and take nothing any more."""
        with self._news:
            self._closing.set()
            self._news.notify()
            self._work.notify_all()
        if self._started:
            self._threads[0].join(CLOSE_S)
        with self._news:
            if self._held:
                log.error("scans are lost, the history could not be written: reports=%d", self._held)

    def _take(self, report: Report, now: float) -> None:
        address = report.event.address
        if (source := self._waiting.get(address)) is not None:
            source.reports.append(report)
        elif not self._needs_name(report):
            self._ready.append(report)
        elif (cached := self._cache.get(address)) is not None and now < cached[1]:
            self._ready.append(report._replace(name=cached[0]))
        elif len(self._waiting) < self._max_waiting:
            self._waiting[address] = _Source(until=now + self._limit_s, reports=[report])
        else:
            self._ready.append(report)

    def _look_up(self) -> None:
        while True:
            with self._work:
                while (address := self._next_unasked()) is None:
                    if self._closing.is_set():
                        return
                    self._work.wait()
            try:
                name = plain_name(self._lookup(address))
            except Exception as error:  # noqa: BLE001 - whatever a resolver says, a scan is told
                # OSError mostly; UnicodeError for what is not even text.
                log.debug("no name address=%s: %s", address, error)
                name = ""
            with self._news:
                self._settle(address, name, time.monotonic())
                self._news.notify()

    def _next_unasked(self) -> Address | None:
        for address, source in self._waiting.items():
            if not source.asked:
                source.asked = True
                return address
        return None

    def _settle(self, address: Address, name: str, now: float) -> None:
        """Remember a name, even one that came too late, and let its source's reports go on."""
        self._cache[address] = name, now + CACHED_S
        self._cache.move_to_end(address)
        if len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)
        if (source := self._waiting.pop(address, None)) is not None:
            self._ready.extend(report._replace(name=name) for report in source.reports)

    def _pass_all_on(self) -> None:
        while batch := self._next_batch():
            try:
                taken = self._pass_on(batch)
            except RetryLater as error:
                if self._trouble is None:
                    log.error("scans cannot be reported, trying again: %s", error)
                self._trouble = error
                if self._closing.is_set():
                    return
                self._closing.wait(RETRY_S)
                continue
            except JailBridgeError as error:
                self._trouble = error
                return
            except Exception:
                log.exception("the history broke down")
                self._trouble = FatalError("the history broke down: please report the trace above")
                return
            if self._trouble is not None:
                log.info("scans are reported again")
            self._trouble = None
            with self._news:
                self._held -= taken
                for _ in range(taken):
                    self._ready.popleft()

    def _next_batch(self) -> list[Report]:
        """Wait for reports that can go on; return none when there will be no more."""
        with self._news:
            while True:
                now, wait_s = time.monotonic(), None
                while self._waiting and wait_s is None:
                    address, source = next(iter(self._waiting.items()))
                    if source.until > now and not self._closing.is_set():
                        wait_s = source.until - now
                    else:
                        # Cached as nameless: a source whose look-up hangs does not get another thread to hang.
                        self._settle(address, "", now)
                if self._ready or (self._closing.is_set() and not self._waiting):
                    return list(islice(self._ready, BATCH))
                self._news.wait(wait_s)
