"""Whose turn it is."""

from jailbridge.config.responding import On
from jailbridge.model.network import parse_network
from jailbridge.respond.queue import Command, Task
from jailbridge.respond.turns import PATIENCE_S, Standing, Turns
from tests.unit.respond.events import event

A, B = "192.0.2.1", "192.0.2.2"


def task(number: int, address: str = A, what: On = On.BAN, *, first: bool = False) -> Task:
    return Task(number, Command(("x",), event(address, what), 1.0, first), 0)


def learn(turns: Turns, now_s: float = 0.0, **standings: Standing) -> None:
    turns.learn({parse_network({"a": A, "b": B}[name]): standing for name, standing in standings.items()}, now_s)


def ready(turns: Turns) -> list[tuple[int, bool | None]]:
    return [(waiting.task.id, waiting.blocked) for waiting in turns.ready()]


def test_a_command_waits_until_its_source_is_cut_off() -> None:
    turns = Turns()
    turns.add(task(1), 0.0)
    assert ready(turns) == []
    learn(turns, a=Standing.COMING)
    assert ready(turns) == []
    learn(turns, a=Standing.HELD)
    assert ready(turns) == [(1, True)]


def test_it_waits_no_longer_than_patience_and_is_told_that_nothing_holds_it() -> None:
    turns = Turns()
    turns.add(task(1), 5.0)
    learn(turns, 5.0 + PATIENCE_S - 0.1, a=Standing.COMING)
    assert ready(turns) == []
    learn(turns, 5.0 + PATIENCE_S, a=Standing.COMING)
    assert ready(turns) == [(1, False)]


def test_what_is_to_come_first_does_not_wait_and_is_told_how_it_stands() -> None:
    turns = Turns()
    turns.add(task(1, first=True), 0.0)
    turns.add(task(2, B, first=True), 0.0)
    learn(turns, a=Standing.COMING, b=Standing.HELD)
    assert ready(turns) == [(1, False), (2, True)]


def test_a_ban_that_is_over_is_not_waited_for() -> None:
    turns = Turns()
    turns.add(task(1), 0.0)
    turns.add(task(2, B), 0.0)
    learn(turns, a=Standing.FREE, b=Standing.GOING)
    assert ready(turns) == [(1, False), (2, True)]


def test_an_unban_waits_until_it_is_let_in_again() -> None:
    turns = Turns()
    turns.add(task(1, A, On.UNBAN), 0.0)
    turns.add(task(2, B, On.UNBAN), 0.0)
    learn(turns, a=Standing.GOING, b=Standing.HELD)
    # The second one was banned again meanwhile.
    assert ready(turns) == [(2, True)]
    learn(turns, a=Standing.FREE)
    assert ready(turns) == [(1, False), (2, True)]


def test_of_one_address_the_order_is_kept_and_others_pass() -> None:
    turns = Turns()
    for one in (task(1), task(2, A, On.UNBAN), task(3, B)):
        turns.add(one, 0.0)
    learn(turns, a=Standing.HELD, b=Standing.HELD)
    first, other = turns.ready()
    assert (first.task.id, other.task.id) == (1, 3)
    first.runs = True
    assert ready(turns) == [(3, True)]
    other.runs = True
    turns.end(other)
    assert len(turns) == 2
    turns.end(first)
    # It is asked anew how things stand.
    assert ready(turns) == []
    learn(turns, a=Standing.FREE)
    assert ready(turns) == [(2, False)]
