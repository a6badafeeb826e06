"""Carries out what the engine decides, one decision after another: log lines, response, history, blocked file.

In PortSentry's order: 1.2 tells the probe, responds, then writes its blocked file and its history; 2.x responds, then
tells and writes the probe. A response takes milliseconds at best: `Worker` does all this in a thread of its own, for
which no packet waits.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from queue import SimpleQueue
from typing import Protocol

from jailbridge.config.portsentry_conf import Blocking, Mode, PortsentryConf
from jailbridge.errors import RetryLater
from jailbridge.history.dialects import format_1
from jailbridge.model.event import Kind, Report, ScanEvent, TcpFlags
from jailbridge.model.network import Address
from jailbridge.portsentry import lines
from jailbridge.portsentry.blocked import Blocked
from jailbridge.portsentry.engine import Action, Decision
from jailbridge.portsentry.output import Output
from jailbridge.portsentry.respond import Response

MAX_WAITING = 32768
"""Decisions that wait for their turn, at about 500 bytes each."""
MAX_UNWRITTEN = 10_000
"""History lines that wait for room on the disk."""


class History(Protocol):
    """Takes whole lines and returns how many it took. Raises RetryLater where it took none."""

    def append(self, lines: Sequence[str]) -> int:
        """Append lines without newlines."""


def _local_now() -> datetime:
    return datetime.now().astimezone()


class Sentry:
    """Tells, responds and writes, in the words and forms of the mode's version. `take` is for one thread."""

    def __init__(
        self,
        conf: PortsentryConf,
        mode: Mode,
        *,
        response: Response,
        blocked: Blocked,
        history: History | None,
        output: Output,
        verbose: bool = False,
        clock: Callable[[], datetime] = _local_now,
    ) -> None:
        self._conf = conf
        self._mode = mode
        self._connected = mode in {Mode.TCP, Mode.UDP, Mode.CONNECT}
        self._response = response
        self._blocked = blocked
        self._history = history
        self._output = output
        self._verbose = verbose
        self._clock = clock
        self._lock = threading.Lock()
        self._unwritten: deque[str] = deque(maxlen=MAX_UNWRITTEN)
        self._told_unwritten = False

    def is_blocked(self, address: Address) -> bool:
        """Tell whether the blocked file has the address. Thread-safe."""
        with self._lock:
            return self._blocked.holds(address)

    def report_of(self, decision: Decision) -> Report | None:
        """Return what there is to tell of a decision, None for nothing. Thread-safe."""
        action, probe, _ = decision
        if self._mode.version == 1 and action in {Action.IGNORE, Action.COUNT}:
            return None
        event = ScanEvent(
            time=self._clock(),
            address=probe.address,
            port=probe.port,
            protocol=probe.protocol,
            kind=Kind.CONNECT if self._connected else probe.kind,
            ignored=action is Action.IGNORE,
            triggered={Action.IGNORE: None, Action.COUNT: False}.get(action, True),
            flags=None if probe.flags is None else TcpFlags(probe.flags),
            ip_options=probe.options,
        )
        return Report(event, newly_triggered=action is Action.BLOCK)

    def take(self, report: Report) -> None:
        """Carry out one decision, in PortSentry's order."""
        if self._mode.version == 1:
            self._take_1(report)
        else:
            self._take_2(report)

    def _take_1(self, report: Report) -> None:
        event, due, name = report
        for line in lines.attack_1(event, name):
            self._output.line(line)
        if not due:
            self._output.line(lines.already_blocked_1(event, name))
            return
        self._respond(event)
        record = format_1(event, self._clock(), name)
        self._block(event.address, record)
        self._write(record)

    def _take_2(self, report: Report) -> None:
        event, due, name = report
        noblock = self._conf.blocking(event.protocol) is Blocking.LOG
        if event.ignored and self._verbose:
            self._output.line(lines.ignored_2(event.address, str(self._conf.ignore_file)))
        if due:
            self._respond(event)
            self._block(event.address, "")
        elif event.triggered and not noblock:
            self._output.line(lines.already_blocked_2(event, name))
        told, record = lines.scan_2(event, self._clock(), name, noblock=noblock, blocked=not noblock)
        self._output.line(told)
        self._write(record)

    def _respond(self, event: ScanEvent) -> None:
        for line in self._response.to(event.address, event.port, event.protocol):
            self._output.line(line)

    def _block(self, address: Address, record: str) -> None:
        try:
            with self._lock:
                self._blocked.add(address, record)
        except RetryLater as error:
            self._output.line(f"adminalert: ERROR: Cannot open blocked file: {error}")

    def _write(self, record: str) -> None:
        if self._history is None:
            return
        if len(self._unwritten) == MAX_UNWRITTEN:
            self._output.line(f"adminalert: ERROR: lost from the history: {self._unwritten[0]}")
        self._unwritten.append(record)
        self.write_out()

    def write_out(self) -> None:
        """Write what the history has not taken yet."""
        if self._history is None or not self._unwritten:
            return
        try:
            written = self._history.append(tuple(self._unwritten))
        except RetryLater as error:
            if not self._told_unwritten:
                self._output.line(f"adminalert: ERROR: Cannot open history file: {error}")
            self._told_unwritten = True
            return
        for _ in range(written):
            self._unwritten.popleft()
        self._told_unwritten = bool(self._unwritten)


class Worker:
    """A thread that takes reports in their order, `most` of them waiting.

    `done` is called after each. What ends the thread before `stop` does is in `failure`, and `failed` is called.
    """

    def __init__(
        self,
        take: Callable[[Report], None],
        done: Callable[[Report], None],
        failed: Callable[[], None],
        most: int = MAX_WAITING,
    ) -> None:
        self.failure: Exception | None = None
        self._take = take
        self._done = done
        self._failed = failed
        self._most = most
        self._queue: SimpleQueue[Report | None] = SimpleQueue()
        # A response that never comes back must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="responses", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def report(self, batch: Sequence[Report]) -> int:
        """Take reports; return how many, from the batch's beginning. Raises RetryLater while too many wait already."""
        room = self._most - self._queue.qsize()
        if room <= 0:
            raise RetryLater("the responses do not keep up with the scans")
        for report in batch[:room]:
            self._queue.put(report)
        return min(room, len(batch))

    def stop(self, timeout_s: float) -> None:
        """Give what is left so much time."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while (report := self._queue.get()) is not None:
                self._take(report)
                self._done(report)
        except Exception as error:
            self.failure = error
            self._failed()
            raise
