"""What must change so that the stores agree with the ledger. Pure: facts in, a plan out.

The rows of the truth table, for one ban in one store:

    desired  observed  placement here        condition                                       action
    yes      yes       -                     its end differs                                 update
    yes      yes       -                     otherwise (a covering network counts)           none
    yes      no        -                     (*)                                             add
    no       yes       attempted, confirmed  -                                               remove
    no       yes       none                  exempt, or not after the last ban's end         remove
    no       yes       none                  a desired network covers it, in a store that    none
                                             can hold both
    no       yes       none                  token current and external = adopt,             adopt (the first kind as
                                             or the store was written by another ledger      far as the brake allows,
                                                                                             the rest: left alone)
    no       yes       none                  otherwise, in a place that is ours              remove

"Desired" is what the store can hold of the live bans: the maximal networks, the longest bans (`fit`).
(*) A missing ban is always put back. That somebody's wish may lie behind it is not inferred in this release.

Verdicts on what to adopt are collected from every store before any store is diffed against what is then desired, so one
pass never undoes itself.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from heapq import nlargest
from math import inf

from jailbridge.model.ban import Ban, Decision
from jailbridge.model.network import Network, NetworkSet, maximal
from jailbridge.model.plan import (
    Action,
    Capabilities,
    Change,
    External,
    Observation,
    ObservedBan,
    Placement,
    Plan,
    StoreSummary,
)
from jailbridge.model.token import TokenState

# A store that is told how long a ban lasts counts from when it has read the whole transaction, some seconds at 100,000
# bans, and it tells the rest in whole seconds. The ledger ends bans; a store's own end has a minute's grace.
END_TOLERANCE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One store as the planner sees it; `observation` None is a store out of reach, `problem` says why."""

    name: str
    capabilities: Capabilities
    external: External
    observation: Observation | None
    problem: str | None = None
    placements: Mapping[Network, Placement]
    token: TokenState = TokenState.ABSENT
    ever_written: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A plan, and by store: the bans that its `adopt` changes bring into the ledger, and those that must wait.

    braked  how many of the adopted ones use up the brake's room
    """

    plan: Plan
    braked: int
    adopted: Mapping[str, tuple[Ban, ...]]
    undecided: Mapping[str, Set[Network]]


class Presence(StrEnum):
    """How a store stands to one ban, as `list` shows it."""

    PRESENT = "present"
    COVERED = "covered"
    MISSING = "missing"
    UNSUPPORTED = "unsupported"
    UNREACHABLE = "unreachable"
    DISABLED = "disabled"


def outcome(
    wanted: Mapping[Network, Ban],
    views: Sequence[View],
    is_settled: Callable[[ObservedBan], bool],
    adopt: Callable[[ObservedBan, str], Decision] | None,
    room: int = sys.maxsize,
) -> Outcome:
    """Return the plan that brings the stores in line with `wanted`: the live bans without those that are masked.

    is_settled  tells whether a ban found in a store is one that ended, or is exempt: a recorded cause to remove it
    adopt       policy's decision on a ban found in a store and unknown to the ledger; None while policy cannot decide:
                then such bans are left as they are
    room        how many bans may be adopted because a person (or fail2ban, from a log) put them there: the brake. The
                others are left as they are. What another ledger wrote is not braked: it is not news.
    """
    everything = dict(wanted)
    braked = 0
    adopted: dict[str, tuple[Ban, ...]] = {}
    undecided: dict[str, Set[Network]] = {}
    changes: list[Change] = []
    for view in views:
        taken, undecided[view.name] = _verdicts(view, NetworkSet(everything), is_settled, adopt, room - braked)
        braked += len(taken) if _is_persons(view) else 0
        everything.update((ban.network, ban) for ban in taken)
        adopted[view.name] = tuple(taken)
        changes += [
            Change(store=view.name, action=Action.ADOPT, network=ban.network, until=ban.until, why=ban.reason)
            for ban in taken
        ]
    summaries: dict[str, StoreSummary] = {}
    for view in views:
        fitted = fit(everything, view.capabilities)
        changes += differences(view, fitted, NetworkSet(everything), undecided[view.name])
        summaries[view.name] = _summary(view, len(fitted))
    plan = Plan(changes=tuple(changes), stores=summaries)
    return Outcome(plan=plan, braked=braked, adopted=adopted, undecided=undecided)


def fit(wanted: Mapping[Network, Ban], capabilities: Capabilities) -> Mapping[Network, Ban]:
    """Return what a store should hold of what is wanted: if it can't hold all, the maximal networks, the longest bans.

    What is left out does not depend on any order.
    """
    fitted = dict(wanted) if capabilities.overlaps else {network: wanted[network] for network in maximal(wanted)}
    if capabilities.limit is not None and len(fitted) > capabilities.limit:
        fitted = {ban.network: ban for ban in nlargest(capabilities.limit, fitted.values(), key=rank)}
    return fitted


def rank(ban: Ban) -> tuple[float, ...]:
    """Return what bans are ordered by where not all can be held: the greatest stay. No two of them have the same.

    The longer ban counts; of those that last equally long the older one, so that a storm of new ones moves nothing.
    """
    since, network = ban.since.timestamp(), ban.network
    lasts_s = ban.until.timestamp() - since if ban.until is not None else inf
    return lasts_s, -since, -network.version, -int(network.network_address), -network.prefixlen


def presence(network: Network, fitted: Mapping[Network, Ban], observed: NetworkSet) -> Presence:
    """Tell how a store that was read stands to one live ban."""
    if network in observed:
        return Presence.PRESENT
    if observed.covering(network) is not None:
        return Presence.COVERED
    return Presence.MISSING if network in fitted else Presence.UNSUPPORTED


def _verdicts(
    view: View,
    known: NetworkSet,
    is_settled: Callable[[ObservedBan], bool],
    adopt: Callable[[ObservedBan, str], Decision] | None,
    room: int,
) -> tuple[list[Ban], Set[Network]]:
    """Return the bans to adopt from a store, and those that it holds and nobody can decide on now."""
    taken: list[Ban] = []
    undecided: set[Network] = set()
    consulted = adopt is None or _is_persons(view) or _is_other_ledgers(view)
    for observed in view.observation.bans if view.observation is not None and consulted else ():
        network = observed.network
        if network in view.placements or known.covering(network) is not None or is_settled(observed):
            continue
        if adopt is None or (_is_persons(view) and len(taken) >= room):
            undecided.add(network)
        elif (ban := adopt(observed, view.name).ban) is not None:
            taken.append(ban)
    return taken, undecided


def _is_persons(view: View) -> bool:
    """Tell whether what differs in a store is a person's doing, and means something there."""
    return view.token is TokenState.CURRENT and view.external is External.ADOPT


def _is_other_ledgers(view: View) -> bool:
    """Tell whether a store was written by a ledger that knew more than this one, or before this one was there."""
    return view.token is TokenState.AHEAD or not view.ever_written


def differences(
    view: View,
    fitted: Mapping[Network, Ban],
    everything: NetworkSet,
    undecided: Set[Network] = frozenset(),
) -> Iterator[Change]:
    """Yield what makes a store hold `fitted`, its part of `everything` that is wanted; nothing where it is unread."""
    if view.observation is None:
        return
    observed = {ban.network: ban for ban in view.observation.bans}

    def change(action: Action, network: Network | None, why: str, until: datetime | None = None) -> Change:
        return Change(store=view.name, action=action, network=network, why=why, until=until)

    if view.observation.enforcing is False:
        yield change(Action.HOOK, None, "our rules are not in force")
    # Removals first: a store without overlaps must lose a host before it takes the network around it.
    desired = NetworkSet(fitted)
    staying: list[Network] = []
    for network in observed:
        cause = _cause_to_remove(network, view, desired, everything, undecided)
        if cause is None:
            staying.append(network)
        else:
            yield change(Action.REMOVE, network, cause)
    held = NetworkSet(staying)
    for network, wanted in fitted.items():
        present = observed.get(network)
        if present is not None:
            if view.capabilities.ends and not same_end(present.until, wanted.until):
                yield change(Action.UPDATE, network, "its end differs", wanted.until)
        elif held.covering(network) is None:
            yield change(Action.ADD, network, wanted.reason, wanted.until)


def _cause_to_remove(
    network: Network,
    view: View,
    desired: NetworkSet,
    everything: NetworkSet,
    undecided: Set[Network],
) -> str | None:
    known = network in view.placements
    if network in desired:
        return None
    if desired.covering(network) is not None:
        return "covered" if known or not view.capabilities.overlaps else None
    if everything.covering(network) is not None:
        return "over its limit"
    if known:
        return "ended"
    return None if network in undecided else "not in the ledger"


def same_end(one: datetime | None, other: datetime | None) -> bool:
    """Tell whether two ends of a ban are the same to a store that counts them itself."""
    if one is None or other is None:
        return one is other
    return abs(one - other) <= END_TOLERANCE


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
