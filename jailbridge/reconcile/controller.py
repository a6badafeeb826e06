"""Observes the stores, has the plan made, applies it, and observes again: success is what is read back.

One store's failure never holds up the others: a store out of reach is tried again later, at growing intervals.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from jailbridge.config.settings import PolicySettings
from jailbridge.errors import FatalError, RetryLater
from jailbridge.ledger import Ledger
from jailbridge.model.ban import Ban, Decision
from jailbridge.model.network import Network, NetworkSet, network_text
from jailbridge.model.plan import Action, Change, External, ObservedBan, Placement, Plan
from jailbridge.model.token import NO_BOOT, TokenState, token_state
from jailbridge.policy.decide import Past, adopted
from jailbridge.policy.exempt import Exemptions
from jailbridge.reconcile.diff import Outcome, Presence, View, fit, outcome, presence
from jailbridge.stores.protocol import Store

log = logging.getLogger("jailbridge.reconcile")

FIRST_RETRY_S = 1.0
LAST_RETRY_S = 30.0


@dataclass(slots=True)
class Backoff:
    """When a failing store is tried again (seconds of the monotonic clock).

    writing  whether it was writing that failed: then reading well mends nothing
    """

    not_before: float = 0.0
    delay: float = FIRST_RETRY_S
    problem: str | None = None
    writing: bool = False

    def failed(self, problem: str, now: float, *, writing: bool) -> bool:
        """Note a failure; tell whether it is a new one."""
        is_new = problem != self.problem
        self.problem, self.not_before, self.writing = problem, now + self.delay, writing
        self.delay = min(self.delay * 2, LAST_RETRY_S)
        return is_new

    def succeeded(self, *, writing: bool) -> bool:
        """Note that reading, or writing, worked; tell whether that ends a failure."""
        if self.problem is None or (self.writing and not writing):
            return False
        self.problem, self.delay, self.not_before, self.writing = None, FIRST_RETRY_S, 0.0, False
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """A store, what a person's change in it means, and how it fares."""

    store: Store
    external: External
    backoff: Backoff = field(default_factory=Backoff)


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
    ) -> None:
        self._brake = brake
        self._waiting: Mapping[str, int] = {}
        self._ledger = ledger
        self._stores = {attached.store.name: attached for attached in stores}
        self._rules = rules
        self._exemptions = exemptions
        self._boot = boot
        self._clock = clock
        self._last_exemptions = Exemptions()

    @property
    def stores(self) -> tuple[str, ...]:
        """The names of the stores, in the order in which they are written."""
        return tuple(self._stores)

    @property
    def next_retry(self) -> float | None:
        """When the first failing store is due again (monotonic seconds), None where none fails."""
        return min((a.backoff.not_before for a in self._stores.values() if a.backoff.problem), default=None)

    def plan(self, now: datetime) -> Plan:
        """Observe every store and return what would change. Changes nothing."""
        return self._outcome(self._observe(now, patient=False), now).plan

    def presences(self, now: datetime) -> Mapping[Network, Mapping[str, Presence]]:
        """Observe every store and tell, for each live ban, how each of them stands to it."""
        wanted = self._wanted(now)
        columns = {view.name: _column(view, wanted) for view in self._observe(now, patient=False)}
        return {network: {name: column(network) for name, column in columns.items()} for network in self._ledger.bans()}

    def reconcile(self, now: datetime, *, patient: bool = False) -> Plan:
        """Bring the stores in line; return what is left over.

        patient  leave failing stores alone until they are due
        """
        views = self._observe(now, patient=patient)
        first = self._outcome(views, now)
        self._take_over(first, now)
        wanted = self._wanted(now)
        after = [self._settle(view, first.plan.changes, wanted, now) for view in views]
        return self._outcome(after, now).plan

    def restore(self, now: datetime) -> Plan:
        """Put every live ban back into the stores that can be written before the network is up; remove nothing.

        Returns what is left over in those stores.
        """
        early = [self._view(a, now, patient=False) for a in self._stores.values() if a.store.capabilities.early]
        if ahead := [view for view in early if view.token is TokenState.AHEAD]:
            # What a later ledger wrote (this one is an older backup) would be nobody's once our token stands there.
            self._take_over(self._outcome(ahead, now), now)
        wanted = self._wanted(now)

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
            if waiting and not self._waiting.get(name):
                log.error(
                    "store=%s bans=%d found there wait: over the policy's limits, or exemptions unknown", name, waiting
                )
        self._waiting = found.undecided

    def _wanted(self, now: datetime) -> Mapping[Network, Ban]:
        self._last_exemptions = exemptions = self._exemptions() or self._last_exemptions
        return {
            network: ban
            for network, ban in self._ledger.bans().items()
            if not ban.is_over(now) and (ban.forced or exemptions.find(network) is None)
        }

    def _outcome(self, views: Sequence[View], now: datetime) -> Outcome:
        exemptions = self._exemptions()

        def is_settled(observed: ObservedBan) -> bool:
            if exemptions is not None and exemptions.find(observed.network) is not None:
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
        return outcome(self._wanted(now), views, is_settled, adopt if exemptions is not None else None, room)

    def _observe(self, now: datetime, *, patient: bool) -> list[View]:
        return [self._view(attached, now, patient=patient) for attached in self._stores.values()]

    def _view(self, attached: Attached, now: datetime, *, patient: bool) -> View:
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
            if backoff.failed(str(error), self._clock(), writing=False):
                log.warning("store=%s unreachable: %s", store.name, error)
            return replace(unseen, problem=str(error))
        if backoff.succeeded(writing=False):
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
        return replace(unseen, observation=seen, token=state, problem=backoff.problem)

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
        attached = self._stores[view.name]
        own = [change for change in changes if change.store == view.name and change.action is not Action.ADOPT]
        if own or (proving and view.token is not TokenState.CURRENT):
            view = self._apply(attached, own, now, proving=proving)
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
        store = attached.store
        written = [c.network for c in own if c.action in {Action.ADD, Action.UPDATE} and c.network is not None]
        token = self._ledger.attempt(store.name, written, boot=self._boot_of(store), layout=store.capabilities.layout)
        try:
            rejections = store.apply(own, token, now)
        except (RetryLater, FatalError) as error:
            if attached.backoff.failed(str(error), self._clock(), writing=True):
                log.warning("store=%s changes=%d not written: %s", store.name, len(own), error)
            return replace(self._view(attached, now, patient=True), problem=str(error))
        for change in own:
            log.info(
                "store=%s action=%s address=%s why=%s",
                change.store,
                change.action,
                network_text(change.network) if change.network is not None else "-",
                change.why,
            )
        for rejection in rejections:
            log.error("store=%s refused action=%s: %s", store.name, rejection.change.action, rejection.why)
        view = self._view(attached, now, patient=False)
        if proving and view.observation is not None and view.observation.token == str(token):
            self._ledger.confirm(store.name, (), (), token)
            view = replace(view, token=TokenState.CURRENT)
        return view

    def _boot_of(self, store: Store) -> str:
        return self._boot if store.capabilities.volatile else NO_BOOT


def _column(view: View, wanted: Mapping[Network, Ban]) -> Callable[[Network], Presence]:
    if view.observation is None:
        return lambda _: Presence.UNREACHABLE
    fitted, held = fit(wanted, view.capabilities), NetworkSet(ban.network for ban in view.observation.bans)
    return lambda network: presence(network, fitted, held)
