"""The daemon: sensor, tailer, policy, ledger and reconciler in one process. Stopping it leaves every ban in place."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jailbridge import privileges, rivals
from jailbridge.config import Settings
from jailbridge.config.settings import HistoryDialect, SensorMode
from jailbridge.daemon.control import ControlServer
from jailbridge.daemon.engine import Engine
from jailbridge.daemon.operations import Operations, look_for_garbage_seldom
from jailbridge.daemon.supervisor import Supervisor
from jailbridge.errors import FatalError, JailBridgeError
from jailbridge.history.writer import HistoryWriter
from jailbridge.ledger import Ledger
from jailbridge.model.event import Protocol, Report
from jailbridge.model.network import Address, host_network
from jailbridge.sensor.names import Named
from jailbridge.sensor.sensor import Sensor
from jailbridge.tailer.tailer import Tailer

if TYPE_CHECKING:
    from jailbridge.daemon.responding import Responding

log = logging.getLogger("jailbridge.daemon")


@dataclass(slots=True)
class Stop:
    """Says when to end, and why.

    error       what a stage died of
    is_final    whether that is the end; else the configuration is read anew, and it goes on
    """

    event: threading.Event = field(default_factory=threading.Event)
    error: JailBridgeError | None = None
    is_final: bool = False


def run(load: Callable[[], Settings], *, sensor: bool, respond: bool) -> None:
    """Run until SIGTERM or SIGINT; at SIGHUP begin anew with what `load` returns then.

    Raises FatalError for what a person must mend. A configuration that cannot be used at SIGHUP is told, and the one
    before goes on.
    """
    look_for_garbage_seldom()
    settings = load()
    # What worked before, until the new one does.
    before: Settings | None = None
    stop, wake = Stop(), threading.Event()
    with ExitStack() as stack:
        supervisor = stack.enter_context(Supervisor())
        ledger = stack.enter_context(Ledger.held(settings.ledger.path))
        stack.enter_context(signals(stop, wake))
        responding = stack.enter_context(_responding()) if respond else None

        def passed(standing: str) -> None:
            nonlocal before
            before = None
            if responding is not None:
                # Not before: what a new ledger finds in the stores is no news.
                responding.begin(settings)
            supervisor.tell(standing)
            supervisor.alive()
            supervisor.ready()

        while True:
            try:
                if responding is not None:
                    responding.check(settings)
                _run(settings, ledger, stop, wake, passed, sensor=sensor)
            except FatalError as error:
                if before is None:
                    raise
                log.error("the new configuration does not work, the one before goes on: %s", error)
                settings, before = before, None
            else:
                if stop.is_final:
                    return
                supervisor.reloading()
                settings, before = read_anew(load, settings), settings
            stop.error = None
            stop.event.clear()
            # Who ends it from now on sets the event after this; who has done so, has said so before.
            if stop.is_final:
                return


def _run(
    settings: Settings,
    ledger: Ledger,
    stop: Stop,
    wake: threading.Event,
    passed: Callable[[str], None],
    *,
    sensor: bool,
) -> None:
    operations = Operations(settings, ledger)
    operations.running = True
    control = ControlServer(settings.control.socket, operations)
    tailer = _tailer(settings, ledger, wake)
    operations.troubles, operations.too_long, operations.changed = tailer.troubles, tailer.refused, wake.set
    senses = sensor and settings.sensor.mode is not SensorMode.OFF
    with ExitStack() as stack:
        writer = stack.enter_context(closing(_history(settings))) if senses else None
        watched = stack.enter_context(_sensor(settings, ledger)) if senses else None
        stack.enter_context(_started(tailer, control))
        if watched is not None and writer is not None:
            report = stack.enter_context(_named(settings, writer))
            stack.enter_context(_sensing(watched, report, stop, wake))
        stores = ",".join(operations.controller.stores)
        log.info("running sensor=%s stores=%s", settings.sensor.mode if senses else "off", stores)
        engine = Engine(operations, tailer, watched)
        engine.loop(stop.event, wake, lambda: passed(engine.standing))
    if stop.error is not None:
        raise stop.error


def _responding() -> "Responding":
    # What mail and webhooks need is loaded only where they may be wanted.
    from jailbridge.daemon.responding import Responding  # noqa: PLC0415

    return Responding()


def read_anew(load: Callable[[], Settings], settings: Settings) -> Settings:
    """Return the configuration that `load` returns, or the one before, loudly, where that cannot be used."""
    try:
        anew = load()
    except JailBridgeError as error:
        log.error("the configuration cannot be used, the one before goes on: %s", error)
        return settings
    if anew.ledger != settings.ledger:
        log.error("ledger.path is another one: restart for that; the configuration before goes on")
        return settings
    log.info("the configuration was read anew")
    return anew


def run_sensor(settings: Settings) -> None:
    """Run the sensor alone until SIGTERM or SIGINT, without privileges once its sockets are open. Raises FatalError."""
    if settings.sensor.mode is SensorMode.OFF:
        raise FatalError('sensor.mode is "off": set it to "stealth" to detect scans')
    stop = Stop()
    account = privileges.account(settings.sensor.user)
    with Supervisor() as supervisor, signals(stop, threading.Event(), begins_anew=False):
        writer = _history(settings)
        if account is not None and os.geteuid() == 0:
            writer.hand_over(account.uid, account.gid)
        with _sensor(settings) as sensor:
            privileges.drop(account)
            writer.check()
            with _named(settings, writer) as report:
                supervisor.ready()
                sensor.run(stop.event, report)


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
def signals(stop: Stop, wake: threading.Event, *, begins_anew: bool = True) -> Iterator[None]:
    """Have SIGTERM, SIGINT and SIGHUP end what runs, and say which it was."""

    def tell() -> None:
        stop.event.set()
        wake.set()

    def end(number: int, _: object) -> None:
        is_hangup = number == signal.SIGHUP
        if is_hangup and not begins_anew:
            log.warning("signal=SIGHUP: what it needed to begin it has given up; restart it for another configuration")
            return
        stop.is_final = stop.is_final or not is_hangup
        what = "reading the configuration anew" if is_hangup else "stopping: bans stay in place"
        log.info("signal=%s: %s", signal.Signals(number).name, what)
        # Not from here: the thread that this interrupts may hold an event's lock.
        threading.Thread(target=tell, name="stopping").start()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
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
