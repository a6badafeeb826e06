"""The loop over real ledgers and in-memory stores: losses, failures, restarts, people."""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from jailbridge.config.settings import PolicySettings
from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.ban import EndReason, Origin
from jailbridge.model.network import Network
from jailbridge.model.plan import Action, Change, External, Placement, Rejection
from jailbridge.model.token import NO_BOOT, Token
from jailbridge.reconcile.attached import FIRST_RETRY_S, LAST_RETRY_S, Attached
from jailbridge.reconcile.controller import Controller
from jailbridge.reconcile.diff import Presence
from tests.unit.reconcile.controlled import FILE, HOUR, NOW, Failing, World, ban, net, nets


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.ledger.close()


# agreement


def test_every_store_gets_every_ban_and_then_there_is_nothing_left_to_do(world: World) -> None:
    world.ban(ban("192.0.2.7"), ban("2001:db8::/64", NOW + HOUR), ban("192.0.2.0/24"))
    left = world.controller.reconcile(NOW)
    assert left.agrees
    everything = nets("192.0.2.7", "2001:db8::/64", "192.0.2.0/24")
    assert world.held() == [everything - nets("192.0.2.7"), everything, everything]
    world.forget_counts()
    assert world.controller.reconcile(NOW).agrees
    assert [store.applied for store in world.stores] == [0, 0, 0]


def test_a_plan_shows_what_reconcile_does_and_changes_nothing(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    before = world.ledger.places.last_sequence("firewall")
    plan = world.controller.plan(NOW)
    assert [(change.store, change.action) for change in plan.changes] == [
        ("firewall", Action.ADD), ("fail2ban", Action.ADD), ("hosts_deny", Action.ADD),
    ]  # fmt: skip
    assert world.held() == [set(), set(), set()]
    assert world.ledger.places.last_sequence("firewall") == before
    assert world.ledger.places.of("firewall") == {}
    world.controller.reconcile(NOW)
    assert world.controller.plan(NOW).changes == ()


def test_success_is_what_is_read_back(world: World) -> None:
    world.ban(ban("192.0.2.7"), ban("192.0.2.8"))
    world.firewall.refuses = nets("192.0.2.8")
    left = world.controller.reconcile(NOW)
    assert [(change.store, change.action, change.network) for change in left.changes] == [
        ("firewall", Action.ADD, net("192.0.2.8"))
    ]
    assert world.ledger.places.of("firewall") == {
        net("192.0.2.7"): Placement.CONFIRMED, net("192.0.2.8"): Placement.ATTEMPTED,
    }  # fmt: skip


def test_a_refused_change_is_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.ban(ban("192.0.2.8"))
    world.firewall.refuses = nets("192.0.2.8")
    world.controller.reconcile(NOW)
    assert "store=firewall refused action=add: no room" in caplog.text


def test_a_ban_that_ends_leaves_every_store(world: World) -> None:
    world.ban(ban("192.0.2.7", NOW + HOUR), ban("192.0.2.8"))
    world.controller.reconcile(NOW)
    world.unban("192.0.2.8")
    assert world.controller.reconcile(NOW + 2 * HOUR).agrees
    assert world.held() == [set(), set(), set()]
    assert all(world.ledger.places.of(store.name) == {} for store in world.stores)


def test_an_end_that_moves_is_moved_in_the_store_that_keeps_ends(world: World) -> None:
    world.ban(ban("192.0.2.7", NOW + HOUR))
    world.controller.reconcile(NOW)
    world.ban(ban("192.0.2.7", NOW + 5 * HOUR))
    world.forget_counts()
    assert world.controller.reconcile(NOW).agrees
    assert world.firewall.bans[net("192.0.2.7")].until == NOW + 5 * HOUR
    assert [store.applied for store in world.stores] == [1, 0, 0]


def test_each_store_holds_what_it_can(world: World) -> None:
    world.ban(*[ban(f"192.0.2.{n}", NOW + n * HOUR) for n in range(1, 9)])
    assert world.controller.reconcile(NOW).agrees
    assert world.held()[2] == nets(*[f"192.0.2.{n}" for n in range(4, 9)])
    assert len(world.held()[0]) == 8


# losses


def test_a_reboot_takes_nothing_from_what_is_banned(world: World) -> None:
    world.ban(ban("192.0.2.7"), ban("192.0.2.8", NOW + HOUR))
    world.controller.reconcile(NOW)
    world.restart(reboot=True)
    assert world.controller.reconcile(NOW).agrees
    assert world.held() == [nets("192.0.2.7", "192.0.2.8")] * 3


def test_a_ruleset_from_before_the_reboot_infers_nothing(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW)
    saved, token = dict(world.jail.bans), world.jail.token
    world.restart(reboot=True)
    world.jail.bans, world.jail.token = {**saved}, token
    world.by_hand(world.jail, "192.0.2.99")
    assert world.controller.reconcile(NOW).agrees
    assert world.held() == [nets("192.0.2.7")] * 3
    assert list(world.ledger.bans()) == [net("192.0.2.7")]


def test_an_older_copy_brings_back_no_ban_that_ended(world: World) -> None:
    world.ban(ban("192.0.2.7"), ban("192.0.2.8"))
    world.controller.reconcile(NOW)
    saved, token = dict(world.file.bans), world.file.token
    world.unban("192.0.2.7")
    world.controller.reconcile(NOW)
    world.file.bans, world.file.token = saved, token
    assert world.controller.reconcile(NOW).agrees
    assert world.held() == [nets("192.0.2.8")] * 3


def test_a_store_of_another_layout_is_written_anew(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW)
    world.file.capabilities = replace(FILE, layout=2)
    world.forget_counts()
    world.restart()
    assert world.controller.reconcile(NOW).agrees
    assert [store.applied for store in world.stores] == [0, 0, 1]
    token = Token.parse(world.file.token)
    assert token is not None
    assert (token.layout, token.boot) == (2, NO_BOOT)
    assert world.controller.reconcile(NOW).agrees
    assert world.file.applied == 1


def test_a_store_that_is_not_in_force_is_hooked(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW)
    world.firewall.enforcing = False
    assert not world.controller.plan(NOW).agrees
    assert world.controller.reconcile(NOW).agrees
    assert world.firewall.enforcing


# people


def test_what_a_person_adds_is_adopted_and_given_to_all(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW)
    world.by_hand(world.jail, "192.0.2.8", since=NOW)
    world.by_hand(world.file, "192.0.2.9", since=None)
    assert world.controller.reconcile(NOW).agrees
    assert world.held() == [nets("192.0.2.7", "192.0.2.8", "192.0.2.9")] * 3
    adopted = world.ledger.bans()[net("192.0.2.8")]
    assert (adopted.origin, adopted.reason, adopted.since) == (Origin.STORE, "found in fail2ban", NOW)
    assert adopted.until is not None, "like spoofable evidence"


def test_what_a_person_adds_to_the_firewall_is_taken_out(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW)
    world.by_hand(world.firewall, "192.0.2.8")
    assert world.controller.reconcile(NOW).agrees
    assert world.held() == [nets("192.0.2.7")] * 3


def test_what_is_taken_out_where_only_the_ledger_decides_is_put_back_and_the_log_names_the_command(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW)
    world.firewall.bans.clear()
    with caplog.at_level("INFO", "jailbridge"):
        assert world.controller.reconcile(NOW).agrees
    assert world.held() == [nets("192.0.2.7")] * 3
    assert "`jailbridge unban`" in caplog.text


@pytest.mark.parametrize("name", ["fail2ban", "hosts_deny"])
def test_what_a_person_takes_out_of_a_store_that_means_it_is_unbanned_everywhere(
    world: World, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.ban(ban("192.0.2.7"), ban("192.0.2.8"))
    world.controller.reconcile(NOW)
    del store_of(world, name).bans[net("192.0.2.7")]
    plan = world.controller.plan(NOW)
    assert ("unban", net("192.0.2.7")) in [(c.action.value, c.network) for c in plan.changes if c.store == name]
    with caplog.at_level("INFO", "jailbridge"):
        assert world.controller.reconcile(NOW + HOUR).agrees
    assert world.held() == [nets("192.0.2.8")] * 3
    assert f"store={name} address=192.0.2.7 was taken out there: unbanned everywhere" in caplog.text
    stone = world.ledger.tombstone(net("192.0.2.7"))
    assert stone is not None
    assert (stone.why, stone.ended, stone.bans) == (EndReason.STORE, NOW + HOUR, 0)
    assert [(what, why) for _, _, what, _, why in world.ledger.feed()][-1] == ("unban", "store")


def test_a_ban_that_is_wished_away_and_comes_again_stays(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW)
    world.file.bans.clear()
    world.ban(ban("192.0.2.7"))
    assert world.controller.reconcile(NOW).agrees, "a newer command beats every inference"
    assert world.held() == [nets("192.0.2.7")] * 3
    world.controller.reconcile(NOW)
    world.file.bans.clear()
    world.controller.reconcile(NOW)
    assert world.held() == [set()] * 3


def test_what_was_never_seen_there_is_no_wish_when_the_writing_was_cut_short(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.file.broken = RetryLater("no space left")
    world.controller.reconcile(NOW)
    world.file.broken = None
    world.restart()
    assert world.controller.reconcile(NOW).agrees
    assert world.held() == [nets("192.0.2.7")] * 3


def test_a_loss_in_a_store_where_wishes_count_is_made_good(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW)
    world.file.lose()
    world.jail.lose()
    assert world.controller.reconcile(NOW).agrees
    assert world.held() == [nets("192.0.2.7")] * 3


def test_an_older_copy_put_back_where_wishes_count_ends_no_ban(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW)
    copy, token = dict(world.file.bans), world.file.token
    world.ban(ban("192.0.2.8"))
    world.controller.reconcile(NOW)
    world.file.bans, world.file.token = copy, token
    assert world.controller.reconcile(NOW).agrees
    assert world.held() == [nets("192.0.2.7", "192.0.2.8")] * 3


def test_many_that_are_gone_at_once_are_a_loss_unless_somebody_says_otherwise(world: World) -> None:
    networks = [f"10.0.0.{n}" for n in range(5)]
    for forced in (False, True):
        world.ban(*(ban(network) for network in networks))
        world.controller.reconcile(NOW)
        for network in networks[:4]:
            del world.file.bans[net(network)]
        assert world.controller.reconcile(NOW, forced=forced).agrees
        assert world.held() == [nets(*networks[4:] if forced else networks)] * 3


def test_a_store_that_another_writes_after_it_was_read_is_not_written_over(world: World) -> None:
    """Its older copy would get our newest token, and what that lacks would look like somebody's wish."""
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW)
    copy, token = dict(world.file.bans), world.file.token
    world.ban(ban("192.0.2.8"))
    world.controller.reconcile(NOW)
    world.ban(ban("192.0.2.9"))

    def put_back() -> None:
        world.file.bans, world.file.token = copy, token

    world.file.before_apply = put_back
    assert not world.controller.reconcile(NOW).agrees
    world.seconds += 60
    assert world.controller.reconcile(NOW).agrees
    assert world.held() == [nets("192.0.2.7", "192.0.2.8", "192.0.2.9")] * 3


def test_one_store_alone_is_brought_in_line_and_the_others_in_the_next_pass(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    plan = world.controller.reconcile(NOW, only="hosts_deny")
    assert list(plan.stores) == ["hosts_deny"]
    assert world.held() == [set(), set(), nets("192.0.2.7")]
    assert not world.controller.carry(NOW, patient=True)
    assert world.controller.reconcile(NOW, believing=True).agrees
    assert world.held() == [nets("192.0.2.7")] * 3


def test_what_was_only_covered_when_its_cover_was_wished_away_stays_banned(world: World) -> None:
    world.ban(ban("10.0.0.0/7"), ban("10.0.0.1"))
    world.controller.reconcile(NOW)
    del world.jail.bans[net("10.0.0.1")]
    assert world.controller.reconcile(NOW).agrees, "what covers it is there"
    del world.jail.bans[net("10.0.0.0/7")]
    assert world.controller.reconcile(NOW).agrees
    assert set(world.ledger.bans()) == nets("10.0.0.1")
    assert world.held() == [nets("10.0.0.1")] * 3


# who fights


def test_our_rules_are_put_in_force_again_at_most_once_an_interval(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW, patient=True)
    world.firewall.enforcing = False
    world.seconds += 31
    assert world.controller.reconcile(NOW, patient=True).agrees
    for _ in range(3):
        world.seconds += 9
        world.firewall.enforcing = False
        assert not world.controller.reconcile(NOW, patient=True).agrees
    assert world.controller.reconcile(NOW).agrees, "a person's command does not wait"
    world.firewall.enforcing = False
    world.seconds += 31
    assert world.controller.reconcile(NOW, patient=True).agrees


def test_what_was_lost_altogether_is_made_anew_at_once(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    for _ in range(3):
        world.seconds += 1
        world.firewall.lose()
        world.firewall.enforcing = False
        assert world.controller.reconcile(NOW, patient=True).agrees


def test_a_store_that_another_touched_is_read_soon_and_not_all_the_time(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW, patient=True)
    world.seconds += 5
    assert world.controller.carry(NOW, patient=True)
    world.firewall.bans.clear()
    world.firewall.is_touched = True
    world.controller.notice()
    assert world.controller.next_reading == world.seconds
    assert not world.controller.carry(NOW, patient=True)
    world.forget_counts()
    assert world.controller.reconcile(NOW, patient=True, believing=True).agrees
    assert world.held() == [nets("192.0.2.7")] * 3
    assert [store.observed > 0 for store in world.stores] == [True, False, False]
    world.firewall.is_touched = True
    world.controller.notice()
    assert world.controller.next_reading == world.seconds + 1


# PortSentry's own marks


class Marks:
    """A place of marks in memory."""

    name = "marks"

    def __init__(self, *networks: str) -> None:
        self.marked = nets(*networks)
        self.broken: RetryLater | None = None

    def observe(self) -> Collection[Network]:
        if self.broken is not None:
            raise self.broken
        return set(self.marked)

    def remove(self, networks: Collection[Network]) -> None:
        self.marked -= set(networks)


def seen(world: World, *networks: str) -> None:
    """Ban these because of a line of a log."""
    world.ledger.record([ban(network)._replace(file="/log") for network in networks], now=NOW)


def test_a_mark_that_is_made_after_its_ban_ended_is_of_something_new(world: World) -> None:
    marks = Marks()
    world.controller = world.begin(marks)
    seen(world, "192.0.2.1")
    world.unban("192.0.2.1")
    world.controller.reconcile(NOW)
    marks.marked = nets("192.0.2.1")
    assert world.controller.reconcile(NOW).agrees
    assert marks.marked == nets("192.0.2.1"), "its line waits to be read"


def test_while_exemptions_are_unknown_no_mark_is_taken_out(world: World) -> None:
    marks = Marks("192.0.2.1")
    world.controller = world.begin(marks)
    seen(world, "192.0.2.1")
    world.unban("192.0.2.1")
    known, world.exemptions = world.exemptions, None
    world.controller.reconcile(NOW)
    assert marks.marked
    world.exemptions = known
    assert world.controller.reconcile(NOW).agrees
    assert not marks.marked


def test_marks_of_bans_that_ended_are_taken_out_and_no_others(world: World) -> None:
    marks = Marks("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "10.0.0.1")
    world.controller = world.begin(marks)
    seen(world, "192.0.2.1", "192.0.2.2", "10.0.0.0/8")
    world.ban(ban("192.0.2.3"))
    world.controller.reconcile(NOW)
    assert len(marks.marked) == 5
    world.unban("192.0.2.1", "192.0.2.3", "10.0.0.0/8")
    plan = world.controller.plan(NOW)
    assert {c.network for c in plan.changes if c.store == "marks"} == nets("192.0.2.1", "10.0.0.1")
    assert (plan.stores["marks"].desired, plan.stores["marks"].observed) == (0, 5)
    assert world.controller.reconcile(NOW).agrees
    assert marks.marked == nets("192.0.2.2", "192.0.2.3", "192.0.2.4"), (
        "one is banned, one came from no log, one neither"
    )


def test_a_mark_goes_as_soon_as_its_ban_has_ended(world: World) -> None:
    marks = Marks("192.0.2.1")
    world.controller = world.begin(marks)
    seen(world, "192.0.2.1")
    world.controller.reconcile(NOW)
    assert world.controller.carry(NOW, patient=True)
    world.unban("192.0.2.1")
    assert world.controller.carry(NOW, patient=True)
    assert not marks.marked


def test_in_a_pause_marks_stay_and_a_place_out_of_reach_is_tried_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    marks = Marks("192.0.2.1")
    world.controller = world.begin(marks)
    seen(world, "192.0.2.1")
    world.unban("192.0.2.1")
    world.ledger.orders.pause(None)
    world.controller.reconcile(NOW)
    assert marks.marked
    world.ledger.orders.resume()
    marks.broken = RetryLater("marks cannot be read: try later")
    assert world.controller.reconcile(NOW).stores["marks"].problem == "marks cannot be read: try later"
    world.controller.reconcile(NOW)
    assert caplog.text.count("marks cannot be read") == 1
    marks.broken = None
    assert world.controller.reconcile(NOW).agrees
    assert not marks.marked


def store_of(world: World, name: str) -> Failing:
    return next(store for store in world.stores if store.name == name)


# another ledger


def test_an_older_ledger_in_which_a_list_ends_a_prefix_takes_over_a_later_ban_within_it(world: World) -> None:
    """The prefix ends now, after that ban began: its tombstone says nothing of what a later ledger did."""
    world.ban(ban("10.0.0.0/8"))
    world.controller.reconcile(NOW)
    world.ledger.close()
    backup = world.path.read_bytes()
    world.restart()
    world.unban("10.0.0.0/8")
    world.ban(ban("10.0.0.2"))
    world.controller.reconcile(NOW)
    world.ledger.close()
    world.path.write_bytes(backup)
    world.restart()
    world.exempt("10.0.0.1", permanent=True)
    world.ledger.end([net("10.0.0.0/8")], EndReason.ALLOW, now=NOW + HOUR)
    assert world.controller.reconcile(NOW + HOUR).agrees
    assert set(world.ledger.bans()) == nets("10.0.0.2")


def test_a_new_ledger_takes_over_what_the_stores_hold(world: World, tmp_path: Path) -> None:
    world.ban(ban("192.0.2.7"), ban("2001:db8::/64"))
    world.controller.reconcile(NOW)
    world.path = tmp_path / "new"
    world.restart()
    assert not world.ledger.bans()
    assert world.controller.reconcile(NOW).agrees
    assert set(world.ledger.bans()) == nets("192.0.2.7", "2001:db8::/64")
    assert world.held() == [nets("192.0.2.7", "2001:db8::/64")] * 3


def test_a_ban_that_has_just_ended_is_not_adopted_again(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW)
    world.unban("192.0.2.7")
    world.controller.reconcile(NOW)
    world.by_hand(world.jail, "192.0.2.7", since=NOW - HOUR)
    assert world.controller.reconcile(NOW).agrees
    assert world.held() == [set(), set(), set()]
    world.by_hand(world.jail, "192.0.2.7", since=NOW + timedelta(seconds=1))
    world.controller.reconcile(NOW + HOUR)
    assert set(world.ledger.bans()) == nets("192.0.2.7"), "a later one is new"


# exemptions


def test_a_dynamic_exemption_masks_a_ban_while_it_holds(world: World) -> None:
    world.ban(ban("192.0.2.7"), ban("192.0.2.8", forced=True))
    world.controller.reconcile(NOW)
    world.exempt("192.0.2.7", "192.0.2.8")
    assert world.controller.reconcile(NOW).agrees
    assert world.held() == [nets("192.0.2.8")] * 3
    world.exempt()
    assert world.controller.reconcile(NOW).agrees
    assert world.held() == [nets("192.0.2.7", "192.0.2.8")] * 3


def test_while_exemptions_cannot_be_read_what_they_masked_stays_masked(world: World) -> None:
    world.ban(ban("192.0.2.7"), ban("192.0.2.8"))
    world.exempt("192.0.2.7")
    world.controller.reconcile(NOW)
    world.exemptions = None
    assert world.controller.reconcile(NOW).agrees
    assert world.held() == [nets("192.0.2.8")] * 3
    world.ban(ban("192.0.2.9"))
    world.controller.reconcile(NOW)
    assert world.held() == [nets("192.0.2.8", "192.0.2.9")] * 3


def test_while_exemptions_cannot_be_read_nothing_unknown_is_adopted_or_removed(world: World) -> None:
    world.controller.reconcile(NOW)
    world.exemptions = None
    for store in world.stores:
        world.by_hand(store, "192.0.2.7")
    world.controller.reconcile(NOW)
    assert world.held() == [nets("192.0.2.7")] * 3
    assert not world.ledger.bans()
    world.exempt("192.0.2.7")
    world.controller.reconcile(NOW)
    assert world.held() == [set(), set(), set()]


# failures


def test_a_store_out_of_reach_is_made_good_when_it_is_back(world: World) -> None:
    world.ban(ban("192.0.2.7"), ban("192.0.2.8"))
    world.controller.reconcile(NOW)
    world.jail.reachable = False
    world.unban("192.0.2.7")
    world.ban(ban("192.0.2.9"))
    left = world.controller.reconcile(NOW)
    assert not left.agrees
    assert left.changes == ()
    summary = left.stores["fail2ban"]
    assert (summary.reachable, summary.problem) == (False, "store fail2ban is out of reach")
    assert world.held() == [
        nets("192.0.2.8", "192.0.2.9"),
        nets("192.0.2.7", "192.0.2.8"),
        nets("192.0.2.8", "192.0.2.9"),
    ]
    world.ledger.prune(now=NOW + timedelta(days=999), memory=HOUR)
    assert world.ledger.tombstone(net("192.0.2.7")) is not None, "it may still be held there"
    world.jail.reachable = True
    assert world.controller.reconcile(NOW).agrees
    assert world.held() == [nets("192.0.2.8", "192.0.2.9")] * 3


def test_a_store_that_cannot_be_written_holds_nobody_up(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.firewall.broken = RetryLater("nft failed: no")
    left = world.controller.reconcile(NOW)
    assert world.held() == [set(), nets("192.0.2.7"), nets("192.0.2.7")]
    assert (left.stores["firewall"].reachable, left.stores["firewall"].problem) == (False, "nft failed: no")
    assert left.stores["fail2ban"].reachable
    world.firewall.broken = None
    assert world.controller.reconcile(NOW).agrees
    assert world.held() == [nets("192.0.2.7")] * 3


@pytest.mark.parametrize("break_it", ["reading", "writing"])
def test_a_failing_store_is_tried_at_growing_intervals_and_told_of_once(
    world: World, caplog: pytest.LogCaptureFixture, break_it: str
) -> None:
    caplog.set_level(logging.INFO)
    world.ban(ban("192.0.2.7"))
    if break_it == "reading":
        world.file.reachable = False
    else:
        world.file.broken = FatalError("the disk is read-only")
    assert world.controller.next_turn is None
    tried = []
    for second in range(200):
        world.seconds = float(second)
        before = world.file.observed
        world.controller.reconcile(NOW, patient=True)
        if world.file.observed != before:
            tried.append(second)
    gaps = [later - earlier for earlier, later in pairwise(tried)]
    assert gaps[:6] == [1, 2, 4, 8, 16, 30]
    assert set(gaps[5:]) == {int(LAST_RETRY_S)}
    assert gaps[0] == FIRST_RETRY_S
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1
    assert "store=hosts_deny" in told[0].getMessage()

    world.file.reachable, world.file.broken = True, None
    caplog.clear()
    world.seconds = 1000.0
    assert world.controller.reconcile(NOW, patient=True).agrees
    assert world.controller.next_turn is None
    assert sum("again" in record.getMessage() for record in caplog.records) == 1
    world.file.reachable = False
    world.controller.reconcile(NOW, patient=True)
    assert world.controller.next_turn == 1000.0 + FIRST_RETRY_S, "the next failure starts from the beginning"


def test_an_operators_command_does_not_wait_for_a_failing_stores_turn(world: World) -> None:
    world.file.reachable = False
    world.controller.reconcile(NOW, patient=True)
    world.file.reachable = True
    world.ban(ban("192.0.2.7"))
    assert not world.controller.reconcile(NOW, patient=True).agrees
    assert world.controller.reconcile(NOW).agrees


def test_why_a_store_was_not_written_is_shown_until_it_is(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.file.broken = RetryLater("the disk is full")
    world.controller.reconcile(NOW)
    for _ in range(2):
        summary = world.controller.plan(NOW).stores["hosts_deny"]
        assert (summary.reachable, summary.problem) == (True, "the disk is full")
    world.file.broken = None
    assert world.controller.reconcile(NOW).stores["hosts_deny"].problem is None


def test_changes_are_told_when_they_are_made_not_before(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world.ban(ban("192.0.2.7"))
    world.file.broken = RetryLater("no")
    world.controller.reconcile(NOW)
    assert "store=firewall action=add address=192.0.2.7 why=test" in caplog.messages
    assert not any(message.startswith("store=hosts_deny action=") for message in caplog.messages)


@pytest.mark.parametrize("done", [False, True], ids=["before its effect", "after its effect"])
def test_an_apply_that_is_cut_short_is_made_good_after_the_restart(world: World, *, done: bool) -> None:
    class PowerCut(Exception):
        pass

    world.ban(ban("192.0.2.7"), ban("192.0.2.8"))
    world.controller.reconcile(NOW)
    world.unban("192.0.2.7")
    world.ban(ban("192.0.2.9"))
    apply = world.jail.apply

    def cut(
        changes: Sequence[Change], token: Token, now: datetime, *, expected: str | None = None
    ) -> Sequence[Rejection]:
        if done:
            apply(changes, token, now, expected=expected)
        raise PowerCut

    world.jail.apply = cut  # type: ignore[method-assign]
    with pytest.raises(PowerCut):
        world.controller.reconcile(NOW)
    world.jail.apply = apply  # type: ignore[method-assign]
    world.restart()
    assert world.controller.reconcile(NOW).agrees
    assert world.held() == [nets("192.0.2.8", "192.0.2.9")] * 3
    assert all(set(world.ledger.places.of(store.name)) == nets("192.0.2.8", "192.0.2.9") for store in world.stores)


# pauses


def test_a_pause_empties_the_stores_and_keeps_every_ban_as_it_is(world: World) -> None:
    world.ban(ban("192.0.2.7"), ban("192.0.2.8"))
    world.controller.reconcile(NOW)
    before = dict(world.ledger.bans())
    world.ledger.orders.pause(None)
    assert world.controller.reconcile(NOW).agrees
    assert world.held() == [set()] * 3
    assert {state for stores in world.controller.presences(NOW).values() for state in stores.values()} == {"disabled"}
    world.by_hand(world.jail, "192.0.2.7")
    assert world.controller.reconcile(NOW).agrees
    assert world.held() == [set()] * 3
    assert dict(world.ledger.bans()) == before, "what a store bans again by itself is no news"
    world.by_hand(world.jail, "192.0.2.9")
    world.controller.reconcile(NOW)
    assert world.held() == [set(), nets("192.0.2.9"), set()], "a person's own ban stays and waits"
    world.ledger.orders.resume()
    assert world.controller.reconcile(NOW).agrees
    assert world.held() == [nets("192.0.2.7", "192.0.2.8", "192.0.2.9")] * 3


def test_a_restore_in_a_pause_puts_nothing_back(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW)
    world.ledger.orders.pause(NOW + HOUR)
    world.restart(reboot=True)
    world.controller.restore(NOW)
    assert not world.firewall.bans
    world.controller.restore(NOW + HOUR)
    assert set(world.firewall.bans) == nets("192.0.2.7")


# the brake


class Counting:
    """A brake that lets so many through, and counts."""

    def __init__(self, room: int) -> None:
        self.room = room

    def left(self) -> int:
        return self.room

    def spend(self, number: int) -> None:
        self.room -= number


@pytest.mark.parametrize(("ledger", "left"), [("another", 3), ("own", 1)])
def test_only_what_persons_put_there_uses_up_the_brake(world: World, ledger: str, left: int) -> None:
    brake = Counting(3)
    attached = [Attached(store=world.jail, external=External.ADOPT)]
    controller = Controller(world.ledger, attached, PolicySettings(), lambda: world.exemptions, world.boot, brake=brake)
    controller.reconcile(NOW)
    for network in ("192.0.2.7", "192.0.2.8"):
        world.by_hand(world.jail, network)
    if ledger == "another":
        world.jail.token = str(Token(ledger=ledger, boot=world.boot, layout=1, sequence=9))
    controller.plan(NOW)
    assert brake.room == 3, "a plan is a dry run"
    controller.reconcile(NOW)
    assert set(world.ledger.bans()) == nets("192.0.2.7", "192.0.2.8")
    assert brake.room == left


# restore


def test_restore_fills_the_early_stores_and_asks_no_other(world: World) -> None:
    world.ban(ban("192.0.2.7"), ban("192.0.2.8", NOW + HOUR))
    world.controller.reconcile(NOW)
    world.restart(reboot=True)
    world.forget_counts()
    assert world.controller.restore(NOW).agrees
    assert world.held() == [nets("192.0.2.7", "192.0.2.8"), set(), nets("192.0.2.7", "192.0.2.8")]
    assert [store.observed for store in (world.jail, world.file)] == [0, 0]
    assert world.firewall.bans[net("192.0.2.8")].until == NOW + HOUR


def test_restore_hooks_and_moves_ends_but_ends_no_ban(world: World) -> None:
    world.ban(ban("192.0.2.7"), ban("192.0.2.8"))
    world.controller.reconcile(NOW)
    world.unban("192.0.2.7")
    world.ban(ban("192.0.2.8", NOW + HOUR))
    world.firewall.enforcing = False
    world.by_hand(world.firewall, "192.0.2.99")
    assert world.controller.restore(NOW).agrees
    assert world.firewall.enforcing
    assert world.held()[0] == nets("192.0.2.7", "192.0.2.8", "192.0.2.99")
    assert set(world.ledger.places.of("firewall")) == nets("192.0.2.7", "192.0.2.8"), "what ended is known to be there"
    assert world.firewall.bans[net("192.0.2.8")].until == NOW + HOUR


@pytest.mark.parametrize(
    ("loaded", "ended", "wanted", "held"),
    [
        (["10.0.0.0/8"], [], ["10.0.0.0/7"], ["10.0.0.0/7"]),
        (["10.0.0.0/8"], ["10.0.0.0/8"], ["10.0.0.0/7"], ["10.0.0.0/7"]),
        (["10.0.0.0/7"], ["10.0.0.0/7"], ["10.0.0.0/8"], ["10.0.0.0/7"]),
        (["10.0.0.0/7"], [], ["10.0.0.0/8"], ["10.0.0.0/7"]),
        (["10.0.0.1", "10.0.0.2"], ["10.0.0.1"], ["10.0.0.0/8", "192.0.2.7"], ["10.0.0.0/8", "192.0.2.7"]),
    ],
)
def test_restore_gets_on_with_an_older_ruleset_that_was_loaded_before(
    world: World, loaded: list[str], ended: list[str], wanted: list[str], held: list[str]
) -> None:
    world.ban(*map(ban, ended))
    world.controller.reconcile(NOW)
    world.unban(*ended)
    world.ban(*map(ban, wanted))
    world.firewall.lose()
    for network in loaded:
        world.by_hand(world.firewall, network)
    left = world.controller.restore(NOW)
    assert left.agrees, left
    assert world.held()[0] == nets(*held)
    assert world.controller.reconcile(NOW).agrees
    assert world.held()[0] == nets(*wanted)


def test_restore_proves_nothing_of_what_it_found(world: World) -> None:
    def attach(external: External) -> Controller:
        attached = [Attached(store=world.firewall, external=external)]
        return Controller(world.ledger, attached, PolicySettings(), lambda: world.exemptions, world.boot)

    controller: Callable[[], Controller] = lambda: attach(External.ADOPT)  # noqa: E731
    world.ban(ban("192.0.2.7"), ban("192.0.2.8"))
    controller().reconcile(NOW)
    saved, token = dict(world.firewall.bans), world.firewall.token
    world.unban("192.0.2.7")
    controller().reconcile(NOW)
    world.firewall.bans, world.firewall.token = saved, token
    world.firewall.bans = {n: held._replace(since=None) for n, held in saved.items()}
    world.ban(ban("192.0.2.9"))
    controller().restore(NOW)
    assert set(world.firewall.bans) == nets("192.0.2.7", "192.0.2.8", "192.0.2.9")
    controller().reconcile(NOW)
    assert set(world.firewall.bans) == nets("192.0.2.8", "192.0.2.9"), "an ended ban is nobody's wish"
    assert set(world.ledger.bans()) == nets("192.0.2.8", "192.0.2.9")


def test_restore_takes_over_what_a_later_ledger_wrote(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW)
    world.by_hand(world.firewall, "192.0.2.99")
    world.firewall.bans.pop(net("192.0.2.7"))
    world.firewall.token = str(Token(ledger="another", boot=world.boot, layout=1, sequence=9))
    assert world.controller.restore(NOW).agrees
    assert world.held()[0] == nets("192.0.2.7", "192.0.2.99")
    world.controller.reconcile(NOW)
    assert world.held()[0] == nets("192.0.2.7", "192.0.2.99"), "an older ledger removes nothing"


def test_restore_with_nothing_to_do_writes_nothing(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW)
    world.forget_counts()
    assert world.controller.restore(NOW).agrees
    assert world.firewall.applied == 0


def test_a_store_out_of_reach_at_restore_is_left_over(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.firewall.reachable = False
    left = world.controller.restore(NOW)
    assert not left.agrees
    assert left.stores["firewall"].problem == "store firewall is out of reach"


# presences


def test_presences_tell_how_each_store_stands_to_each_ban(world: World) -> None:
    world.ban(ban("10.0.0.0/8"), ban("10.0.0.1"), *[ban(f"192.0.2.{n}", NOW + HOUR) for n in range(4)])
    world.controller.reconcile(NOW)
    world.ban(ban("203.0.113.9"))
    world.jail.reachable = False
    seen = world.controller.presences(NOW)
    assert seen[net("10.0.0.1")] == {
        "firewall": Presence.COVERED, "fail2ban": Presence.UNREACHABLE, "hosts_deny": Presence.PRESENT,
    }  # fmt: skip
    assert seen[net("203.0.113.9")]["firewall"] is Presence.MISSING
    assert seen[net("203.0.113.9")]["hosts_deny"] is Presence.MISSING, "it will take another's place"
    over = [n for n in range(4) if seen[net(f"192.0.2.{n}")]["hosts_deny"] is Presence.UNSUPPORTED]
    assert len(over) == 1
    assert set(seen) == set(world.ledger.bans())


# what a believed store holds is judged by its own time


def test_what_lay_in_a_network_that_is_unbanned_ends_with_it_though_no_store_is_read(world: World) -> None:
    world.ban(ban("10.0.0.0/8"))
    world.controller.reconcile(NOW)
    world.by_hand(world.jail, "10.1.2.3", NOW - HOUR)
    world.controller.reconcile(NOW)
    assert world.held()[1] == nets("10.0.0.0/8", "10.1.2.3")
    world.unban("10.0.0.0/8")
    assert not world.controller.carry(NOW, patient=True)
    world.controller.reconcile(NOW, patient=True, believing=True)
    assert world.ledger.bans() == {}
    assert world.held() == [set(), set(), set()]


def test_what_waited_for_an_allow_list_is_taken_over_with_its_own_time(world: World) -> None:
    world.ban(ban("192.0.2.1"))
    world.controller.reconcile(NOW)
    world.exemptions = None
    world.by_hand(world.jail, "198.51.100.7", NOW - HOUR / 2)
    world.by_hand(world.jail, "198.51.100.8", NOW - 10_000 * HOUR)
    world.controller.reconcile(NOW)
    world.exempt("203.0.113.1")
    assert not world.controller.carry(NOW, patient=True)
    world.controller.reconcile(NOW, patient=True, believing=True)
    assert world.ledger.bans()[net("198.51.100.7")].since == NOW - HOUR / 2
    assert net("198.51.100.8") not in world.ledger.bans()
