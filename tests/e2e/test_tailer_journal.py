"""Real journals, written by systemd-journal-remote and read by journalctl, each line once."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from jailbridge import process
from jailbridge.config.settings import TailSettings
from jailbridge.errors import RetryLater
from jailbridge.model.event import LogLine, TailPosition
from jailbridge.tailer.journal import MAX_LINE, Journal

pytestmark = [pytest.mark.e2e, pytest.mark.needs("journalctl"), pytest.mark.needs("systemd-journal-remote")]

DEADLINE_S = 20.0
PROGRAMS = Path(__file__).parents[2] / ".programs"
TAIL = TailSettings(journal="portsentry")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def children() -> set[int]:
    """The processes that this one has started, in whichever of its threads."""
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


class Written:
    """A journal in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = 0
        places = [Path("/lib/systemd/systemd-journal-remote"), PROGRAMS / "lib/systemd/systemd-journal-remote"]
        found = next((place for place in places if place.exists()), None)
        assert found is not None, "apt install systemd-journal-remote (packaging/prepare test unpacks it)"
        self.program = str(found)
        self.libraries = ":".join(str(path) for path in PROGRAMS.glob("usr/lib/*-linux-gnu"))

    def write(
        self,
        *messages: bytes,
        identifier: str = "portsentry",
        transport: str = "syslog",
        file: str = "a",
        boot: bytes = b"0123456789abcdef" * 2,
    ) -> None:
        entries = b""
        for message in messages:
            self.number += 1
            entries += (
                b"__REALTIME_TIMESTAMP=%d\n__MONOTONIC_TIMESTAMP=%d\n_BOOT_ID=%s\n"
                b"_UID=0\n_PID=%d\n_TRANSPORT=%s\nSYSLOG_IDENTIFIER=%s\nMESSAGE\n"
                % (
                    1_795_329_059_000_000 + self.number,
                    self.number,
                    boot,
                    self.number,
                    transport.encode(),
                    identifier.encode(),
                )
            )
            entries += len(message).to_bytes(8, "little") + message + b"\n\n"
        source = self.folder.parent / "entries"
        source.write_bytes(entries)
        self.folder.mkdir(exist_ok=True)
        done = process.run(
            [self.program, f"--output={self.folder / file}.journal", str(source)],
            env={**os.environ, "LD_LIBRARY_PATH": self.libraries},
        )
        assert done.code == 0, done.err


@pytest.fixture
def journal(tmp_path: Path) -> Written:
    return Written(tmp_path / "journal")


@pytest.fixture
def woken() -> threading.Event:
    return threading.Event()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def follow(journal: Written, woken: threading.Event, clock: Clock) -> Iterator[Callable[..., Journal]]:
    started: list[Journal] = []

    def _follow(position: TailPosition | None = None, tail: TailSettings = TAIL) -> Journal:
        one = Journal(tail, position, wake=woken.set, clock=clock, arguments=["--directory", str(journal.folder)])
        started.append(one)
        return one

    yield _follow
    for one in started:
        one.close()


def read(one: Journal, woken: threading.Event, count: int, limit: int = 1000) -> list[LogLine]:
    """Read and commit until `count` lines are there; what is too much is seen, too."""
    lines: list[LogLine] = []
    end = time.monotonic() + DEADLINE_S
    while len(lines) < count:
        woken.clear()
        if (batch := one.read(limit)) is not None:
            lines += batch.lines
            one.commit(batch)
        else:
            assert woken.wait(end - time.monotonic()), f"{len(lines)} lines of {count}"
    return lines


def left_at(journal: Written, follow: Callable[..., Journal]) -> TailPosition | None:
    """Have a journal with an old line followed, and left again."""
    journal.write(b"old")
    one = follow()
    assert one.read(1) is None
    one.close()
    return one.position


def trouble(one: Journal) -> str:
    with pytest.raises(RetryLater) as caught:
        one.read(1)
    return str(caught.value)


def messages(lines: Sequence[LogLine]) -> list[object]:
    return [json.loads(line.text)["MESSAGE"] for line in lines]


def test_a_new_ledger_starts_at_the_end_and_a_new_line_wakes(
    journal: Written, follow: Callable[..., Journal], woken: threading.Event
) -> None:
    journal.write(b"old")
    one = follow()
    assert one.read(10) is None
    journal.write(b"new", b"newer")
    lines = read(one, woken, 2)
    assert messages(lines) == ["new", "newer"]
    assert [(line.path, line.device, line.inode) for line in lines] == [("journal:portsentry", 0, 1)] * 2
    assert [line.offset for line in lines] == [0, len(lines[0].text) + 1]


def test_what_a_journal_gets_that_had_nothing_of_the_name_is_read_whole(
    journal: Written, follow: Callable[..., Journal], woken: threading.Event
) -> None:
    journal.write(b"other", identifier="sshd")
    one = follow()
    one.read(1)
    position = one.position
    one.close()
    journal.write(b"first")
    assert messages(read(follow(position), woken, 1)) == ["first"]


def test_restarts_give_each_line_once_and_places_that_grow(
    journal: Written, follow: Callable[..., Journal], woken: threading.Event
) -> None:
    position = left_at(journal, follow)
    got: list[LogLine] = []
    for begin in (0, 10, 20):
        journal.write(*(b"%d" % number for number in range(begin, begin + 10)))
        journal.write(b"other", identifier="sshd")
        one = follow(position)
        got += read(one, woken, 4, limit=2)
        uncommitted = one.read(3)
        assert uncommitted is not None
        assert one.read(3) == uncommitted
        position = one.position
        one.close()
    got += read(follow(position), woken, 18)
    assert messages(got) == [str(number) for number in range(30)]
    assert [line.offset for line in got] == sorted({line.offset for line in got})


def test_what_came_before_a_reboot_is_read_too(
    journal: Written, follow: Callable[..., Journal], woken: threading.Event
) -> None:
    position = left_at(journal, follow)
    journal.write(b"one", b"two")
    second, third = (digit * 32 for digit in (b"2", b"3"))
    journal.write(b"three", boot=second, file="b")
    journal.write(b"four", boot=third, file="b")
    one = follow(position)
    assert messages(read(one, woken, 4, limit=3)) == ["one", "two", "three", "four"]
    journal.write(b"now", boot=third, file="b")
    assert messages(read(one, woken, 1)) == ["now"]


def test_a_journal_that_no_longer_has_the_line_is_said_and_read_from_its_oldest(
    journal: Written, follow: Callable[..., Journal], woken: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    journal.write(b"old")
    one = follow()
    one.read(1)
    position = one.position
    one.close()
    journal.write(b"one", b"two", file="b")
    (journal.folder / "a.journal").unlink()
    assert messages(read(follow(position), woken, 2)) == ["one", "two"]
    assert caplog.text.count("event=lines-maybe-lost path=journal:portsentry") == 1


def test_kernel_is_what_the_kernel_says(
    journal: Written, follow: Callable[..., Journal], woken: threading.Event
) -> None:
    journal.write(b"old", identifier="kernel", transport="kernel")
    one = follow(None, TailSettings(journal="kernel"))
    one.read(1)
    journal.write(b"forged", identifier="kernel")
    journal.write(b"IN=eth0", identifier="kernel", transport="kernel")
    assert messages(read(one, woken, 1)) == ["IN=eth0"]


def test_every_line_that_journalctl_can_write_fits_and_hostile_bytes_pass(
    journal: Written, follow: Callable[..., Journal], woken: threading.Event
) -> None:
    journal.write(b"old")
    one = follow()
    one.read(1)
    hostile = [b"\x01" * 4000, b"\xff\xfe" * 2000, b"a\nb", b"\0", b"x" * 100_000, '"}\u2028{'.encode()]
    journal.write(*hostile)
    lines = read(one, woken, len(hostile))
    assert one.refused == 0
    assert max(len(line.text) for line in lines) < MAX_LINE
    # A field beyond its own limit is what journalctl leaves out.
    assert messages(lines)[4] is None
    assert messages(lines)[2] == "a\nb"


def test_a_journalctl_that_ends_is_started_again_at_growing_pauses(
    journal: Written, follow: Callable[..., Journal], woken: threading.Event, clock: Clock
) -> None:
    one = follow()
    for pause in (1, 2, 4):
        assert "journal:portsentry cannot be read" in trouble(one)
        clock.now += pause - 0.01
        assert "started again at growing pauses" in trouble(one)
        clock.now += 0.02
    journal.write(b"old")
    clock.now += 60
    assert one.read(1) is None
    journal.write(b"new")
    assert messages(read(one, woken, 1)) == ["new"]


def test_a_journalctl_that_is_killed_costs_no_line(
    journal: Written, follow: Callable[..., Journal], woken: threading.Event, clock: Clock
) -> None:
    journal.write(b"old")
    others = children()
    one = follow()
    one.read(1)
    journal.write(b"one")
    got = read(one, woken, 1)
    woken.clear()
    (child,) = children() - others
    os.kill(child, signal.SIGKILL)
    assert woken.wait(DEADLINE_S)
    assert "journalctl ended with code -9" in trouble(one)
    journal.write(b"two")
    clock.now += 1.1
    got += read(one, woken, 1)
    assert messages(got) == ["one", "two"]


def test_closing_leaves_no_process_no_thread_and_no_descriptor(
    journal: Written, follow: Callable[..., Journal]
) -> None:
    journal.write(b"old")
    threads, descriptors = set(threading.enumerate()), set(Path("/proc/self/fd").iterdir())
    others = children()
    one = follow()
    one.read(1)
    assert set(threading.enumerate()) > threads
    assert children() > others
    one.close()
    assert set(threading.enumerate()) <= threads
    assert set(Path("/proc/self/fd").iterdir()) <= descriptors
    assert children() <= others


def test_only_the_last_batch_can_be_committed(
    journal: Written, follow: Callable[..., Journal], woken: threading.Event
) -> None:
    journal.write(b"old")
    one = follow()
    one.read(1)
    journal.write(b"new")
    end = time.monotonic() + DEADLINE_S
    while (batch := one.read(1)) is None:
        assert woken.wait(end - time.monotonic())
        woken.clear()
    one.commit(batch)
    with pytest.raises(ValueError, match="read last"):
        one.commit(batch)
