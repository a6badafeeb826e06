"""What the tests of mail and webhooks share: a queue that is worked on in a time that the test says, and a storm."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from jailbridge.config.responding import LimitSettings, On
from jailbridge.model.ban import Origin
from jailbridge.model.event import Evidence
from jailbridge.model.network import parse_network
from jailbridge.respond.event import Event
from jailbridge.respond.postbox import Postbox
from jailbridge.respond.posting import Posting
from jailbridge.respond.queue import Place, Queue

START = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
STORM = 5000
LEDGER = "ledger"


def source(n: int) -> str:
    """Of forty networks, one after another."""
    return f"10.0.{n % 40}.{n // 40 + 1}"


class Working:
    """The queue of one postbox and who works on it, at a time that goes on only when it is told to."""

    def __init__(self, path: Path, box: Postbox, limits: LimitSettings) -> None:
        self.now = START
        self._path, self._box, self._limits = path, box, limits
        self._number = 0
        self._open()

    def _open(self) -> None:
        self._queue = Queue(self._path)
        assert self._queue.hold()
        self._posting = Posting(self._queue, self._box, self._limits, clock=lambda: self.now)

    def close(self) -> None:
        self._queue.close()

    def restart(self) -> None:
        self.close()
        self._open()

    def ban(self, *addresses: str) -> None:
        """Take bans over from a feed."""
        events = []
        for address in addresses:
            self._number += 1
            events.append(
                Event(
                    sequence=self._number,
                    time=self.now,
                    what=On.BAN,
                    network=parse_network(address),
                    until=self.now + 10 * MINUTE,
                    reason="scan: tcp/23",
                    origin=Origin.SENSOR,
                    evidence=Evidence.SPOOFABLE,
                    ports=("tcp/23",),
                )
            )
        self._queue.take(Place(LEDGER, self._number), [], {self._box.name: events})

    def work(self) -> datetime | None:
        """Do what is due now; return when there will be more to do."""
        while (due := self._posting.step()) is not None and due <= self.now:
            pass
        return due

    def go_on(self, span: timedelta) -> None:
        """Let time pass, and do in it what becomes due."""
        end = self.now + span
        while (due := self.work()) is not None and due <= end:
            self.now = due
        self.now = end
        self.work()

    def finish(self) -> None:
        """Let time pass until nothing waits."""
        while (due := self.work()) is not None:
            assert due < self.now + timedelta(days=1)
            self.now = due


@contextmanager
def working(path: Path, box: Postbox, limits: LimitSettings | None = None) -> Iterator[Working]:
    made = Working(path, box, limits or LimitSettings())
    try:
        yield made
    finally:
        made.close()


def storm(work: Working, each_second: Callable[[int], None] = lambda _: None) -> None:
    """5,000 bans in a minute. At some seconds everything is restarted."""
    for second in range(60):
        work.ban(*(source(n) for n in range(STORM * second // 60, STORM * (second + 1) // 60)))
        each_second(second)
        if second % 17 == 0:
            work.restart()
        work.go_on(timedelta(seconds=1))
