"""A model of who must be banned, whatever happens to a host: small, so that it can be seen to be right.

It knows nothing of tokens, placements or passes: only who banned and unbanned whom, and what each place that outlives a
boot (the ledger, hosts.deny, fail2ban's database, a ruleset that another tool saved) knew at which moment. Where the
design leaves two outcomes open both are allowed, and its sentence stands beside it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

Ends: TypeAlias = dict[str, datetime | None]
"""Who is banned, until when; None is for ever."""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """What a place knew at a moment, and of which ledger it had that: one that begins anew is another."""

    bans: frozenset[str]
    moment: int
    ledger: int


@dataclass
class Model:
    """Who must be banned, and who may be.

    live       whom somebody banned and nobody unbanned, as far as a place that is still there knew it
    either     where both outcomes are right, until it is seen which it is; their ends are not known either
    forgotten  scanners whose unbans no ledger knows any more: fail2ban may find them in the history at any start
    wishes     what persons did in which place, until it is seen what came of it
    ended      when each was unbanned, as far as this ledger knows
    known      what each place knows, as far as it was seen
    lines      when each scanner was last told of in the history
    moment     how many steps there have been
    """

    live: Ends
    either: frozenset[str] = frozenset()
    forgotten: frozenset[str] = frozenset()
    wishes: set[tuple[str, str]] = field(default_factory=set)
    ended: dict[str, int] = field(default_factory=dict)
    known: dict[str, Copy] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    moment: int = 0
    ledger: int = 0

    def must(self, now: datetime) -> frozenset[str]:
        return frozenset(network for network, until in self.live.items() if until is None or until > now)

    def may(self, now: datetime) -> frozenset[str]:
        return self.must(now) | self.either | self.forgotten

    def allows(self, found: Iterable[str], now: datetime) -> bool:
        """Tell whether just these may be banned: nobody is missing, nobody there whom nobody banned."""
        return self.must(now) <= set(found) <= self.may(now)

    def moved(self, found: Ends) -> Ends:
        """Return those of these ends that somebody must have moved."""
        certain = self.live.keys() - self.either
        return {one: until for one, until in found.items() if one in certain and until != self.live[one]}

    def settle(self, live: Ends, places: Iterable[str]) -> None:
        """Take note that these were seen to be banned, and are known in these places."""
        self.live, self.either, self.wishes = live, frozenset(), set()
        self.known.update(dict.fromkeys(places, self.copy()))

    def copy(self) -> Copy:
        return Copy(bans=frozenset(self.live), moment=self.moment, ledger=self.ledger)

    # What operators and persons do

    def ban(self, network: str, until: datetime | None) -> None:
        self.live[network] = until
        self.ended.pop(network, None)

    def unban(self, network: str) -> None:
        self.live.pop(network)
        self.forgotten -= {network}
        self.ended[network] = self.moment

    def wish(self, place: str, network: str) -> None:
        """Take note that a person banned or unbanned it there; how long such a ban lasts policy says."""
        self.wishes.add((place, network))
        if network in self.live:
            self.unban(network)
        else:
            self.ban(network, None)
            self.either |= {network}

    # What happens

    def upset(self, place: str) -> None:
        """Take note that a place has lost its token, perhaps before its wishes were heard of.

        "A wish is inferred only if the store's token is current"; what nobody knows, "in a place that is ours: remove".
        """
        for _, network in (wish for wish in self.wishes if wish[0] == place):
            self.live.pop(network, None)
            self.ended.pop(network, None)
            self.either |= {network}

    def load(self, copy: Copy) -> None:
        """Take note that a store was put back so, beside this ledger.

        "The ledger is new or older than the token: adopt", where an unban since has left no tombstone.
        """
        if copy.ledger != self.ledger:
            self.either |= {network for network in copy.bans if self.ended.get(network, -1) < copy.moment}

    def boot(self, found: Mapping[str, Copy]) -> None:
        """Work out who must and may be banned after a boot with these copies; a place that was lost has none."""
        stores = {place: copy for place, copy in found.items() if place != "ledger"}
        ledger = found.get("ledger")
        if ledger == self.known["ledger"]:
            for copy in stores.values():
                self.load(copy)
            return
        if ledger is None:
            self.ledger += 1
            witnesses = _all(stores.values())
        else:
            # What is younger than it tokens tell; in fail2ban, where a restart takes the token, the bans' own times.
            newer = [copy for copy in stores.values() if copy.moment > ledger.moment]
            self.ledger = ledger.ledger
            # Where it had read to in the history it reads on.
            again = frozenset(scanner for scanner, moment in self.lines.items() if moment > ledger.moment)
            witnesses = _all([ledger, *newer]) | again
        # The tombstones are gone with the ledger; and how long a ban of another ledger was to last is not known.
        self.ended = {}
        self.forgotten |= self.lines.keys()
        self.either |= _all(found.values()) | self.live.keys()
        self.live = {network: until for network, until in self.live.items() if network in witnesses}


def _all(copies: Iterable[Copy]) -> frozenset[str]:
    return frozenset[str]().union(*(copy.bans for copy in copies))
