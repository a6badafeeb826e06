"""The sensor's loop: probes in, reports of scans out. Writes no history, bans nobody."""

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Protocol, Self

from jailbridge.config.settings import SensorMode, SensorSettings
from jailbridge.config.values import without
from jailbridge.errors import RetryLater
from jailbridge.model.event import Report, ScanEvent, TcpFlags
from jailbridge.model.network import Address, Network
from jailbridge.sensor.decoys import Decoys
from jailbridge.sensor.detector import Detector, Sighting
from jailbridge.sensor.packet import FLAGS, Probe
from jailbridge.sensor.stealth import Stealth

log = logging.getLogger("jailbridge.sensor")

# Looking one up is dearer than all the rest of an event.
_FLAGS = tuple(TcpFlags(flags) for flags in range(FLAGS + 1))


class Watcher(Protocol):
    """A way of seeing probes: entered with privileges, run without. `take` gets probes and the monotonic time."""

    ready: threading.Event

    @property
    def dropped(self) -> int:
        """What the kernel had no room for."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, stop: threading.Event, take: Callable[[Sequence[Probe], float], None]) -> None:
        """Watch until `stop` is set, noticed within half a second."""


def watcher(settings: SensorSettings) -> Watcher:
    """Return the watcher that the mode asks for."""
    tcp = without(settings.tcp_ports, settings.exclude_tcp_ports)
    udp = without(settings.udp_ports, settings.exclude_udp_ports)
    if settings.mode is SensorMode.CONNECT:
        return Decoys(tcp, udp, interfaces=settings.interfaces, banner=settings.banner)
    return Stealth(tcp, udp, interfaces=settings.interfaces, ack_scans=settings.ack_scans)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Sensor:
    """Tells who probes ports where nothing listens: open it with privileges (`with`), run it without."""

    def __init__(
        self,
        settings: SensorSettings,
        ipv6_prefix: int,
        is_banned: Callable[[Address], bool] = lambda _: False,
        *,
        every_port: bool = True,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._watcher = watcher(settings)
        self._is_banned = is_banned
        self._every_port = every_port
        self._clock = clock
        self._lock = threading.Lock()
        window_s = settings.trigger_window.total_seconds()
        self._detector = Detector(settings.trigger_ports, window_s, ipv6_prefix, every_port=every_port)
        self._report_failed = False

    @property
    def ready(self) -> threading.Event:
        """Set while the sockets are open and watched."""
        return self._watcher.ready

    @property
    def dropped(self) -> int:
        """Packets that the kernel had no room for; some scans may lack a port, or be missed."""
        return self._watcher.dropped

    def __enter__(self) -> Self:
        """Open the sockets. Raises FatalError, or RetryLater (own addresses not readable)."""
        self._watcher.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watcher.__exit__(kind, error, trace)

    def run(self, stop: threading.Event, report: Callable[[Sequence[Report]], int]) -> None:
        """Watch until `stop` is set. Raises FatalError.

        `report` gets a batch, and returns how many of it, in order, it took: each (source, port, protocol) new in the
        window, with `event.triggered` set (only with `every_port`), and each source that has newly become a scanner:
        once in a window, and never while `is_banned` answers True. What it did not take, or all if it raises
        RetryLater, is reported again with the next probe of that port; any other error ends this. No probes are seen
        meanwhile.
        """
        self._watcher.run(stop, lambda probes, now: self._take(probes, now, report))

    def forget(self, network: Network) -> None:
        """Forget the sources inside `network`, whose ban ended: their next scan is news. Thread-safe."""
        with self._lock:
            self._detector.forget(network)

    def _take(self, probes: Sequence[Probe], now: float, report: Callable[[Sequence[Report]], int]) -> None:
        see, every_port = self._detector.see, self._every_port
        with self._lock:
            seen = [
                (probe, sighting)
                for probe in probes
                if (sighting := see(probe.version, probe.source, probe.port, probe.protocol, now)).newly_triggered
                or (sighting.new and every_port)
            ]
        if not seen:
            return
        time = self._clock()
        told = []
        for probe, sighting in seen:
            event = _event(probe, sighting, time)
            newly = sighting.newly_triggered and not self._is_banned(event.address)
            if newly or (sighting.new and every_port):
                told.append((probe, sighting, Report(event, newly)))
        taken = self._tell([told_of for *_, told_of in told], report) if told else 0
        if taken < len(told):
            # Not under the lock till here: a report may well end in forget().
            with self._lock:
                for probe, sighting, _ in reversed(told[taken:]):
                    self._detector.take_back(probe.version, probe.source, probe.port, probe.protocol, sighting)

    def _tell(self, reports: Sequence[Report], report: Callable[[Sequence[Report]], int]) -> int:
        try:
            taken = report(reports)
        except RetryLater as error:
            if not self._report_failed:
                log.error("scans cannot be reported, trying again with each probe: %s", error)
            self._report_failed = True
            return 0
        if self._report_failed and taken:
            log.info("scans are reported again")
            self._report_failed = False
        return taken


def _event(probe: Probe, sighting: Sighting, time: datetime) -> ScanEvent:
    return ScanEvent(
        time=time,
        address=probe.address,
        port=probe.port,
        protocol=probe.protocol,
        kind=probe.kind,
        ignored=False,
        triggered=sighting.triggered,
        flags=None if probe.flags is None else _FLAGS[probe.flags],
        ip_options=probe.options,
    )
