"""What a difference between a store and the ledger means, and the plan that follows. Pure.

A wish  a ban confirmed in a store is gone from it, the token is current, and external = adopt: somebody ended it. Not
        where the store's own end for it had come (unless the clock was set back since: it has stood for its time), nor
        where more than WISHES of what it held is gone at once.
A find  a ban that the ledger does not know stands in a store with external = adopt, and its token is current, or the
        ban is younger than what this ledger wrote there last (the token is lost at a restart; then the ledger may be
        an older copy, or nobody was there to notice); or it stands in a store that another ledger wrote last, or this
        one never did, whatever external says.
A loss  everything else that is missing.

Verdicts of all stores are collected before any store is diffed against what is then desired, so one pass never undoes
itself. Exempt beats unban (an exempt ban is not desired), unban beats adopt, adopt beats loss. A newer command of an
operator beats them all: it makes a ban's placements unproven (see Ledger.record), and then nothing is inferred.
"""

import sys
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime

from jailbridge.model.ban import Ban, Decision
from jailbridge.model.network import Network, NetworkSet
from jailbridge.model.plan import Action, Change, External, ObservedBan, Placement, Plan, StoreSummary
from jailbridge.model.token import Token, TokenState
from jailbridge.reconcile.diff import Desired, View, differences, has_run_out

# Of what a store held so many bans may be taken out at once by a person; more is an accident.
WISHES, WISHES_SHARE = 3, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A plan, and by store what its verdicts bring into the ledger, and those bans that must wait.

    adopted    the bans that `adopt` changes bring into the ledger
    unbanned   the bans that `unban` changes end there
    undecided  what a store holds and nobody can decide on now
    braked     how many of the adopted ones use up the brake's room
    desired    what is wanted once the verdicts are carried out
    """

    plan: Plan
    desired: Desired
    braked: int
    adopted: Mapping[str, Sequence[Ban]]
    unbanned: Mapping[str, Sequence[Network]]
    undecided: Mapping[str, Set[Network]]


def outcome(
    wanted: Desired,
    views: Sequence[View],
    is_settled: Callable[[ObservedBan, bool], bool],
    adopt: Callable[[ObservedBan, str], Decision] | None,
    now: datetime,
    *,
    today: datetime | None = None,
    room: int = sys.maxsize,
    forced: bool = False,
) -> Outcome:
    """Return the plan that brings the stores in line with `wanted`: the live bans without those that are masked.

    is_settled  tells whether a ban found in a store is one that ended, or is exempt: a recorded cause to remove it; of
                a store that is newer than the ledger only what a person ended, that very network, counts
    adopt       policy's decision on a ban found in a store and unknown to the ledger; None while policy cannot decide:
                then such bans are left as they are
    today       the time by the clock, where `now` is held back so that nothing ends
    room        how many bans may be adopted because a person (or fail2ban, from a log) put them there: the brake. The
                others are left as they are. What another ledger wrote is not braked: it is not news.
    forced      nothing is braked, and whatever is gone where a wish can be is a wish
    """
    changes: list[Change] = []
    unbanned = {view.name: _wishes(view, wanted, now, forced=forced) for view in views}
    for name, networks in unbanned.items():
        changes += [Change(name, Action.UNBAN, network, f"taken out of {name}") for network in networks]
    braked = 0
    adopted: dict[str, Sequence[Ban]] = {}
    undecided: dict[str, Set[Network]] = {}
    # What lies in a network that somebody has just ended is looked at in the next pass, by its own time.
    known = wanted
    for view in views:
        left = sys.maxsize if forced else room - braked
        adopted[view.name], undecided[view.name] = _finds(view, known, is_settled, adopt, today or now, left)
        if bans := adopted[view.name]:
            known = Desired({**known.bans, **{ban.network: ban for ban in bans}})
            braked += 0 if view.is_anothers else len(bans)
            changes += [Change(view.name, Action.ADOPT, ban.network, ban.reason, ban.until) for ban in bans]
    ended = {network for networks in unbanned.values() for network in networks}
    desired = Desired({n: ban for n, ban in known.bans.items() if n not in ended}) if ended else known
    summaries: dict[str, StoreSummary] = {}
    for view in views:
        changes += differences(view, desired, now, undecided[view.name])
        summaries[view.name] = _summary(view, len(desired.fit(view.capabilities)))
    plan = Plan(changes=tuple(changes), stores=summaries)
    return Outcome(plan=plan, desired=desired, braked=braked, adopted=adopted, unbanned=unbanned, undecided=undecided)


def _wishes(view: View, wanted: Desired, now: datetime, *, forced: bool) -> Sequence[Network]:
    """Return the bans that somebody took out of a store and meant it."""
    if view.observation is None or not _is_persons(view):
        return ()
    held, fitted = view.observation.held, wanted.fit(view.capabilities)
    lacking = [n for n in fitted if n not in held and view.placements.get(n) is Placement.CONFIRMED]
    if not lacking:
        return ()
    proven = [network for network in fitted if view.placements.get(network) is Placement.CONFIRMED]
    index = NetworkSet(held)
    gone = [n for n in lacking if index.covering(n) is None and not has_run_out(view, n, now)]
    # What a storm has added since the last reading makes no accident smaller.
    before = len(proven) if view.held_before is None else min(len(proven), view.held_before)
    return tuple(gone) if forced or len(gone) <= max(WISHES, before // WISHES_SHARE) else ()


def _finds(
    view: View,
    known: Desired,
    is_settled: Callable[[ObservedBan, bool], bool],
    adopt: Callable[[ObservedBan, str], Decision] | None,
    now: datetime,
    room: int,
) -> tuple[Sequence[Ban], Set[Network]]:
    """Return the bans to adopt from a store, and those that it holds and nobody can decide on now.

    A ban of another ledger begins anew: how long that one meant it to last is not known.
    """
    taken: list[Ban] = []
    undecided: set[Network] = set()
    for observed in _strangers(view, known):
        network, is_news = observed.network, _is_news(observed, view, now)
        if not (is_news or view.is_anothers or adopt is None):
            continue
        if known.index.covering(network) is not None:
            continue
        if is_settled(_dated(observed, view), view.is_newer_than_ledger):
            continue
        if adopt is None or (is_news and len(taken) >= room):
            undecided.add(network)
        elif (ban := adopt(observed._replace(since=None) if view.is_anothers else observed, view.name).ban) is not None:
            taken.append(ban)
    return tuple(taken), undecided


def _dated(observed: ObservedBan, view: View) -> ObservedBan:
    """Return a ban that another ledger wrote with the time of that writing, where the store does not tell its own."""
    if observed.since is not None or not view.is_newer_than_ledger or view.observation is None:
        return observed
    token = Token.parse(view.observation.token)
    return observed._replace(since=token.written if token is not None else None)


def _strangers(view: View, known: Desired) -> Sequence[ObservedBan]:
    """Return what a store holds and the ledger neither knows nor, if it is not older, ever wrote there."""
    if view.observation is None:
        return ()
    # Most often there is nobody among very many, and sets tell it in no time.
    strangers = view.observation.held.keys() - known.bans.keys()
    if strangers and not view.is_newer_than_ledger:
        strangers -= view.placements.keys()
    return [ban for ban in view.observation.bans if ban.network in strangers] if strangers else ()


def _is_persons(view: View) -> bool:
    """Tell whether what differs in a store is a person's doing, and means something there."""
    return view.token is TokenState.CURRENT and view.external is External.ADOPT


def _is_news(observed: ObservedBan, view: View, now: datetime) -> bool:
    """Tell whether somebody has put a ban into a store of ours since, though nothing may vouch for the rest of it."""
    if view.is_anothers or view.external is not External.ADOPT:
        return False
    if view.token is TokenState.CURRENT:
        return True
    # Of a time that is yet to come (the clock was set back since) nobody knows when it was.
    return observed.since is not None and view.written is not None and view.written < observed.since <= now


def _summary(view: View, desired: int) -> StoreSummary:
    seen = view.observation
    return StoreSummary(
        reachable=seen is not None,
        enforcing=seen.enforcing if seen is not None else None,
        desired=desired,
        observed=len(seen.bans) if seen is not None else 0,
        foreign=seen.foreign if seen is not None else 0,
        problem=view.problem,
    )
