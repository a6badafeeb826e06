"""What waits on the disk: nothing is lost, nothing grows without bounds, one process works on it."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from jailbridge.config.responding import On
from jailbridge.errors import FatalError
from jailbridge.model.network import parse_network
from jailbridge.respond import queue as module
from jailbridge.respond.queue import Command, Place, Queue
from tests.unit.respond.events import NOW, event

PLACE = Place("a1", 7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "respond.sqlite3"


@pytest.fixture
def queue(path: Path) -> Iterator[Queue]:
    with Queue(path) as opened:
        yield opened


def command(address: str = "192.0.2.7", what: On = On.BAN) -> Command:
    return Command(("/bin/notify", "{address}", "a b\u202e"), event(address, what), 2.5, first=True)


def test_a_new_one_is_empty_and_closed_to_others(path: Path, queue: Queue) -> None:
    assert queue.place is None
    assert (queue.waiting, queue.tasks(0, 10), queue.outbox("mail")) == (0, [], [])
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0


def test_what_was_taken_is_there_after_a_crash(path: Path) -> None:
    """Killed right after the call has returned, without a clean end."""
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from jailbridge.respond.queue import Place, Queue\n"
        "from tests.unit.respond.test_queue import command, event\n"
        "queue = Queue(Path(sys.argv[1]))\n"
        "queue.take(Place('a1', 7), [command()], {'mail': [event()]})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    with Queue(path) as queue:
        assert queue.place == PLACE
        ((number, told, starts),) = queue.tasks(0, 10)
        assert (told, starts) == (command(), 0)
        assert queue.tasks(number, 10) == []
        assert list(queue.pending("mail").events) == [event()]


def test_commands_come_in_order_and_go_when_they_have_ended(queue: Queue) -> None:
    queue.take(PLACE, [command(f"192.0.2.{n}") for n in range(5)])
    first, second = queue.tasks(0, 2)
    queue.started(first)
    assert queue.tasks(0, 1)[0].starts == 1
    queue.ended(first)
    assert queue.tasks(0, 1) == [second]
    assert queue.waiting == 4


def test_too_many_events_are_counted_the_oldest_first(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    events = [event(f"192.0.2.{n}") for n in range(8)]
    queue.take(PLACE, [], {"mail": events[:5], "hook": events[:1]})
    queue.take(PLACE, [], {"mail": events[5:6]})
    before = queue.pending("mail")
    assert (list(before.events), before.passed_over) == (events[3:6], 3)
    assert queue.counted("mail") == 6
    # While a message is composed others come, and some more are passed over.
    queue.take(PLACE, [], {"mail": events[6:]})
    queue.composed("mail", before, [b"x"], [], NOW)
    after = queue.pending("mail")
    assert (list(after.events), after.passed_over) == (events[6:], 2)
    assert queue.counted("hook") == 1


def test_events_become_messages_in_one_step(queue: Queue) -> None:
    queue.take(PLACE, [], {"mail": [event()]})
    queue.composed("mail", queue.pending("mail"), [b"\x00\xff"], [parse_network("192.0.2.7")], NOW)
    assert queue.counted("mail") == 0
    (letter,) = queue.outbox("mail")
    assert (letter.message, letter.attempts, letter.next_try) == (b"\x00\xff", 0, NOW)
    queue.postponed(letter, NOW + timedelta(seconds=10))
    (letter,) = queue.outbox("mail")
    assert (letter.attempts, letter.next_try) == (1, NOW + timedelta(seconds=10))
    queue.delivered("mail", letter, NOW + timedelta(hours=1))
    assert queue.outbox("mail") == []
    # It was told when it was sent.
    (sent,) = queue.sent("mail", NOW)
    assert sent == (NOW + timedelta(hours=1), frozenset([parse_network("192.0.2.7")]))
    assert queue.sent("mail", NOW + timedelta(hours=2)) == []


def test_a_batch_that_was_given_up_is_gone_and_was_not_sent(queue: Queue) -> None:
    queue.take(PLACE, [], {"mail": [event()]})
    queue.composed("mail", queue.pending("mail"), [], [], NOW)
    assert (queue.counted("mail"), queue.sent("mail", NOW)) == (0, [])


def test_postboxes_that_are_gone_are_forgotten_and_counted(queue: Queue) -> None:
    queue.take(PLACE, [], {"mail": [event()], "old": [event(), event()]})
    queue.composed("old", queue.pending("old"), [b"x"], [], NOW)
    queue.take(PLACE, [], {"old": [event()]})
    assert queue.forget_others(["mail"]) == {"old": 2}
    assert queue.forget_others(["mail"]) == {}
    assert queue.counted("mail") == 1


def test_one_process_works_on_it_and_the_next_takes_over(path: Path, queue: Queue) -> None:
    assert queue.hold()
    with Queue(path) as other:
        assert not other.hold()
        queue.close()
        assert other.hold()


@pytest.mark.parametrize("content", [b"not a database, but long enough to look at" * 100, None])
def test_what_is_no_queue_is_left_alone_and_told(path: Path, content: bytes | None) -> None:
    path.parent.mkdir()
    if content is None:
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE theirs (x)")
        other.close()
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(FatalError, match=rf"{path} is not a sound queue of JailBridge's: move it away"):
        Queue(path)
    assert path.read_bytes() == before


def test_a_torn_one_is_told(path: Path) -> None:
    with Queue(path) as queue:
        queue.take(PLACE, [command(f"192.0.2.{n}") for n in range(200)])
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(os.urandom(4096 * 4))
    with pytest.raises(FatalError, match=r"move it away|cannot be used"):
        Queue(path)


def test_one_of_another_release_is_left_alone(path: Path) -> None:
    Queue(path).close()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 9")
    other.close()
    with pytest.raises(FatalError, match="another JailBridge"):
        Queue(path)


def test_a_full_disk_or_a_lost_file_is_a_clear_error(queue: Queue) -> None:
    queue._db.execute("PRAGMA query_only = ON")
    with pytest.raises(FatalError, match="cannot be used: attempt to write a readonly database"):
        queue.take(PLACE)
    queue._db.execute("PRAGMA query_only = OFF")
    queue.take(PLACE)
    assert queue.place == PLACE
