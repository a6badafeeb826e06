"""The daemon: sensor, tailer, policy, ledger and reconciler in one process. Stopping it leaves every ban in place."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field

from jailbridge import privileges, rivals
from jailbridge.config import Settings
from jailbridge.config.settings import HistoryDialect, SensorMode
from jailbridge.daemon import wiring
from jailbridge.daemon.control import ControlServer
from jailbridge.daemon.operations import Operations, look_for_garbage_seldom, utc_now
from jailbridge.errors import FatalError, JailBridgeError, RetryLater
from jailbridge.history.writer import HistoryWriter
from jailbridge.ledger import Ledger
from jailbridge.model.ban import Ban
from jailbridge.model.event import Protocol, Report, TailPosition
from jailbridge.model.network import Address, host_network, network_text
from jailbridge.model.plan import Plan
from jailbridge.sensor.names import Named
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


@dataclass(slots=True)
class Stop:
    """Says when to end, and why: `error` is what a stage died of."""

    event: threading.Event = field(default_factory=threading.Event)
    error: JailBridgeError | None = None


def run(settings: Settings, *, sensor: bool) -> None:
    """Run until SIGTERM or SIGINT. Raises FatalError for what a person must mend."""
    look_for_garbage_seldom()
    with Ledger(settings.ledger.path) as ledger:
        ledger.hold()
        operations = Operations(settings, ledger)
        operations.running = True
        control = ControlServer(settings.control.socket, operations)
        wake, stop = threading.Event(), Stop()
        tailer = _tailer(settings, ledger, wake)
        operations.troubles, operations.too_long, operations.changed = tailer.troubles, tailer.refused, wake.set
        senses = sensor and settings.sensor.mode is not SensorMode.OFF
        with ExitStack() as stack:
            stack.enter_context(_signals(stop, wake))
            writer = _history(settings) if senses else None
            watched = stack.enter_context(_sensor(settings, ledger)) if senses else None
            stack.enter_context(_started(tailer, control))
            if watched is not None and writer is not None:
                report = stack.enter_context(_named(settings, writer))
                stack.enter_context(_sensing(watched, report, stop, wake))
            stores = ",".join(operations.controller.stores)
            log.info("running sensor=%s stores=%s", settings.sensor.mode if senses else "off", stores)
            Engine(operations, tailer, watched).loop(stop, wake)
    if stop.error is not None:
        raise stop.error


def run_sensor(settings: Settings) -> None:
    """Run the sensor alone until SIGTERM or SIGINT, without privileges once its sockets are open. Raises FatalError."""
    if settings.sensor.mode is SensorMode.OFF:
        raise FatalError('sensor.mode is "off": set it to "stealth" to detect scans')
    stop = Stop()
    account = privileges.account(settings.sensor.user)
    with _signals(stop, threading.Event()):
        writer = _history(settings)
        if account is not None and os.geteuid() == 0:
            writer.hand_over(account.uid, account.gid)
        with _sensor(settings) as sensor:
            privileges.drop(account)
            writer.check()
            with _named(settings, writer) as report:
                sensor.run(stop.event, report)


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

    def loop(self, stop: Stop, wake: threading.Event) -> None:
        """Make passes until told to stop."""
        while not stop.event.is_set():
            has_more = self.make_pass()
            wake.wait(TURN_S if has_more else self._rest_s())
            wake.clear()

    def _rest_s(self) -> float:
        """Return how long there is nothing to do, if nothing happens: until a store's turn, or the end of a ban."""
        turn, end = self._operations.controller.next_turn, self._operations.ledger.next_end
        rest_s = POLL_S if turn is None else min(POLL_S, turn - time.monotonic())
        return max(TURN_S, rest_s if end is None else min(rest_s, (end - utc_now()).total_seconds()))

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
                self._operations.ledger.prune(now=utc_now(), memory=self._operations.settings.policy.repeat_memory)
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
            judged = self._operations.judge.weigh(batch.lines, batch.tail, now)
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
            (end := ledger.next_end) is not None and end <= utc_now()
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


def _tailer(settings: Settings, ledger: Ledger, wake: threading.Event) -> Tailer:
    """Follow every [[tail]] from where it was left; what a file held before the ledger knew it is not evidence."""
    return Tailer(settings.tail, ledger.positions(), wake=wake.set)


def _history(settings: Settings) -> HistoryWriter:
    """Return the writer of the history, claimed for us alone. Raises FatalError beside another detector."""
    rivals.refuse()
    writer = HistoryWriter(settings.history)
    writer.claim(tuple(Protocol))
    return writer


@contextmanager
def _named(settings: Settings, writer: HistoryWriter) -> Iterator[Callable[[Sequence[Report]], int]]:
    if not settings.sensor.resolve_names:
        yield writer.report
        return
    with closing(Named(writer.report, needs_name=writer.has_line)) as named:
        yield named.report


def _sensor(settings: Settings, ledger: Ledger | None = None) -> Sensor:
    def is_banned(address: Address) -> bool:
        return ledger is not None and ledger.covering(host_network(address)) is not None

    # Only the 2.x dialect has a line for each port.
    every_port = settings.history.dialect is HistoryDialect.PORTSENTRY_2
    return Sensor(settings.sensor, settings.policy.ipv6_prefix, is_banned, every_port=every_port)


@contextmanager
def _signals(stop: Stop, wake: threading.Event) -> Iterator[None]:
    def tell() -> None:
        stop.event.set()
        wake.set()

    def end(number: int, _: object) -> None:
        log.info("stopping signal=%s: bans stay in place", signal.Signals(number).name)
        # Not from here: the thread that this interrupts may hold an event's lock.
        threading.Thread(target=tell, name="stopping").start()

    def stay(*_: object) -> None:
        log.warning("signal=SIGHUP: the configuration is read at the start only; restart to have another one")

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, stay)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _started(tailer: Tailer, control: ControlServer) -> Iterator[None]:
    control.start()
    try:
        tailer.start()
        yield
    finally:
        tailer.stop()
        control.stop()


@contextmanager
def _sensing(
    sensor: Sensor, report: Callable[[Sequence[Report]], int], stop: Stop, wake: threading.Event
) -> Iterator[None]:
    """Run the sensor in a thread; when it dies the whole daemon ends, loudly."""

    def sense() -> None:
        try:
            sensor.run(stop.event, report)
        except JailBridgeError as error:
            stop.error = error
        finally:
            if stop.error is None and not stop.event.is_set():
                stop.error = FatalError("the sensor broke down: please report the trace above")
            stop.event.set()
            wake.set()

    thread = threading.Thread(target=sense, name="sensor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.event.set()
        thread.join()
