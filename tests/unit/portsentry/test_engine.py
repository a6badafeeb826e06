from datetime import UTC, datetime
from ipaddress import IPv4Address, ip_address

import pytest

from jailbridge.errors import RetryLater
from jailbridge.model.event import Kind, Protocol, Report, ScanEvent
from jailbridge.model.network import Address
from jailbridge.portsentry.engine import MAX_COUNTED, WINDOW_S, Action, Decision, Engine
from jailbridge.sensor.packet import Probe

AT = datetime(2026, 11, 22, tzinfo=UTC)
ALICE, BOB = ip_address("192.0.2.7"), ip_address("2001:db8::8")


class World:
    """An engine, and the files that it asks for."""

    def __init__(self, trigger: int = 0, *, responds: bool = True, listed: bool = True) -> None:
        self.ignored: set[Address] = set()
        self.blocked: set[Address] = set()
        self.ignore_is_broken = False
        self.engine = Engine(
            trigger,
            dict.fromkeys(Protocol, responds),
            self._is_ignored,
            self.blocked.__contains__ if listed else None,
        )

    def _is_ignored(self, address: Address, now: float) -> bool:
        if self.ignore_is_broken:
            raise RetryLater("broken")
        return address in self.ignored

    def decide(self, port: int, source: Address = ALICE, now: float = 0.0) -> Decision | None:
        probe = Probe(source.version, int(source), 1, 40000, port, Protocol.TCP, Kind.SYN, 2, False)
        return self.engine.decide(probe, now)

    def actions(self, *ports: int, source: Address = ALICE, now: float = 0.0) -> list[Action | None]:
        made = [self.decide(port, source, now) for port in ports]
        return [decision and decision.action for decision in made]

    def respond(self, source: Address = ALICE) -> None:
        self.blocked.add(source)
        self.settle(source, blocked=True)

    def settle(self, source: Address = ALICE, *, blocked: bool) -> None:
        event = ScanEvent(time=AT, address=source, port=1, protocol=Protocol.TCP, kind=Kind.SYN)
        self.engine.settled(Report(event, newly_triggered=blocked))


def test_the_first_probe_blocks_and_the_next_port_is_already_blocked() -> None:
    world = World()
    assert world.actions(11) == [Action.BLOCK]
    world.respond()
    assert world.actions(15, 79) == [Action.ALREADY, Action.ALREADY]


def test_a_source_whose_response_is_still_to_come_counts_as_blocked() -> None:
    world = World()
    assert world.actions(11, 15) == [Action.BLOCK, Action.ALREADY]
    assert world.engine.due == 1
    world.respond()
    assert world.engine.due == 0


def test_what_is_done_for_an_earlier_probe_does_not_settle_the_block() -> None:
    world = World(2)
    assert world.actions(11, 15) == [Action.COUNT, Action.BLOCK]
    world.settle(blocked=False)
    assert world.actions(79) == [Action.ALREADY]


def test_a_port_is_told_once_in_the_window_and_again_after_it() -> None:
    world = World()
    world.actions(11)
    world.respond()
    assert world.actions(11, 11, now=1.0) == [None, None]
    assert world.actions(11, now=1.0 + WINDOW_S) == [Action.ALREADY]


def test_a_source_taken_out_of_the_blocked_file_is_blocked_with_its_next_packet_to_any_port() -> None:
    world = World()
    world.actions(11)
    world.respond()
    world.blocked.clear()
    assert world.actions(11, 11) == [Action.BLOCK, None]


def test_an_ignored_source_is_told_and_never_blocked() -> None:
    world = World()
    world.ignored.add(ALICE)
    assert world.actions(11, 11, 15) == [Action.IGNORE, None, Action.IGNORE]
    assert world.engine.due == 0


@pytest.mark.parametrize("trigger", [0, 1])
def test_triggers_of_zero_and_one_act_at_once(trigger: int) -> None:
    assert World(trigger).actions(11) == [Action.BLOCK]


def test_the_trigger_counts_packets_whatever_their_port_and_however_long_they_take() -> None:
    world = World(3)
    assert world.actions(11, 11) == [Action.COUNT, None]
    assert world.actions(11, now=9999.0) == [Action.BLOCK]


def test_a_packet_to_a_told_port_still_triggers() -> None:
    world = World(2)
    assert world.actions(11, 11) == [Action.COUNT, Action.BLOCK]


def test_sources_are_counted_apart() -> None:
    world = World(2)
    assert world.actions(11) == world.actions(11, source=BOB) == [Action.COUNT]


def test_the_table_of_counts_is_bounded_and_fifty_forged_sources_do_not_fill_it() -> None:
    world = World(2)
    world.actions(11)
    for number in range(1000):
        world.actions(11, source=IPv4Address(number + 1))
    assert world.actions(11) == [Action.BLOCK]
    for number in range(MAX_COUNTED + 10):
        world.actions(11, source=IPv4Address(number + 5000))
    assert len(world.engine._counts) == MAX_COUNTED


def test_with_blocking_off_each_port_is_logged_once() -> None:
    world = World(responds=False)
    assert world.actions(11, 11, 15) == [Action.LOG, None, Action.LOG]


def test_with_blocking_off_the_packet_that_triggers_is_logged_though_its_port_was_told() -> None:
    world = World(2, responds=False)
    assert world.actions(11, 11, 11) == [Action.COUNT, Action.LOG, None]


def test_without_a_blocked_file_each_new_port_blocks_again() -> None:
    world = World(listed=False)
    assert world.actions(11) == [Action.BLOCK]
    world.settle(blocked=True)
    assert world.actions(11, 15) == [None, Action.BLOCK]


def test_a_decision_taken_back_is_made_again_by_the_next_packet() -> None:
    world = World()
    first = world.decide(11)
    assert first is not None
    world.engine.take_back(first)
    assert world.engine.due == 0
    assert world.actions(11) == [Action.BLOCK]


def test_an_already_taken_back_leaves_the_block_that_is_due() -> None:
    world = World()
    world.actions(11)
    second = world.decide(15)
    assert second is not None
    world.engine.take_back(second)
    assert world.engine.due == 1
    assert world.actions(15) == [Action.ALREADY]


def test_a_broken_ignore_file_is_the_callers_and_blocks_nobody() -> None:
    world = World()
    world.ignore_is_broken = True
    with pytest.raises(RetryLater):
        world.decide(11)
    assert world.engine.due == 0
    world.ignore_is_broken = False
    assert world.actions(11) == [Action.BLOCK]
