"""Observes the stores, has the plan made, applies it, and observes again: success is what is read back.

Between two readings changes of the ledger are carried to the stores as they come; then success is what a store
acknowledges. One store's failure never holds up the others: a store out of reach is tried again at growing intervals.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from datetime import datetime
from itertools import chain
from typing import Protocol

from jailbridge.config.settings import PolicySettings
from jailbridge.ledger import Ledger
from jailbridge.model.ban import Ban, Decision, EndReason
from jailbridge.model.network import Network, NetworkIndex, NetworkSet, network_text
from jailbridge.model.plan import Change, External, ObservedBan, Plan, StoreSummary
from jailbridge.policy.decide import Past, adopted
from jailbridge.policy.exempt import Exemptions
from jailbridge.reconcile.access import Access
from jailbridge.reconcile.attached import Attached
from jailbridge.reconcile.clearing import Clearing
from jailbridge.reconcile.diff import Desired, Presence, View, presence
from jailbridge.reconcile.shelf import Shelf
from jailbridge.reconcile.verdicts import Outcome, outcome
from jailbridge.stores.protocol import Drifted, Traces

log = logging.getLogger("jailbridge.reconcile")

# Who ends a ban for good, whatever another ledger made of it later.
BY_PERSONS = frozenset({EndReason.OPERATOR, EndReason.ALLOW, EndReason.STORE})
# Changes of the ledger taken note of at once.
NEWS = 10_000


class Brake(Protocol):
    """Bounds how many bans a minute may be taken over from the stores."""

    def left(self) -> int:
        """Return how many may be taken over now."""
        ...

    def spend(self, number: int) -> None:
        """Note that so many were."""
        ...


class Controller:
    """Keeps the stores in line with one ledger.

    exemptions  this moment's; None while an allow list cannot be read: then nothing unknown is adopted or removed, and
                what the last ones masked stays masked
    """

    def __init__(
        self,
        ledger: Ledger,
        stores: Sequence[Attached],
        rules: PolicySettings,
        exemptions: Callable[[], Exemptions | None],
        boot: str,
        clock: Callable[[], float] = time.monotonic,
        brake: Brake | None = None,
        interval_s: float = 30.0,
        traces: Sequence[Traces] = (),
        today: Callable[[], datetime] | None = None,
    ) -> None:
        """Take over the stores, which are written in this order.

        interval_s  how long a store is believed at the least before it is read again
        traces      where PortSentry leaves its own marks
        today       the time by the clock, where the `now` of a call may be held back so that nothing ends
        """
        self._clearing = Clearing(ledger, traces, clock)
        self._brake = brake
        self._undecided: Mapping[str, Set[Network]] = {}
        self._ledger = ledger
        self._stores = {attached.store.name: attached for attached in stores}
        self._rules = rules
        self._exemptions = exemptions
        self._today = today
        self._clock = clock
        self._access = Access(ledger, boot, clock, interval_s)
        self._last_exemptions: Exemptions | None = None
        # What the shelves are held against: the ledger up to a change of its feed, less whom these exemptions mask.
        self._desired: dict[Network, Ban] = {}
        self._index: NetworkIndex | None = None
        self._heard = -1
        self._masks: Exemptions | None = None
        self._was_paused = False
        # Stores that another ledger wrote last, as far as that was told.
        self._newer = set[str]()

    @property
    def stores(self) -> tuple[str, ...]:
        """The names of the stores, in the order in which they are written."""
        return tuple(self._stores)

    @property
    def next_turn(self) -> float | None:
        """When there is something to do even if nothing happens (monotonic seconds), None for not before an interval.

        A failing store is due again, or one that takes its changes in turns has some left.
        """
        turns = [a.write_at for a in self._stores.values() if (shelf := a.shelf) is not None and shelf.is_owed]
        retries = [a.backoff.not_before for a in self._stores.values() if a.shelf is None and a.backoff.problem]
        return min([*turns, *retries], default=None)

    @property
    def next_reading(self) -> float | None:
        """When a store that is believed has to be read again (monotonic seconds); None where none is believed."""
        return min((a.read_at for a in self._stores.values() if a.shelf is not None), default=None)

    def plan(self, now: datetime, *, only: str | None = None, forced: bool = False) -> Plan:
        """Observe the stores and return what `reconcile` would change. Changes nothing."""
        exemptions = self._exemptions()
        found = self._outcome(self._observe(now, only), self._wanted(now, exemptions), now, exemptions, forced=forced)
        return self._with_traces(found.plan, now, patient=False) if only is None else found.plan

    def presences(self, now: datetime) -> Mapping[Network, Mapping[str, Presence]]:
        """Observe every store and tell, for each live ban, how each of them stands to it; in a pause none does."""
        wanted = self._wanted(now, self._exemptions())
        always = Presence.DISABLED if self._ledger.paused(now) else None
        columns = {view.name: _column(view, wanted, always) for view in self._observe(now)}
        return {network: {name: column(network) for name, column in columns.items()} for network in self._ledger.bans()}

    @property
    def problems(self) -> Mapping[str, str]:
        """What is the matter with the stores, by their names."""
        shelves = {name: attached.shelf for name, attached in self._stores.items()}
        own = {name: shelf.problem for name, shelf in shelves.items() if shelf is not None}
        found = {name: attached.backoff.problem or own.get(name) for name, attached in self._stores.items()}
        return {name: problem for name, problem in found.items() if problem is not None}

    def notice(self) -> None:
        """Ask every store that is believed whether another may have changed something: then it is read soon.

        Of those out of reach only one that tells news is asked: then its turn is now.
        """
        for attached in self._stores.values():
            asked = attached.shelf is not None or attached.store.capabilities.tells
            if asked and attached.store.touched():
                attached.was_touched(self._clock())
                attached.backoff.seen(self._clock())
        if self._heard >= 0:
            # Worked out while nobody waits for it: at 100,000 bans it takes a third of a second.
            self._whole_index()

    def reconcile(
        self,
        now: datetime,
        *,
        patient: bool = False,
        believing: bool = False,
        forced: bool = False,
        only: str | None = None,
    ) -> Plan:
        """Bring the stores in line; return what is left over.

        patient    leave failing stores alone until they are due
        believing  read only those stores that are due for it; of the others believe what is known
        forced     past the brake on what the stores are found with
        only       the one store to look at; what that changes reaches the others in the next pass
        """
        try:
            return self._pass(now, patient=patient, believing=believing, forced=forced, only=only)
        except Drifted:
            return self._pass(now, patient=patient, believing=False, forced=forced, only=only)

    def _pass(self, now: datetime, *, patient: bool, believing: bool, forced: bool, only: str | None) -> Plan:
        began = self._clock()
        views = [self._access.look(a, now, patient=patient, believing=believing) for a in self._chosen(only)]
        # A pass that is cut short is made again: until it is over, nothing can be carried.
        self._heard = -1
        self._tell_who_is_newer(views)
        # Those of one moment, or what came in between would never be noticed.
        exemptions = self._exemptions()
        first = self._outcome(views, self._wanted(now, exemptions), now, exemptions, forced=forced)
        self._take_over(first, now)
        heard = self._ledger.last_change
        self._note_desired(first.desired, now)
        views = [self._access.note(view, first.desired.fit(view.capabilities), judged=True) for view in views]
        after = [self._settled(view, first, now, patient=patient) for view in views]
        is_as_before = all(view.observation is seen.observation for view, seen in zip(after, views, strict=True))
        is_done = is_as_before and not first.plan.changes
        left = first if is_done else self._outcome(after, first.desired, now, exemptions)
        for view in after:
            self._access.shelve(self._stores[view.name], view, left, self._clock() - began)
            self._index_what_is_not_desired(self._stores[view.name].shelf)
        if only is not None:
            return left.plan
        if exemptions is not None:
            self._clearing.clear(now, patient=patient)
        self._heard = heard
        return self._with_traces(left.plan, now, patient=True)

    def _settled(self, view: View, found: Outcome, now: datetime, *, patient: bool) -> View:
        if view.is_anothers and found.undecided[view.name]:
            # Our token would make it ours, and what nobody could decide on would be nobody's.
            return view
        fitted = found.desired.fit(view.capabilities)
        attached, heard = self._stores[view.name], bool(found.adopted[view.name] or found.unbanned[view.name])
        return self._access.settle(attached, view, found.plan.changes, fitted, now, patient=patient, renewing=heard)

    def carry(self, now: datetime, *, patient: bool) -> bool:
        """Carry to the stores what has changed in the ledger since, without reading them.

        Returns False where that is not enough: nothing is known yet, a store is due to be read, exemptions have
        changed, or a network that has changed holds, or lies in, another one. `patient` as in `reconcile`.
        """
        if not self._hear(now):
            return False
        # What can be carried is not kept waiting by the readings, which may take long.
        due = [a for a in self._stores.values() if a.is_due(self._clock(), patient=patient)]
        for attached in self._stores.values():
            if attached in due or attached.shelf is None or not attached.shelf.is_owed:
                continue
            if not attached.can_be_carried_to:
                attached.shelf = None
                return False
            if (not patient or self._clock() >= attached.write_at) and not self._access.carry(
                attached, attached.shelf, self._desired, now
            ):
                return False
        is_turn = self._clearing.is_due if patient else self._clearing.is_owed
        if is_turn and self._exemptions() is not None:
            self._clearing.clear(now, patient=patient)
        return not due

    def left(self, now: datetime) -> Plan:
        """Return what is left over as far as is known: what still waits, and the stores that are out of reach."""
        summaries, changes = {}, list[Change]()
        for name, attached in self._stores.items():
            shelf = attached.shelf
            changes += [*shelf.owed(self._desired, now), *shelf.refused.values()] if shelf is not None else ()
            summaries[name] = StoreSummary(
                reachable=shelf is not None,
                enforcing=shelf.enforcing if shelf is not None else None,
                desired=len(self._desired),
                observed=len(shelf.bans) if shelf is not None else 0,
                foreign=shelf.foreign if shelf is not None else 0,
                problem=attached.backoff.problem or (shelf.problem if shelf is not None else None),
            )
        plan = Plan(changes=tuple(changes), stores=summaries)
        return self._with_traces(plan, now, patient=True) if self._clearing.is_owed else plan

    def restore(self, now: datetime) -> Plan:
        """Put every live ban back into the stores that can be written before the network is up; remove nothing.

        Returns what is left over in those stores.
        """
        stores = [attached for attached in self._stores.values() if attached.store.capabilities.early]
        early = [self._access.look(attached, now, patient=False, believing=False) for attached in stores]
        exemptions, waiting = self._exemptions(), set[str]()
        if ahead := [view for view in early if view.is_newer_than_ledger]:
            # What a later ledger wrote (this one is an older backup) would be nobody's once our token stands there.
            found = self._outcome(ahead, self._wanted(now, exemptions), now, exemptions)
            self._take_over(found, now)
            waiting = {name for name, undecided in found.undecided.items() if undecided}
        wanted = self._wanted(now, exemptions)

        def planned(views: Iterable[View]) -> Plan:
            # Without placements no ban is known to have ended; what then goes is covered by what comes.
            blind = [replace(view, placements={}) for view in views]
            return outcome(wanted, blind, lambda *_: False, None, now).plan

        changes = planned(early).changes
        after = [
            view
            if view.name in waiting
            else self._access.settle(
                self._stores[view.name], view, changes, wanted.fit(view.capabilities), now, proving=False
            )
            for view in early
        ]
        return planned(after)

    def _with_traces(self, plan: Plan, now: datetime, *, patient: bool) -> Plan:
        changes, summaries = self._clearing.plan(now, patient=patient)
        return Plan(changes=(*plan.changes, *changes), stores={**plan.stores, **summaries})

    def _take_over(self, found: Outcome, now: datetime) -> None:
        for name, networks in found.unbanned.items():
            for network in self._ledger.end(networks, EndReason.STORE, now=now) if networks else ():
                log.info("store=%s address=%s was taken out there: unbanned everywhere", name, network_text(network))
        for name, bans in found.adopted.items():
            if bans:
                log.info("store=%s adopted=%d", name, len(bans))
                self._ledger.record(bans, now=now)
        if self._brake is not None:
            self._brake.spend(found.braked)
        for name, waiting in found.undecided.items():
            if waiting and not self._undecided.get(name):
                what = "store=%s bans=%d found there wait: over the policy's limits, exemptions unknown, or a pause"
                log.error(what, name, len(waiting))
        self._undecided = found.undecided

    def _tell_who_is_newer(self, views: Iterable[View]) -> None:
        """Say, once for as long as it lasts, that this ledger does not know all that a store may hold."""
        newer = [view.name for view in views if view.is_newer_than_ledger]
        for name in newer:
            if name not in self._newer:
                what = "store=%s bears the mark of another ledger: this one is new, an older copy, or another host's;"
                log.warning(what + " bans found there are taken over", name)
        self._newer = (self._newer - {view.name for view in views}) | {*newer}

    def _wanted(self, now: datetime, exemptions: Exemptions | None) -> Desired:
        self._last_exemptions = exemptions = exemptions if exemptions is not None else self._last_exemptions
        if self._ledger.paused(now):
            return Desired({})
        live = {network: ban for network, ban in self._ledger.bans().items() if not ban.is_over(now)}
        if exemptions is None:
            # Nobody knows yet whom to spare: only what was in force somewhere goes on.
            placed = set().union(*(self._ledger.places.of(name) for name in self._stores))
            return Desired({network: ban for network, ban in live.items() if ban.forced or network in placed})
        masked = {network for network in exemptions.touched(live) if not live[network].forced}
        return Desired({network: ban for network, ban in live.items() if network not in masked} if masked else live)

    def _outcome(
        self,
        views: Sequence[View],
        wanted: Desired,
        now: datetime,
        exemptions: Exemptions | None,
        *,
        forced: bool = False,
    ) -> Outcome:
        paused = self._ledger.paused(now)
        # What is found is not held back: else it would be of a time to come, or last until a time that has passed.
        today = max(now, self._today()) if self._today is not None else now

        def is_settled(observed: ObservedBan, exactly: bool) -> bool:
            if exemptions is not None and exemptions.find(observed.network) is not None:
                return True
            if paused and self._ledger.covering(observed.network) is not None:
                return True
            tombstone = self._ledger.tombstone(observed.network)
            if tombstone is None or observed.since is None:
                return False
            # A later ledger may have banned it again since it ended by itself; what a person ended stays ended.
            if exactly and (tombstone.network != observed.network or tombstone.why not in BY_PERSONS):
                return False
            # Of a time that is yet to come (the clock was set back since) nobody knows when it was.
            return (exactly and observed.since > today) or tombstone.predates(observed.since)

        def adopt(observed: ObservedBan, store: str) -> Decision:
            past = Past(
                standing=self._ledger.covering(observed.network),
                tombstone=self._ledger.tombstone(observed.network),
            )
            if observed.until is not None and self._stores[store].store.capabilities.ends:
                # It told how long yet.
                observed = observed._replace(until=observed.until + (today - now))
            return adopted(observed, store, past, self._rules, exemptions or Exemptions(), today)

        room = self._brake.left() if self._brake is not None else sys.maxsize
        may_adopt = exemptions is not None and not paused
        policy = adopt if may_adopt else None
        return outcome(wanted, views, is_settled, policy, now, today=today, room=room, forced=forced and may_adopt)

    def _note_desired(self, desired: Desired, now: datetime) -> None:
        """Begin anew what changes are carried against."""
        if self._desired.keys() != desired.bans.keys():
            self._index = None
        self._desired = dict(desired.bans)
        self._masks, self._was_paused = self._last_exemptions, self._ledger.paused(now)

    def _whole_index(self) -> NetworkIndex:
        if self._index is None:
            shelves = [a.shelf.bans for a in self._stores.values() if a.shelf is not None]
            self._index = NetworkIndex(chain(self._desired, *shelves))
        return self._index

    def _index_what_is_not_desired(self, shelf: Shelf | None) -> None:
        """Keep the index whole: what a store holds beside has to do with what comes, too."""
        if shelf is not None and self._index is not None:
            for network in shelf.bans:
                if network not in self._desired and network not in self._index:
                    self._index.add(network)

    def _hear(self, now: datetime) -> bool:
        """Take note of the ledger's changes; tell whether each of them can be carried by itself."""
        exemptions = self._exemptions() or self._last_exemptions
        paused = self._ledger.paused(now)
        if self._heard < 0 or exemptions is None or exemptions != self._masks or paused != self._was_paused:
            return False
        if paused:
            self._heard = self._ledger.last_change
            return True
        bans, index = self._ledger.bans(), self._whole_index()
        while news := self._ledger.feed(self._heard, NEWS):
            if news[0][0] != self._heard + 1:
                return False
            for sequence, _, what, network, _ in news:
                self._heard = sequence
                ban = bans.get(network)
                index.add(network)
                is_alone = index.is_alone(network)
                if ban is not None and not ban.is_over(now) and (ban.forced or exemptions.find(network) is None):
                    self._desired[network] = ban
                else:
                    index.discard(network)
                    self._desired.pop(network, None)
                if not is_alone:
                    self._heard = -1
                    return False
                self._expect(network, is_change=what == "change")
        return True

    def _expect(self, network: Network, *, is_change: bool) -> None:
        for attached in self._stores.values():
            if attached.shelf is not None:
                attached.shelf.expect(network)
            if is_change and attached.external is External.ADOPT:
                # What was seen there of the ban as it was proves nothing now: it must be seen again.
                attached.was_touched(self._clock())

    def _chosen(self, only: str | None) -> list[Attached]:
        return [attached for name, attached in self._stores.items() if only in {None, name}]

    def _observe(self, now: datetime, only: str | None = None) -> list[View]:
        """Look on, which is not the reading that is due."""
        # What another has touched is not to be forgotten because it was looked at.
        self.notice()
        return [self._access.view(attached, now, patient=False, noted=False) for attached in self._chosen(only)]


def _column(view: View, wanted: Desired, always: Presence | None) -> Callable[[Network], Presence]:
    if always is not None or view.observation is None:
        return lambda _: always or Presence.UNREACHABLE
    fitted, held = wanted.fit(view.capabilities), NetworkSet(view.observation.held)
    return lambda network: presence(network, fitted, held)
