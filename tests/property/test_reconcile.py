"""The whole loop against anything that may happen: once every store is in reach, a few passes bring agreement.

Real ledger, real controller, in-memory stores. Stores are lost, unreachable, unhooked, put back from older copies,
changed by people; writing is cut short before, in the middle of, or after its effect, and the process starts again; the
ledger is lost or an older one, and the clock is set.
"""

import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from jailbridge.config.settings import PolicySettings
from jailbridge.ledger import Ledger
from jailbridge.model.ban import Ban, EndReason, Origin
from jailbridge.model.network import Network, NetworkSet, parse_network
from jailbridge.model.plan import Action, Capabilities, Change, External, ObservedBan, Placement, Plan, Rejection
from jailbridge.model.token import Token
from jailbridge.policy.exempt import Exemption, Exemptions
from jailbridge.reconcile.attached import Attached
from jailbridge.reconcile.controller import Controller
from jailbridge.reconcile.diff import END_TOLERANCE, fit
from jailbridge.stores.memory import MemoryStore

START = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
NETWORKS = [
    parse_network(text)
    for text in ("10.0.0.0/7", "10.0.0.0/8", "10.0.0.1", "10.0.0.2", "192.0.2.7", "2001:db8::/64", "2001:db8::7")
]
KINDS = {
    "firewall": (Capabilities(overlaps=False, ends=True, volatile=True, early=True), External.REVERT),
    "early": (Capabilities(overlaps=True, ends=True, volatile=True, early=True), External.ADOPT),
    "fail2ban": (Capabilities(overlaps=True, ends=False, volatile=True, early=False, turn=2), External.ADOPT),
    "hosts_deny": (Capabilities(overlaps=True, ends=False, volatile=False, early=False, limit=3), External.ADOPT),
    "reverted": (Capabilities(overlaps=False, ends=False, volatile=False, early=False), External.REVERT),
}
SHARED_MEMORY = Path("/dev/shm")
networks = st.sampled_from(NETWORKS)
names = st.sampled_from(list(KINDS))
durations = st.one_of(st.none(), st.timedeltas(timedelta(seconds=1), timedelta(days=3)))


class Killed(Exception):
    """The process ended here."""


class MortalStore(MemoryStore):
    """A store in the middle of whose writing the process may be killed: `dies` is how much of it is done then."""

    dies: float | None = None

    def apply(
        self, changes: Sequence[Change], token: Token, now: datetime, *, expected: str | None = None
    ) -> Sequence[Rejection]:
        if self.dies is None:
            return super().apply(changes, token, now, expected=expected)
        share, self.dies = self.dies, None
        if share == 1:
            super().apply(changes, token, now, expected=expected)
        elif share and self.capabilities.overlaps:
            # Only a store that is written change by change can be left in the middle, still with its older token.
            before = self.token
            super().apply(changes[: round(share * len(changes))], token, now, expected=expected)
            self.token = before
        raise Killed


@dataclass(frozen=True, kw_only=True)
class Copy:
    """What somebody saved of a store."""

    bans: dict[Network, ObservedBan]
    token: str | None


class ReconcileMachine(RuleBasedStateMachine):
    """Operators, people, time and accidents; `live` is what must be banned."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None))
        self.stores = {name: MortalStore(name, capabilities) for name, (capabilities, _) in KINDS.items()}
        self.copies: dict[str, Copy] = {}
        self.now = START
        self.boots = 0
        self.allowed: set[Network] = set()
        self.masked: set[Network] = set()
        self.readable = True
        self.live: dict[Network, Ban] = {}
        # What somebody may have taken out of a store where that means something, since it was banned last.
        self.wished: set[Network] = set()
        self.backup: Path | None = None
        self.start()

    def start(self) -> None:
        self.ledger = Ledger(self.folder / "ledger")
        attached = [Attached(store=self.stores[name], external=external) for name, (_, external) in KINDS.items()]
        self.controller = Controller(
            self.ledger,
            attached,
            PolicySettings(),
            self.exemptions,
            f"b{self.boots}",
            lambda: self.now.timestamp(),  # noqa: PLW0108 - it moves
        )

    def exemptions(self) -> Exemptions | None:
        if not self.readable:
            return None
        permanent = [Exemption(network=network, why="list", permanent=True) for network in self.allowed]
        return Exemptions([*permanent, *(Exemption(network=n, why="own", permanent=False) for n in self.masked)])

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.folder)

    def guarded(self, act: str) -> None:
        """Do one thing, starting again where it is cut short."""
        before = {name: set(store.bans) for name, store in self.stores.items()}
        try:
            if act == "settle":
                self.settle()
            elif act == "go on":
                self.go_on()
            else:
                self.controller.restore(self.now)
                self.check_restored(before)
        except Killed:
            self.ledger.close()
            self.start()

    def check_restored(self, before: dict[str, set[Network]]) -> None:
        """Every live ban is back where that can be early, and the other stores were left alone."""
        exemptions = self.exemptions()
        for name, store in self.stores.items():
            if store.capabilities.early and store.reachable and exemptions is not None:
                held = NetworkSet(store.bans)
                wanted = [b for b in self.ledger.bans().values() if b.forced or exemptions.find(b.network) is None]
                assert all(held.covering(b.network) is not None for b in wanted if not b.is_over(self.now)), name
            elif not store.capabilities.early:
                assert set(store.bans) == before[name], name

    def settle(self) -> Plan:
        """Do what a command does: read every store."""
        self.end_what_has_ended()
        return self.controller.reconcile(self.now)

    def settle_all(self) -> Plan:
        """Do so until they have had all their turns."""
        for _ in range(1 + len(NETWORKS)):
            if self.settle().agrees:
                break
        return self.settle()

    def go_on(self) -> None:
        """Do what the daemon does in a pass: carry what has changed, reading only what it must."""
        self.end_what_has_ended()
        if not self.controller.carry(self.now, patient=False):
            self.controller.reconcile(self.now, believing=True)

    def end_what_has_ended(self) -> None:
        exemptions = self.exemptions()
        bans = self.ledger.bans()
        self.end([n for n, ban in bans.items() if ban.is_over(self.now)], EndReason.EXPIRED)
        if exemptions is not None:
            touched = {n: exemptions.find(n) for n, ban in bans.items() if not ban.forced}
            self.end([n for n, exemption in touched.items() if exemption and exemption.permanent], EndReason.ALLOW)

    def end(self, chosen: Sequence[Network], why: EndReason) -> None:
        for network in self.ledger.end(chosen, why, now=self.now):
            self.live.pop(network, None)

    # what operators do

    @initialize(chosen=st.sets(networks, max_size=4))
    def begin(self, chosen: set[Network]) -> None:
        for network in sorted(chosen, key=str):
            self.ban(network, None, forced=False)
        self.settle()

    @rule(network=networks, lasting=durations, forced=st.booleans())
    def somebody_is_banned(self, network: Network, lasting: timedelta | None, *, forced: bool) -> None:
        self.ban(network, self.now + lasting if lasting is not None else None, forced=forced)

    def ban(self, network: Network, until: datetime | None, *, forced: bool) -> None:
        made = Ban(network=network, since=self.now, until=until, origin=Origin.OPERATOR, reason="test", forced=forced)
        self.ledger.record([made], now=self.now)
        self.live[network] = made
        self.wished.discard(network)

    @rule(network=networks)
    def unban(self, network: Network) -> None:
        self.end([network], EndReason.OPERATOR)

    @rule(allowed=st.sets(networks, max_size=1), masked=st.sets(networks, max_size=1), readable=st.booleans())
    def exemptions_change(self, allowed: set[Network], masked: set[Network], *, readable: bool) -> None:
        self.allowed, self.masked, self.readable = allowed, masked, readable

    # what happens

    @rule(passing=st.timedeltas(timedelta(seconds=1), timedelta(days=2)))
    def time_passes(self, passing: timedelta) -> None:
        self.now += passing

    @rule(back=st.timedeltas(timedelta(seconds=1), timedelta(days=2)))
    def the_clock_is_set_back(self, back: timedelta) -> None:
        # They have stood for their time, and a store may have let go of them while nobody looked.
        self.wished |= {network for network, ban in self.live.items() if ban.is_over(self.now)}
        self.now -= back

    @rule(act=st.sampled_from(["settle", "go on", "go on", "go on", "restore"]))
    def a_pass(self, act: str) -> None:
        self.guarded(act)

    @rule(name=names, share=st.sampled_from([0, 0.5, 1]), act=st.sampled_from(["settle", "go on", "restore"]))
    def a_pass_that_is_killed(self, name: str, share: float, act: str) -> None:
        self.stores[name].dies = share
        self.guarded(act)
        self.stores[name].dies = None

    @rule()
    def a_reboot(self) -> None:
        for store in self.stores.values():
            if store.capabilities.volatile:
                store.lose()
        self.boots += 1
        self.ledger.close()
        self.start()

    @rule(name=names, what=st.sampled_from(["lost", "unhooked", "out of reach", "saved", "loaded", "loaded"]))
    def something_happens_to_a_store(self, name: str, what: str) -> None:
        store = self.stores[name]
        match what:
            case "lost":
                store.lose()
            case "unhooked":
                store.enforcing = False
            case "out of reach":
                store.reachable = not store.reachable
            case "saved":
                self.copies[name] = Copy(bans=dict(store.bans), token=store.token)
            case _ if name in self.copies:
                store.bans, store.token = dict(self.copies[name].bans), self.copies[name].token

    @rule(name=names, network=networks, ago=st.one_of(st.none(), st.timedeltas(timedelta(0), timedelta(days=2))))
    def a_person_adds_or_removes(self, name: str, network: Network, ago: timedelta | None) -> None:
        bans = self.stores[name].bans
        if network in bans:
            del bans[network]
            if KINDS[name][1] is External.ADOPT:
                self.wished.add(network)
        elif self.stores[name].capabilities.overlaps or not any(
            network.overlaps(n) for n in bans if is_like(n, network)
        ):
            bans[network] = ObservedBan(network=network, since=self.now - ago if ago is not None else None)

    @rule()
    def the_ledger_is_saved(self) -> None:
        self.backup = self.folder / "backup"
        self.backup.unlink(missing_ok=True)
        with closing(sqlite3.connect(self.folder / "ledger")) as db:
            db.execute("VACUUM INTO ?", (str(self.backup),))

    @rule(lost=st.booleans())
    def the_ledger_is_replaced(self, *, lost: bool) -> None:
        """By an older copy, or by none: no live ban is lost that a store in reach still holds."""
        # A ban that is new, or was changed, since it was seen in a store, nobody but the ledger knows.
        ours = {
            name: {n for n, state in self.ledger.places.of(name).items() if state is Placement.CONFIRMED}
            for name in KINDS
        }
        self.ledger.close()
        for file in self.folder.glob("ledger*"):
            file.unlink()
        if not lost and self.backup is not None:
            shutil.copyfile(self.backup, self.folder / "ledger")
        self.start()
        exemptions = self.exemptions()
        held = [
            ban
            for name, store in self.stores.items()
            if store.reachable
            for ban in store.observe(self.now).bans
            if ban.network in ours[name]
        ]
        known = {
            ban.network
            for ban in held
            if ban.network in self.live
            and not self.live[ban.network].is_over(self.now)
            and exemptions is not None
            and exemptions.find(ban.network) is None
            and self.ledger.tombstone(ban.network) is None
        }
        self.settle()
        lost_ones = {network for network in known if self.ledger.covering(network) is None}
        assert not {n for n in lost_ones if n not in self.wished}, lost_ones
        self.live = dict(self.ledger.bans())
        if all(store.reachable for store in self.stores.values()):
            self.wished.clear()

    # what must always be so

    @invariant()
    def no_live_ban_is_lost(self) -> None:
        """Only a person's wish ends a ban that no command, list or time has ended."""
        bans = self.ledger.bans()
        for network, ban in list(self.live.items()):
            if network in self.wished and network not in bans:
                news = self.ledger.feed(0, 10**6)
                assert [(what, why) for _, _, what, of, why in news if of == network][-1] == ("unban", "store")
                self.live.pop(network)
            else:
                assert bans.get(network) == ban

    @rule()
    def all_is_well_again_and_a_few_passes_bring_agreement(self) -> None:
        for store in self.stores.values():
            store.reachable = True
        self.readable = True
        left = self.settle_all()
        assert left.agrees, left
        assert self.controller.plan(self.now).agrees
        exemptions = self.exemptions()
        assert exemptions is not None
        wanted = {n: b for n, b in self.ledger.bans().items() if b.forced or exemptions.find(n) is None}
        for name, store in self.stores.items():
            fitted = fit(wanted, store.capabilities)
            desired, held = NetworkSet(fitted), NetworkSet(store.bans)
            assert all(held.covering(network) is not None for network in fitted), name
            assert all(desired.covering(network) is not None for network in store.bans), name
            assert store.enforcing, name
            if store.capabilities.ends:
                assert all(same_end(store.bans[n].until, ban.until) for n, ban in fitted.items() if n in store.bans)
            placed = self.ledger.places.of(name)
            assert set(placed) <= set(store.bans) | set(fitted), name
        assert all(change.action is not Action.ADOPT for change in left.changes)

    @rule(name=st.sampled_from([name for name, (_, external) in KINDS.items() if external is External.ADOPT]))
    def a_wish_is_obeyed_everywhere(self, name: str) -> None:
        self.all_is_well_again_and_a_few_passes_bring_agreement()
        bans = self.stores[name].bans
        chosen = next((n for n in bans if NetworkSet(bans).covering(n, strictly=True) is None), None)
        if chosen is not None:
            del bans[chosen]
            self.wished.add(chosen)
            self.settle_all()
            assert chosen not in self.ledger.bans()
            assert all(chosen not in store.bans for store in self.stores.values())

    @rule(name=names, how=st.sampled_from(["lost", "loaded"]))
    def a_loss_is_made_good_and_nobody_unbanned(self, name: str, how: str) -> None:
        self.all_is_well_again_and_a_few_passes_bring_agreement()
        before, store = dict(self.ledger.bans()), self.stores[name]
        if how == "loaded" and name in self.copies and self.copies[name].token != store.token:
            store.bans, store.token = dict(self.copies[name].bans), self.copies[name].token
        else:
            store.lose()
        self.settle()
        assert before.items() <= self.ledger.bans().items()

    @rule(changes=st.lists(st.tuples(networks, durations, st.booleans()), min_size=1, max_size=6))
    def what_only_we_change_is_carried_without_reading(
        self, changes: list[tuple[Network, timedelta | None, bool]]
    ) -> None:
        self.all_is_well_again_and_a_few_passes_bring_agreement()
        for network, lasting, comes in changes:
            if comes:
                self.somebody_is_banned(network, lasting, forced=False)
            else:
                self.unban(network)
            self.go_on()
        for _ in NETWORKS:
            self.go_on()
        assert self.controller.left(self.now).agrees, self.controller.left(self.now)
        assert self.controller.plan(self.now).agrees, self.controller.plan(self.now)


def is_like(one: Network, other: Network) -> bool:
    return one.version == other.version


def same_end(one: datetime | None, other: datetime | None) -> bool:
    return one is other if one is None or other is None else abs(one - other) <= END_TOLERANCE


ReconcileMachine.TestCase.settings = settings(max_examples=1000, stateful_step_count=50, deadline=None)
TestReconcile = pytest.mark.timeout(1200)(ReconcileMachine.TestCase)


# Examples that were found once


def test_a_wish_counts_though_an_older_ledger_knows_of_an_end_that_has_passed() -> None:
    machine, network = ReconcileMachine(), NETWORKS[0]
    try:
        machine.begin(chosen=set())
        machine.what_only_we_change_is_carried_without_reading(changes=[(network, timedelta(seconds=1), True)])
        machine.time_passes(passing=timedelta(seconds=1))
        machine.somebody_is_banned(forced=False, lasting=None, network=network)
        machine.the_ledger_is_saved()
        machine.all_is_well_again_and_a_few_passes_bring_agreement()
        machine.the_ledger_is_replaced(lost=False)
        machine.a_wish_is_obeyed_everywhere(name="early")
    finally:
        machine.teardown()


def test_an_older_wish_does_not_end_what_an_operator_banned_after_it() -> None:
    machine, network = ReconcileMachine(), NETWORKS[0]
    try:
        machine.begin(chosen={network})
        machine.a_person_adds_or_removes(name="early", network=network, ago=None)
        machine.exemptions_change(allowed=set(), masked={network}, readable=True)
        machine.somebody_is_banned(network=network, lasting=None, forced=True)
        # The stores are believed in this pass, which is none that sees it there.
        machine.a_pass(act="go on")
        machine.a_pass(act="settle")
        machine.no_live_ban_is_lost()
    finally:
        machine.teardown()


def test_a_ban_that_stood_for_its_time_while_nobody_looked_may_end_though_the_clock_was_set_back() -> None:
    machine, network, second = ReconcileMachine(), NETWORKS[0], timedelta(seconds=1)
    try:
        machine.begin(chosen=set())
        machine.somebody_is_banned(forced=False, lasting=second, network=network)
        machine.all_is_well_again_and_a_few_passes_bring_agreement()
        machine.time_passes(passing=second)
        machine.a_pass_that_is_killed(act="restore", name="firewall", share=0)
        machine.the_clock_is_set_back(back=second)
        machine.all_is_well_again_and_a_few_passes_bring_agreement()
        machine.no_live_ban_is_lost()
    finally:
        machine.teardown()


def test_a_store_is_well_again_when_what_it_could_not_take_is_no_longer_wanted() -> None:
    machine, network, other = ReconcileMachine(), NETWORKS[0], NETWORKS[-1]
    try:
        machine.begin(chosen={network})
        machine.something_happens_to_a_store(name="firewall", what="out of reach")
        machine.somebody_is_banned(forced=False, lasting=timedelta(seconds=1), network=other)
        machine.a_pass(act="go on")
        machine.time_passes(passing=timedelta(seconds=1))
        machine.what_only_we_change_is_carried_without_reading(changes=[(network, None, True)])
    finally:
        machine.teardown()


def test_what_a_person_has_ended_stays_ended_though_another_ledger_wrote_it_before_the_clock_was_set_back() -> None:
    machine, network = ReconcileMachine(), NETWORKS[-2]
    try:
        machine.begin(chosen={network})
        machine.a_pass(act="settle")
        machine.something_happens_to_a_store(name="reverted", what="saved")
        machine.the_ledger_is_replaced(lost=True)
        machine.the_clock_is_set_back(back=timedelta(days=2))
        machine.a_pass(act="go on")
        machine.a_person_adds_or_removes(name="early", network=network, ago=None)
        machine.a_loss_is_made_good_and_nobody_unbanned(name="reverted", how="loaded")
        machine.no_live_ban_is_lost()
    finally:
        machine.teardown()


def test_a_wish_in_a_store_out_of_reach_is_heard_later_though_an_older_ledger_was_put_back_meanwhile() -> None:
    machine, network = ReconcileMachine(), NETWORKS[1]
    try:
        machine.begin(chosen={network})
        machine.the_ledger_is_saved()
        machine.a_person_adds_or_removes(name="hosts_deny", network=network, ago=None)
        machine.something_happens_to_a_store(name="hosts_deny", what="out of reach")
        machine.the_ledger_is_replaced(lost=False)
        machine.all_is_well_again_and_a_few_passes_bring_agreement()
        machine.no_live_ban_is_lost()
        assert network not in machine.ledger.bans()
    finally:
        machine.teardown()


def test_what_stayed_under_the_cover_of_a_ban_goes_with_it_where_a_full_store_gives_that_up() -> None:
    machine = ReconcileMachine()
    wide, inner, one, other, last = (NETWORKS[n] for n in (0, 1, 3, 4, 5))
    try:
        machine.begin(chosen=set())
        machine.what_only_we_change_is_carried_without_reading(changes=[(one, None, True), (inner, None, True)])
        machine.a_person_adds_or_removes(name="early", network=wide, ago=None)
        # The new one takes over the wide ban, and not the one that lies in it.
        machine.the_ledger_is_replaced(lost=True)
        machine.the_ledger_is_replaced(lost=True)
        machine.what_only_we_change_is_carried_without_reading(changes=[(one, None, True), (other, None, True)])
        machine.what_only_we_change_is_carried_without_reading(changes=[(last, None, True)])
    finally:
        machine.teardown()


@pytest.mark.parametrize("name", ["fail2ban", "hosts_deny"])
def test_a_copy_from_before_a_persons_change_does_not_undo_it(name: str) -> None:
    machine, network, other = ReconcileMachine(), NETWORKS[4], NETWORKS[3]
    try:
        machine.begin(chosen={other})
        machine.settle_all()
        machine.something_happens_to_a_store(name=name, what="saved")
        machine.a_person_adds_or_removes(name=name, network=network, ago=None)
        machine.settle_all()
        machine.something_happens_to_a_store(name=name, what="loaded")
        machine.settle_all()
        assert network in machine.ledger.bans(), "a loss was taken for a wish"
        machine.something_happens_to_a_store(name=name, what="saved")
        machine.a_person_adds_or_removes(name=name, network=network, ago=None)
        machine.settle_all()
        machine.something_happens_to_a_store(name=name, what="loaded")
        machine.settle_all()
        assert network not in machine.ledger.bans(), "what was unbanned there was taken for a find"
    finally:
        machine.teardown()


def test_a_copy_that_a_ledger_wrote_before_an_older_one_was_put_back_ends_no_ban() -> None:
    machine = ReconcileMachine()
    before, after = NETWORKS[2:4], NETWORKS[4]
    try:
        machine.begin(chosen=set())
        machine.the_ledger_is_saved()
        machine.what_only_we_change_is_carried_without_reading(changes=[(one, None, True) for one in before])
        machine.something_happens_to_a_store(name="hosts_deny", what="saved")
        for name in KINDS:
            machine.something_happens_to_a_store(name=name, what="lost")
        machine.time_passes(passing=timedelta(seconds=1))
        machine.the_ledger_is_replaced(lost=False)
        for _ in before:
            machine.ban(after, None, forced=False)
            machine.settle_all()
        machine.something_happens_to_a_store(name="hosts_deny", what="loaded")
        machine.settle_all()
        machine.no_live_ban_is_lost()
    finally:
        machine.teardown()


def test_a_copy_that_an_earlier_ledger_wrote_brings_back_nobody_who_was_unbanned_since() -> None:
    machine, network = ReconcileMachine(), NETWORKS[4]
    try:
        machine.begin(chosen=set())
        # It does not tell since when.
        machine.a_person_adds_or_removes(name="hosts_deny", network=network, ago=None)
        machine.settle_all()
        machine.something_happens_to_a_store(name="hosts_deny", what="saved")
        machine.the_ledger_is_replaced(lost=True)
        machine.time_passes(passing=timedelta(seconds=1))
        machine.unban(network)
        machine.settle_all()
        machine.something_happens_to_a_store(name="hosts_deny", what="loaded")
        machine.settle_all()
        assert network not in machine.ledger.bans()
    finally:
        machine.teardown()


def test_a_copy_from_before_a_writing_that_proves_nothing_ends_no_ban() -> None:
    machine = ReconcileMachine()
    try:
        machine.begin(chosen=set())
        machine.something_happens_to_a_store(name="early", what="saved")
        machine.ban(NETWORKS[4], None, forced=False)
        # It puts back what it finds missing, and looks at nothing else.
        machine.guarded("restore")
        machine.something_happens_to_a_store(name="early", what="loaded")
        machine.settle_all()
        machine.no_live_ban_is_lost()
    finally:
        machine.teardown()
