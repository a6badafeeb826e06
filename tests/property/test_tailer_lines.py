"""The tailer gives every complete line once and in order, however it was written, cut, rotated and interrupted."""

import gzip
import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from jailbridge.config.settings import TailSettings
from jailbridge.model.event import MAX_LINE
from jailbridge.tailer import Follower
from jailbridge.tailer.opened import cut

LINES = st.lists(st.binary(max_size=300).map(lambda text: text.replace(b"\n", b"")), max_size=30)


@settings(deadline=None)
@given(lines=LINES, data=st.data())
def test_any_cut_into_writes_and_readings_gives_the_same_lines(lines: list[bytes], data: st.DataObject) -> None:
    text = b"".join(line + b"\n" for line in lines)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "history"
        follower = Follower(TailSettings(path=path), path, None, from_end=True)
        got: list[bytes] = []
        while text:
            size = data.draw(st.integers(1, len(text)), label="write")
            with path.open("ab") as file:
                file.write(text[:size])
            text = text[size:]
            got += _read(follower, data.draw(st.integers(0, 3), label="readings"), limit=data.draw(st.integers(1, 5)))
        got += _read(follower, 1000, limit=7)
        follower.close()
    assert got == lines


@given(
    pieces=st.lists(st.integers(0, 2 * MAX_LINE).map(lambda size: b"x" * size), max_size=6),
    limit=st.integers(1, 4),
    at_line_start=st.booleans(),
)
def test_a_cut_accounts_for_every_byte(pieces: list[bytes], limit: int, at_line_start: bool) -> None:
    data = b"\n".join(pieces)
    places, texts, done, refused = cut(data, limit, 7, at_line_start=at_line_start)
    lines = [(place - 7, text) for place, text in zip(places, texts, strict=True)]
    assert 0 <= done <= len(data)
    assert len(lines) <= limit
    for at, text in lines:
        assert data[at : at + len(text) + 1] == text + b"\n"
        assert len(text) <= MAX_LINE
    left_over = data[done:].split(b"\n")[0] if len(lines) < limit else b""
    assert len(left_over) <= MAX_LINE
    whole = data[:done].split(b"\n")[0 if at_line_start else 1 :]
    assert refused == sum(len(text) > MAX_LINE for text in whole)


def _read(follower: Follower, times: int, *, limit: int) -> list[bytes]:
    got: list[bytes] = []
    for _ in range(times):
        if (batch := follower.read(limit)) is None:
            break
        got += [line.text for line in batch.lines]
        follower.commit(batch)
    return got


class Interrupted(RuleBasedStateMachine):
    """One writer that opens, appends and closes; one reader that may be stopped anywhere.

    What each rule writes has a time of its own, whatever the kernel's clock: see WithinOneTick.
    """

    TICK_NS = 10_000_000
    PAST_NS = 1_000_000_000 * 10**9

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="jailbridge-tailer-"))
        self.path = self.folder / "history"
        self.written: list[bytes] = []
        self.got: list[bytes] = []
        self.number = 0
        self.half = b""
        self.days = 0
        self.moment = 0

    @initialize(exists=st.booleans(), is_dated=st.booleans())
    def begin(self, exists: bool, is_dated: bool) -> None:
        self.is_dated = is_dated
        if exists:
            self.path.write_bytes(b"before\n")
            self.what_was_written_has_its_time()
        self.follower = Follower(TailSettings(path=self.path), self.path, None, from_end=True)

    def _drain(self) -> None:
        self.got += _read(self.follower, 10_000, limit=100)

    def _append(self, text: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(text)

    @rule(count=st.integers(1, 5))
    def write_lines(self, count: int) -> None:
        for _ in range(count):
            self.number += 1
            line = b"line %d %s" % (self.number, b"." * (self.number * 37 % 200))
            self._append((b"" if self.half else line) + b"\n")
            self.written.append(self.half or line)
            self.half = b""

    @rule()
    def write_half_a_line(self) -> None:
        self.number += 1
        text = b"half %d " % self.number
        self._append(text)
        self.half += text

    @rule(times=st.integers(1, 4), limit=st.integers(1, 4))
    def read(self, times: int, limit: int) -> None:
        self.got += _read(self.follower, times, limit=limit)

    @rule(limit=st.integers(1, 4))
    def read_without_committing(self, limit: int) -> None:
        self.follower.read(limit)

    @rule(create=st.booleans())
    def rotate(self, create: bool) -> None:
        if not self.path.exists():
            return
        self.path.rename(self._free_name())
        self.half = b""
        if create:
            self.path.touch()

    @rule(of=st.integers(0, 3))
    def compress(self, of: int) -> None:
        """Compress a rotated file, as gzip does: the new one has the old one's time, then the old one goes."""
        plain = sorted(file for file in self.folder.iterdir() if file != self.path and file.suffix != ".gz")
        if plain:
            file = plain[of % len(plain)]
            packed = Path(f"{file}.gz")
            packed.write_bytes(gzip.compress(file.read_bytes()))
            status = file.stat()
            os.utime(packed, ns=(status.st_atime_ns, status.st_mtime_ns))
            file.unlink()

    @rule()
    def copytruncate(self) -> None:
        if not self.path.exists():
            return
        shutil.copyfile(self.path, self._free_name())
        os.truncate(self.path, 0)
        self.half = b""

    def _free_name(self) -> Path:
        if self.is_dated:
            self.days += 1
            return self.folder / f"history-{20261101 + self.days}"
        present = sorted(((int(file.name.split(".")[1]), file) for file in self.folder.glob("history.*")), reverse=True)
        for number, file in present:
            file.rename(self.folder / file.name.replace(f".{number}", f".{number + 1}"))
        return self.folder / "history.1"

    @rule()
    def truncate_after_reading(self) -> None:
        if self.path.exists():
            self._drain()
            os.truncate(self.path, 0)
            self.half = b""

    @rule()
    def delete_after_reading(self) -> None:
        if self.path.exists():
            self._drain()
            self.path.unlink()
            self.half = b""

    @rule()
    def restart(self) -> None:
        position = self.follower.position
        self.follower.close()
        self.follower = Follower(TailSettings(path=self.path), self.path, position, from_end=True)

    @invariant()
    def what_was_written_has_its_time(self) -> None:
        self.moment += 1
        for file in self.folder.iterdir():
            # Still the kernel's own time, not one of ours.
            if file.stat().st_mtime_ns > 1.5 * self.PAST_NS:
                os.utime(file, ns=(0, self.PAST_NS + self.moment * self.TICK_NS))

    @invariant()
    def nothing_twice_and_nothing_skipped(self) -> None:
        assert self.got == self.written[: len(self.got)]

    def teardown(self) -> None:
        try:
            if hasattr(self, "follower"):
                self._drain()
                self.follower.close()
                assert self.is_whole()
        finally:
            shutil.rmtree(self.folder)

    def is_whole(self) -> bool:
        return self.got == self.written


class WithinOneTick(Interrupted):
    """Files written within one tick of the kernel's clock cannot be told by time: lines may be lost, never doubled."""

    TICK_NS = 0

    @invariant()
    def nothing_twice_and_nothing_skipped(self) -> None:
        written = iter(self.written)
        assert all(line in written for line in self.got)

    def is_whole(self) -> bool:
        return True


TestInterrupted = Interrupted.TestCase
TestInterrupted.settings = settings(deadline=None, max_examples=150, stateful_step_count=30)
TestWithinOneTick = WithinOneTick.TestCase
TestWithinOneTick.settings = settings(deadline=None, max_examples=50, stateful_step_count=30)
