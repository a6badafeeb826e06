"""Takes PortSentry's own marks of bans that have ended out of its files and rules, so that it notices the host again.

Marks are never read as truth. One goes only when a ban that came from a log has ended: at the first look all that the
ledger knows of, later those that have ended since. A mark that PortSentry makes meanwhile is of something new.

Each place is gone through for itself: one that fails keeps what is due there, and is tried again at growing intervals.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from jailbridge.errors import FatalError, RetryLater
from jailbridge.ledger import Ledger
from jailbridge.model.network import Network, NetworkSet
from jailbridge.model.plan import Action, Change, StoreSummary
from jailbridge.reconcile.attached import Backoff
from jailbridge.stores.protocol import Traces

log = logging.getLogger("jailbridge.reconcile")


@dataclass(slots=True)
class Place:
    """A place of marks, and how it fares.

    ended  what has ended since the place was gone through last; None: it never was, so all that the ledger knows of
    """

    traces: Traces
    ended: set[Network] | None = None
    backoff: Backoff = field(default_factory=Backoff)

    @property
    def is_owed(self) -> bool:
        """Whether it must be gone through: something has ended whose marks may still be there, or it failed."""
        return self.ended is None or bool(self.ended) or self.backoff.problem is not None


class Clearing:
    """The places of marks, held against one ledger. `clock`: seconds of the monotonic one."""

    def __init__(self, ledger: Ledger, places: Sequence[Traces], clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._places = [Place(traces) for traces in places]
        self._clock = clock
        # The change of the ledger up to which the places know what has ended.
        self._heard = ledger.last_change

    @property
    def is_owed(self) -> bool:
        """Whether any place must be gone through, be it its turn or not."""
        return any(place.is_owed for place in self._informed())

    @property
    def is_due(self) -> bool:
        """Whether any place must be gone through now: one that fails not before its turn. Costs next to nothing."""
        now = self._clock()
        return any(place.is_owed and now >= place.backoff.not_before for place in self._informed())

    def clear(self, now: datetime, *, patient: bool = False) -> None:
        """Take out the marks of ended bans; `patient`: leave places that fail alone until it is their turn."""
        for place in self._informed() if not self._ledger.paused(now) else ():
            marked, _ = self._marked(place, patient=patient) if place.is_owed else (None, None)
            if marked is None:
                continue
            try:
                if over := self._over(place, marked, now):
                    place.traces.remove(over)
                    self._ledger.story.placed(place.traces.name, _changes(place, over), now)
                    log.info("store=%s marks of ended bans taken out=%d", place.traces.name, len(over))
            except (RetryLater, FatalError) as error:
                self._note_failure(place, error, writing=True)
            else:
                place.ended = set()
                self._note_success(place, writing=True)

    def plan(self, now: datetime, *, patient: bool = False) -> tuple[Sequence[Change], Mapping[str, StoreSummary]]:
        """Return what `clear` would take out, and each place's line of a plan; `patient` as there.

        Without it somebody only looks on: how that goes does not count.
        """
        changes: list[Change] = []
        summaries: dict[str, StoreSummary] = {}
        for place in self._informed():
            marked, problem = self._marked(place, patient=patient, noted=patient)
            if marked is not None and not self._ledger.paused(now):
                changes += _changes(place, self._over(place, marked, now))
            summaries[place.traces.name] = StoreSummary(
                reachable=marked is not None, enforcing=None, desired=0, observed=len(marked or ()), problem=problem
            )
        return changes, summaries

    def _informed(self) -> Sequence[Place]:
        """Return the places, each knowing what has ended until now."""
        while self._places and (news := self._ledger.feed(self._heard)):
            self._heard = news[-1][0]
            ended = [network for _, _, what, network, _ in news if what == "unban"]
            for place in self._places:
                if place.ended is not None:
                    place.ended.update(ended)
        return self._places

    def _marked(
        self, place: Place, *, patient: bool, noted: bool = True
    ) -> tuple[Collection[Network] | None, str | None]:
        """Return who has a mark there, None where that is not known, and the place's problem; `noted`: it counts."""
        if patient and self._clock() < place.backoff.not_before:
            return None, place.backoff.problem
        try:
            marked = place.traces.observe()
        except (RetryLater, FatalError) as error:
            if noted:
                self._note_failure(place, error, writing=False)
            return None, str(error)
        if noted:
            self._note_success(place, writing=False)
        else:
            place.backoff.seen(self._clock())
        return marked, place.backoff.problem if place.backoff.writing else None

    def _note_failure(self, place: Place, error: RetryLater | FatalError, *, writing: bool) -> None:
        if place.backoff.failed(str(error), self._clock(), writing=writing):
            log.warning("store=%s unreachable: %s", place.traces.name, error)

    def _note_success(self, place: Place, *, writing: bool) -> None:
        if place.backoff.succeeded(writing=writing):
            log.info("store=%s reachable again", place.traces.name)

    def _over(self, place: Place, marked: Collection[Network], now: datetime) -> Sequence[Network]:
        """Return whose marks may go."""
        if place.ended is not None and not place.ended:
            return ()
        index, over = NetworkSet(place.ended or ()), []
        for network in marked:
            ban = self._ledger.covering(network)
            is_meant = place.ended is None or index.covering(network) is not None
            if is_meant and (ban is None or ban.is_over(now)):
                over.append(network)
        return [network for network, stone in self._ledger.tombstones(over).items() if stone.logged]


def _changes(place: Place, networks: Sequence[Network]) -> list[Change]:
    why = "PortSentry's mark of a ban that ended"
    return [Change(place.traces.name, Action.REMOVE, network, why) for network in networks]
