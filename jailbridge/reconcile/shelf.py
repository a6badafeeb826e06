"""What a store is believed to hold since it was last read, and what must still be carried there. Pure.

Between two readings only the networks whose bans have changed are looked at, whatever the number of bans. That is sound
for a network that is alone (no other ban holds it or lies in it); for any other the stores are held against the whole
ledger again.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from heapq import heapify, heapreplace
from itertools import islice

from jailbridge.model.ban import Ban
from jailbridge.model.network import Network
from jailbridge.model.plan import Action, Capabilities, Change, External, Observation, ObservedBan, Placement, Rejection
from jailbridge.reconcile.diff import Desired, View, differences, is_armed, rank


@dataclass(slots=True, kw_only=True)
class Shelf:
    """A store's content as far as we know: what was read, and what it has acknowledged since.

    placements, undecided  as the pass that read it knew them
    bans     what it holds, and until when by itself
    problem  what is wrong with it though it can be read and written
    since    since when it holds what we did not write there, where it tells: verdicts go by it
    proven   whether its token stands for just that, so that a later difference is somebody's doing
    waiting  networks whose bans have changed and that have not been looked at since, in their order
    crowded  whether some bans are not there for want of room
    refused  changes that the store would not make
    """

    name: str
    capabilities: Capabilities
    token: str | None
    proven: bool
    enforcing: bool | None
    foreign: int
    bans: dict[Network, datetime | None]
    placements: Mapping[Network, Placement]
    undecided: Set[Network]
    problem: str | None = None
    since: dict[Network, datetime] = field(default_factory=dict)
    crowded: bool = False
    waiting: dict[Network, None] = field(default_factory=dict)
    refused: dict[Network | None, Change] = field(default_factory=dict)

    @property
    def is_owed(self) -> bool:
        """Whether there is something to write: changes, or the token that proves that all of them are made."""
        return bool(self.waiting) or not self.proven

    @property
    def observation(self) -> Observation:
        """What a reading would show if nothing but we had changed anything."""
        since = self.since.get
        bans = tuple([ObservedBan(network, since(network), until) for network, until in self.bans.items()])
        return Observation(
            token=self.token, enforcing=self.enforcing, bans=bans, foreign=self.foreign, problem=self.problem
        )

    def expect(self, network: Network) -> None:
        """Have a network looked at: its ban has changed."""
        if self.refused:
            self.refused.pop(network, None)
        self.waiting[network] = None

    def owed(self, wanted: Mapping[Network, Ban], now: datetime) -> Iterator[Change]:
        """Yield what must be changed for those who wait."""
        limit = self.capabilities.limit
        if limit is None or not (self.crowded or len(wanted) > limit):
            yield from filter(None, (self._change(network, wanted, now) for network in list(self.waiting)))
            return
        news = [network for network in self.waiting if network in wanted or network in self.bans]
        # A network that lies in another one takes a place without being held: then it takes a look at all of them.
        # So does one that stays because another one covers it, which may have to go.
        full = len(self.bans) == limit and all(network in wanted for network in self.bans)
        if full and all(network in wanted and network not in self.bans for network in news):
            yield from self._crowded(news, wanted)
        else:
            # Which ones it should hold depends on all of them.
            yield from differences(self._view, Desired(wanted), now, self.undecided)

    def turn(self, wanted: Mapping[Network, Ban], now: datetime) -> list[Change]:
        """Take out of the waiting as many as the store takes at once; return their changes, removals first."""
        most = self.capabilities.turn
        changes = list(islice(self.owed(wanted, now), most))
        if most is None or len(changes) < most:
            self.waiting.clear()
        for change in changes if self.waiting else ():
            if change.network is not None:
                self.waiting.pop(change.network, None)
        self.crowded = self.capabilities.limit is not None and len(wanted) > self.capabilities.limit
        return sorted(changes, key=_adds)

    def note(self, changes: Sequence[Change], rejections: Sequence[Rejection]) -> list[Change]:
        """Take over what the store has acknowledged of these changes; return it."""
        refused = {rejection.change.network: rejection.change for rejection in rejections}
        done = [change for change in changes if change.network not in refused]
        self.refused.update(refused)
        for change in done:
            self.refused.pop(change.network, None)
            if change.network is None:
                self.enforcing = True
                continue
            self.since.pop(change.network, None)
            if change.action is Action.REMOVE:
                self.bans.pop(change.network, None)
            else:
                self.bans[change.network] = change.until
        return done

    def _change(self, network: Network, wanted: Mapping[Network, Ban], now: datetime) -> Change | None:
        ban, is_held = wanted.get(network), network in self.bans
        if ban is None:
            return self._step(Action.REMOVE, network, "ended") if is_held else None
        if not is_held:
            return self._step(Action.ADD, network, ban.reason, ban)
        if not is_armed(self.bans[network], ban.until, self.capabilities, now):
            return self._step(Action.UPDATE, network, "its end differs", ban)
        return None

    def _crowded(self, coming: Sequence[Network], wanted: Mapping[Network, Ban]) -> Iterator[Change]:
        """Let new bans take the places of shorter ones, as `fit` would."""
        places = [(rank(wanted[network]), network) for network in self.bans if network in wanted]
        heapify(places)
        taken: dict[Network, None] = {}
        for network in coming:
            place = rank(wanted[network]), network
            if place > places[0]:
                _, loser = heapreplace(places, place)
                taken[network] = None
                if loser in taken:
                    del taken[loser]
                else:
                    yield self._step(Action.REMOVE, loser, "over its limit")
        for network in taken:
            yield self._step(Action.ADD, network, wanted[network].reason, wanted[network])

    @property
    def _view(self) -> View:
        return View(
            name=self.name,
            capabilities=self.capabilities,
            external=External.REVERT,
            observation=self.observation,
            placements=self.placements,
        )

    def _step(self, action: Action, network: Network, why: str, ban: Ban | None = None) -> Change:
        until = ban.until if ban is not None else None
        return Change(store=self.name, action=action, network=network, why=why, until=until)


def _adds(change: Change) -> bool:
    return change.action is not Action.REMOVE
