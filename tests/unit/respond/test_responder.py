"""From the feed into the queue: nothing twice, nothing lost unsaid, nobody held up."""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from jailbridge.config.responding import CommandSettings, LimitSettings, On, RespondSettings, SyslogSettings
from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.network import Network
from jailbridge.respond import responder as module
from jailbridge.respond.event import Event
from jailbridge.respond.postbox import Batch
from jailbridge.respond.queue import Place, Queue
from jailbridge.respond.responder import News, Responder, is_for
from jailbridge.respond.turns import Standing
from tests.unit.respond.events import event

DEADLINE_S = 60.0


class Feed:
    """A feed in memory, which can be out of reach, and forgets."""

    def __init__(self) -> None:
        self.ledger = "a1"
        self.events: list[Event] = []
        self.first = 1
        self.error: str | None = None

    def end(self) -> Place:
        if self.error is not None:
            raise RetryLater(self.error)
        return Place(self.ledger, len(self.events))

    def beginning(self) -> News:
        return News(len(self.events), [])

    def after(self, sequence: int, limit: int) -> News:
        begin = max(sequence, self.first - 1)
        part = self.events[begin : begin + limit]
        return News(begin + len(part), part, begin - sequence)

    def standings(self, networks: Collection[Network]) -> Mapping[Network, Standing]:
        return dict.fromkeys(networks, Standing.HELD)

    def tell(self, *addresses: str, what: On = On.BAN) -> None:
        for address in addresses:
            self.events.append(event(address, what, sequence=len(self.events) + 1))


class Box:
    """A postbox in memory, which may hang."""

    def __init__(self, name: str = "box") -> None:
        self.name = name
        self.taken: list[int] = []
        self.goes_on = threading.Event()
        self.goes_on.set()

    def wants(self, event: Event) -> bool:
        return event.what is On.BAN

    def compose(self, batch: Batch) -> Sequence[bytes]:
        return [b"%d" % batch.total]

    def send(self, message: bytes) -> None:
        self.goes_on.wait()
        self.taken.append(int(message))


@pytest.fixture
def feed() -> Feed:
    return Feed()


@pytest.fixture
def told(tmp_path: Path) -> Path:
    path = tmp_path / "told"
    path.touch()
    (tmp_path / "script").write_text(f'#!/bin/sh\necho "$*" >> {path}\n')
    (tmp_path / "script").chmod(0o755)
    return path


def settings(folder: Path, **more: object) -> RespondSettings:
    command = CommandSettings(run=(str(folder / "script"), "{what}", "{address}"), on=(On.BAN, On.UNBAN))
    return RespondSettings.model_validate({"queue": folder / "queue", "command": (command,), **more})


def wait(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def responding(one: Responder, *, waits: bool = True) -> Iterator[list[str]]:
    """Run it meanwhile; yields what it says of how things stand."""
    stop, abort, said = threading.Event(), threading.Event(), list[str]()
    thread = threading.Thread(target=one.run, args=(stop, abort, said.append))
    thread.start()
    try:
        wait(lambda: said or not thread.is_alive())
        yield said
    finally:
        stop.set()
        if not waits:
            abort.set()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def has_begun(folder: Path) -> bool:
    with Queue(folder / "queue") as queue:
        return queue.place is not None


def test_it_begins_at_the_feeds_end_and_goes_on_where_it_was(tmp_path: Path, feed: Feed, told: Path) -> None:
    feed.tell("192.0.2.1", "192.0.2.2")
    with responding(Responder(settings(tmp_path), feed)):
        feed.tell("192.0.2.3")
        wait(lambda: told.read_text() == "ban 192.0.2.3\n")
    feed.tell("192.0.2.3", what=On.UNBAN)
    with responding(Responder(settings(tmp_path), feed)):
        wait(lambda: told.read_text() == "ban 192.0.2.3\nunban 192.0.2.3\n")


@pytest.mark.parametrize("change", ["another", "older"])
def test_with_another_ledger_or_an_older_one_it_begins_at_the_end(
    tmp_path: Path, feed: Feed, told: Path, change: str
) -> None:
    with responding(Responder(settings(tmp_path), feed)):
        feed.tell("192.0.2.1", "192.0.2.2", "192.0.2.3")
        wait(lambda: len(told.read_text().splitlines()) == 3)
    if change == "another":
        feed.ledger = "b2"
        feed.tell("192.0.2.4")
    else:
        del feed.events[1:]
    with responding(Responder(settings(tmp_path), feed)) as said:
        wait(lambda: len(said) > 2)
        feed.tell("192.0.2.5")
        wait(lambda: told.read_text().endswith("ban 192.0.2.5\n"))
    assert len(told.read_text().splitlines()) == 4


def test_what_the_ledger_has_forgotten_is_told_by_its_number(
    tmp_path: Path, feed: Feed, told: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with responding(Responder(settings(tmp_path), feed)):
        pass
    feed.tell(*[f"192.0.2.{n}" for n in range(9)])
    feed.first = 8
    with responding(Responder(settings(tmp_path), feed)):
        wait(lambda: len(told.read_text().splitlines()) == 2)
    assert "changes lost=7" in caplog.text


def test_with_too_many_commands_the_feed_is_not_read_further(
    tmp_path: Path, feed: Feed, told: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    monkeypatch.setattr(module, "BATCH", 1)
    with responding(Responder(settings(tmp_path), feed)):
        feed.tell(*[f"192.0.2.{n}" for n in range(9)])
        wait(lambda: len(told.read_text().splitlines()) == 9)
    assert sorted(told.read_text().splitlines()) == [f"ban 192.0.2.{n}" for n in range(9)]
    assert "commands wait: no more are taken" in caplog.text


def test_a_ledger_out_of_reach_is_told_once_and_waited_for(
    tmp_path: Path, feed: Feed, told: Path, caplog: pytest.LogCaptureFixture
) -> None:
    feed.error = "ledger /x cannot be read: No such file or directory"
    with responding(Responder(settings(tmp_path), feed)) as said:
        wait(lambda: len(said) > 3)
        feed.error = None
        wait(lambda: has_begun(tmp_path))
        feed.tell("192.0.2.1")
        wait(lambda: told.read_text() == "ban 192.0.2.1\n")
    assert caplog.text.count("ledger /x cannot be read") == 1


def test_a_postbox_that_hangs_holds_up_neither_commands_nor_others(tmp_path: Path, feed: Feed, told: Path) -> None:
    stuck, other = Box("stuck"), Box("other")
    stuck.goes_on.clear()
    limits = LimitSettings(every="1s")  # type: ignore[arg-type]  # as the file has it
    with responding(Responder(settings(tmp_path, limits=limits), feed, [stuck, other]), waits=False):
        feed.tell("192.0.2.1")
        wait(lambda: other.taken == [1] and told.read_text() == "ban 192.0.2.1\n")
        feed.tell("192.0.2.2")
        wait(lambda: other.taken == [1, 1] and "192.0.2.2" in told.read_text())
        assert stuck.taken == []
    stuck.goes_on.set()


def test_a_second_responder_waits_and_takes_over(tmp_path: Path, feed: Feed, told: Path) -> None:
    with responding(Responder(settings(tmp_path), feed)):
        second = Responder(settings(tmp_path), feed)
        stop = threading.Event()
        said: list[str] = []
        thread = threading.Thread(target=second.run, args=(stop, threading.Event(), said.append))
        thread.start()
        wait(lambda: said == ["another responder works"])
        feed.tell("192.0.2.1")
        wait(told.read_text)
    wait(lambda: len(set(said)) > 1)
    feed.tell("192.0.2.2")
    wait(lambda: "192.0.2.2" in told.read_text())
    stop.set()
    thread.join()
    assert told.read_text() == "ban 192.0.2.1\nban 192.0.2.2\n"


def test_a_part_that_breaks_down_ends_it_loudly(tmp_path: Path, feed: Feed) -> None:
    with Queue(tmp_path / "queue") as queue:
        queue._db.execute("DROP TABLE outbox")
    with pytest.raises(FatalError, match="no such table: outbox"):
        Responder(settings(tmp_path), feed, [Box()]).run(threading.Event(), threading.Event())


def test_a_log_that_takes_nothing_holds_up_no_command(
    tmp_path: Path, feed: Feed, told: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This machine's own log is none of ours.
    monkeypatch.setattr("jailbridge.respond.syslog.SystemLog.__init__.__defaults__", (tmp_path / "no",))
    with responding(Responder(settings(tmp_path, syslog=SyslogSettings(enabled=True)), feed)):
        feed.tell("192.0.2.1", "192.0.2.2")
        wait(lambda: len(told.read_text().splitlines()) == 2)
    assert caplog.text.count("the system log takes nothing") == 1


@pytest.mark.parametrize(
    ("on", "networks", "one", "is_asked"),
    [
        ("ban", [], event(), True),
        ("unban", [], event(), False),
        ("unban", [], event(what=On.UNBAN), True),
        ("ban", ["192.0.2.0/24"], event(), True),
        ("ban", ["10.0.0.0/8", "2001:db8::/32"], event(), False),
        ("ban", ["10.0.0.0/8", "2001:db8::/32"], event("2001:db8::/64"), True),
        # A network that reaches beyond is not one of theirs.
        ("ban", ["192.0.2.0/24"], event("192.0.0.0/16"), False),
    ],
)
def test_commands_are_for_what_and_whom_they_name(on: str, networks: list[str], one: Event, is_asked: bool) -> None:
    asked = CommandSettings.model_validate({"run": ["x"], "on": [on], "networks": networks})
    assert is_for(asked, one) is is_asked
