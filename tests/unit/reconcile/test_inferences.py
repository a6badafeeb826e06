"""What must not be taken for a wish, what must be, and what nobody may remove: accidents in the middle of things."""

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from jailbridge.config.settings import HostsDenySettings, PolicySettings
from jailbridge.errors import RetryLater
from jailbridge.ledger import Ledger
from jailbridge.model.ban import EndReason
from jailbridge.model.plan import Action, Change, External, ObservedBan, Rejection
from jailbridge.model.token import Token
from jailbridge.policy.exempt import Exemptions
from jailbridge.reconcile.attached import Attached
from jailbridge.reconcile.controller import Controller
from jailbridge.stores.hosts_deny import HostsDenyStore
from jailbridge.stores.protocol import Drifted
from tests.unit.reconcile.controlled import HOUR, JAIL, NOW, Failing, World, ban, net, nets

COMMAND = 20


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.ledger.close()


class Slow(Failing):
    """fail2ban as it is: so many addresses a command, `commands` of which are answered; the token is set last."""

    commands = 99

    def apply(
        self, changes: Sequence[Change], token: Token, now: datetime, *, expected: str | None = None
    ) -> Sequence[Rejection]:
        if expected is not None and self.token != expected:
            raise Drifted("not as it was left")
        done = changes[: self.commands * COMMAND]
        for change in done:
            assert change.network is not None
            if change.action is Action.REMOVE:
                self.bans.pop(change.network, None)
            else:
                self.bans[change.network] = ObservedBan(network=change.network, since=now)
        if len(done) < len(changes):
            raise RetryLater("fail2ban does not answer in time")
        self.token = str(token)
        return ()


def slow(world: World, number: int) -> Slow:
    """Put a slow jail in fail2ban's place, and have it hold so many bans."""
    jail = Slow("fail2ban", replace(JAIL, turn=200))
    world.jail = jail
    world.controller = world.begin()
    world.ban(*[ban(f"10.0.{n // 250}.{n % 250}") for n in range(number)])
    world.controller.reconcile(NOW)
    while world.controller.next_turn is not None:
        assert world.controller.carry(NOW, patient=True)
        world.seconds += 1
    assert world.controller.plan(NOW).agrees
    return jail


def later(world: World, passes: int = 1) -> None:
    for _ in range(passes):
        world.seconds += 60
        world.controller.reconcile(NOW, patient=True)


# what is cut short is nobody's wish


def test_a_loss_that_is_made_good_half_way_leaves_no_wishes(world: World) -> None:
    jail = slow(world, 23)
    jail.bans.clear()
    jail.commands = 1
    world.controller.reconcile(NOW)
    jail.commands = 99
    later(world)
    assert len(world.ledger.bans()) == len(jail.bans) == 23


def test_a_loss_that_is_made_good_in_many_attempts_leaves_no_wishes(world: World) -> None:
    jail = slow(world, 500)
    jail.bans.clear()
    jail.commands = 3
    later(world, passes=12)
    assert len(world.ledger.bans()) == len(jail.bans) == 500


def test_a_pause_that_gets_half_way_leaves_no_wishes(world: World) -> None:
    jail = slow(world, 210)
    jail.commands = 1
    world.ledger.orders.pause(None)
    world.controller.reconcile(NOW)
    jail.commands = 99
    world.ledger.orders.resume()
    later(world, passes=3)
    assert len(world.ledger.bans()) == len(jail.bans) == 210


def test_a_mask_whose_writing_failed_leaves_no_wish_when_it_is_gone(world: World) -> None:
    jail = slow(world, 30)
    jail.commands = 0
    world.exempt("10.0.0.7")
    world.controller.reconcile(NOW)
    del jail.bans[net("10.0.0.7")]
    jail.commands = 99
    world.exempt()
    later(world, passes=2)
    assert len(world.ledger.bans()) == len(jail.bans) == 30


def test_what_a_store_refuses_to_take_back_is_no_wish(world: World) -> None:
    world.ban(ban("192.0.2.7"), ban("192.0.2.8"))
    world.controller.reconcile(NOW)
    world.jail.lose()
    world.jail.refuses = nets("192.0.2.7")
    later(world, passes=2)
    assert set(world.ledger.bans()) == nets("192.0.2.7", "192.0.2.8")


def test_a_storm_after_a_loss_makes_it_no_smaller(world: World) -> None:
    world.jail.capabilities = replace(JAIL, turn=200)
    world.controller = world.begin()
    world.ban(*[ban(f"10.0.0.{n}") for n in range(10)])
    world.controller.reconcile(NOW)
    world.jail.bans.clear()
    world.ban(*[ban(f"10.1.0.{n}") for n in range(150)])
    assert world.controller.carry(NOW, patient=True)
    world.seconds += 31
    world.controller.reconcile(NOW, patient=True, believing=True)
    assert len(world.ledger.bans()) == 160


# wishes that must be obeyed


def test_what_is_taken_out_while_we_write_is_a_wish(world: World) -> None:
    world.ban(ban("192.0.2.7"), ban("192.0.2.8"))
    world.controller.reconcile(NOW)
    world.ban(ban("192.0.2.9"))

    def taken_out() -> None:
        world.jail.bans.pop(net("192.0.2.7"))

    world.jail.before_apply = taken_out
    world.controller.reconcile(NOW)
    later(world)
    assert set(world.ledger.bans()) == nets("192.0.2.8", "192.0.2.9")


@pytest.mark.parametrize("name", ["jail", "file"])
def test_what_is_taken_out_soon_after_its_ban_was_changed_is_a_wish(world: World, name: str) -> None:
    world.ban(ban("192.0.2.7"), ban("192.0.2.8"))
    world.controller.reconcile(NOW)
    world.seconds += 2
    world.ban(ban("192.0.2.7", NOW + 5 * HOUR))
    assert not world.controller.carry(NOW, patient=True), "it must be seen again, though nothing is to be written there"
    world.controller.reconcile(NOW, patient=True, believing=True)
    del getattr(world, name).bans[net("192.0.2.7")]
    later(world)
    assert set(world.ledger.bans()) == nets("192.0.2.8")


def test_looking_on_forgets_no_touch(world: World, tmp_path: Path) -> None:
    path = tmp_path / "hosts.deny"
    attached = Attached(store=HostsDenyStore(HostsDenySettings(path=path)), external=External.ADOPT)
    controller = Controller(
        world.ledger, [attached], PolicySettings(), lambda: world.exemptions, world.boot, lambda: world.seconds
    )
    world.ban(ban("192.0.2.7"), ban("192.0.2.8"))
    controller.reconcile(NOW)
    world.seconds += 5
    controller.notice()
    assert controller.carry(NOW, patient=True)
    path.write_text(path.read_text().replace("ALL: 192.0.2.7\n", ""))
    controller.presences(NOW)
    controller.notice()
    assert not controller.carry(NOW, patient=True)
    controller.reconcile(NOW, believing=True)
    assert set(world.ledger.bans()) == nets("192.0.2.8")


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_find_that_is_unbanned_before_its_store_could_be_written_is_not_found_again(
    world: World, is_killed: bool
) -> None:
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW)
    world.by_hand(world.file, "192.0.2.9", since=None)
    world.ban(ban("192.0.2.8"))
    if is_killed:
        world.firewall.before_apply = _killed
        with pytest.raises(KeyboardInterrupt):
            world.controller.reconcile(NOW)
        world.restart()
    else:
        world.file.broken = RetryLater("no space left")
        world.controller.reconcile(NOW)
    assert net("192.0.2.9") in world.ledger.bans()
    world.unban("192.0.2.9")
    world.controller.reconcile(NOW + HOUR)
    world.file.broken = None
    world.seconds += 60
    world.controller.reconcile(NOW + HOUR)
    assert net("192.0.2.9") not in world.ledger.bans()
    assert net("192.0.2.9") not in world.file.bans


def _killed() -> None:
    raise KeyboardInterrupt


# what nobody may remove


def test_a_ban_found_within_another_is_looked_at_again_when_that_one_ends(world: World) -> None:
    """Also where the reading that found it changed nothing else."""
    world.ban(ban("10.0.0.0/7"))
    world.controller.reconcile(NOW)
    assert world.controller.carry(NOW, patient=True)
    world.ban(ban("192.0.2.7"))
    assert world.controller.carry(NOW, patient=True)
    world.by_hand(world.file, "10.0.0.0/8", since=None)
    world.controller.reconcile(NOW)
    world.unban("10.0.0.0/7")
    assert not world.controller.carry(NOW, patient=True)
    assert world.controller.reconcile(NOW, believing=True).agrees
    assert set(world.ledger.bans()) == nets("10.0.0.0/8", "192.0.2.7")


@pytest.mark.parametrize(("why", "is_kept"), [(EndReason.EXPIRED, True), (EndReason.OPERATOR, False)])
def test_what_an_older_ledger_saw_running_out_is_taken_over_and_what_a_person_ended_is_not(
    world: World, why: EndReason, is_kept: bool
) -> None:
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW)
    world.ledger.end([net("192.0.2.7")], why, now=NOW + HOUR)
    for store in world.stores:
        store.token = of_another(world)
    assert world.controller.reconcile(NOW + HOUR).agrees
    assert (net("192.0.2.7") in world.ledger.bans()) is is_kept


def of_another(world: World) -> str:
    return str(Token(ledger="another", boot=world.boot, layout=1, sequence=9))


@pytest.mark.parametrize("why", ["exemptions unknown", "a pause"])
def test_what_another_ledger_wrote_waits_until_somebody_can_decide(world: World, why: str) -> None:
    world.by_hand(world.firewall, "192.0.2.7", since=None)
    world.firewall.token = of_another(world)
    if why == "a pause":
        world.ledger.orders.pause(None)
    else:
        world.exemptions = None
    world.controller.reconcile(NOW)
    assert world.firewall.token == of_another(world)
    world.ledger.orders.resume()
    world.exemptions = Exemptions()
    assert world.controller.reconcile(NOW).agrees
    assert set(world.ledger.bans()) == nets("192.0.2.7")
    assert world.held() == [nets("192.0.2.7")] * 3


def test_a_restore_with_an_older_ledger_waits_too(world: World) -> None:
    world.ban(ban("192.0.2.8"))
    world.controller.reconcile(NOW)
    world.by_hand(world.firewall, "192.0.2.7", since=None)
    world.firewall.token = of_another(world)
    world.restart()
    world.exemptions = None
    world.controller.restore(NOW)
    world.exemptions = Exemptions()
    world.controller.reconcile(NOW)
    assert world.held()[0] == nets("192.0.2.7", "192.0.2.8")


def test_whom_a_mask_spared_is_spared_after_a_restart_while_exemptions_are_unknown(world: World) -> None:
    world.ban(ban("192.0.2.7"), ban("192.0.2.8"))
    world.exempt("192.0.2.7")
    world.controller.reconcile(NOW)
    world.exemptions = None
    world.restart(reboot=True)
    world.controller.reconcile(NOW)
    assert world.held() == [nets("192.0.2.8")] * 3


def test_an_older_ledger_knows_a_later_stores_token_however_many_boots_came_before(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW)
    world.ledger.close()
    backup = world.path.with_name("backup")
    shutil.copy(world.path, backup)
    world.restart()
    world.ban(ban("192.0.2.9"))
    world.controller.reconcile(NOW)
    world.ledger.close()
    shutil.copy(backup, world.path)
    world.ledger = Ledger(world.path)
    for _ in range(4):
        world.restart(reboot=True)
        world.controller.restore(NOW)
    world.controller.reconcile(NOW)
    assert net("192.0.2.9") in world.file.bans
    assert net("192.0.2.9") in world.ledger.bans()


def test_an_older_ledger_takes_over_what_a_restarted_jail_alone_knows_of_a_later_time(world: World) -> None:
    world.ban(ban("192.0.2.7"), ban("192.0.2.8"))
    world.controller.reconcile(NOW)
    world.unban("192.0.2.8")
    world.controller.reconcile(NOW)
    backup = world.path.with_name("backup")
    with closing(sqlite3.connect(world.path)) as database:
        database.execute("VACUUM INTO ?", (str(backup),))
    world.ledger.close()
    shutil.copyfile(backup, world.path)
    world.restart(reboot=True)
    # fail2ban bans again what its database holds.
    for address, since in (("192.0.2.7", NOW), ("192.0.2.8", NOW), ("192.0.2.9", NOW + HOUR)):
        world.by_hand(world.jail, address, since)
    world.file.lose()
    assert world.controller.reconcile(NOW + 2 * HOUR).agrees
    assert set(world.ledger.bans()) == nets("192.0.2.7", "192.0.2.9")
    assert world.held() == [nets("192.0.2.7", "192.0.2.9")] * 3


def test_that_a_ledger_is_not_the_one_that_wrote_a_store_is_told_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.by_hand(world.firewall, "192.0.2.7", since=None)
    world.firewall.token = of_another(world)
    world.exemptions = None
    for _ in range(2):
        world.controller.reconcile(NOW)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text.partition(":")[0] for text in told] == ["store=firewall bears the mark of another ledger"]


# while `now` is held back, since the clock may be wrong


def test_what_a_person_banned_is_of_today_though_nothing_may_end_yet(world: World) -> None:
    world.ban(ban("192.0.2.7"))
    world.controller.reconcile(NOW)
    world.restart(reboot=True)
    world.by_hand(world.jail, "192.0.2.9", NOW + 2 * HOUR)
    world.controller = world.begin(today=lambda: NOW + 3 * HOUR)
    assert world.controller.reconcile(NOW + HOUR).agrees
    assert set(world.ledger.bans()) == nets("192.0.2.7", "192.0.2.9")


def test_what_another_ledgers_firewall_holds_yet_is_held_as_long_from_today_on(world: World) -> None:
    until = NOW + HOUR / 2
    world.firewall.bans[net("192.0.2.9")] = ObservedBan(network=net("192.0.2.9"), until=until)
    world.firewall.token = of_another(world)
    world.controller = world.begin(today=lambda: NOW + HOUR)
    world.controller.reconcile(NOW)
    assert world.ledger.bans()[net("192.0.2.9")].until == until + HOUR
