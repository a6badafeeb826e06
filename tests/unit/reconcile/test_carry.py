"""Between two readings: changes of the ledger reach the stores without anybody reading them, and nothing else does."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jailbridge.config.settings import PolicySettings
from jailbridge.errors import RetryLater
from jailbridge.ledger import Ledger
from jailbridge.model.ban import Ban, EndReason, Origin
from jailbridge.model.network import Network, parse_network
from jailbridge.model.plan import Capabilities, Change, External, Observation, ObservedBan, Placement, Rejection
from jailbridge.model.token import Token
from jailbridge.policy.exempt import Exemption, Exemptions
from jailbridge.reconcile.attached import LAST_READING_S, Attached
from jailbridge.reconcile.controller import Controller
from jailbridge.stores.memory import MemoryStore

NOW = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
HOUR = timedelta(hours=1)
FIREWALL = Capabilities(overlaps=False, ends=True, volatile=True, early=True, guarded=False)
JAIL = Capabilities(overlaps=True, ends=False, volatile=True, early=False, turn=3)
FILE = Capabilities(overlaps=True, ends=False, volatile=False, early=False, limit=5, pause_s=1.0)


def net(text: str) -> Network:
    return parse_network(text)


def nets(*texts: str) -> set[Network]:
    return {net(text) for text in texts}


def hosts(count: int, start: int = 0) -> list[str]:
    return [f"198.18.0.{n}" for n in range(start, start + count)]


class Counting(MemoryStore):
    """Counts what is asked of it; reading takes its time by the test's clock, and writing may fail."""

    def __init__(self, name: str, capabilities: Capabilities, pass_time: Callable[[float], None]) -> None:
        super().__init__(name, capabilities)
        self.pass_time = pass_time
        self.reading_s = 0.0
        self.broken = False
        self.refuses: set[Network] = set()
        self.observed = self.applied = self.changes = 0

    def observe(self, now: datetime) -> Observation:
        self.observed += 1
        self.pass_time(self.reading_s)
        return super().observe(now)

    def apply(
        self, changes: Sequence[Change], token: Token, now: datetime, *, expected: str | None = None
    ) -> Sequence[Rejection]:
        if self.broken:
            raise RetryLater(f"store {self.name} is full")
        taken = [change for change in changes if change.network not in self.refuses]
        super().apply(taken, token, now, expected=expected)
        self.applied += 1
        self.changes += len(changes)
        return [Rejection(change=change, why="no room") for change in changes if change.network in self.refuses]


class World:
    """A ledger with one ban, three stores that hold it, and the controller that knows so."""

    def __init__(self, folder: Path) -> None:
        self.seconds = 1000.0
        self.ledger = Ledger(folder / "ledger")
        self.firewall = Counting("firewall", FIREWALL, self.pass_time)
        self.jail = Counting("fail2ban", JAIL, self.pass_time)
        self.file = Counting("hosts_deny", FILE, self.pass_time)
        self.stores = (self.firewall, self.jail, self.file)
        self.attached = [
            Attached(store=self.firewall, external=External.REVERT),
            Attached(store=self.jail, external=External.ADOPT),
            Attached(store=self.file, external=External.ADOPT),
        ]
        self.exemptions: Exemptions | None = Exemptions()
        self.controller = Controller(
            self.ledger, self.attached, PolicySettings(), lambda: self.exemptions, "b00700", lambda: self.seconds
        )
        self.ban("192.0.2.7")
        assert self.controller.reconcile(NOW).agrees
        self.forget_counts()

    def pass_time(self, seconds: float) -> None:
        self.seconds += seconds

    def ban(self, *networks: str, until: datetime | None = None) -> None:
        bans = [Ban(network=net(n), since=NOW, until=until, origin=Origin.OPERATOR, reason="test") for n in networks]
        self.ledger.record(bans, now=NOW)

    def unban(self, *networks: str) -> None:
        self.ledger.end([net(network) for network in networks], EndReason.OPERATOR, now=NOW)

    def carry(self, *, patient: bool = True) -> bool:
        return self.controller.carry(NOW, patient=patient)

    def forget_counts(self) -> None:
        for store in self.stores:
            store.observed = store.applied = store.changes = 0

    def held(self) -> list[set[Network]]:
        return [set(store.bans) for store in self.stores]

    @property
    def readings(self) -> list[int]:
        return [store.observed for store in self.stores]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.ledger.close()


def test_a_ban_and_an_unban_reach_every_store_and_none_is_read(world: World) -> None:
    world.seconds += 1
    world.ban("192.0.2.8")
    world.unban("192.0.2.7")
    assert world.carry()
    assert world.held() == [nets("192.0.2.8")] * 3
    assert world.readings == [0, 0, 0]
    assert world.controller.left(NOW).agrees
    assert world.controller.plan(NOW).agrees


def test_what_a_store_acknowledged_is_confirmed_and_its_token_proves_it(world: World) -> None:
    world.seconds += 1
    world.ban("192.0.2.8")
    world.unban("192.0.2.7")
    world.carry()
    for store in world.stores:
        assert dict(world.ledger.places.of(store.name)) == {net("192.0.2.8"): Placement.CONFIRMED}
        assert str(world.ledger.places.token(store.name)) == store.token


def test_an_end_that_moves_is_moved_where_ends_are_kept(world: World) -> None:
    world.ban("192.0.2.7", until=NOW + HOUR)
    world.carry()
    assert world.firewall.bans[net("192.0.2.7")].until == NOW + HOUR
    assert world.jail.changes == 0


def test_a_pass_without_news_writes_nothing(world: World) -> None:
    world.seconds += 1
    assert world.carry()
    assert [store.applied for store in world.stores] == [0, 0, 0]


def test_a_ban_that_is_made_and_ended_before_its_turn_is_never_written(world: World) -> None:
    world.seconds += 1
    world.ban("192.0.2.8")
    world.unban("192.0.2.8")
    assert world.carry()
    assert [store.changes for store in world.stores] == [0, 0, 0]


@pytest.mark.parametrize("networks", [("10.0.0.0/8", "10.0.0.1"), ("10.0.0.1", "10.0.0.0/8")])
def test_networks_that_hold_each_other_are_held_against_the_whole_ledger(world: World, networks: Sequence[str]) -> None:
    world.ban(*networks)
    assert not world.carry()
    assert world.controller.reconcile(NOW, believing=True).agrees
    assert world.held()[0] == nets("192.0.2.7", "10.0.0.0/8")
    assert world.readings == [0, 0, 0], "for that nobody has to be read"


def test_exemptions_that_change_are_held_against_the_whole_ledger(world: World) -> None:
    world.exemptions = Exemptions([Exemption(network=net("192.0.2.7"), why="own", permanent=False)])
    assert not world.carry()
    world.controller.reconcile(NOW, believing=True)
    assert world.held() == [set()] * 3
    world.ban("192.0.2.8")
    world.seconds += 1
    assert world.carry()
    assert world.held() == [nets("192.0.2.8")] * 3, "whom they mask stays masked"


def test_a_store_that_takes_its_changes_in_turns_holds_up_no_other(world: World) -> None:
    world.ban(*hosts(8))
    world.seconds += 1
    assert world.carry()
    assert [len(held) for held in world.held()] == [9, 4, 5]
    assert world.controller.next_turn is not None
    assert world.controller.next_turn <= world.seconds
    assert world.ledger.places.token("fail2ban") != Token.parse(world.jail.token), "not all of it is there yet"
    left = world.controller.left(NOW)
    assert len(left.changes) == 5
    assert not left.agrees
    world.carry()
    world.carry()
    assert len(world.jail.bans) == 9
    assert world.ledger.places.token("fail2ban") == Token.parse(world.jail.token)
    assert world.controller.left(NOW).agrees
    assert world.readings == [0, 0, 0]


def test_the_first_pass_takes_turns_too(world: World) -> None:
    world.ban(*hosts(8))
    world.controller.reconcile(NOW)
    assert [len(held) for held in world.held()] == [9, 4, 5]
    while world.controller.next_turn is not None:
        world.seconds += 1
        assert world.carry()
    assert world.controller.plan(NOW).agrees


def test_a_store_that_needs_a_pause_is_written_once_in_it(world: World) -> None:
    world.ban("192.0.2.8")
    world.seconds += 1
    world.carry()
    world.ban("192.0.2.9")
    world.seconds += 0.5
    world.carry()
    assert world.held()[1:] == [nets("192.0.2.7", "192.0.2.8", "192.0.2.9"), nets("192.0.2.7", "192.0.2.8")]
    assert world.controller.next_turn == world.seconds + 0.5
    world.seconds += 0.5
    world.carry()
    assert world.file.applied == 2
    assert world.held()[2] == nets("192.0.2.7", "192.0.2.8", "192.0.2.9")


def test_a_command_waits_for_no_pause(world: World) -> None:
    for address in ("192.0.2.8", "192.0.2.9"):
        world.ban(address)
        world.carry(patient=False)
    assert world.held()[2] == nets("192.0.2.7", "192.0.2.8", "192.0.2.9")


def test_a_store_with_a_limit_holds_the_longest_bans(world: World) -> None:
    world.ban(*hosts(6), until=NOW + HOUR)
    world.seconds += 1
    world.carry()
    assert len(world.file.bans) == 5
    world.ban(*hosts(4, 100))
    world.seconds += 1
    assert world.carry()
    assert set(world.file.bans) == nets("192.0.2.7", *hosts(4, 100))
    world.unban(*hosts(4, 100))
    world.seconds += 1
    world.carry()
    assert set(world.file.bans) == nets("192.0.2.7", *hosts(4))
    assert world.readings == [0, 0, 0]


def test_a_store_with_another_token_than_we_left_is_read_before_it_is_written(world: World) -> None:
    world.ban("192.0.2.8")
    world.seconds += 1
    world.jail.lose()
    assert not world.carry()
    assert world.jail.bans == {}, "nothing is written into what is not known"
    assert world.controller.reconcile(NOW, patient=True, believing=True).agrees
    assert world.held() == [nets("192.0.2.7", "192.0.2.8")] * 3
    assert world.jail.observed


def test_a_loss_found_in_the_middle_of_a_whole_pass_is_made_good_in_it(world: World) -> None:
    world.ban("10.0.0.0/8", "10.0.0.1")
    world.jail.lose()
    assert not world.carry()
    assert world.controller.reconcile(NOW, believing=True).agrees
    assert world.controller.plan(NOW).agrees


def test_a_store_that_cannot_tell_is_read_each_time_where_changes_mean_something(world: World) -> None:
    world.attached[0].external = External.ADOPT
    world.ban("192.0.2.8")
    assert not world.carry()
    assert world.controller.reconcile(NOW, believing=True).agrees
    assert world.readings[0] > 0
    assert world.readings[1:] == [0, 0]


def test_a_store_that_fails_holds_up_no_other_and_is_made_good(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.jail.broken = True
    world.ban("192.0.2.8")
    world.seconds += 1
    assert world.carry()
    assert world.held() == [nets("192.0.2.7", "192.0.2.8"), nets("192.0.2.7"), nets("192.0.2.7", "192.0.2.8")]
    assert caplog.messages.count("store=fail2ban changes=1 not written: store fail2ban is full") == 1
    assert world.controller.left(NOW).stores["fail2ban"].problem == "store fail2ban is full"
    assert not world.controller.left(NOW).agrees
    world.ban("192.0.2.9")
    assert world.carry(), "until its turn the others go on"
    world.jail.broken = False
    world.seconds += 1
    assert not world.carry(), "now it is its turn"
    assert world.controller.reconcile(NOW, patient=True, believing=True).agrees
    assert world.readings[::2] == [0, 0]


def test_a_command_does_not_wait_for_a_failing_stores_turn(world: World) -> None:
    world.jail.broken = True
    world.ban("192.0.2.8")
    world.carry()
    assert not world.carry(patient=False)


def test_what_a_store_refuses_is_told_once_and_is_left_over(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.firewall.refuses = nets("192.0.2.8")
    world.ban("192.0.2.8")
    world.seconds += 1
    for _ in range(3):
        assert world.carry()
    assert caplog.messages.count("store=firewall refused action=add: no room") == 1
    assert [change.network for change in world.controller.left(NOW).changes] == [net("192.0.2.8")]
    story = [told.detail for told in world.ledger.story.of(net("192.0.2.8")) if told.what == "placed"]
    assert sorted(story) == ["fail2ban: add: test", "hosts_deny: add: test"], "what was refused was not placed"
    assert net("192.0.2.8") not in world.controller._stores["firewall"].shelf.bans  # type: ignore[union-attr]
    world.unban("192.0.2.8")
    world.seconds += 1
    world.carry()
    assert world.controller.left(NOW).agrees


def test_every_store_is_read_again_after_an_interval(world: World) -> None:
    world.seconds += 29.9
    assert world.carry()
    world.seconds += 0.2
    assert not world.carry()
    world.firewall.lose()
    assert world.controller.reconcile(NOW, patient=True, believing=True).agrees
    assert world.held()[0] == nets("192.0.2.7")


def test_long_readings_are_rare_but_come(world: World) -> None:
    world.firewall.reading_s = 4.0
    world.controller.reconcile(NOW)
    read_at = world.attached[0].read_at
    assert 150 < read_at - world.seconds <= 200
    world.firewall.reading_s = 1000.0
    world.controller.reconcile(NOW)
    assert world.attached[0].read_at - world.seconds == LAST_READING_S


def test_a_persons_ban_inside_of_one_that_ends_is_not_passed_over(world: World) -> None:
    world.ban("10.0.0.0/8")
    world.controller.reconcile(NOW)
    world.file.bans[net("10.0.0.1")] = ObservedBan(network=net("10.0.0.1"))
    world.controller.reconcile(NOW)
    world.unban("10.0.0.0/8")
    assert not world.carry()
    world.controller.reconcile(NOW, believing=True)
    assert world.held() == [nets("192.0.2.7", "10.0.0.1")] * 3


def test_a_gap_in_the_feed_is_no_news_but_a_whole_pass(world: World) -> None:
    world.ban(*hosts(5))
    world.ledger.prune(now=NOW, memory=HOUR, feed_kept=2)
    assert not world.carry()
    assert world.controller.reconcile(NOW, believing=True).stores["firewall"].observed == 6


def test_a_plan_in_between_leaves_what_is_believed_alone(world: World) -> None:
    world.firewall.lose()
    assert not world.controller.plan(NOW).agrees
    world.forget_counts()
    world.seconds += 31
    assert not world.carry(), "a plan does not count as the reading that is due"


def test_many_changes_are_told_as_a_number(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world.ban(*hosts(30))
    world.seconds += 1
    world.carry()
    assert "store=firewall changes=30" in caplog.messages
    assert not any(message.startswith("store=firewall action=") for message in caplog.messages)


def test_a_ban_that_is_over_when_its_news_comes_is_not_carried(world: World) -> None:
    world.ban("192.0.2.8", until=NOW)
    world.seconds += 1
    assert world.carry()
    assert world.held() == [nets("192.0.2.7")] * 3


def test_a_kill_between_writing_and_confirming_is_made_good(world: World, tmp_path: Path) -> None:
    world.ban("192.0.2.8")
    world.unban("192.0.2.7")
    confirm = world.ledger.places.confirm
    world.ledger.places.confirm = _killed  # type: ignore[assignment,method-assign]
    with pytest.raises(KeyboardInterrupt):
        world.carry()
    world.ledger.places.confirm = confirm  # type: ignore[method-assign]
    again = Controller(
        world.ledger,
        [replace(attached, shelf=None) for attached in world.attached],
        PolicySettings(),
        lambda: world.exemptions,
        "b00700",
        lambda: world.seconds,
    )
    assert again.reconcile(NOW).agrees
    assert world.held() == [nets("192.0.2.8")] * 3


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_the_first_turn_has_done_altogether_is_proven_at_once(world: World) -> None:
    world.ban("10.0.0.0/8", "10.0.0.1", "10.0.0.2", "10.0.0.3")
    assert world.controller.reconcile(NOW).agrees, "the last of them is covered by then"
    assert world.controller.next_turn is not None
    world.seconds += 1
    assert world.carry()
    assert world.ledger.places.token("fail2ban") == Token.parse(world.jail.token)
    assert world.controller.next_turn is None


def test_a_network_in_another_counts_for_no_free_place(world: World) -> None:
    world.ban("10.0.0.0/8")
    world.controller.reconcile(NOW)
    world.ban("10.0.0.1", *hosts(2))
    world.controller.reconcile(NOW)
    world.ban(*hosts(3, 100), until=NOW + HOUR)
    world.seconds += 1
    assert world.carry()
    assert world.controller.plan(NOW).agrees


def test_what_a_store_refuses_in_a_whole_pass_is_left_over(world: World) -> None:
    world.firewall.refuses = nets("192.0.2.8")
    world.ban("192.0.2.8")
    assert not world.controller.reconcile(NOW).agrees
    assert world.carry()
    assert [change.network for change in world.controller.left(NOW).changes] == [net("192.0.2.8")]


def test_a_pass_that_the_ledger_cuts_short_is_made_again(world: World) -> None:
    world.ban("10.0.0.0/8", "10.0.0.1")
    confirm = world.ledger.places.confirm
    world.ledger.places.confirm = _killed  # type: ignore[assignment,method-assign]
    with pytest.raises(KeyboardInterrupt):
        world.controller.reconcile(NOW, believing=True)
    world.ledger.places.confirm = confirm  # type: ignore[method-assign]
    assert not world.carry()
    assert world.controller.reconcile(NOW, believing=True).agrees
    assert world.held()[2] == nets("192.0.2.7", "10.0.0.0/8", "10.0.0.1")


def test_a_token_is_not_believed_recorded_where_that_failed(world: World) -> None:
    world.ban("192.0.2.8")
    world.seconds += 1
    confirm = world.ledger.places.confirm
    world.ledger.places.confirm = _killed  # type: ignore[assignment,method-assign]
    with pytest.raises(KeyboardInterrupt):
        world.carry()
    world.ledger.places.confirm = confirm  # type: ignore[method-assign]
    if not world.carry():
        world.controller.reconcile(NOW, believing=True)
    for store in world.stores:
        assert str(world.ledger.places.token(store.name)) == store.token
        assert set(world.ledger.places.of(store.name).values()) == {Placement.CONFIRMED}


def test_a_store_that_loses_all_between_writing_and_reading_back_is_not_believed(world: World) -> None:
    apply = world.file.apply

    def lost(
        changes: Sequence[Change], token: Token, now: datetime, *, expected: str | None = None
    ) -> Sequence[Rejection]:
        apply(changes, token, now, expected=expected)
        world.file.lose()
        return ()

    world.file.apply = lost  # type: ignore[method-assign]
    world.ban("192.0.2.8")
    world.controller.reconcile(NOW)
    world.file.apply = apply  # type: ignore[method-assign]
    world.seconds += 1
    assert not world.carry()
    assert world.controller.reconcile(NOW, believing=True).agrees


def test_exemptions_are_those_of_one_moment_in_a_pass(world: World) -> None:
    masking = Exemptions([Exemption(network=net("192.0.2.7"), why="own", permanent=False)])
    record = world.ledger.record

    def meanwhile(*given: object, **named: object) -> None:
        record(*given, **named)  # type: ignore[arg-type]
        world.exemptions = masking

    world.file.bans[net("192.0.2.8")] = ObservedBan(network=net("192.0.2.8"))
    world.ledger.record = meanwhile  # type: ignore[method-assign]
    world.controller.reconcile(NOW)
    world.ledger.record = record  # type: ignore[method-assign]
    world.seconds += 1
    if not world.carry():
        world.controller.reconcile(NOW, believing=True)
    assert world.held() == [nets("192.0.2.8")] * 3


def test_looking_on_does_not_put_off_a_failing_stores_turn(world: World) -> None:
    world.jail.reachable = False
    world.controller.reconcile(NOW)
    turn = world.controller.next_turn
    assert turn is not None
    world.controller.plan(NOW)
    assert world.controller.next_turn == turn
    world.jail.reachable = True
    assert world.controller.plan(NOW).stores["fail2ban"].problem is None
    assert world.controller.next_turn == world.seconds, "it was found in reach"
    assert not world.carry()


def test_the_next_reading_is_the_first_one_due(world: World) -> None:
    assert world.controller.next_reading == world.seconds + 30
    world.attached[1].read_at = world.seconds + 3
    assert world.controller.next_reading == world.seconds + 3
    world.jail.reachable = False
    world.seconds += 3
    world.controller.reconcile(NOW, patient=True, believing=True)
    assert world.controller.next_reading == world.seconds + 27, "the one out of reach has turns of its own"


def test_a_reading_that_takes_long_holds_up_nothing_that_can_be_carried(world: World) -> None:
    held_then: list[set[Network]] = []
    observe = world.jail.observe

    def slow(now: datetime) -> Observation:
        held_then.append(set(world.firewall.bans))
        return observe(now)

    world.jail.observe = slow  # type: ignore[method-assign]
    world.attached[1].read_at = world.seconds
    world.ban("192.0.2.8")
    assert not world.carry(), "one is still to be read"
    world.controller.reconcile(NOW, patient=True, believing=True)
    assert held_then[0] == nets("192.0.2.7", "192.0.2.8")
    assert world.held() == [nets("192.0.2.7", "192.0.2.8")] * 3
