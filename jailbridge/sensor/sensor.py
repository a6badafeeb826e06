"""The sensor's loop: packets in, reports of scans out. Writes no history, bans nobody."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from jailbridge.config.settings import SensorSettings
from jailbridge.config.values import without
from jailbridge.errors import RetryLater
from jailbridge.model.event import ScanEvent
from jailbridge.model.network import Address, Network
from jailbridge.sensor.capture import Capture
from jailbridge.sensor.detector import Detector
from jailbridge.sensor.listening import Listening
from jailbridge.sensor.own import OwnAddresses
from jailbridge.sensor.packet import Probe, is_martian, parse

log = logging.getLogger("jailbridge.sensor")

WAKE_S = 0.5
"""How long a stop may go unnoticed."""
COUNT_DROPS_S = 10.0


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Sensor:
    """Watches ports where nothing listens (mode stealth) and reports who probes them.

    `report(event, newly_triggered)` is called for each (source, port, protocol) new in the window, with
    `event.triggered` set, and whenever a source has newly become a scanner: once in a window, and never while
    `is_banned` answers True. If it raises RetryLater, the next probe of that port is reported in its place;
    anything else ends `run`. It runs in the thread of `run`, which reads no packets meanwhile.
    """

    def __init__(
        self,
        settings: SensorSettings,
        ipv6_prefix: int,
        report: Callable[[ScanEvent, bool], None],
        is_banned: Callable[[Address], bool] = lambda _: False,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self.ready = threading.Event()
        """Set while the sockets are open and watched."""
        self.dropped = 0
        """Packets that the kernel had no room for; some scans may lack a port, or be missed."""
        self._interfaces = settings.interfaces
        self._tcp = without(settings.tcp_ports, settings.exclude_tcp_ports)
        self._udp = without(settings.udp_ports, settings.exclude_udp_ports)
        self._report = report
        self._is_banned = is_banned
        self._clock = clock
        self._lock = threading.Lock()
        window_s = settings.trigger_window.total_seconds()
        self._detector = Detector(settings.trigger_ports, window_s, ipv6_prefix)
        self._listening = Listening()
        self._own = OwnAddresses()
        self._report_failed = False

    def run(self, stop: threading.Event) -> None:
        """Watch until `stop` is set. Raises FatalError, or RetryLater (own addresses not readable)."""
        with Capture(self._interfaces, self._tcp, self._udp) as capture:
            counted_at = time.monotonic()
            self._own.load(counted_at)
            log.info("watching interfaces=%s", ",".join(self._interfaces))
            self.ready.set()
            try:
                while not stop.is_set():
                    packets = capture.packets(WAKE_S)
                    now = time.monotonic()
                    for packet in packets:
                        if (probe := parse(packet)) is not None:
                            self._take(probe, now)
                    if now - counted_at >= COUNT_DROPS_S:
                        counted_at = now
                        self.dropped += capture.count_drops()
            finally:
                self.ready.clear()
                self.dropped += capture.count_drops()

    def forget(self, network: Network) -> None:
        """Forget the sources inside `network`, whose ban ended: their next scan is news. Thread-safe."""
        with self._lock:
            self._detector.forget(network)

    def _take(self, probe: Probe, now: float) -> None:
        if not self._own.is_destination(probe.destination, now) or self._own.holds(probe.source):
            return
        if self._listening.is_live(probe.protocol, probe.port, now):
            return
        with self._lock:
            sighting = self._detector.see(probe.source, probe.port, probe.protocol, now)
        newly = sighting.newly_triggered and not self._is_banned(probe.source)
        if not (sighting.new or newly) or is_martian(probe.source):
            return
        event = ScanEvent(
            time=self._clock(),
            address=probe.source,
            port=probe.port,
            protocol=probe.protocol,
            kind=probe.kind,
            ignored=False,
            triggered=sighting.triggered,
        )
        try:
            self._report(event, newly)
        except RetryLater as error:
            # Called without the lock: a report may well end in forget().
            with self._lock:
                self._detector.take_back(probe.source, probe.port, probe.protocol, sighting)
            if not self._report_failed:
                log.error("scans cannot be reported, trying again with each probe: %s", error)
            self._report_failed = True
            return
        if self._report_failed:
            log.info("scans are reported again")
        self._report_failed = False
