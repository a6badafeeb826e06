"""Who probes how many ports in how much time. Pure: `now` is monotonic seconds, an argument.

Counts distinct (port, protocol) pairs of each source network in a sliding window. Knows no packets, no bans,
no policy. Senders can forge sources and fill any table: every one here has a maximum, and what was not seen
for the longest goes first.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeAlias

from jailbridge.model.event import Protocol
from jailbridge.model.network import Address, Network

_Port: TypeAlias = tuple[int, Protocol]
_Key: TypeAlias = tuple[int, int]
"""IP version and the leading bits of the source's network."""


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


@dataclass(slots=True)
class _Source:
    ports: dict[_Port, float] = field(default_factory=dict)  # when last seen, oldest first
    seen: float = 0.0
    reported: float | None = None


class Detector:
    """The window over all sources. Not thread-safe.

    At most `max_sources` sources, `max_ports` ports of one (never fewer than the trigger takes) and
    `max_sightings` ports of all together are remembered: some 50 MB at the defaults.
    """

    def __init__(
        self,
        trigger_ports: int,
        trigger_window_s: float,
        ipv6_prefix: int,
        *,
        max_sources: int = 65536,
        max_ports: int = 1024,
        max_sightings: int = 262144,
    ) -> None:
        self._trigger_ports = trigger_ports
        self._window_s = trigger_window_s
        self._size = {4: 32, 6: ipv6_prefix}
        self._max_sources = max_sources
        self._max_ports = max(max_ports, trigger_ports)
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

    def see(self, address: Address, port: int, protocol: Protocol, now: float) -> Sighting:
        """Take in one probe; `now` never goes back."""
        source = self._source(address)
        source.seen = now
        new = self._note(source, (port, protocol), now)
        self._evict(now)
        quiet = source.reported is not None and now - source.reported < self._window_s
        reached = len(source.ports) >= self._trigger_ports
        newly = reached and not quiet
        if newly:
            source.reported = now
        return Sighting(new=new, triggered=reached or quiet, newly_triggered=newly)

    def take_back(self, address: Address, port: int, protocol: Protocol, sighting: Sighting) -> None:
        """Undo a sighting that could not be reported: the next probe of that port says the same again."""
        source = self._sources.get(self._key(address))
        if source is None:
            return
        if sighting.new and source.ports.pop((port, protocol), None) is not None:
            self._sightings -= 1
        if sighting.newly_triggered:
            source.reported = None

    def forget(self, network: Network) -> None:
        """Forget every source inside `network`, or the one that it is a part of."""
        version, size = network.version, self._size[network.version]
        if network.prefixlen >= size:
            self._drop(self._key(network.network_address))
            return
        shift = size - network.prefixlen
        start = self._key(network.network_address)[1] >> shift
        for key in [key for key in self._sources if key[0] == version and key[1] >> shift == start]:
            self._drop(key)

    def _key(self, address: Address) -> _Key:
        # The same network as model.network.source_network, far cheaper: this runs for every packet.
        return address.version, int(address) >> address.max_prefixlen - self._size[address.version]

    def _source(self, address: Address) -> _Source:
        key = self._key(address)
        source = self._sources.get(key)
        if source is None:
            source = self._sources[key] = _Source()
        else:
            self._sources.move_to_end(key)
        return source

    def _note(self, source: _Source, port: _Port, now: float) -> bool:
        before = len(source.ports)
        while source.ports and now - source.ports[oldest := next(iter(source.ports))] >= self._window_s:
            del source.ports[oldest]
        new = source.ports.pop(port, None) is None
        source.ports[port] = now
        if len(source.ports) > self._max_ports:
            del source.ports[next(iter(source.ports))]
        self._sightings += len(source.ports) - before
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
