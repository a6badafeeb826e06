"""Reads and writes one store for the ledger, and keeps the ledger's record of what was written and seen there.

Decides nothing: what must change is told, what is wanted too.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

from jailbridge.errors import FatalError, JailBridgeError, RetryLater
from jailbridge.ledger import Ledger
from jailbridge.model.ban import Ban
from jailbridge.model.network import Network, network_text
from jailbridge.model.plan import Action, Change, Rejection
from jailbridge.model.token import NO_BOOT, Token, TokenState, token_state
from jailbridge.reconcile.attached import Attached
from jailbridge.reconcile.diff import View
from jailbridge.reconcile.shelf import Shelf
from jailbridge.reconcile.verdicts import Outcome
from jailbridge.stores.protocol import Drifted, Store

log = logging.getLogger("jailbridge.reconcile")

# More changes of a store at once are told as a number; each of them at the level debug.
TOLD = 20
# Verdicts change the ledger, and through it every store.
IN_LEDGER = frozenset({Action.ADOPT, Action.UNBAN})


class Access:
    """The way to the stores of one ledger, in this boot. `interval_s`: how long one is believed before it is read."""

    def __init__(self, ledger: Ledger, boot: str, clock: Callable[[], float], interval_s: float) -> None:
        self._ledger = ledger
        self._boot = boot
        self._clock = clock
        self._interval_s = interval_s

    def look(self, attached: Attached, now: datetime, *, patient: bool, believing: bool) -> View:
        """Read a store, or believe what is known of it where it is not due; `patient`: leave a failing one alone."""
        began = self._clock()
        if believing and attached.can_be_carried_to and not attached.is_due(began, patient=patient):
            return self._believed(attached)
        attached.shelf = None
        view = replace(self.view(attached, now, patient=patient), held_before=attached.held)
        attached.held = len(view.observation.bans) if view.observation is not None else attached.held
        attached.was_read(self._clock(), self._clock() - began, self._interval_s)
        return view

    def _believed(self, attached: Attached) -> View:
        shelf = attached.shelf
        return View(
            name=attached.store.name,
            capabilities=attached.store.capabilities,
            external=attached.external,
            observation=shelf.observation if shelf is not None else None,
            placements=self._ledger.places.of(attached.store.name),
            own_end=partial(self._ledger.places.own_end, attached.store.name),
            token=TokenState.CURRENT if shelf is not None and shelf.proven else TokenState.STALE,
            ever_written=True,
            problem=attached.backoff.problem or (shelf.problem if shelf is not None else None),
            is_believed=True,
        )

    def view(self, attached: Attached, now: datetime, *, patient: bool, noted: bool = True) -> View:
        """Read a store; `noted`: this is the reading that was due, and how it went counts."""
        store, backoff = attached.store, attached.backoff
        recorded = self._ledger.places.token(store.name)
        unseen = View(
            name=store.name,
            capabilities=store.capabilities,
            external=attached.external,
            observation=None,
            placements=self._ledger.places.of(store.name),
            own_end=partial(self._ledger.places.own_end, store.name),
            ever_written=self._ledger.places.ever_written(store.name),
            written=self._ledger.places.written(store.name),
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
            last_sequence=self._ledger.places.last_sequence(store.name),
            boot=self._boot_of(store),
        )
        if state is TokenState.CURRENT and recorded is not None and recorded.layout != store.capabilities.layout:
            state = TokenState.STALE
        problem = backoff.problem if backoff.writing else seen.problem
        return replace(unseen, observation=seen, token=state, problem=problem)

    def note(self, view: View, fitted: Mapping[Network, Ban], *, judged: bool) -> View:
        """Note what a store was seen with and without; return the view as it is then.

        fitted  what it should hold
        judged  whether verdicts were made of what it lacks: that this is gone later too means nothing then
        """
        if view.observation is None or view.is_believed:
            return view
        # Of very many nearly all are known and proven: sets tell the others in no time.
        seen, placed = view.observation.held.keys(), view.placements.keys()
        news = (seen - placed) | (seen & self._ledger.places.unproven(view.name))
        present = [network for network in news if network in fitted]
        unseen = placed - seen
        absent = [network for network in unseen if network not in fitted]
        if present or absent:
            self._ledger.places.confirm(view.name, present, absent, None)
        if judged and view.is_newer_than_ledger and view.capabilities.ends:
            self._ledger.places.correct(view.name, {n: ban.until for n, ban in view.observation.held.items()})
        if judged and len(unseen) > len(absent):
            self._ledger.places.miss(view.name, unseen)
        return replace(view, placements=self._ledger.places.of(view.name)) if present or unseen else view

    def settle(
        self,
        attached: Attached,
        view: View,
        changes: Iterable[Change],
        fitted: Mapping[Network, Ban],
        now: datetime,
        *,
        patient: bool = False,
        proving: bool = True,
        renewing: bool = False,
    ) -> View:
        """Apply a store's own part of the changes, read it back, note what was seen; return the new view.

        fitted    what the store should hold
        patient   whether our rules may wait for their turn to be put in force again
        proving   whether the store then holds what it should and nothing else, so that its token proves a later
                  difference to be somebody's doing
        renewing  whether somebody's doing was found there: a copy from before it must not bear our newest token
        """
        if view.observation is None:
            return view
        turn = view.capabilities.turn
        own = [change for change in changes if change.store == view.name and change.action not in IN_LEDGER]
        is_as_left = view.token is TokenState.CURRENT and not renewing
        if not own and is_as_left:
            # What could not be written is not wanted any more.
            return self._mended(attached, view)
        # What was lost altogether is made anew at once.
        if view.token is not TokenState.ABSENT and any(change.action is Action.HOOK for change in own):
            if patient and self._clock() < attached.hook_at:
                own = [change for change in own if change.action is not Action.HOOK]
            else:
                attached.hook_at = self._clock() + self._interval_s
        proving = proving and (turn is None or len(own) <= turn)
        if not own and (not proving or is_as_left):
            return view
        view = self._apply(attached, view, own[:turn], now, proving=proving)
        return self._mended(attached, self.note(view, fitted, judged=False)) if view.observation is not None else view

    def _mended(self, attached: Attached, view: View) -> View:
        if attached.backoff.succeeded(writing=True):
            log.info("store=%s written again", view.name)
        problem = view.observation.problem if view.observation is not None else None
        return replace(view, problem=problem) if view.problem != problem else view

    def carry(self, attached: Attached, shelf: Shelf, desired: Mapping[Network, Ban], now: datetime) -> bool:
        """Write one turn of what waits; False where the store turned out to hold something else."""
        own = shelf.turn(desired, now)
        proving = not shelf.waiting
        if not own and (shelf.proven or not proving):
            return True
        # Not known until it is written and on record.
        attached.shelf = None
        token = self._attempt(attached, own, now)
        try:
            rejections = self._write(attached, own, token, now, expected=shelf.token)
        except Drifted:
            return False
        except (RetryLater, FatalError) as error:
            self._not_written(attached, own, error)
            return True
        done = shelf.note(own, rejections)
        shelf.token, shelf.proven = str(token), proving
        self._acknowledged(attached, done, token if proving else None)
        if not proving:
            self._ledger.places.void(attached.store.name)
        attached.shelf = shelf
        return True

    def _acknowledged(self, attached: Attached, done: Iterable[Change], token: Token | None) -> None:
        """Note the changes that a store has acknowledged, without a reading."""
        present = [c.network for c in done if c.action is not Action.REMOVE and c.network is not None]
        absent = [c.network for c in done if c.action is Action.REMOVE and c.network is not None]
        self._ledger.places.confirm(attached.store.name, present, absent, token)

    def shelve(self, attached: Attached, view: View, left: Outcome, took_s: float) -> None:
        """Keep what a pass has found, or left, in a store, so that the next changes can be carried there.

        `took_s`: what the pass took, which the next reading will again.
        """
        if attached.shelf is None:
            attached.was_read(self._clock(), took_s, self._interval_s)
        attached.shelf = None
        if view.observation is None or attached.backoff.problem is not None:
            return
        proven, takes_turns = view.token is TokenState.CURRENT, view.capabilities.turn is not None
        if not proven and (not takes_turns or view.observation.token is None):
            # Another got at it between our writing and our reading: it must be read again.
            return
        # Where changes are taken in turns the rest is not done yet; elsewhere what is left was refused.
        rest = {c.network: c for c in left.plan.changes if c.store == view.name and c.action not in IN_LEDGER}
        known = left.desired.bans
        waiting = {network: None for network in rest if network is not None} if takes_turns else {}
        attached.shelf = Shelf(
            name=view.name,
            capabilities=view.capabilities,
            token=view.observation.token,
            proven=proven,
            enforcing=view.observation.enforcing,
            foreign=view.observation.foreign,
            problem=view.observation.problem,
            # With the ledger's own networks for keys: of 100,000 a copy takes 11 MB.
            bans={known[n].network if n in known else n: ban.until for n, ban in view.observation.held.items()},
            # Of what we wrote there nobody asks it.
            since={
                n: ban.since
                for n, ban in view.observation.held.items()
                if ban.since is not None and n not in view.placements
            },
            placements=view.placements,
            undecided=left.undecided[view.name],
            crowded=view.capabilities.limit is not None and len(left.desired.bans) > view.capabilities.limit,
            waiting=waiting,
            refused={} if takes_turns else rest,
        )
        if left.undecided[view.name]:
            attached.read_at = min(attached.read_at, self._clock() + self._interval_s)

    def _apply(self, attached: Attached, seen: View, own: Sequence[Change], now: datetime, *, proving: bool) -> View:
        """Write, and read back what was read before. Raises Drifted where the store was only believed.

        Nothing is written where another wrote since it was read: then what it bears would become our newest token.
        Where our rules are put back, or the token proves nothing, what is there gets ours whatever it bears.
        """
        shelf, expected = attached.shelf, None
        is_certain = seen.token is TokenState.CURRENT and all(change.action is not Action.HOOK for change in own)
        if seen.observation is not None and (shelf is not None or is_certain):
            expected = seen.observation.token
        token = self._attempt(attached, own, now)
        try:
            rejections = self._write(attached, own, token, now, expected=expected)
        except (RetryLater, FatalError) as error:
            if shelf is not None and isinstance(error, Drifted):
                raise
            self._not_written(attached, own, error)
            return replace(self.view(attached, now, patient=True), problem=str(error))
        if shelf is None:
            view = self.view(attached, now, patient=False)
            proving = proving and view.observation is not None and view.observation.token == str(token)
        else:
            self._acknowledged(attached, shelf.note(own, rejections), None)
            shelf.token, shelf.proven = str(token), proving
            view = self._believed(attached)
        if proving:
            self._ledger.places.confirm(attached.store.name, (), (), token)
            view = replace(view, token=TokenState.CURRENT)
        else:
            self._ledger.places.void(attached.store.name)
        return view

    def _attempt(self, attached: Attached, own: Sequence[Change], now: datetime) -> Token:
        """Note what is about to be written. Raises FatalError: a ledger that cannot be is no store's problem."""
        store = attached.store
        keeps_ends = store.capabilities.ends
        written = {
            c.network: c.until if keeps_ends else None
            for c in own
            if c.action in {Action.ADD, Action.UPDATE} and c.network is not None
        }
        return self._ledger.places.attempt(
            store.name,
            written,
            boot=self._boot_of(store),
            layout=store.capabilities.layout,
            now=now,
            removed=[c.network for c in own if c.action is Action.REMOVE and c.network is not None],
        )

    def _write(
        self, attached: Attached, own: Sequence[Change], token: Token, now: datetime, *, expected: str | None
    ) -> Sequence[Rejection]:
        store = attached.store
        rejections = store.apply(own, token, now, expected=expected)
        attached.write_at = self._clock() + store.capabilities.pause_s
        refused = {rejection.change for rejection in rejections}
        done = [change for change in own if change not in refused]
        self._ledger.story.placed(store.name, done, now)
        self._tell(store.name, done)
        for rejection in rejections:
            log.error("store=%s refused action=%s: %s", store.name, rejection.change.action, rejection.why)
        return rejections

    def _tell(self, store: str, done: Sequence[Change]) -> None:
        level = logging.INFO if len(done) <= TOLD else logging.DEBUG
        if level == logging.DEBUG:
            log.info("store=%s changes=%d", store, len(done))
        if log.isEnabledFor(level):
            for change in done:
                address = network_text(change.network) if change.network is not None else "-"
                log.log(level, "store=%s action=%s address=%s why=%s", store, change.action, address, change.why)

    def _not_written(self, attached: Attached, own: Sequence[Change], error: JailBridgeError) -> None:
        attached.shelf = None
        if attached.backoff.failed(str(error), self._clock(), writing=True):
            log.warning("store=%s changes=%d not written: %s", attached.store.name, len(own), error)

    def _boot_of(self, store: Store) -> str:
        return self._boot if store.capabilities.volatile else NO_BOOT
