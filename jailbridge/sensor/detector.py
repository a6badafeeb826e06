"""Who probes how many ports in how much time. Pure: `now` is monotonic seconds, an argument.

Counts distinct (port, protocol) pairs of each source network in a sliding window. Knows no packets, no bans,
no policy. Senders can forge sources and fill any table: every one here has a maximum, and what was not seen
for the longest goes first. Addresses are whole numbers beside their IP version: this runs for every packet.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeAlias

from jailbridge.model.event import Protocol
from jailbridge.model.network import Network

_Port: TypeAlias = int
"""The port's number, 65536 added for UDP."""
_Key: TypeAlias = int
"""The leading bits of the source's network; those of IPv6 lie above every IPv4 address."""
_IPV6 = 1 << 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What one probe means for its source.

    new              this (source, port, protocol) was not seen in the window before
    triggered        the source reached the trigger, now or within one window before
    newly_triggered  so report it: it was not yet, or its last report is a window old
    """

    new: bool
    triggered: bool
    newly_triggered: bool


# Made once, found by [new][triggered][newly_triggered].
_SIGHTINGS = [
    [
        [Sighting(new=new, triggered=triggered, newly_triggered=newly) for newly in (False, True)]
        for triggered in (False, True)
    ]
    for new in (False, True)
]
_QUIET = Sighting(new=False, triggered=True, newly_triggered=False)


@dataclass(slots=True)
class _Source:
    ports: dict[_Port, float] = field(default_factory=dict)  # when last seen, oldest first
    seen: float = 0.0
    reported: float | None = None


class Detector:
    """The window over all sources. Not thread-safe.

    Without `every_port` only `newly_triggered` is asked for, `new` and `triggered` may be False when they are not:
    then the latest ports up to the trigger are all that is kept, and a source costs next to nothing for a window after
    it was reported.

    At most `max_sources` sources, `max_ports` ports of one (never fewer than the trigger takes) and
    `max_sightings` ports of all together are remembered: some 50 MB at the defaults.
    """

    def __init__(
        self,
        trigger_ports: int,
        trigger_window_s: float,
        ipv6_prefix: int,
        *,
        every_port: bool = True,
        max_sources: int = 65536,
        max_ports: int = 1024,
        max_sightings: int = 262144,
    ) -> None:
        self._trigger_ports = trigger_ports
        self._window_s = trigger_window_s
        self._ipv6_prefix = ipv6_prefix
        self._ipv6_shift = 128 - ipv6_prefix
        self._max_sources = max_sources
        self._every_port = every_port
        self._max_ports = max(max_ports, trigger_ports) if every_port else trigger_ports
        self._max_sightings = max(max_sightings, self._max_ports)
        self._sources: OrderedDict[_Key, _Source] = OrderedDict()
        self._sightings = 0

    @property
    def sources(self) -> int:
        """How many sources are remembered."""
        return len(self._sources)

    @property
    def sightings(self) -> int:
        """How many ports of all sources together are remembered."""
        return self._sightings

    def see(self, version: int, source: int, port: int, protocol: Protocol, now: float) -> Sighting:
        """Take in one probe; `now` never goes back."""
        key = self._key(version, source)
        entry = self._sources.get(key)
        if entry is None:
            entry = self._sources[key] = _Source()
        quiet = entry.reported is not None and now - entry.reported < self._window_s
        if quiet and not self._every_port:
            return _QUIET
        self._sources.move_to_end(key)
        entry.seen = now
        new = self._note(entry, _port(port, protocol), now)
        self._evict(now)
        reached = len(entry.ports) >= self._trigger_ports
        newly = reached and not quiet
        if newly:
            entry.reported = now
        return _SIGHTINGS[new][reached or quiet][newly]

    def take_back(self, version: int, source: int, port: int, protocol: Protocol, sighting: Sighting) -> None:
        """Undo a sighting that could not be reported: the next probe of that port says the same again."""
        entry = self._sources.get(self._key(version, source))
        if entry is None:
            return
        if sighting.new and entry.ports.pop(_port(port, protocol), None) is not None:
            self._sightings -= 1
        if sighting.newly_triggered:
            entry.reported = None

    def forget(self, network: Network) -> None:
        """Forget every source inside `network`, or the one that it is a part of."""
        size = 32 if network.version == 4 else self._ipv6_prefix
        start = self._key(network.version, network.start)
        if network.prefixlen >= size:
            self._drop(start)
            return
        shift = size - network.prefixlen
        # The mark of IPv6 lies above what is shifted away.
        for key in [key for key in self._sources if key >> shift == start >> shift]:
            self._drop(key)

    def _key(self, version: int, source: int) -> _Key:
        # The same network as model.network.source_network, far cheaper.
        return source if version == 4 else source >> self._ipv6_shift | _IPV6

    def _note(self, source: _Source, port: _Port, now: float) -> bool:
        ports, before = source.ports, len(source.ports)
        while ports and now - ports[oldest := next(iter(ports))] >= self._window_s:
            del ports[oldest]
        new = ports.pop(port, None) is None
        ports[port] = now
        if len(ports) > self._max_ports:
            del ports[next(iter(ports))]
        self._sightings += len(ports) - before
        return new

    def _evict(self, now: float) -> None:
        while self._sources:
            key, source = next(iter(self._sources.items()))
            full = len(self._sources) > self._max_sources or self._sightings > self._max_sightings
            if not full and now - source.seen < self._window_s:
                return
            self._drop(key)

    def _drop(self, key: _Key) -> None:
        source = self._sources.pop(key, None)
        if source is not None:
            self._sightings -= len(source.ports)


def _port(port: int, protocol: Protocol) -> _Port:
    return port if protocol is Protocol.TCP else port + 65536
