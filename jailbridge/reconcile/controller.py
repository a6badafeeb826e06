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
from jailbridge.errors import FatalError, JailBridgeError, RetryLater
from jailbridge.ledger import Ledger
from jailbridge.model.ban import Ban, Decision
from jailbridge.model.network import Network, NetworkIndex, NetworkSet, network_text
from jailbridge.model.plan import Action, Change, ObservedBan, Placement, Plan, Rejection, StoreSummary
from jailbridge.model.token import NO_BOOT, Token, TokenState, token_state
from jailbridge.policy.decide import Past, adopted
from jailbridge.policy.exempt import Exemptions
from jailbridge.reconcile.attached import Attached
from jailbridge.reconcile.diff import Outcome, Presence, View, fit, outcome, presence
from jailbridge.reconcile.shelf import Shelf
from jailbridge.stores.protocol import Drifted, Store

log = logging.getLogger("jailbridge.reconcile")

# More changes of a store at once are told as a number; each of them at the level debug.
TOLD = 20
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
    ) -> None:
        """`interval_s`: how long a store is believed at the least before it is read again."""
        self._brake = brake
        self._undecided: Mapping[str, Set[Network]] = {}
        self._ledger = ledger
        self._stores = {attached.store.name: attached for attached in stores}
        self._rules = rules
        self._exemptions = exemptions
        self._boot = boot
        self._clock = clock
        self._interval_s = interval_s
        self._last_exemptions = Exemptions()
        # What the shelves are held against: the ledger up to a change of its feed, less whom these exemptions mask.
        self._desired: dict[Network, Ban] = {}
        self._index: NetworkIndex | None = None
        self._heard = -1
        self._masks: Exemptions | None = None
        self._was_paused = False

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

    def plan(self, now: datetime) -> Plan:
        """Observe every store and return what would change. Changes nothing."""
        return self._outcome(self._observe(now), now, self._exemptions()).plan

    def presences(self, now: datetime) -> Mapping[Network, Mapping[str, Presence]]:
        """Observe every store and tell, for each live ban, how each of them stands to it."""
        wanted = self._wanted(now, self._exemptions())
        columns = {view.name: _column(view, wanted) for view in self._observe(now)}
        return {network: {name: column(network) for name, column in columns.items()} for network in self._ledger.bans()}

    def reconcile(self, now: datetime, *, patient: bool = False, believing: bool = False) -> Plan:
        """Bring the stores in line; return what is left over.

        patient    leave failing stores alone until they are due
        believing  read only those stores that are due for it; of the others believe what is known
        """
        views = [self._look(a, now, patient=patient, believing=believing) for a in self._stores.values()]
        # A pass that is cut short is made again: until it is over, nothing can be carried.
        self._heard = -1
        # Those of one moment, or what came in between would never be noticed.
        exemptions = self._exemptions()
        first = self._outcome(views, now, exemptions)
        self._take_over(first, now)
        heard = self._ledger.last_change
        wanted = self._note_desired(now, exemptions)
        try:
            after = [self._settle(view, first.plan.changes, wanted, now) for view in views]
        except Drifted:
            return self.reconcile(now, patient=patient)
        left = self._outcome(after, now, exemptions)
        for view in after:
            self._shelve(view, left)
        self._heard = heard
        return left.plan

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
            if (not patient or self._clock() >= attached.write_at) and not self._carry_to(
                attached, attached.shelf, now
            ):
                return False
        return not due

    def left(self) -> Plan:
        """Return what is left over as far as is known: what still waits, and the stores that are out of reach."""
        summaries, changes = {}, list[Change]()
        for name, attached in self._stores.items():
            shelf = attached.shelf
            changes += [*shelf.owed(self._desired), *shelf.refused.values()] if shelf is not None else ()
            summaries[name] = StoreSummary(
                reachable=shelf is not None,
                enforcing=shelf.enforcing if shelf is not None else None,
                desired=len(self._desired),
                observed=len(shelf.bans) if shelf is not None else 0,
                foreign=shelf.foreign if shelf is not None else 0,
                problem=attached.backoff.problem,
            )
        return Plan(changes=tuple(changes), stores=summaries)

    def restore(self, now: datetime) -> Plan:
        """Put every live ban back into the stores that can be written before the network is up; remove nothing.

        Returns what is left over in those stores.
        """
        stores = [attached for attached in self._stores.values() if attached.store.capabilities.early]
        early = [self._look(attached, now, patient=False, believing=False) for attached in stores]
        if ahead := [view for view in early if view.token is TokenState.AHEAD]:
            # What a later ledger wrote (this one is an older backup) would be nobody's once our token stands there.
            self._take_over(self._outcome(ahead, now, self._exemptions()), now)
        wanted = self._wanted(now, self._exemptions())

        def planned(views: Iterable[View]) -> Plan:
            # Without placements no ban is known to have ended; what then goes is covered by what comes.
            blind = [replace(view, placements={}) for view in views]
            return outcome(wanted, blind, lambda _: False, None).plan

        changes = planned(early).changes
        return planned([self._settle(view, changes, wanted, now, proving=False) for view in early])

    def _take_over(self, found: Outcome, now: datetime) -> None:
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

    def _wanted(self, now: datetime, exemptions: Exemptions | None) -> Mapping[Network, Ban]:
        self._last_exemptions = exemptions = exemptions or self._last_exemptions
        if self._ledger.paused(now):
            return {}
        return {
            network: ban
            for network, ban in self._ledger.bans().items()
            if not ban.is_over(now) and (ban.forced or exemptions.find(network) is None)
        }

    def _outcome(self, views: Sequence[View], now: datetime, exemptions: Exemptions | None) -> Outcome:
        paused = self._ledger.paused(now)

        def is_settled(observed: ObservedBan) -> bool:
            if exemptions is not None and exemptions.find(observed.network) is not None:
                return True
            if paused and self._ledger.covering(observed.network) is not None:
                return True
            tombstone = self._ledger.tombstone(observed.network)
            return tombstone is not None and observed.since is not None and tombstone.predates(observed.since)

        def adopt(observed: ObservedBan, store: str) -> Decision:
            past = Past(
                standing=self._ledger.covering(observed.network),
                tombstone=self._ledger.tombstone(observed.network),
            )
            return adopted(observed, store, past, self._rules, exemptions or Exemptions(), now)

        room = self._brake.left() if self._brake is not None else sys.maxsize
        wanted, may_adopt = self._wanted(now, exemptions), exemptions is not None and not paused
        return outcome(wanted, views, is_settled, adopt if may_adopt else None, room)

    def _note_desired(self, now: datetime, exemptions: Exemptions | None) -> Mapping[Network, Ban]:
        """Begin anew what changes are carried against."""
        self._desired = dict(self._wanted(now, exemptions))
        self._index = None
        self._masks, self._was_paused = self._last_exemptions, self._ledger.paused(now)
        return dict(self._desired)

    def _hear(self, now: datetime) -> bool:
        """Take note of the ledger's changes; tell whether each of them can be carried by itself."""
        exemptions = self._exemptions() or self._last_exemptions
        paused = self._ledger.paused(now)
        if self._heard < 0 or exemptions != self._masks or paused != self._was_paused:
            return False
        if paused:
            self._heard = self._ledger.last_change
            return True
        if self._index is None:
            shelves = [a.shelf.bans for a in self._stores.values() if a.shelf is not None]
            self._index = NetworkIndex(chain(self._desired, *shelves))
        bans, index = self._ledger.bans(), self._index
        while news := self._ledger.feed(self._heard, NEWS):
            if news[0][0] != self._heard + 1:
                return False
            for sequence, _, _, network, _ in news:
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
                for attached in self._stores.values():
                    if attached.shelf is not None:
                        attached.shelf.expect(network)
        return True

    def _carry_to(self, attached: Attached, shelf: Shelf, now: datetime) -> bool:
        """Write one turn of what waits; False where the store turned out to hold something else."""
        own = shelf.turn(self._desired)
        proving = not shelf.waiting
        if not own and (shelf.proven or not proving):
            return True
        # Not known until it is written and on record.
        attached.shelf = None
        try:
            token, rejections = self._write(attached, own, now, expected=shelf.token)
        except Drifted:
            return False
        except (RetryLater, FatalError) as error:
            self._not_written(attached, own, error)
            return True
        done = shelf.note(own, rejections)
        shelf.token, shelf.proven = str(token), proving
        present = [c.network for c in done if c.action is not Action.REMOVE and c.network is not None]
        absent = [c.network for c in done if c.action is Action.REMOVE and c.network is not None]
        self._ledger.confirm(attached.store.name, present, absent, token if proving else None)
        attached.shelf = shelf
        return True

    def _observe(self, now: datetime) -> list[View]:
        """Look on, which is not the reading that is due."""
        return [self._view(attached, now, patient=False, noted=False) for attached in self._stores.values()]

    def _look(self, attached: Attached, now: datetime, *, patient: bool, believing: bool) -> View:
        began = self._clock()
        if believing and attached.can_be_carried_to and not attached.is_due(began, patient=patient):
            return self._believed(attached)
        attached.shelf = None
        view = self._view(attached, now, patient=patient)
        attached.was_read(self._clock(), self._clock() - began, self._interval_s)
        return view

    def _believed(self, attached: Attached) -> View:
        shelf = attached.shelf
        return View(
            name=attached.store.name,
            capabilities=attached.store.capabilities,
            external=attached.external,
            observation=shelf.observation if shelf is not None else None,
            placements=self._ledger.placements(attached.store.name),
            token=TokenState.CURRENT if shelf is not None and shelf.proven else TokenState.STALE,
            ever_written=True,
            problem=attached.backoff.problem,
        )

    def _view(self, attached: Attached, now: datetime, *, patient: bool, noted: bool = True) -> View:
        store, backoff = attached.store, attached.backoff
        recorded = self._ledger.recorded_token(store.name)
        unseen = View(
            name=store.name,
            capabilities=store.capabilities,
            external=attached.external,
            observation=None,
            placements=self._ledger.placements(store.name),
            ever_written=recorded is not None,
            problem=backoff.problem,
        )
        if patient and self._clock() < backoff.not_before:
            return unseen
        try:
            seen = store.observe(now)
        except (RetryLater, FatalError) as error:
            if noted and backoff.failed(str(error), self._clock(), writing=False):
                log.warning("store=%s unreachable: %s", store.name, error)
            return replace(unseen, problem=str(error))
        if not noted:
            backoff.seen(self._clock())
        elif backoff.succeeded(writing=False):
            log.info("store=%s reachable again", store.name)
        state = token_state(
            seen.token,
            recorded=recorded,
            ledger=self._ledger.id,
            last_sequence=self._ledger.last_sequence,
            boot=self._boot_of(store),
        )
        if state is TokenState.CURRENT and recorded is not None and recorded.layout != store.capabilities.layout:
            state = TokenState.STALE
        return replace(unseen, observation=seen, token=state, problem=backoff.problem if backoff.writing else None)

    def _settle(
        self,
        view: View,
        changes: Iterable[Change],
        wanted: Mapping[Network, Ban],
        now: datetime,
        *,
        proving: bool = True,
    ) -> View:
        """Apply a store's own part of the changes, read it back, note what was seen; return the new view.

        proving  whether the store then holds what it should and nothing else, so that its token proves a later
                 difference to be somebody's doing
        """
        if view.observation is None:
            return view
        attached, turn = self._stores[view.name], view.capabilities.turn
        own = [change for change in changes if change.store == view.name and change.action is not Action.ADOPT]
        proving = proving and (turn is None or len(own) <= turn)
        if own or (proving and view.token is not TokenState.CURRENT):
            view = self._apply(attached, own[:turn], now, proving=proving)
        if view.observation is None:
            return view
        if attached.backoff.succeeded(writing=True):
            log.info("store=%s written again", view.name)
        seen = {ban.network for ban in view.observation.bans}
        fitted = fit(wanted, view.capabilities)
        present = [n for n in seen if n in fitted and view.placements.get(n) is not Placement.CONFIRMED]
        absent = [n for n in view.placements if n not in seen and n not in fitted]
        if present or absent:
            self._ledger.confirm(view.name, present, absent, None)
        return replace(view, placements=self._ledger.placements(view.name), problem=None)

    def _apply(self, attached: Attached, own: Sequence[Change], now: datetime, *, proving: bool) -> View:
        """Write, and read back what was read before. Raises Drifted where the store was only believed."""
        shelf = attached.shelf
        try:
            token, rejections = self._write(attached, own, now, expected=shelf.token if shelf is not None else None)
        except Drifted:
            raise
        except (RetryLater, FatalError) as error:
            self._not_written(attached, own, error)
            return replace(self._view(attached, now, patient=True), problem=str(error))
        if shelf is None:
            view = self._view(attached, now, patient=False)
            proving = proving and view.observation is not None and view.observation.token == str(token)
        else:
            shelf.note(own, rejections)
            shelf.token, shelf.proven = str(token), proving
            view = self._believed(attached)
        if proving:
            self._ledger.confirm(attached.store.name, (), (), token)
            view = replace(view, token=TokenState.CURRENT)
        return view

    def _write(
        self, attached: Attached, own: Sequence[Change], now: datetime, *, expected: str | None
    ) -> tuple[Token, Sequence[Rejection]]:
        store = attached.store
        written = [c.network for c in own if c.action in {Action.ADD, Action.UPDATE} and c.network is not None]
        token = self._ledger.attempt(store.name, written, boot=self._boot_of(store), layout=store.capabilities.layout)
        rejections = store.apply(own, token, now, expected=expected)
        attached.write_at = self._clock() + store.capabilities.pause_s
        if len(own) > TOLD:
            log.info("store=%s changes=%d", store.name, len(own))
        if len(own) <= TOLD or log.isEnabledFor(logging.DEBUG):
            for change in own:
                log.log(
                    logging.INFO if len(own) <= TOLD else logging.DEBUG,
                    "store=%s action=%s address=%s why=%s",
                    change.store,
                    change.action,
                    network_text(change.network) if change.network is not None else "-",
                    change.why,
                )
        self._ledger.story.placed(store.name, own, now)
        for rejection in rejections:
            log.error("store=%s refused action=%s: %s", store.name, rejection.change.action, rejection.why)
        return token, rejections

    def _not_written(self, attached: Attached, own: Sequence[Change], error: JailBridgeError) -> None:
        attached.shelf = None
        if attached.backoff.failed(str(error), self._clock(), writing=True):
            log.warning("store=%s changes=%d not written: %s", attached.store.name, len(own), error)

    def _shelve(self, view: View, left: Outcome) -> None:
        """Keep what a pass has found, or left, in a store, so that the next changes can be carried there."""
        attached = self._stores[view.name]
        attached.shelf = None
        if view.observation is None or attached.backoff.problem is not None:
            return
        proven, takes_turns = view.token is TokenState.CURRENT, view.capabilities.turn is not None
        if not proven and (not takes_turns or view.observation.token is None):
            # Another got at it between our writing and our reading: it must be read again.
            return
        # Where changes are taken in turns the rest is not done yet; elsewhere what is left was refused.
        rest = {c.network: c for c in left.plan.changes if c.store == view.name and c.action is not Action.ADOPT}
        waiting = {network: None for network in rest if network is not None} if takes_turns else {}
        attached.shelf = Shelf(
            name=view.name,
            capabilities=view.capabilities,
            token=view.observation.token,
            proven=proven,
            enforcing=view.observation.enforcing,
            foreign=view.observation.foreign,
            bans={ban.network: ban for ban in view.observation.bans},
            placements=view.placements,
            undecided=left.undecided[view.name],
            crowded=view.capabilities.limit is not None and len(self._desired) > view.capabilities.limit,
            waiting=waiting,
            refused={} if takes_turns else rest,
        )
        if left.undecided[view.name]:
            attached.read_at = min(attached.read_at, self._clock() + self._interval_s)

    def _boot_of(self, store: Store) -> str:
        return self._boot if store.capabilities.volatile else NO_BOOT


def _column(view: View, wanted: Mapping[Network, Ban]) -> Callable[[Network], Presence]:
    if view.observation is None:
        return lambda _: Presence.UNREACHABLE
    fitted, held = fit(wanted, view.capabilities), NetworkSet(ban.network for ban in view.observation.bans)
    return lambda network: presence(network, fitted, held)
