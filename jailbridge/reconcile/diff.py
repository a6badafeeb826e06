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
from functools import cached_property
from heapq import nlargest
from math import inf

from jailbridge.model.ban import Ban
from jailbridge.model.network import Network, NetworkSet, may_be_nested
from jailbridge.model.plan import Action, Capabilities, Change, External, Observation, Placement
from jailbridge.model.token import TokenState

# A store that is told how long a ban lasts counts from when it has read the whole transaction, some seconds at 100,000
# bans, and it tells the rest in whole seconds. The ledger ends bans; a store's own end has a minute's grace.
END_TOLERANCE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One store as the planner sees it; `observation` None is a store out of reach, `problem` says why.

    own_end      tells what end of its own a store that keeps ends was last given for a ban, None for none
    written      when this ledger wrote it last, None where that is not known: of what is younger it knows nothing
    held_before  how many bans the reading before this one found, None where there was none
    is_believed  whether it was not read now: this is what it should show by what is known
    """

    name: str
    capabilities: Capabilities
    external: External
    observation: Observation | None
    problem: str | None = None
    placements: Mapping[Network, Placement]
    own_end: Callable[[Network], datetime | None] = lambda _: None
    held_before: int | None = None
    is_believed: bool = False
    token: TokenState = TokenState.ABSENT
    ever_written: bool = True
    written: datetime | None = None

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


class Desired:
    """The bans that are wanted, and what is worked out from them once for all stores."""

    def __init__(self, bans: Mapping[Network, Ban]) -> None:
        self.bans = bans
        self._fitted: dict[tuple[bool, int | None], Mapping[Network, Ban]] = {}

    @cached_property
    def index(self) -> NetworkSet:
        """Their networks."""
        return NetworkSet(self.bans)

    def fit(self, capabilities: Capabilities) -> Mapping[Network, Ban]:
        """Return what a store should hold: if it can't hold all, the maximal networks, the longest bans.

        What is left out does not depend on any order.
        """
        shape = capabilities.overlaps, capabilities.limit
        if shape not in self._fitted:
            self._fitted[shape] = self._fit(*shape)
        return self._fitted[shape]

    def _fit(self, overlaps: bool, limit: int | None) -> Mapping[Network, Ban]:
        fitted = self.bans
        if not overlaps and may_be_nested(fitted):
            alone = (n for n in fitted if self.index.covering(n, strictly=True) is None)
            fitted = {network: fitted[network] for network in alone}
        if limit is not None and len(fitted) > limit:
            fitted = {ban.network: ban for ban in nlargest(limit, fitted.values(), key=rank)}
        return fitted


def fit(wanted: Mapping[Network, Ban], capabilities: Capabilities) -> Mapping[Network, Ban]:
    """Return what a store should hold of what is wanted (see `Desired.fit`)."""
    return Desired(wanted).fit(capabilities)


def rank(ban: Ban) -> tuple[float, ...]:
    """Return what bans are ordered by where not all can be held: the greatest stay. No two of them have the same.

    The longer ban counts; of those that last equally long the older one, so that a storm of new ones moves nothing.
    """
    since, network = ban.since.timestamp(), ban.network
    lasts_s = ban.until.timestamp() - since if ban.until is not None else inf
    return lasts_s, -since, -network.version, -network.start, -network.prefixlen


def presence(network: Network, fitted: Mapping[Network, Ban], observed: NetworkSet) -> Presence:
    """Tell how a store that was read stands to one live ban."""
    if network in observed:
        return Presence.PRESENT
    if observed.covering(network) is not None:
        return Presence.COVERED
    return Presence.MISSING if network in fitted else Presence.UNSUPPORTED


def differences(view: View, desired: Desired, now: datetime, undecided: Set[Network] = frozenset()) -> Iterator[Change]:
    """Yield what makes a store hold its part of what is desired; nothing where it is unread.

    Where little differs little is worked out: most often nothing does, of very many.
    """
    if view.observation is None:
        return
    observed, fitted = view.observation.held, desired.fit(view.capabilities)

    name = view.name
    missing = [ban for network, ban in fitted.items() if network not in observed]
    other_ends: list[Ban] = []
    if view.capabilities.ends:
        # Most of very many have no end, here and there.
        timed = dict.fromkeys(network for network, ban in fitted.items() if ban.until is not None)
        timed |= dict.fromkeys(network for network, held in observed.items() if held.until is not None)
        for network in timed:
            ban, held = fitted.get(network), observed.get(network)
            if ban is not None and held is not None and not is_armed(held.until, ban.until, view.capabilities, now):
                other_ends.append(ban)
    has_extra = len(observed) > len(fitted) - len(missing)
    going = _going(view, desired, undecided) if has_extra else {}
    if view.observation.enforcing is False:
        yield Change(name, Action.HOOK, None, "our rules are not in force")
    # Removals first: a store without overlaps must lose a host before it takes the network around it.
    for network, cause in going.items():
        yield Change(name, Action.REMOVE, network, cause)
    for ban in other_ends:
        yield Change(name, Action.UPDATE, ban.network, "its end differs", ban.until)
    staying = NetworkSet(observed.keys() - going.keys()) if missing else NetworkSet()
    for ban in missing:
        network = ban.network
        if staying.covering(network) is None:
            yield Change(name, Action.ADD, network, _cause_to_add(network, view, ban, now), ban.until)


def _cause_to_add(network: Network, view: View, wanted: Ban, now: datetime) -> str:
    if view.placements.get(network) is not Placement.CONFIRMED:
        return wanted.reason
    if has_run_out(view, network, now):
        return "ran out there"
    if view.token is TokenState.CURRENT:
        return "taken out there, put back: what ends a ban is `jailbridge unban`"
    return "lost there"


def _going(view: View, desired: Desired, undecided: Set[Network]) -> Mapping[Network, str]:
    """Return what a store should not hold, and why."""
    fitted = desired.fit(view.capabilities)
    extra = [network for network in view.observation.held if network not in fitted] if view.observation else []
    share = desired.index if fitted is desired.bans else NetworkSet(fitted)
    causes = ((network, _cause_to_remove(network, view, share, desired.index, undecided)) for network in extra)
    return {network: cause for network, cause in causes if cause is not None}


def _cause_to_remove(
    network: Network,
    view: View,
    desired: NetworkSet,
    everything: NetworkSet,
    undecided: Set[Network],
) -> str | None:
    known = network in view.placements
    if desired.covering(network) is not None:
        return "covered" if known or not view.capabilities.overlaps else None
    if everything.covering(network) is not None:
        return "over its limit"
    if network in undecided:
        return None
    return "ended" if known else "not in the ledger"


def has_run_out(view: View, network: Network, now: datetime) -> bool:
    """Tell whether the end that a store itself had for a ban has come."""
    end = view.own_end(network) if view.capabilities.ends else None
    return end is not None and end <= now


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
