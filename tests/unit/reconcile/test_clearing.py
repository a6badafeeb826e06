"""How places of PortSentry's marks fare: one that fails or hangs waits for its turn, and keeps up no other."""

from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from jailbridge.errors import FatalError, RetryLater
from jailbridge.ledger import Ledger
from jailbridge.model.ban import Ban, EndReason, Origin
from jailbridge.model.network import Network
from jailbridge.reconcile.attached import FIRST_RETRY_S, LAST_RETRY_S
from jailbridge.reconcile.clearing import Clearing
from tests.unit.reconcile.controlled import NOW, World, ban, net, nets

UNREADABLE = RetryLater("marks cannot be read: try later")


class Place:
    """A place of marks in memory that can be made to fail, and counts what is asked of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.marked: set[Network] = set()
        self.unreadable: RetryLater | FatalError | None = None
        self.unwritable: RetryLater | FatalError | None = None
        self.observed = self.removed = 0

    def observe(self) -> Collection[Network]:
        self.observed += 1
        if self.unreadable is not None:
            raise self.unreadable
        return set(self.marked)

    def remove(self, networks: Collection[Network]) -> None:
        self.removed += 1
        if self.unwritable is not None:
            raise self.unwritable
        self.marked -= set(networks)


class Host:
    """A ledger and two places, which have been gone through once: nothing is due."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger(folder / "ledger")
        self.route, self.deny = Place("route"), Place("deny")
        self.seconds = 0.0
        self.clearing = self.begin()
        self.clearing.clear(NOW)
        self.forget_counts()

    def begin(self) -> Clearing:
        return Clearing(self.ledger, [self.route, self.deny], lambda: self.seconds)

    def end_ban(self, *networks: str) -> None:
        """Have a log's bans begin, marked in both places, and end."""
        bans = [
            Ban(network=net(n), since=NOW, until=None, origin=Origin.SENSOR, reason="scan", file="/log")
            for n in networks
        ]
        self.ledger.record(bans, now=NOW)
        for place in (self.route, self.deny):
            place.marked |= nets(*networks)
        self.ledger.end(nets(*networks), EndReason.OPERATOR, now=NOW)

    def clear(self) -> None:
        """As the daemon does by itself."""
        self.clearing.clear(NOW, patient=True)

    def is_due(self) -> bool:
        return self.clearing.is_due

    def forget_counts(self) -> None:
        for place in (self.route, self.deny):
            place.observed = place.removed = 0


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.ledger.close()


def test_a_place_that_fails_waits_and_the_others_are_done(host: Host) -> None:
    host.route.unreadable = UNREADABLE
    host.end_ban("192.0.2.1")
    assert host.is_due()
    host.clear()
    assert not host.deny.marked
    assert not host.is_due()
    assert host.clearing.is_owed
    host.forget_counts()
    host.clear()
    assert (host.route.observed, host.deny.observed) == (0, 0)


def test_each_place_keeps_what_is_due_there(host: Host) -> None:
    host.route.unreadable = UNREADABLE
    host.end_ban("192.0.2.1")
    host.clear()
    host.deny.marked = nets("192.0.2.1")
    host.end_ban("192.0.2.2")
    assert host.is_due(), "in the place that does not fail"
    host.clear()
    assert host.deny.marked == nets("192.0.2.1"), "that mark is of something new"
    assert host.route.marked == nets("192.0.2.1", "192.0.2.2")
    assert not host.is_due()
    host.route.unreadable = None
    host.seconds = FIRST_RETRY_S
    assert host.is_due()
    host.forget_counts()
    host.clear()
    assert not host.route.marked
    assert host.deny.observed == 0, "nothing is due there"
    assert not host.clearing.is_owed


def test_a_place_is_tried_again_at_growing_intervals_and_told_once(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    host.route.unreadable = UNREADABLE
    host.end_ban("192.0.2.1")
    tries = []
    for second in range(100):
        host.seconds, before = float(second), host.route.observed
        if host.is_due():
            host.clear()
        tries += [second] * (host.route.observed - before)
    assert tries == [0, 1, 3, 7, 15, 31, 31 + LAST_RETRY_S, 31 + 2 * LAST_RETRY_S]
    assert caplog.text.count("store=route unreachable: marks cannot be read: try later") == 1
    host.route.unreadable = None
    host.seconds += LAST_RETRY_S
    host.clear()
    assert caplog.text.count("store=route reachable again") == 1
    assert not host.route.marked
    host.end_ban("192.0.2.2")
    host.clear()
    assert caplog.text.count("reachable again") == 1


def test_the_wait_of_a_place_that_hangs_begins_when_it_gives_up(host: Host) -> None:
    def hang() -> Collection[Network]:
        host.seconds += 60
        raise UNREADABLE

    host.route.observe = hang  # type: ignore[method-assign]
    host.end_ban("192.0.2.1")
    host.clear()
    assert not host.is_due()
    host.seconds += FIRST_RETRY_S
    assert host.is_due()


def test_a_person_need_not_wait(host: Host) -> None:
    host.route.unwritable = FatalError("marks are broken: mend them")
    host.end_ban("192.0.2.1")
    host.clear()
    host.route.unwritable = None
    host.clearing.clear(NOW, patient=False)
    assert not host.route.marked


def test_a_first_look_that_fails_is_made_up_for_and_what_ends_meanwhile_is_in_it(host: Host) -> None:
    host.end_ban("192.0.2.1")
    host.clearing = host.begin()
    host.route.unreadable = UNREADABLE
    host.clear()
    assert not host.deny.marked
    host.end_ban("192.0.2.2")
    host.clear()
    host.route.unreadable = None
    host.seconds = FIRST_RETRY_S
    host.clear()
    assert not host.route.marked


def test_a_plan_looks_on_at_a_place_that_fails_and_then_its_turn_is_now(host: Host) -> None:
    host.route.unreadable = UNREADABLE
    host.end_ban("192.0.2.1")
    host.clear()
    changes, summaries = host.clearing.plan(NOW)
    assert (summaries["route"].reachable, summaries["route"].problem) == (False, str(UNREADABLE))
    assert not changes
    assert not host.is_due()
    host.route.unreadable = None
    changes, summaries = host.clearing.plan(NOW)
    assert (summaries["route"].reachable, summaries["route"].problem) == (True, None)
    assert [(change.store, change.network) for change in changes] == [("route", net("192.0.2.1"))]
    assert host.is_due()


def test_a_plan_asks_each_place_once(host: Host) -> None:
    host.end_ban("192.0.2.1")
    host.clearing.plan(NOW)
    assert (host.route.observed, host.deny.observed) == (1, 1)


def test_a_patient_plan_leaves_a_place_that_fails_alone(host: Host) -> None:
    host.route.unreadable = UNREADABLE
    host.end_ban("192.0.2.1")
    host.clear()
    host.forget_counts()
    changes, summaries = host.clearing.plan(NOW, patient=True)
    assert (host.route.observed, host.deny.observed) == (0, 1)
    assert (summaries["route"].reachable, summaries["route"].problem) == (False, str(UNREADABLE))
    assert not changes


def test_a_place_that_fails_where_nothing_is_due_is_left_alone_too(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """The daemon counts the marks at the end of every pass."""
    caplog.set_level("INFO")
    host.route.unreadable = UNREADABLE
    for _ in range(3):
        assert host.clearing.plan(NOW, patient=True)[1]["route"].problem == str(UNREADABLE)
    assert host.route.observed == 1
    assert caplog.text.count("store=route unreachable") == 1
    assert not host.is_due()
    host.clearing.clear(NOW, patient=False)
    assert host.route.observed == 2, "a person need not wait"
    host.seconds = FIRST_RETRY_S + FIRST_RETRY_S * 2
    assert host.is_due()
    host.route.unreadable = None
    assert host.clearing.plan(NOW, patient=True)[1]["route"].reachable
    assert not host.is_due()
    assert caplog.text.count("store=route reachable again") == 1


def test_a_place_that_can_be_read_but_not_written_waits_though_somebody_looks_on(host: Host) -> None:
    host.route.unwritable = RetryLater("marks stay: try later")
    host.end_ban("192.0.2.1")
    host.clear()
    changes, summaries = host.clearing.plan(NOW)
    assert (summaries["route"].reachable, summaries["route"].problem) == (True, "marks stay: try later")
    assert len(changes) == 1
    host.clear()
    assert host.route.removed == 1


def test_a_ban_that_begins_makes_nothing_due(host: Host) -> None:
    host.ledger.record([ban("192.0.2.1")], now=NOW)
    assert not host.is_due()


def test_without_places_nothing_is_ever_due(host: Host) -> None:
    clearing = Clearing(host.ledger, (), lambda: host.seconds)
    host.end_ban("192.0.2.1")
    assert not clearing.is_due
    assert not clearing.is_owed
    assert clearing.plan(NOW) == ([], {})


# within the loop


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.ledger.close()


def failing(world: World) -> Place:
    """Attach a place that a pass has found out of reach."""
    place = Place("route")
    place.unreadable = UNREADABLE
    world.controller = world.begin(place)
    assert not world.controller.reconcile(NOW, patient=True).agrees
    assert place.observed == 1, "neither a second time to count the marks"
    return place


def test_the_daemons_passes_wait_for_a_places_turn(world: World) -> None:
    place = failing(world)
    world.controller.reconcile(NOW, patient=True, believing=True)
    assert world.controller.carry(NOW, patient=True)
    assert place.observed == 1
    world.seconds += FIRST_RETRY_S
    world.controller.reconcile(NOW, patient=True)
    assert place.observed == 2


def test_a_persons_commands_try_a_place_at_once(world: World) -> None:
    place = failing(world)
    assert world.controller.carry(NOW, patient=False)
    assert place.observed == 2
    assert world.controller.left(NOW).stores["route"].problem == str(UNREADABLE)
    assert place.observed == 2
    world.controller.plan(NOW)
    assert place.observed == 3
    place.unreadable = None
    assert world.controller.reconcile(NOW).agrees
