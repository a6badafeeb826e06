"""The ledger against a model of it: whatever is recorded and ended, in memory, on the disk, and in the feed."""

import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from jailbridge.ledger import Ledger
from jailbridge.model.ban import MAX_PORTS, Ban, EndReason, Origin, Sightings, Tombstone
from jailbridge.model.network import Network, parse_network
from jailbridge.model.plan import Placement

START = datetime(2026, 11, 22, 6, 30, 59, 123456, tzinfo=UTC)
NETWORKS = [
    parse_network(text)
    for text in (
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.0.0/9",
        "10.0.0.1",
        "192.0.2.7",
        "2001:db8::/48",
        "2001:db8::/64",
        "2001:db8::7",
    )
]
networks = st.sampled_from(NETWORKS)
durations = st.one_of(st.none(), st.timedeltas(timedelta(microseconds=1), timedelta(days=36500)))


class LedgerMachine(RuleBasedStateMachine):
    """Bans and ends in any order, with a re-opening anywhere between."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.ledger = Ledger(self.folder / "ledger")
        self.now = START
        self.bans: dict[Network, Ban] = {}
        self.stones: dict[Network, tuple[datetime, EndReason, int]] = {}
        self.places: dict[Network, Placement] = {}
        self.feed: list[tuple[str, Network]] = []

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.folder)

    @rule(
        chosen=st.lists(networks, max_size=4),
        lasting=durations,
        reason=st.text(st.characters(codec="utf-8"), max_size=9),
    )
    def record(self, chosen: list[Network], lasting: timedelta | None, reason: str) -> None:
        until = self.now + lasting if lasting is not None else None
        made = [Ban(network=n, since=self.now, until=until, origin=Origin.SENSOR, reason=reason) for n in chosen]
        self.ledger.record(made, now=self.now)
        for ban in made:
            self.feed.append(("change" if ban.network in self.bans else "ban", ban.network))
            self.bans[ban.network] = ban
            # What was seen of an earlier ban says nothing of this one.
            if ban.network in self.places:
                self.places[ban.network] = Placement.ATTEMPTED

    @rule(chosen=st.lists(networks, max_size=3), count=st.integers(1, 1 << 40))
    def see_again(self, chosen: list[Network], count: int) -> None:
        ports = tuple(f"tcp/{port + 1}" for port in range(min(count, MAX_PORTS)))
        seen = Sightings(self.now, self.now, count, ports)
        held = [network for network in chosen if network in self.bans]
        self.ledger.record([], now=self.now, merged=dict.fromkeys(held, seen))
        self.bans |= {network: self.bans[network]._replace(seen=seen) for network in held}

    @rule(chosen=st.lists(networks, max_size=4), why=st.sampled_from(EndReason))
    def end(self, chosen: list[Network], why: EndReason) -> None:
        expected = [network for network in dict.fromkeys(chosen) if network in self.bans]
        assert self.ledger.end(chosen, why, now=self.now) == expected
        for network in expected:
            until = self.bans.pop(network).until
            when = min(until, self.now) if why is EndReason.EXPIRED and until is not None else self.now
            so_far = self.stones.get(network, (when, why, 0))[2]
            pardoned = why in {EndReason.OPERATOR, EndReason.ALLOW, EndReason.STORE}
            self.stones[network] = (when, why, 0 if pardoned else so_far + 1)
            self.feed.append(("unban", network))

    @rule(chosen=st.lists(networks, max_size=4))
    def place(self, chosen: list[Network]) -> None:
        self.ledger.places.attempt("store", dict.fromkeys(chosen), boot="-", layout=1, now=self.now)
        # What is about to be written again is not proven until it is seen again.
        self.places |= dict.fromkeys(chosen, Placement.ATTEMPTED)

    @rule(present=st.lists(networks, max_size=3), absent=st.lists(networks, max_size=3))
    def confirm(self, present: list[Network], absent: list[Network]) -> None:
        self.ledger.places.confirm("store", present, absent, None)
        self.places |= dict.fromkeys(present, Placement.CONFIRMED)
        for network in absent:
            self.places.pop(network, None)

    @rule(passing=st.timedeltas(timedelta(0), timedelta(days=60)))
    def wait_and_prune(self, passing: timedelta) -> None:
        self.now += passing
        memory = timedelta(days=30)
        self.ledger.prune(now=self.now, memory=memory)
        self.stones = {
            network: stone
            for network, stone in self.stones.items()
            if network in self.places or stone[0] >= self.now - memory - timedelta(days=1)
        }

    @rule()
    def open_again(self) -> None:
        self.ledger.close()
        self.ledger = Ledger(self.folder / "ledger")

    @invariant()
    def bans_are_as_recorded(self) -> None:
        assert self.ledger.bans() == self.bans
        assert self.ledger.places.of("store") == self.places
        ends = [ban.until for ban in self.bans.values() if ban.until is not None]
        assert self.ledger.next_end == min(ends, default=None)
        assert [(what, network) for _, _, what, network, _ in self.ledger.feed(0, 10**9)] == self.feed

    @invariant()
    def networks_around_are_found(self) -> None:
        for network in NETWORKS:
            around = [n for n in NETWORKS if n.holds(network)]
            banned = [n for n in around if n in self.bans]
            found = self.ledger.covering(network)
            assert (found.network if found else None) == min(banned, key=lambda n: n.prefixlen, default=None)
            stone: Tombstone | None = self.ledger.tombstone(network)
            ended = [self.stones[n] for n in around if n in self.stones]
            if stone is None:
                assert not ended
            else:
                assert (stone.ended, stone.why, stone.bans) in ended
                assert stone.ended == max(when for when, _, _ in ended)


LedgerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestLedger = LedgerMachine.TestCase
