"""Turns log lines into bans: parses, looks up the past, has policy decide.

While an allow list cannot be read nobody new is banned: lines wait in their files, unread, and the error is loud.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from heapq import nsmallest

from jailbridge.config import Settings
from jailbridge.config.settings import TailSettings
from jailbridge.daemon.exemptions import PresentExemptions
from jailbridge.errors import ParseError, RetryLater
from jailbridge.history.formats import reader
from jailbridge.ledger import Ledger
from jailbridge.model.ban import Ban, EndReason
from jailbridge.model.event import Dialect, Evidence, LogLine, ScanEvent
from jailbridge.model.network import Network, network_text, shown
from jailbridge.policy.decide import Past, banned_network, decide, evidence_of
from jailbridge.policy.exempt import Exemptions

log = logging.getLogger("jailbridge.policy")

# What an outsider can cause again and again is told this often.
QUIET_S = 60.0


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
        self._tails: Mapping[str, TailSettings] = {str(tail.path): tail for tail in settings.tail}
        self._readers = {path: reader(tail.format) for path, tail in self._tails.items()}
        total = ("policy.max_new_bans_per_minute", Brake(settings.policy.max_new_bans_per_minute))
        spoofable = ("policy.max_new_spoofable_per_minute", Brake(settings.policy.max_new_spoofable_per_minute))
        self._brakes = {Evidence.HANDSHAKE: [total], Evidence.SPOOFABLE: [spoofable, total]}
        self._told: dict[str, float] = {}
        self.counts: Counter[str] = Counter()

    def bans(self, lines: Sequence[LogLine], now: datetime) -> Sequence[Ban]:
        """Return the new and changed bans that these lines lead to. Raises RetryLater while nobody may be banned.

        Ends in the ledger what makes room for them.
        """
        exemptions = self._exemptions()
        if exemptions is None:
            raise RetryLater(self._exemptions.problem or "exemptions are not known")
        scans = []
        for line in lines:
            if (read := self._event(line, now)) is not None:
                event, dialect = read
                scans.append((line, event, dialect, banned_network(event, self._settings.policy, exemptions)))
        self._end_over({network for *_, network in scans}, now)
        fresh: dict[Network, Ban] = {}
        for line, event, dialect, network in scans:
            standing = fresh.get(network) or self._ledger.covering(network)
            ban = self._ban(line, event, dialect, network, standing, exemptions, now)
            if ban is not None:
                fresh[network] = ban
        self._make_room(fresh, now)
        return list(fresh.values())

    def left(self) -> int:
        """Return how many bans found in a store may be taken over now: they pass the brakes like spoofable evidence."""
        now = self._clock()
        space = self._settings.policy.max_bans - len(self._ledger.bans())
        return max(0, min(space, *(brake.left(now) for _, brake in self._brakes[Evidence.SPOOFABLE])))

    def spend(self, number: int) -> None:
        """Note that so many bans were taken over."""
        now = self._clock()
        for _, brake in self._brakes[Evidence.SPOOFABLE]:
            for _ in range(number):
                brake.count(now)

    def _event(self, line: LogLine, now: datetime) -> tuple[ScanEvent, Dialect] | None:
        try:
            read = self._readers[line.path](line.text, now)
        except ParseError as error:
            self.counts["refused"] += 1
            text = shown(line.text.decode("latin-1"))
            what = "file=%s offset=%d refused: %s: %s"
            self._tell(logging.WARNING, line.path, what, line.path, line.offset, error, text)
            return None
        self.counts["accepted"] += 1
        return read

    def _end_over(self, networks: Iterable[Network], now: datetime) -> None:
        """End the bans of these sources that have run out, so that a scan since then is news."""
        while over := {
            standing.network
            for network in networks
            if (standing := self._ledger.covering(network)) is not None and standing.is_over(now)
        }:
            self._ledger.end(over, EndReason.EXPIRED, now=now)

    def _ban(
        self,
        line: LogLine,
        event: ScanEvent,
        dialect: Dialect,
        network: Network,
        standing: Ban | None,
        exemptions: Exemptions,
        now: datetime,
    ) -> Ban | None:
        tail = self._tails[line.path]
        own = self._settings.sensor.mode if tail.path == self._settings.history.path else None
        evidence = evidence_of(event, tail.evidence, own)
        past = Past(standing=standing, tombstone=self._ledger.tombstone(network))
        decision = decide(event, dialect, line, evidence, past, self._settings.policy, exemptions, now)
        if decision.ban is None:
            log.debug("address=%s not banned: %s", network_text(network), decision.why)
            return None
        is_new = standing is None or standing.network != network
        return decision.ban if not is_new or self._may_pass(decision.ban, evidence) else None

    def _may_pass(self, ban: Ban, evidence: Evidence) -> bool:
        now = self._clock()
        for key, brake in self._brakes[evidence]:
            if brake.is_full(now):
                self.counts["braked"] += 1
                what = "address=%s not banned, nor others this minute: over %s"
                self._tell(logging.ERROR, key, what, network_text(ban.network), key)
                return False
        for _, brake in self._brakes[evidence]:
            brake.count(now)
        return True

    def _make_room(self, fresh: dict[Network, Ban], now: datetime) -> None:
        """Keep within policy.max_bans: the soonest-ending spoofable bans go first, new ones among them."""
        held = self._ledger.bans()
        surplus = len(held) + sum(1 for network in fresh if network not in held) - self._settings.policy.max_bans
        if surplus <= 0 or not fresh:
            return
        forgeable = [ban for ban in {**held, **fresh}.values() if ban.evidence is Evidence.SPOOFABLE]
        going = [ban.network for ban in nsmallest(surplus, forgeable, key=_end)]
        # Where that is not enough, the last of the new ones are not made.
        new = [network for network in reversed(fresh) if network not in held and network not in going]
        going += new[: surplus - len(going)]
        for network in going:
            fresh.pop(network, None)
        self._ledger.end([network for network in going if network in held], EndReason.EVICTED, now=now)
        self.counts["evicted"] += len(going)
        self._tell(logging.ERROR, "policy.max_bans", "bans=%d given up: over policy.max_bans", len(going))

    def _tell(self, level: int, topic: str, text: str, *values: object) -> None:
        now = self._clock()
        if now - self._told.get(topic, float("-inf")) < QUIET_S:
            level = logging.DEBUG
        else:
            self._told[topic] = now
        log.log(level, text, *values)


def _end(ban: Ban) -> float:
    return ban.until.timestamp() if ban.until is not None else float("inf")


class Brake:
    """Lets through at most `limit` in any minute. `now` is monotonic seconds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._times: deque[float] = deque()

    def is_full(self, now: float) -> bool:
        """Tell whether none may pass at `now`."""
        return self.left(now) <= 0

    def left(self, now: float) -> int:
        """Tell how many may pass at `now`."""
        while self._times and now - self._times[0] >= 60.0:
            self._times.popleft()
        return self._limit - len(self._times)

    def count(self, now: float) -> None:
        """Note that one has passed."""
        self._times.append(now)
