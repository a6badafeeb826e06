"""Commands from the queue: so many at once, each once, in order of each address, again after a crash."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from jailbridge.config.responding import On
from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.network import Network
from jailbridge.respond.commands import Outcome
from jailbridge.respond.queue import Command, Place, Queue
from jailbridge.respond.runner import STARTS, Runner
from jailbridge.respond.turns import Standing
from tests.unit.respond.events import event

DEADLINE_S = 60.0


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    with Queue(tmp_path / "queue") as opened:
        yield opened


@pytest.fixture
def told(tmp_path: Path) -> Path:
    path = tmp_path / "told"
    path.touch()
    return path


def script(folder: Path, text: str) -> str:
    path = folder / "script"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def held(networks: Collection[Network]) -> Mapping[Network, Standing]:
    return dict.fromkeys(networks, Standing.HELD)


def wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def running(runner: Runner) -> Iterator[threading.Event]:
    """Run it meanwhile; yields what ends it at once, as does a test that fails."""
    stop, abort = threading.Event(), threading.Event()
    thread = threading.Thread(target=runner.run, args=(stop, abort))
    thread.start()
    try:
        yield abort
    except BaseException:
        abort.set()
        raise
    finally:
        stop.set()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_each_runs_once_and_at_most_so_many_at_a_time(tmp_path: Path, queue: Queue, told: Path) -> None:
    program = script(tmp_path, f'echo "begin $1" >> {told}; echo "end $1" >> {told}')
    addresses = [f"192.0.2.{n}" for n in range(60)]
    queue.take(Place("a", 1), [Command((program, "{address}"), event(address), 20.0, False) for address in addresses])
    runner = Runner(queue, 3, held)
    with running(runner):
        wait(lambda: queue.waiting == 0)
    assert runner.outcomes == {Outcome.DONE: 60}
    at_once, most, begun = 0, 0, Counter[str]()
    for what, address in (line.split() for line in told.read_text().splitlines()):
        at_once += 1 if what == "begin" else -1
        most = max(most, at_once)
        begun[address] += what == "begin"
    assert begun == dict.fromkeys(addresses, 1)
    assert 1 <= most <= 3


def test_of_one_address_one_after_another(tmp_path: Path, queue: Queue, told: Path) -> None:
    program = script(tmp_path, f'echo "begin $1" >> {told}; sleep 0.05; echo "end $1" >> {told}')
    tasks = [
        Command((program, "{what}"), event("192.0.2.7", what), 20.0, False)
        for what in (On.BAN, On.UNBAN, On.BAN, On.UNBAN)
    ]
    queue.take(Place("a", 1), tasks)
    with running(Runner(queue, 4, held)):
        wait(lambda: queue.waiting == 0)
    assert told.read_text().split("\n")[:-1] == ["begin ban", "end ban", "begin unban", "end unban"] * 2


def test_a_hanging_one_holds_up_no_other(tmp_path: Path, queue: Queue, told: Path) -> None:
    program = script(tmp_path, f'[ "$1" = 192.0.2.0 ] && sleep 600; echo "$1" >> {told}')
    commands = [Command((program, "{address}"), event(f"192.0.2.{n}"), 600.0, False) for n in range(5)]
    queue.take(Place("a", 1), commands)
    runner = Runner(queue, 2, held)
    with running(runner) as abort:
        wait(lambda: queue.waiting == 1)
        abort.set()
    assert len(told.read_text().split()) == 4
    assert runner.outcomes == {Outcome.DONE: 4, Outcome.INTERRUPTED: 1}
    # It runs again.
    (task,) = queue.tasks(0, 10)
    assert task.starts == 1


def test_one_that_ends_us_again_and_again_is_given_up_loudly(
    tmp_path: Path, queue: Queue, told: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue.take(Place("a", 1), [Command((script(tmp_path, f"echo x >> {told}"),), event(), 20.0, False)])
    for _ in range(STARTS):
        queue.started(queue.tasks(0, 1)[0])
    runner = Runner(queue, 1, held)
    with running(runner):
        wait(lambda: queue.waiting == 0)
    assert told.read_text() == ""
    assert runner.outcomes == {Outcome.FAILED: 1}
    assert "command given up" in caplog.text


def test_what_cannot_be_asked_now_is_asked_again(tmp_path: Path, queue: Queue, told: Path) -> None:
    asked = 0

    def standing(networks: Collection[Network]) -> Mapping[Network, Standing]:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise RetryLater("locked")
        return held(networks)

    program = script(tmp_path, f'echo "$JAILBRIDGE_BLOCKED" >> {told}')
    queue.take(Place("a", 1), [Command((program,), event(), 20.0, False)])
    with running(Runner(queue, 1, standing)):
        wait(lambda: queue.waiting == 0)
    assert told.read_text() == "yes\n"


def test_a_queue_that_cannot_be_written_ends_it_with_the_reason(tmp_path: Path, queue: Queue) -> None:
    queue.take(Place("a", 1), [Command((script(tmp_path, "true"),), event(), 20.0, False)])
    queue._db.execute("PRAGMA query_only = ON")
    with pytest.raises(FatalError, match="readonly"):
        Runner(queue, 1, held).run(threading.Event(), threading.Event())
