"""Turns log lines into bans: parses, looks up the past, has policy decide, and tells what it made of each line.

While an allow list cannot be read, or the one in a damaged ledger, nobody new is banned: lines wait in their files,
unread, what fail2ban makes of them waits there, and the error is loud.

Lines of one second may come in any order and lead to the same bans with the same ends. What keeps its order: whom the
brake lets through and whom policy.max_bans leaves out (the first ones stay), which line a ban names as its cause, and
which sightings it counts (those from that line on).
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from heapq import nsmallest
from typing import NamedTuple

from jailbridge.config import Settings
from jailbridge.config.settings import TailSettings
from jailbridge.daemon.brake import Brake
from jailbridge.daemon.exemptions import PresentExemptions
from jailbridge.errors import ParseError, RetryLater
from jailbridge.history.formats import Reader, reader
from jailbridge.ledger import Ledger
from jailbridge.ledger.story import FIRST, LAST
from jailbridge.model.ban import Ban, EndReason, Sighting, Sightings
from jailbridge.model.event import Dialect, Evidence, LogLine, ScanEvent
from jailbridge.model.network import Network, network_text, shown
from jailbridge.policy.decide import NO_PAST, Past, Source, decide, ends_later, evidence_of, source_of, words
from jailbridge.policy.exempt import Exemptions

log = logging.getLogger("jailbridge.policy")

# What an outsider can cause again and again is told this often.
QUIET_S = 60.0
# Sources whose network and exemption are remembered.
KNOWN_SOURCES = 1 << 16
_Scan = tuple[LogLine, ScanEvent, Dialect]


class Judged(NamedTuple):
    """What a batch of lines leads to, to be recorded together with the position after them.

    bans    new and changed ones
    merged  what was seen of networks whose bans stand as they are, all told
    story   what policy made of the lines: of one source the first and the last
    """

    bans: Sequence[Ban]
    merged: Mapping[Network, Sightings]
    story: Sequence[Sighting]


class Judge:
    """Decides on lines, one batch at a time. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        exemptions: PresentExemptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._exemptions = exemptions
        self._clock = clock
        self._readers: dict[tuple[object, ...], Reader] = {}
        self._sources: dict[bytes, tuple[Source, str]] = {}
        self._sources_under: Exemptions | None = None
        total = ("policy.max_new_bans_per_minute", Brake(settings.policy.max_new_bans_per_minute))
        spoofable = ("policy.max_new_spoofable_per_minute", Brake(settings.policy.max_new_spoofable_per_minute))
        self._brakes = {Evidence.HANDSHAKE: [total], Evidence.SPOOFABLE: [spoofable, total]}
        self._told: dict[str, float] = {}
        self.counts: Counter[str] = Counter()

    def weigh(
        self, lines: Sequence[LogLine], tail: TailSettings, now: datetime, ended_by: datetime | None = None
    ) -> Judged:
        """Return what these lines, followed under `tail`, lead to. Raises RetryLater while nobody may be banned.

        Ends in the ledger what makes room for new bans, and what has run out of those that are seen again: what ends
        up to `ended_by`, which is now where it is not given.
        """
        exemptions = self._exemptions()
        if exemptions is None or self._ledger.predecessors.problem is not None:
            raise RetryLater(self.problem or "exemptions are not known")
        rules, tick, is_verbose = self._settings.policy, self._clock(), log.isEnabledFor(logging.DEBUG)
        history = str(self._settings.history.path)
        own = self._settings.sensor.mode if lines and lines[0].path == history else None
        scans = self._scans(lines, tail, now)
        docket = self._docket(scans, exemptions, ended_by or now)
        story: list[Sighting] = []
        for (line, event, dialect), (source, case) in zip(scans, docket.sources, strict=True):
            evidence = evidence_of(event, tail.evidence, own)
            decision = decide(event, dialect, line, evidence, source, case.past, rules, now)
            reason, port = words(event)
            why = decision.why
            if decision.ban is not None:
                braked = case.is_new(decision.ban) and self._braked(evidence, tick, case.text)
                why = f"braked: over {braked}" if braked else case.make(decision.ban, event.time, port)
            elif decision.merges and case.tally is not None:
                case.tally.add(event.time, port)
            sighting = Sighting(case.text, event.time, f"{reason}: {why}", line)
            case.told += 1
            if case.told <= FIRST:
                story.append(sighting)
            else:
                case.tell_late(sighting)
            if is_verbose:
                log.debug("address=%s %s", case.text, sighting.detail)
        for case in docket.cases.values():
            if case.late:
                story += case.late
        made = [case for case in docket.cases.values() if case.made is not None]
        if dropped := self._make_room(made, now):
            story = [_given_up(sighting) if sighting.network in dropped else sighting for sighting in story]
        return Judged(
            bans=[case.ban() for case in made if case.made is not None],
            merged=docket.merged(self._ledger.bans()),
            story=story,
        )

    @property
    def problem(self) -> str | None:
        """Why nobody new is banned now, and how to mend it; None where nothing is in the way."""
        return self._exemptions.problem or self._ledger.predecessors.problem

    def left(self) -> int:
        """Return how many bans found in a store may be taken over now: they pass the brakes like spoofable evidence."""
        if self._ledger.predecessors.problem is not None:
            return 0
        now = self._clock()
        space = self._settings.policy.max_bans - len(self._ledger.bans())
        return max(0, min(space, *(brake.left(now) for _, brake in self._brakes[Evidence.SPOOFABLE])))

    def spend(self, number: int) -> None:
        """Note that so many bans were taken over."""
        now = self._clock()
        for _, brake in self._brakes[Evidence.SPOOFABLE]:
            for _ in range(number):
                brake.count(now)

    def _scans(self, lines: Iterable[LogLine], tail: TailSettings, now: datetime) -> list[_Scan]:
        form = (tail.format, tail.prefixes)
        if (read := self._readers.get(form)) is None:
            read = self._readers[form] = reader(*form)
        scans: list[_Scan] = []
        other = 0
        for line in lines:
            try:
                told = read(line.text, now)
            except ParseError as error:
                self.counts["refused"] += 1
                text = shown(line.text.decode("latin-1"))
                what = "file=%s offset=%d refused: %s: %s"
                self._tell(logging.WARNING, line.path, what, line.path, line.offset, error, text)
                continue
            if told is None:
                other += 1
            else:
                scans.append((line, told[0], told[1]))
        # A count that is there says that there was something to count.
        self.counts += Counter(accepted=len(scans), other=other)
        return scans

    def _docket(self, scans: Iterable[_Scan], exemptions: Exemptions, ended_by: datetime) -> "_Docket":
        if exemptions is not self._sources_under or len(self._sources) > KNOWN_SOURCES:
            self._sources, self._sources_under = {}, exemptions
        docket, known, rules = _Docket(), self._sources, self._settings.policy
        for _, event, _ in scans:
            packed = event.address.packed
            if (found := known.get(packed)) is None:
                source = source_of(event.address, rules, exemptions)
                found = known[packed] = (source, network_text(source.network))
            source, text = found
            if (case := docket.cases.get(text)) is None:
                case = docket.cases[text] = _Case(source.network, text)
            docket.sources.append((source, case))
        cases = docket.cases.values()
        standing = self._standing(cases)
        # Those that have run out are ended, so that a scan since then is news.
        while over := {ban.network for ban in standing if ban is not None and ban.is_over(ended_by)}:
            self._ledger.end(over, EndReason.EXPIRED, now=ended_by)
            standing = self._standing(cases)
        stones = self._ledger.tombstones([case.network for case in cases])
        for case, ban in zip(cases, standing, strict=True):
            if ban is not None:
                case.tally = docket.tally_of(ban)
            if ban is not None or stones:
                case.past = Past(ban, stones.get(case.network))
        return docket

    def _standing(self, cases: Iterable["_Case"]) -> list[Ban | None]:
        """Return the ban that counts for each: of the largest network around it, or its own if that lasts longer."""
        standing = [self._ledger.covering(case.network) for case in cases]
        for number, case in enumerate(cases):
            around = standing[number]
            if around is not None and around.network.prefixlen < case.network.prefixlen:
                own = self._ledger.bans().get(case.network)
                if own is not None and ends_later(own.until, around.until):
                    standing[number] = own
        return standing

    def _braked(self, evidence: Evidence, tick: float, text: str) -> str | None:
        """Return the setting that holds a new ban back; count the ban where none does."""
        for key, brake in self._brakes[evidence]:
            if brake.is_full(tick):
                self.counts["braked"] += 1
                if tick - self._told.get(key, float("-inf")) >= QUIET_S:
                    what = "address=%s not banned, nor others this minute: over %s"
                    self._tell(logging.ERROR, key, what, text, key)
                return key
        for _, brake in self._brakes[evidence]:
            brake.count(tick)
        return None

    def _make_room(self, cases: Sequence["_Case"], now: datetime) -> set[str]:
        """Keep within policy.max_bans: the soonest-ending spoofable bans go first, new ones among them.

        Takes from the cases what is not made of them; returns their networks, as text.
        """
        held, most = self._ledger.bans(), self._settings.policy.max_bans
        if not cases or len(held) + len(cases) <= most:
            return set()
        made = {case.network: case for case in cases}
        fresh = [network for network in made if network not in held]
        surplus = len(held) + len(fresh) - most
        if surplus <= 0:
            return set()
        soonest = self._ledger.soonest(Evidence.SPOOFABLE, surplus + len(made))
        forgeable = [ban for ban in soonest if ban.network not in made]
        forgeable += [case.made for case in cases if case.made and case.made.evidence is Evidence.SPOOFABLE]
        going = dict.fromkeys(ban.network for ban in nsmallest(surplus, forgeable, key=_end))
        # Where that is not enough, the last of the new ones are not made.
        for network in reversed(fresh):
            if len(going) < surplus:
                going.setdefault(network)
        dropped = [made[network] for network in going if network in made]
        for case in dropped:
            case.made = None
        self._ledger.end([network for network in going if network in held], EndReason.EVICTED, now=now)
        self.counts["evicted"] += len(going)
        self._tell(logging.ERROR, "policy.max_bans", "bans=%d given up: over policy.max_bans", len(going))
        return {case.text for case in dropped}

    def _tell(self, level: int, topic: str, text: str, *values: object) -> None:
        now = self._clock()
        if now - self._told.get(topic, float("-inf")) < QUIET_S:
            level = logging.DEBUG
        else:
            self._told[topic] = now
        log.log(level, text, *values)


@dataclass(slots=True)
class _Tally:
    """What was seen of one banned network, while a batch is gone through."""

    seen: Sightings | None = None
    is_news: bool = False

    def add(self, time: datetime, port: str) -> None:
        """Count one more sighting."""
        self.seen = Sightings(time, time, 1, (port,)) if self.seen is None else self.seen.also(time, port)
        self.is_news = True


@dataclass(slots=True)
class _Case:
    """What is known of a network whose sources a batch has lines about, and what becomes of it."""

    network: Network
    text: str
    past: Past = NO_PAST
    tally: "_Tally | None" = None
    made: Ban | None = None
    told: int = 0
    late: deque[Sighting] | None = None

    def tell_late(self, sighting: Sighting) -> None:
        """Keep one of the last sightings."""
        if self.late is None:
            self.late = deque(maxlen=LAST)
        self.late.append(sighting)

    def is_new(self, ban: Ban) -> bool:
        """Tell whether a ban is none that stands already, as another one."""
        return self.past.standing is None or self.past.standing.network != ban.network

    def make(self, ban: Ban, time: datetime, port: str) -> str:
        """Take over a new or changed ban; return what to tell of it."""
        is_new = self.is_new(ban)
        if is_new or self.tally is None:
            self.tally = _Tally(ban.seen)
        else:
            self.tally.add(time, port)
        self.made, self.past = ban, Past(ban, self.past.tombstone)
        lasting = (
            "for ever"
            if ban.until is None
            else f"until {ban.until.replace(tzinfo=None).isoformat(timespec='seconds')}Z"
        )
        return f"banned {lasting}" if is_new else f"changed: {ban.evidence}, banned {lasting}"

    def ban(self) -> Ban:
        """Return the ban that was made, with all that was seen."""
        if self.made is None:
            raise ValueError(f"{self.text} is not banned")
        seen = self.tally.seen if self.tally is not None else None
        return self.made if seen is self.made.seen else self.made._replace(seen=seen)


@dataclass(slots=True)
class _Docket:
    """The sources of a batch's lines, their cases by network (as text), and the tallies of bans that stand."""

    sources: list[tuple[Source, _Case]] = field(default_factory=list)
    cases: dict[str, _Case] = field(default_factory=dict)
    tallies: dict[Network, _Tally] = field(default_factory=dict)

    def tally_of(self, ban: Ban) -> _Tally:
        """Return the one tally of a ban that stands: several sources may lie in its network."""
        if (tally := self.tallies.get(ban.network)) is None:
            tally = self.tallies[ban.network] = _Tally(ban.seen)
        return tally

    def merged(self, held: Mapping[Network, Ban]) -> Mapping[Network, Sightings]:
        """Return what is news of bans that are held and stay as they are."""
        changed = {case.network for case in self.cases.values() if case.made is not None} if self.tallies else set()
        return {
            network: tally.seen
            for network, tally in self.tallies.items()
            if tally.is_news and tally.seen is not None and network not in changed and network in held
        }


def _given_up(sighting: Sighting) -> Sighting:
    return sighting._replace(detail=f"{sighting.detail.partition(': ')[0]}: given up: over policy.max_bans")


def _end(ban: Ban) -> tuple[float, str]:
    return ban.until.timestamp() if ban.until is not None else float("inf"), network_text(ban.network)
