"""What must change in a store so that it holds what it should. Pure: facts in, changes out.

The rows of the truth table, for one ban in one store. "Desired" is what the store can hold of the live bans, those that
a verdict has just ended left out: the maximal networks, the longest bans (`fit`).

    desired  observed  placement here        condition                                       action
    yes      yes       -                     its end differs                                 update
    yes      yes       -                     otherwise (a covering network counts)           none
    yes      no        none, attempted       -                                               add
    yes      no        confirmed             a wish (see verdicts)                           unban everywhere
    yes      no        confirmed             otherwise: a loss                               add back
    no       yes       attempted, confirmed  the ledger is not older than the store          remove
    no       yes       none                  exempt, or not after the last ban's end         remove
    no       yes       none                  a desired network covers it, in a store that    none
                                             can hold both
    no       yes       none                  a find (see verdicts)                           adopt (the first kind as
                                                                                             far as the brake allows,
                                                                                             the rest: left alone)
    no       yes       none                  otherwise, in a place that is ours              remove
"""

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from heapq import nlargest
from math import inf

from jailbridge.model.ban import Ban
from jailbridge.model.network import Network, NetworkSet, maximal
from jailbridge.model.plan import Action, Capabilities, Change, External, Observation, Placement
from jailbridge.model.token import TokenState

# A store that is told how long a ban lasts counts from when it has read the whole transaction, some seconds at 100,000
# bans, and it tells the rest in whole seconds. The ledger ends bans; a store's own end has a minute's grace.
END_TOLERANCE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One store as the planner sees it; `observation` None is a store out of reach, `problem` says why.

    own_end  tells what end of its own a store that keeps ends was last given for a ban, None for none
    """

    name: str
    capabilities: Capabilities
    external: External
    observation: Observation | None
    problem: str | None = None
    placements: Mapping[Network, Placement]
    own_end: Callable[[Network], datetime | None] = lambda _: None
    token: TokenState = TokenState.ABSENT
    ever_written: bool = True

    @property
    def is_newer_than_ledger(self) -> bool:
        """Whether another ledger wrote it last: this one is an older copy, new, or another host's."""
        return self.token is TokenState.AHEAD

    @property
    def is_anothers(self) -> bool:
        """Whether what it holds may be another ledger's: that wrote it last, or this one never did."""
        return self.is_newer_than_ledger or not self.ever_written


class Presence(StrEnum):
    """How a store stands to one ban, as `list` shows it."""

    PRESENT = "present"
    COVERED = "covered"
    MISSING = "missing"
    UNSUPPORTED = "unsupported"
    UNREACHABLE = "unreachable"
    DISABLED = "disabled"


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


def differences(
    view: View,
    fitted: Mapping[Network, Ban],
    everything: NetworkSet,
    now: datetime,
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
            if not is_armed(present.until, wanted.until, view.capabilities, now):
                yield change(Action.UPDATE, network, "its end differs", wanted.until)
        elif held.covering(network) is None:
            yield change(Action.ADD, network, _cause_to_add(network, view, wanted), wanted.until)


def _cause_to_add(network: Network, view: View, wanted: Ban) -> str:
    if view.placements.get(network) is not Placement.CONFIRMED:
        return wanted.reason
    if view.token is TokenState.CURRENT:
        return "taken out there, put back: what ends a ban is `jailbridge unban`"
    return "lost there"


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
    if network in undecided:
        return None
    return "ended" if known else "not in the ledger"


def is_armed(held: datetime | None, wanted: datetime | None, capabilities: Capabilities, now: datetime) -> bool:
    """Tell whether a store may keep the end that it holds a ban with.

    Where it cannot count as far as is wanted, half of what it can is enough.
    """
    if not capabilities.ends:
        return True
    if held is None or wanted is None:
        return held is wanted
    longest = capabilities.longest
    is_far = longest is not None and wanted > now + longest / 2 and held > now + longest / 2
    return is_far or abs(held - wanted) <= END_TOLERANCE
