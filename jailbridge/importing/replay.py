"""What the daemon would hold by now, had it read these histories as they were written. Pure, in bounded memory.

Each line is decided on as of its own time, by the policy that decides on new ones: bans run out on the way, and who
came again is banned for longer. A line that comes late, from before the end of a ban, does not ban again.
"""

from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import nlargest, nsmallest

from jailbridge.config.settings import EvidenceRule, PolicySettings, SensorMode
from jailbridge.model.ban import Ban, EndReason, Sightings, Tombstone
from jailbridge.model.event import Dialect, Evidence, LogLine, ScanEvent
from jailbridge.model.network import Network, network_text
from jailbridge.policy.decide import NO_PAST, Past, Source, decide, evidence_of, source_of, words
from jailbridge.policy.exempt import Exemptions

# Sources whose bans are over are remembered beside policy.max_bans live ones, as far as they count as repeats.
MOST_ENDED = 100_000
KNOWN_SOURCES = 1 << 16
# Exempt sources that are named.
MOST_EXEMPT = 1000
FOREVER = float("inf")


@dataclass(slots=True)
class _Case:
    """A network's live ban with what was seen of it, and how many bans before it count; `ended` is the last one's."""

    ban: Ban | None = None
    seen: Sightings | None = None
    ended: float = 0.0
    bans: int = 0

    def end(self) -> None:
        """Note that the live ban has run out."""
        if self.ban is not None and self.ban.until is not None:
            self.ended, self.bans = self.ban.until.timestamp(), self.bans + 1
            self.ban = self.seen = None


class Replay:
    """Takes lines in, and tells the bans that stand at `now`.

    told    of the networks in `marked`, those that a line would have banned: their time is known
    exempt  who was not banned and why, by network, some of them
    counts  of lines: `no scan` (the log says so), `exempt`; of bans: `over` by now, `too many` at once
    """

    def __init__(
        self, rules: PolicySettings, exemptions: Exemptions, now: datetime, marked: Container[Network] = ()
    ) -> None:
        self._rules, self._exemptions, self._now, self._marked = rules, exemptions, now, marked
        self._most = rules.max_bans + MOST_ENDED
        self._cases: dict[Network, _Case] = {}
        self._sources: dict[bytes, Source] = {}
        self.told: set[Network] = set()
        self.exempt: dict[Network, str] = {}
        self.counts: Counter[str] = Counter()

    def add(
        self, line: LogLine, event: ScanEvent, dialect: Dialect, rule: EvidenceRule, mode: SensorMode | None
    ) -> None:
        """Take in what one line tells; `rule` and `mode` say what it proves, as `evidence_of` takes them."""
        packed = event.address.packed
        if (source := self._sources.get(packed)) is None:
            if len(self._sources) >= KNOWN_SOURCES:
                self._sources.clear()
            source = self._sources[packed] = source_of(event.address, self._rules, self._exemptions)
        then = min(event.time, self._now)
        case = self._cases.get(source.network)
        decision = decide(
            event,
            dialect,
            line,
            evidence_of(event, rule, mode),
            source,
            self._past(source.network, case, then),
            self._rules,
            then,
        )
        if decision.ban is not None:
            if case is None:
                case = self._cases[source.network] = _Case()
            is_new = case.ban is None
            case.ban = decision.ban
            case.seen = (
                decision.ban.seen if is_new or case.seen is None else case.seen.also(event.time, words(event)[1])
            )
            if len(self._cases) > self._most:
                self._shrink(then)
        elif decision.merges and case is not None and case.seen is not None:
            case.seen = case.seen.also(event.time, words(event)[1])
        elif source.exemption is not None and event.triggered is not False and not event.ignored:
            self.counts["exempt"] += 1
            if len(self.exempt) < MOST_EXEMPT:
                self.exempt.setdefault(source.network, str(source.exemption))
            return
        elif case is None:
            self.counts["no scan"] += 1
            return
        if source.network in self._marked:
            self.told.add(source.network)

    def bans(self) -> Iterator[Ban]:
        """Yield the bans that stand, and count those that are over."""
        for case in self._cases.values():
            if case.ban is not None and case.ban.is_over(self._now):
                self._end(case)
            if case.ban is not None:
                yield case.ban._replace(seen=case.seen)

    def _past(self, network: Network, case: _Case | None, then: datetime) -> Past:
        if case is None:
            return NO_PAST
        if case.ban is not None and case.ban.is_over(then):
            self._end(case)
        if not case.bans:
            return Past(case.ban, None)
        stone = Tombstone(
            network=network,
            ended=datetime.fromtimestamp(case.ended, UTC),
            why=EndReason.EXPIRED,
            bans=case.bans,
            logged=True,
        )
        return Past(case.ban, stone)

    def _end(self, case: _Case) -> None:
        self.counts["over"] += 1
        case.end()

    def _shrink(self, then: datetime) -> None:
        """Forget the bans that count no more; then, of those that are over the oldest, of the live the soonest over."""
        memory = then - self._rules.repeat_memory
        for network, case in list(self._cases.items()):
            if case.ban is not None and case.ban.is_over(then):
                self._end(case)
            if case.ban is None and datetime.fromtimestamp(case.ended, UTC) < memory:
                del self._cases[network]
        ended = [(case.ended, network) for network, case in self._cases.items() if case.ban is None]
        # Half of the room at once: what takes a look at all is done seldom.
        for _, network in nsmallest(len(ended) - MOST_ENDED // 2, ended):
            del self._cases[network]
        live = [(*_worth(case.ban), network) for network, case in self._cases.items() if case.ban is not None]
        for *_, network in nsmallest(len(live) - self._rules.max_bans, live):
            del self._cases[network]
            self.counts["too many"] += 1


def kept(bans: list[Ban], room: int) -> list[Ban]:
    """Return as many bans as there is room for: of forgeable ones the soonest-ending go first."""
    if len(bans) <= room:
        return bans
    return nlargest(max(room, 0), bans, key=lambda ban: (*_worth(ban), network_text(ban.network)))


def _worth(ban: Ban) -> tuple[bool, float]:
    until = FOREVER if ban.until is None else ban.until.timestamp()
    return ban.evidence is Evidence.HANDSHAKE, until
