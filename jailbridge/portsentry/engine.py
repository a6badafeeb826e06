"""What PortSentry does with a probe: ignore it, count it, tell it, block its source. Pure; it reads and writes nothing.

`now` is monotonic seconds. Every table that a sender of forged packets can fill has a maximum.

A (source, port, protocol) is told once in WINDOW_S, not once per packet as PortSentry does. Whatever a probe newly
leads to is told all the same: its source's trigger, a block that is due again because somebody took the source out of
the blocked file.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import Enum
from typing import NamedTuple, TypeAlias

from jailbridge.model.event import Protocol, Report
from jailbridge.model.network import Address
from jailbridge.sensor.detector import Detector, Sighting
from jailbridge.sensor.packet import Probe

WINDOW_S = 60.0
MAX_COUNTED = 65536
"""Sources whose packets are counted. PortSentry 1.2 remembers 50, which as many forged ones make it forget; 2.x a
million."""

_Source: TypeAlias = tuple[int, int]
"""IP version, and the address as a number."""
_NEW = Sighting(new=True, triggered=True, newly_triggered=False)


class Action(Enum):
    """What a probe leads to."""

    IGNORE = "in the ignore file"
    COUNT = "below SCAN_TRIGGER"
    LOG = "triggered, and BLOCK_* says to log only"
    ALREADY = "triggered, and its source is blocked"
    BLOCK = "triggered"


class Decision(NamedTuple):
    """What to do about one probe. `new`: not told in the window before."""

    action: Action
    probe: Probe
    new: bool


class Engine:
    """Decides about probes in their order. For one thread, but for `settled`.

    trigger      act from so many packets of a source on (0 and 1: at once), however long they take
    responds     whether there is anything to do for a source, by protocol: 1.2 always writes its blocked file
    is_ignored   whether the address is in the ignore file; it gets `now`, and what it raises goes to the caller
    is_blocked   whether the address is in the blocked file; None where there is no such file
    """

    def __init__(
        self,
        trigger: int,
        responds: Mapping[Protocol, bool],
        is_ignored: Callable[[Address, float], bool],
        is_blocked: Callable[[Address], bool] | None,
    ) -> None:
        self._trigger = trigger
        self._responds = responds
        self._is_ignored = is_ignored
        self._is_blocked = is_blocked
        self._seen = Detector(1, WINDOW_S, 128)
        self._counts: OrderedDict[_Source, int] = OrderedDict()
        # Responses take their time in another thread, one after another; meanwhile a source is as good as blocked.
        self._due: set[_Source] = set()

    def decide(self, probe: Probe, now: float) -> Decision | None:
        """Return what to do about the probe, None for nothing that has not been told yet."""
        new = self._seen.see(probe.version, probe.source, probe.port, probe.protocol, now).new
        source = probe.version, probe.source
        if source in self._due and not new:
            return None
        action, is_news = self._action(probe, source, now)
        if not (new or is_news):
            return None
        if action is Action.BLOCK:
            self._due.add(source)
        return Decision(action, probe, new)

    def _action(self, probe: Probe, source: _Source, now: float) -> tuple[Action, bool]:
        """Return what the probe leads to, and whether that is news even of a port that has been told."""
        address = probe.address
        if self._is_ignored(address, now):
            return Action.IGNORE, False
        count = self._counted(source)
        if count < self._trigger:
            return Action.COUNT, False
        just_triggered = count == self._trigger
        if not self._responds[probe.protocol]:
            return Action.LOG, just_triggered
        if source in self._due or (self._is_blocked is not None and self._is_blocked(address)):
            return Action.ALREADY, False
        # Without a blocked file every packet leads to a block; more than one a port would be of no use.
        return Action.BLOCK, self._is_blocked is not None or just_triggered

    @property
    def due(self) -> int:
        """How many sources are to be blocked and are not settled yet."""
        return len(self._due)

    def settled(self, report: Report) -> None:
        """Take note that what followed from a decision is done; of a block, the blocked file knows it now or never."""
        # Of the same source there may be earlier ones, which come before its block.
        if report.newly_triggered:
            self._due.discard((report.event.address.version, int(report.event.address)))

    def take_back(self, decision: Decision) -> None:
        """Undo a decision for which there was no room: the next probe of the source leads to it again."""
        probe = decision.probe
        if decision.action is Action.BLOCK:
            self._due.discard((probe.version, probe.source))
        if decision.new:
            self._seen.take_back(probe.version, probe.source, probe.port, probe.protocol, _NEW)

    def _counted(self, source: _Source) -> int:
        """Return how many packets of the source have been seen, this one included; above the trigger nobody counts."""
        if self._trigger <= 1:
            return 2
        count = self._counts.pop(source, 0) + 1
        self._counts[source] = min(count, self._trigger + 1)
        if len(self._counts) > MAX_COUNTED:
            self._counts.popitem(last=False)
        return count
