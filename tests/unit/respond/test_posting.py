"""From events to sent messages: when, how often again, and what a server that is down costs."""

import logging
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from jailbridge.config.responding import LimitSettings
from jailbridge.errors import GiveUp, JailBridgeError, RetryLater
from jailbridge.respond.event import Event
from jailbridge.respond.postbox import Batch
from jailbridge.respond.posting import LONGEST, RETRY, Posting
from jailbridge.respond.queue import Place, Queue
from jailbridge.respond.sending import RetryAfter
from tests.unit.respond.events import NOW, event

LIMITS = LimitSettings(every=timedelta(minutes=15), count=1000, per_hour=12)
MINUTE = timedelta(minutes=1)


class Box:
    """A postbox in memory, which can be down."""

    name = "box"

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.tries = 0
        self.down: JailBridgeError | None = None
        self.mute: JailBridgeError | None = None

    def wants(self, event: Event) -> bool:
        return True

    def compose(self, batch: Batch) -> Sequence[bytes]:
        if self.mute is not None:
            raise self.mute
        return [b"%d" % batch.total]

    def send(self, message: bytes) -> None:
        self.tries += 1
        if self.down is not None:
            raise self.down
        self.taken.append(message)


class Post:
    """A queue, a postbox and a clock that is set by hand."""

    def __init__(self, queue: Queue) -> None:
        self.queue, self.box, self.now = queue, Box(), NOW
        self.posting = Posting(queue, self.box, LIMITS, lambda: self.now)
        self.count = 0

    def happens(self, number: int = 1) -> None:
        events = [event(f"10.{(self.count + n) >> 8 & 255}.{self.count + n & 255}.7") for n in range(number)]
        self.count += number
        self.queue.take(Place("a", self.count), [], {"box": events})

    def settle(self) -> datetime | None:
        """Do all that is due now; return when something will be."""
        for _ in range(20):
            due = self.posting.step()
            if due is None or due > self.now:
                return due
        raise AssertionError("it never rests")


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Post]:
    with Queue(tmp_path / "queue") as queue:
        yield Post(queue)


def test_where_nothing_happens_nothing_is_due(post: Post) -> None:
    assert post.settle() is None


def test_the_first_goes_at_once_and_what_follows_in_one_message(post: Post) -> None:
    post.happens()
    post.settle()
    assert post.box.taken == [b"1"]
    dues = set()
    for _ in range(5):
        post.happens(10)
        dues.add(post.settle())
    (due,) = dues
    assert due == NOW + 15 * MINUTE
    post.now = due
    assert post.settle() is None
    assert post.box.taken == [b"1", b"50"]


def test_a_server_that_is_down_for_hours_gets_that_one_and_one_more(post: Post) -> None:
    post.box.down = RetryLater("refused")
    post.happens()
    waits = []
    while post.now < NOW + 5 * 60 * MINUTE:
        due = post.settle()
        assert due is not None
        waits.append(due - post.now)
        post.now = due
        post.happens(3)
    assert waits[:4] == [RETRY, 2 * RETRY, 4 * RETRY, 8 * RETRY]
    assert waits[-1] == LONGEST
    post.box.down = None
    post.settle()
    assert post.box.taken == [b"1"]
    post.now += 15 * MINUTE
    post.settle()
    assert post.box.taken == [b"1", b"%d" % (post.count - 1)]
    assert post.settle() is None


def test_what_the_server_asks_for_is_waited(post: Post) -> None:
    post.box.down = RetryAfter("too many", timedelta(minutes=40))
    post.happens()
    assert post.settle() == NOW + 40 * MINUTE
    post.now += 39 * MINUTE
    post.settle()
    assert post.box.tries == 1


def test_a_message_that_is_refused_for_good_is_given_up_loudly_and_the_next_goes(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    post.box.down = GiveUp("550 no such user")
    post.happens()
    post.settle()
    assert "message given up postbox=box: 550 no such user" in caplog.text
    assert post.posting.given_up == 1
    post.box.down = None
    post.happens()
    post.now += 15 * MINUTE
    post.settle()
    assert post.box.taken == [b"1"]


def test_what_cannot_be_composed_now_is_composed_later_and_else_given_up(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    post.box.mute = RetryLater("whois")
    post.happens()
    assert post.settle() == NOW + RETRY
    post.now += RETRY
    post.box.mute = GiveUp("the template is torn")
    assert post.settle() is None
    assert "message given up postbox=box events=1: the template is torn" in caplog.text
    post.box.mute = None
    post.happens()
    post.settle()
    assert post.box.taken == [b"1"]


def test_a_clock_that_is_set_back_silences_nobody(post: Post) -> None:
    post.box.down = RetryLater("refused")
    post.happens()
    post.settle()
    post.now -= timedelta(days=400)
    post.box.down = None
    post.settle()
    assert post.box.taken == [b"1"]
    post.happens()
    post.now += 15 * MINUTE
    post.settle()
    assert post.box.taken == [b"1", b"1"]


def test_what_waits_goes_on_after_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Queue(tmp_path / "queue") as queue:
        before = Post(queue)
        before.box.down = RetryLater("refused")
        before.happens()
        before.settle()
        before.happens(7)
    with Queue(tmp_path / "queue") as queue:
        after = Post(queue)
        after.now += MINUTE
        due = after.settle()
        assert after.box.taken == [b"1"]
        assert due is not None
        after.now = due
        after.settle()
        assert after.box.taken == [b"1", b"7"]
    assert caplog.text.count("message sent postbox=box") == 2
