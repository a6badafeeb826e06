"""What many events tell together: who, where, how and when. Pure, and bounded whatever the events are.

An outsider chooses sources, ports and times. Sources are counted exactly up to a number of them, then as far as the
frequent ones go (`Sources`); a time line has a number of buckets, which grow wider (`Timeline`).
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from jailbridge.model.event import Dialect, Kind, Protocol, ScanEvent
from jailbridge.model.network import Address

# As many as a ledger's bans by default; some 400 bytes each.
MOST_SOURCES = 200_000
# Pairs of a source and a port; some 100 bytes each.
MOST_PORTS = 500_000
MOST_BUCKETS = 512
# Each divides the next, so that buckets can be put together: 1 s to a day, a week, and so on to a century, which takes
# any two times to fewer than MOST_BUCKETS of them.
WIDTHS_S = (1, 5, 15, 60, 300, 900, 3600, 21600, 86400, *(days * 86400 for days in (7, 28, 364, 3640, 36400)))
_IPV6 = 1 << 128


class Source(NamedTuple):
    """One source: it has at least `lines` lines and at most `at_most`, on at least `ports` ports (TCP and UDP)."""

    address: Address
    lines: int
    at_most: int
    ports: int


@dataclass(slots=True)
class _Counted:
    lines: int
    # How many lines of it at most were not counted, since it was not held then.
    missed: int
    ports: set[int] = field(default_factory=set)


class Sources:
    """The lines and ports of each source; exact as long as there are no more than `most` of them.

    Beyond, the less frequent half is let go and `floor` is the most lines that any of these can have had: a source that
    comes (again) may have had so many before. That is Space-Saving, half a table at a time (Metwally, Agrawal, El
    Abbadi: Efficient Computation of Frequent and Top-k Elements in Data Streams, 2005): whoever has more than `floor`
    lines is held, and `floor` is at most the number of all lines divided by half of `most`.
    """

    def __init__(self, most: int = MOST_SOURCES, most_ports: int = MOST_PORTS) -> None:
        self.floor = 0
        self.has_all_ports = True
        self._most, self._most_ports = most, most_ports
        self._ports = 0
        self._held: dict[int, _Counted] = {}

    def __len__(self) -> int:
        return len(self._held)

    def add(self, events: Iterable[ScanEvent]) -> None:
        """Count events."""
        held = self._held
        for event in events:
            address = event.address
            # Far quicker to look up than an address object.
            key = int(address) if type(address) is IPv4Address else int(address) | _IPV6
            source = held.get(key)
            if source is None:
                if len(held) >= self._most:
                    self._shrink()
                source = held[key] = _Counted(0, self.floor)
            source.lines += 1
            port = _port_key(event)
            if port not in source.ports:
                if self._ports < self._most_ports:
                    self._ports += 1
                    source.ports.add(port)
                else:
                    self.has_all_ports = False

    def top(self, number: int) -> list[Source]:
        """Return those with the most lines, the first one first; of equals, in the order of their addresses."""
        ranked = heapq.nsmallest(number, self._held.items(), key=lambda item: (-item[1].lines, item[0]))
        return [
            Source(_address(key), source.lines, source.lines + source.missed, len(source.ports))
            for key, source in ranked
        ]

    def _shrink(self) -> None:
        held = self._held
        most = sorted(source.lines + source.missed for source in held.values())
        self.floor = most[(len(most) - 1) // 2]
        for key in [key for key, source in held.items() if source.lines + source.missed <= self.floor]:
            self._ports -= len(held.pop(key).ports)


class Timeline:
    """How many events each stretch of time has; `width_s` (seconds) is the narrowest that `most` buckets allow."""

    def __init__(self, most: int = MOST_BUCKETS) -> None:
        self.first: datetime | None = None
        self.last: datetime | None = None
        self.width_s = WIDTHS_S[0]
        self._most = most
        self._buckets: Counter[int] = Counter()

    def add(self, times: Sequence[datetime]) -> None:
        """Count events by their (aware) times, which come in any order."""
        if not times:
            return
        first, last = min(times), max(times)
        self.first = first if self.first is None else min(first, self.first)
        self.last = last if self.last is None else max(last, self.last)
        # A storm has many events a second.
        for time, number in Counter(times).items():
            self._buckets[int(time.timestamp() // self.width_s)] += number
            if len(self._buckets) > self._most:
                self._buckets, self.width_s = _wider(self._buckets, self.width_s, self._most)

    def buckets(self, most: int = MOST_BUCKETS) -> tuple[list[tuple[datetime, int]], int]:
        """Return (begin, events) from the first stretch to the last, at most `most`, and their width in seconds.

        Empty stretches between them are among them.
        """
        if not self._buckets:
            return [], self.width_s
        found, width = self._buckets, self.width_s
        while max(found) - min(found) >= most and width < WIDTHS_S[-1]:
            found, width = _wider(found, width, len(found))
        return [(_time(at * width), found[at]) for at in range(min(found), max(found) + 1)], width


class Statistics:
    """Everything that is counted of a log's events."""

    def __init__(self) -> None:
        self.events = 0
        self.sources = Sources()
        self.timeline = Timeline()
        self.kinds: Counter[Kind] = Counter()
        self.dialects: Counter[Dialect] = Counter()
        self._ports: Counter[int] = Counter()

    def add(self, seen: Sequence[tuple[ScanEvent, Dialect]]) -> None:
        """Count events and the dialects that told them."""
        events = [event for event, _ in seen]
        self.events += len(events)
        self.sources.add(events)
        self.timeline.add([event.time for event in events])
        self.kinds.update([event.kind for event in events])
        self.dialects.update([dialect for _, dialect in seen])
        self._ports.update(map(_port_key, events))

    def top_ports(self, number: int) -> list[tuple[Protocol, int, int]]:
        """Return the ports with the most events, as (protocol, port, events), the first one first."""
        ranked = heapq.nsmallest(number, self._ports.items(), key=lambda item: (-item[1], item[0]))
        return [(Protocol.UDP if key >> 16 else Protocol.TCP, key & 0xFFFF, events) for key, events in ranked]


def _port_key(event: ScanEvent) -> int:
    return event.port if event.protocol is Protocol.TCP else event.port | 1 << 16


def _address(key: int) -> Address:
    return IPv6Address(key ^ _IPV6) if key & _IPV6 else IPv4Address(key)


def _time(epoch_s: int) -> datetime:
    # A bucket of the first years may begin before the first of them.
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=epoch_s)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def _wider(buckets: Counter[int], width_s: int, most: int) -> tuple[Counter[int], int]:
    """Return at most `most` buckets of the next width that makes them so few, at least one wider, and that width."""
    for wider in WIDTHS_S[WIDTHS_S.index(width_s) + 1 :]:
        factor = wider // width_s
        joined: Counter[int] = Counter()
        for at, number in buckets.items():
            joined[at // factor] += number
        buckets, width_s = joined, wider
        if len(buckets) <= most:
            break
    return buckets, width_s
