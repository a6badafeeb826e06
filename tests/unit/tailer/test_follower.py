import contextlib
import gzip
import itertools
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jailbridge.config.settings import TailSettings
from jailbridge.errors import RetryLater
from jailbridge.model.event import MAX_LINE, LogLine, TailPosition
from jailbridge.tailer.follower import Follower
from jailbridge.tailer.opened import CHUNK


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def append(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)


_TIMES_S = itertools.count(1_780_000_000)


def dated(path: Path) -> None:
    """Make it the file that was written last, whatever the kernel's clock."""
    os.utime(path, (0, next(_TIMES_S)))


def write(path: Path, text: bytes) -> None:
    append(path, text)
    dated(path)


def empty(path: Path) -> None:
    os.truncate(path, 0)
    dated(path)


def copytruncate(path: Path, copy: Path) -> None:
    copy.write_bytes(path.read_bytes())
    dated(copy)
    empty(path)


def pack(path: Path) -> Path:
    """Compress as gzip does: the time stays, the plain file goes."""
    packed, status = Path(f"{path}.gz"), path.stat()
    packed.write_bytes(gzip.compress(path.read_bytes()))
    os.utime(packed, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.unlink()
    return packed


def follow(path: Path, position: TailPosition | None = None, *, from_end: bool = False) -> Follower:
    return Follower(TailSettings(path=path), path, position, from_end=from_end)


def drain(follower: Follower, limit: int = 1000) -> list[bytes]:
    return [line.text for line in drain_lines(follower, limit)]


def drain_lines(follower: Follower, limit: int = 1000) -> list[LogLine]:
    lines: list[LogLine] = []
    while (batch := follower.read(limit)) is not None:
        lines += batch.lines
        follower.commit(batch)
    return lines


def position_of(follower: Follower) -> TailPosition:
    assert follower.position is not None
    return follower.position


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """A user whom file modes bind."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


class TestStart:
    def test_from_the_end_only_later_lines_count(self, path: Path) -> None:
        append(path, b"old\n")
        follower = follow(path, from_end=True)
        append(path, b"new\n")
        assert drain(follower) == [b"new"]

    def test_the_end_is_that_of_the_construction(self, path: Path) -> None:
        append(path, b"old\n")
        position = position_of(follow(path, from_end=True))
        append(path, b"between\n")
        assert drain(follow(path, position)) == [b"between"]

    def test_of_a_file_that_does_not_exist_yet_every_line_counts(self, path: Path) -> None:
        follower = follow(path, from_end=True)
        assert position_of(follower).inode == 0
        assert drain(follower) == []
        append(path, b"first\n")
        assert drain(follower) == [b"first"]

    def test_the_rest_of_a_half_line_at_the_end_is_skipped(self, path: Path) -> None:
        append(path, b"old\nhalf")
        follower = follow(path, from_end=True)
        assert drain(follower) == []
        append(path, b" rest\nnew\n")
        assert drain(follower) == [b"new"]

    def test_the_rest_of_a_half_line_is_skipped_after_a_restart_too(self, path: Path) -> None:
        append(path, b"old\nhalf")
        position = position_of(follow(path, from_end=True))
        append(path, b" rest\nnew\n")
        assert drain(follow(path, position)) == [b"new"]

    def test_without_position_and_not_from_the_end_everything_is_read(self, path: Path) -> None:
        append(path, b"one\ntwo\n")
        assert drain(follow(path)) == [b"one", b"two"]

    def test_a_position_without_inode_reads_from_the_start(self, path: Path) -> None:
        position = position_of(follow(path, from_end=True))
        append(path, b"one\n")
        assert drain(follow(path, position)) == [b"one"]

    def test_an_unreadable_end_is_found_when_it_becomes_readable(self, path: Path) -> None:
        path.mkdir()
        follower = follow(path, from_end=True)
        assert follower.position is None
        with pytest.raises(RetryLater):
            follower.read(10)
        path.rmdir()
        append(path, b"old\n")
        assert drain(follower) == []
        append(path, b"new\n")
        assert drain(follower) == [b"new"]


class TestLines:
    def test_a_line_says_where_it_stands(self, path: Path) -> None:
        append(path, b"one\ntwo\n")
        lines = drain_lines(follow(path))
        status = path.stat()
        assert lines == [
            LogLine(path=str(path), device=status.st_dev, inode=status.st_ino, offset=offset, text=text)
            for offset, text in ((0, b"one"), (4, b"two"))
        ]

    def test_a_half_line_waits_and_the_position_stays_at_its_start(self, path: Path) -> None:
        append(path, b"one\nha")
        follower = follow(path)
        assert drain(follower) == [b"one"]
        assert position_of(follower).offset == 4
        append(path, b"lf\n")
        assert drain(follower) == [b"half"]

    def test_bytes_are_passed_raw(self, path: Path) -> None:
        append(path, b" \0\xff\r \n\n")
        assert drain(follow(path)) == [b" \0\xff\r ", b""]

    def test_an_empty_first_line_is_read_once(self, path: Path) -> None:
        append(path, b"\none\n")
        assert drain(follow(path), limit=1) == [b"", b"one"]

    def test_a_batch_holds_no_more_than_the_limit(self, path: Path) -> None:
        append(path, b"a\nb\nc\n")
        follower = follow(path)
        batch = follower.read(2)
        assert batch is not None
        assert [line.text for line in batch.lines] == [b"a", b"b"]
        assert batch.position.offset == 4

    def test_a_batch_that_is_not_committed_is_read_again(self, path: Path) -> None:
        append(path, b"a\nb\n")
        follower = follow(path)
        first = follower.read(10)
        assert first is not None
        assert follower.read(10) == first
        assert position_of(follower).offset == 0

    def test_only_the_last_batch_can_be_committed(self, path: Path) -> None:
        append(path, b"a\n")
        follower = follow(path)
        first = follower.read(10)
        assert first is not None
        follower.read(10)
        with pytest.raises(ValueError, match="read last"):
            follower.commit(first)

    def test_a_batch_cannot_be_committed_twice(self, path: Path) -> None:
        append(path, b"a\n")
        follower = follow(path)
        batch = follower.read(10)
        assert batch is not None
        follower.commit(batch)
        with pytest.raises(ValueError, match="read last"):
            follower.commit(batch)

    def test_the_longest_line_is_read(self, path: Path) -> None:
        append(path, b"x" * MAX_LINE + b"\n")
        assert drain(follow(path)) == [b"x" * MAX_LINE]

    @pytest.mark.parametrize("length", [MAX_LINE + 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
    @pytest.mark.parametrize("limit", [1, 1000])
    def test_a_line_too_long_is_refused_and_counted_once(self, path: Path, length: int, limit: int) -> None:
        append(path, b"a\n" + b"x" * length + b"\nb\n")
        follower = follow(path)
        lines: list[bytes] = []
        refused = 0
        while (batch := follower.read(limit)) is not None:
            lines += [line.text for line in batch.lines]
            refused += batch.refused
            follower.commit(batch)
        assert lines == [b"a", b"b"]
        assert refused == 1

    def test_a_line_too_long_stays_refused_when_its_end_comes_after_a_restart(self, path: Path) -> None:
        append(path, b"x" * (MAX_LINE + 1))
        follower = follow(path)
        assert drain(follower) == []
        append(path, b"yyy\nb\n")
        assert drain(follow(path, position_of(follower))) == [b"b"]

    def test_refused_lines_are_logged_once_a_burst(
        self, path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        follower = Follower(TailSettings(path=path), path, None, from_end=False, clock=clock)
        for _ in range(3):
            append(path, b"x" * (MAX_LINE + 1) + b"\n")
            drain(follower)
        assert [record.getMessage() for record in caplog.records] == [
            f"event=lines-refused path={path} count=1 reason=longer than {MAX_LINE} bytes"
        ]
        clock.now += 60
        append(path, b"x" * (MAX_LINE + 1) + b"\n")
        drain(follower)
        assert "count=3" in caplog.records[-1].getMessage()


class TestRotationWhileRunning:
    def test_the_old_file_is_read_to_its_end_before_the_new_one(self, path: Path) -> None:
        append(path, b"one\n")
        follower = follow(path)
        assert drain(follower) == [b"one"]
        append(path, b"two\n")
        path.rename(f"{path}.1")
        append(path, b"three\n")
        assert drain(follower) == [b"two", b"three"]

    def test_a_writer_that_still_has_the_old_file_is_read_within_its_grace(self, path: Path, clock: Clock) -> None:
        follower = Follower(TailSettings(path=path), path, None, from_end=False, clock=clock)
        with path.open("ab", buffering=0) as writer:
            writer.write(b"one\n")
            assert drain(follower) == [b"one"]
            path.rename(f"{path}.1")
            append(path, b"three\n")
            assert drain(follower) == []
            writer.write(b"two\n")
            clock.now += 1.9
            assert drain(follower) == [b"two"]
            clock.now += 0.2
            assert drain(follower) == [b"three"]

    def test_when_the_last_writer_leaves_nothing_waits_for_the_grace(self, path: Path, clock: Clock) -> None:
        follower = Follower(TailSettings(path=path), path, None, from_end=False, clock=clock)
        with path.open("ab", buffering=0) as writer:
            writer.write(b"one\n")
            assert drain(follower) == [b"one"]
            path.rename(f"{path}.1")
            append(path, b"three\n")
            assert drain(follower) == []
            writer.write(b"two\n")
        assert drain(follower) == [b"two", b"three"]

    def test_a_late_writer_is_awaited_while_the_new_file_is_empty(self, path: Path, clock: Clock) -> None:
        follower = Follower(TailSettings(path=path), path, None, from_end=False, clock=clock)
        with path.open("ab", buffering=0) as writer:
            writer.write(b"one\n")
            drain(follower)
            path.rename(f"{path}.1")
            path.touch()
            assert drain(follower) == []
            clock.now += 3600
            assert drain(follower) == []
            writer.write(b"two\n")
            assert drain(follower) == [b"two"]

    def test_a_renamed_file_is_read_while_nothing_has_its_name(self, path: Path) -> None:
        append(path, b"one\n")
        follower = follow(path)
        drain(follower)
        path.rename(f"{path}.1")
        assert drain(follower) == []
        append(Path(f"{path}.1"), b"two\n")
        assert drain(follower) == [b"two"]
        append(path, b"three\n")
        assert drain(follower) == [b"three"]

    def test_several_rotations_between_two_readings_lose_nothing(self, path: Path) -> None:
        append(path, b"1\n")
        follower = follow(path)
        drain(follower)
        for number in (2, 3, 4):
            for old in (3, 2, 1):
                if Path(f"{path}.{old}").exists():
                    Path(f"{path}.{old}").rename(f"{path}.{old + 1}")
            path.rename(f"{path}.1")
            append(path, b"%d\n" % number)
        assert drain(follower) == [b"2", b"3", b"4"]

    def test_a_half_line_whose_file_was_left_is_dropped_and_said(
        self, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        append(path, b"one\nha")
        follower = follow(path)
        drain(follower)
        path.rename(f"{path}.1")
        append(path, b"two\n")
        assert drain(follower) == [b"two"]
        assert "event=half-line-dropped" in caplog.text

    def test_delete_and_create_again(self, path: Path) -> None:
        append(path, b"one\n")
        follower = follow(path)
        drain(follower)
        append(path, b"two\n")
        path.unlink()
        append(path, b"three\n")
        assert drain(follower) == [b"two", b"three"]

    def test_a_deleted_file_is_let_go(self, path: Path) -> None:
        append(path, b"one\n")
        follower = follow(path)
        drain(follower)
        path.unlink()
        assert drain(follower) == []
        assert position_of(follower).inode == 0
        held = [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]
        assert not [name for name in held if name.startswith(str(path))]
        append(path, b"two\n")
        assert drain(follower) == [b"two"]

    def test_truncated_and_written_again(self, path: Path) -> None:
        append(path, b"one\ntwo\n")
        follower = follow(path)
        drain(follower)
        os.truncate(path, 0)
        append(path, b"new\n")
        assert drain(follower) == [b"new"]

    def test_truncated_and_grown_beyond_the_old_place(self, path: Path) -> None:
        append(path, b"one\n")
        follower = follow(path)
        drain(follower)
        os.truncate(path, 0)
        append(path, b"other\nand\nmore\n")
        assert drain(follower) == [b"other", b"and", b"more"]

    def test_copytruncate_loses_nothing_that_its_copy_holds(self, path: Path) -> None:
        append(path, b"one\n")
        follower = follow(path)
        drain(follower)
        append(path, b"two\n")
        Path(f"{path}.1").write_bytes(path.read_bytes())
        os.truncate(path, 0)
        append(path, b"three\n")
        assert drain(follower) == [b"two", b"three"]

    def test_a_symbolic_link_that_is_swapped(self, path: Path, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / "elsewhere").mkdir(exist_ok=True)
            append(tmp_path / "elsewhere" / name, b"%s1\n" % name.encode())
        path.symlink_to(tmp_path / "elsewhere" / "a")
        follower = follow(path)
        assert drain(follower) == [b"a1"]
        append(tmp_path / "elsewhere" / "a", b"a2\n")
        (tmp_path / "swap").symlink_to(tmp_path / "elsewhere" / "b")
        (tmp_path / "swap").rename(path)
        assert drain(follower) == [b"a2", b"b1"]

    def test_a_rotation_beside_the_target_of_a_symbolic_link(self, path: Path, tmp_path: Path) -> None:
        target = tmp_path / "data" / "log"
        target.parent.mkdir()
        append(target, b"1\n")
        path.symlink_to(target)
        position = position_of(drained(path))
        append(target, b"2\n")
        target.rename(f"{target}.1")
        append(target, b"3\n")
        assert drain(follow(path, position)) == [b"2", b"3"]

    def test_a_folder_that_is_made_later(self, tmp_path: Path) -> None:
        path = tmp_path / "later" / "history"
        follower = follow(path, from_end=True)
        assert drain(follower) == []
        path.parent.mkdir()
        append(path, b"one\n")
        assert drain(follower) == [b"one"]


def drained(path: Path) -> Follower:
    follower = follow(path)
    drain(follower)
    return follower


class TestRestart:
    def test_goes_on_where_it_stood(self, path: Path) -> None:
        append(path, b"one\n")
        position = position_of(drained(path))
        append(path, b"two\n")
        assert drain(follow(path, position)) == [b"two"]

    def test_the_fingerprint_still_fits_when_the_file_has_grown(self, path: Path) -> None:
        append(path, b"one\n")
        position = position_of(drained(path))
        append(path, b"x" * 1000 + b"\n")
        assert drain(follow(path, position)) == [b"x" * 1000]

    def test_another_device_number_is_the_same_file(self, path: Path) -> None:
        append(path, b"one\n")
        old = position_of(drained(path))
        moved = TailPosition(path=old.path, device=old.device + 1, inode=old.inode, offset=old.offset, head=old.head)
        append(path, b"two\n")
        assert drain(follow(path, moved)) == [b"two"]

    def test_rotated_while_stopped(self, path: Path) -> None:
        append(path, b"one\n")
        position = position_of(drained(path))
        append(path, b"two\n")
        path.rename(f"{path}-20261122")
        append(path, b"three\n")
        assert drain(follow(path, position)) == [b"two", b"three"]

    @pytest.mark.parametrize("names", [("{}.3", "{}.2", "{}.1"), ("{}-20261120", "{}-20261121", "{}-20261122")])
    def test_rotated_several_times_while_stopped(self, path: Path, names: tuple[str, str, str]) -> None:
        files = [Path(name.format(path)) for name in names]
        append(path, b"1\n")
        position = position_of(drained(path))
        path.rename(files[0])
        append(files[1], b"2\n")
        append(files[2], b"3\n")
        # Equal times: the names alone tell the order.
        for file in files:
            os.utime(file, (1_780_000_000, 1_780_000_000))
        append(path, b"4\n")
        assert drain(follow(path, position)) == [b"2", b"3", b"4"]

    def test_rotated_files_are_read_even_while_no_new_one_exists(self, path: Path) -> None:
        append(path, b"1\n")
        position = position_of(drained(path))
        path.rename(f"{path}.2")
        append(Path(f"{path}.1"), b"2\n")
        assert drain(follow(path, position)) == [b"2"]

    def test_older_rotated_files_are_left_alone(self, path: Path) -> None:
        append(Path(f"{path}.2"), b"ancient\n")
        append(path, b"1\n")
        position = position_of(drained(path))
        path.rename(f"{path}.1")
        append(path, b"2\n")
        assert drain(follow(path, position)) == [b"2"]

    def test_compressed_files_and_strangers_are_left_alone(self, path: Path) -> None:
        append(path, b"1\n")
        position = position_of(drained(path))
        path.rename(f"{path}.3")
        for name in (".2.gz", ".1.xz", ".bak", "2", ".1~"):
            append(Path(f"{path}{name}"), b"stranger\n")
        append(path, b"2\n")
        assert drain(follow(path, position)) == [b"2"]

    def test_a_rotated_file_of_any_name_is_found_by_its_content(self, path: Path, tmp_path: Path) -> None:
        append(path, b"1\n")
        position = position_of(drained(path))
        append(path, b"2\n")
        path.rename(tmp_path / "old-history")
        append(path, b"3\n")
        assert drain(follow(path, position)) == [b"2", b"3"]

    def test_a_reused_inode_is_not_the_same_file(self, path: Path) -> None:
        append(path, b"present\nlonger\n")
        inode = path.stat().st_ino
        position = TailPosition(path=str(path), device=1, inode=inode, offset=4, head="4:0123456789abcdef")
        assert drain(follow(path, position)) == [b"present", b"longer"]

    def test_a_lost_file_is_said_loudly_and_the_present_one_read_whole(
        self, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        append(path, b"one\n")
        position = position_of(drained(path))
        path.unlink()
        append(path, b"two\n")
        assert drain(follow(path, position)) == [b"two"]
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert f"event=lines-maybe-lost path={path} offset=4" in caplog.text

    def test_a_file_that_is_back_after_a_late_mount_is_not_read_twice(self, path: Path) -> None:
        append(path, b"one\n")
        position = position_of(drained(path))
        aside = path.parent.parent / f"{path.parent.name}-aside"
        path.parent.rename(aside)
        follower = follow(path, position)
        assert drain(follower) == []
        aside.rename(path.parent)
        append(path, b"two\n")
        assert drain(follower) == [b"two"]

    def test_copytruncated_while_stopped(self, path: Path) -> None:
        append(path, b"one\n")
        position = position_of(drained(path))
        append(path, b"two\n")
        Path(f"{path}.1").write_bytes(path.read_bytes())
        os.truncate(path, 0)
        append(path, b"three\nfour\n")
        assert drain(follow(path, position)) == [b"two", b"three", b"four"]

    def test_emptied_and_then_rotated_while_stopped(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        append(path, b"one\n")
        position = position_of(drained(path))
        os.truncate(path, 0)
        append(path, b"two\n")
        path.rename(f"{path}.1")
        append(path, b"three\n")
        assert drain(follow(path, position)) == [b"two", b"three"]
        assert "event=lines-maybe-lost" in caplog.text

    def test_a_stranger_with_the_inode_of_a_lost_file_is_left_alone(self, path: Path, tmp_path: Path) -> None:
        append(tmp_path / "stranger", b"stranger\n")
        inode = (tmp_path / "stranger").stat().st_ino
        append(path, b"one\n")
        for offset, head in ((0, "0:e3b0c44298fc1c14"), (4, "4:0123456789abcdef")):
            position = TailPosition(path=str(path), device=1, inode=inode, offset=offset, head=head)
            assert drain(follow(path, position)) == [b"one"]

    def test_a_stop_in_the_middle_of_a_rotated_file(self, path: Path) -> None:
        append(path, b"1\n")
        position = position_of(drained(path))
        append(path, b"2\n3\n")
        path.rename(f"{path}.1")
        append(path, b"4\n")
        follower = follow(path, position)
        batch = follower.read(1)
        assert batch is not None
        assert [line.text for line in batch.lines] == [b"2"]
        follower.commit(batch)
        assert drain(follow(path, position_of(follower))) == [b"3", b"4"]

    @pytest.mark.parametrize("when_s", [-1, 0, 1 << 33])
    def test_a_file_of_any_time_is_found_again(self, path: Path, when_s: int) -> None:
        append(path, b"one\n")
        os.utime(path, (0, when_s))
        position = position_of(drained(path))
        assert drain(follow(path, position)) == []

    def test_a_damaged_fingerprint_is_no_match(self, path: Path) -> None:
        append(path, b"one\n")
        old = position_of(drained(path))
        damaged = TailPosition(path=old.path, device=old.device, inode=old.inode, offset=old.offset, head="?")
        assert drain(follow(path, damaged)) == [b"one"]


class TestEmptied:
    """An emptied file has lost what was read of it: only time and the open file tell what is new."""

    def test_what_was_written_before_it_was_packed_is_read(self, path: Path) -> None:
        write(path, b"1\n")
        follower = drained(path)
        empty(path)
        write(path, b"2\n")
        path.rename(f"{path}.1")
        pack(Path(f"{path}.1"))
        assert drain(follower) == [b"2"]

    def test_what_was_rotated_after_it_was_packed_is_read(self, path: Path) -> None:
        write(path, b"1\n")
        follower = drained(path)
        empty(path)
        path.rename(f"{path}.2")
        pack(Path(f"{path}.2"))
        write(Path(f"{path}.1"), b"2\n")
        assert drain(follower) == [b"2"]

    def test_the_same_while_stopped(self, path: Path) -> None:
        write(path, b"1\n")
        position = position_of(drained(path))
        empty(path)
        write(path, b"2\n")
        path.rename(f"{path}.2")
        pack(Path(f"{path}.2"))
        write(Path(f"{path}.1"), b"3\n")
        write(path, b"4\n")
        assert drain(follow(path, position)) == [b"2", b"3", b"4"]

    def test_what_was_written_and_copied_away_since_is_read_first(self, path: Path) -> None:
        write(path, b"1\n")
        follower = drained(path)
        empty(path)
        write(path, b"2\n")
        copytruncate(path, Path(f"{path}.1"))
        write(path, b"3\n")
        assert drain(follower) == [b"2", b"3"]

    def test_what_was_copied_away_does_not_wait_for_the_next_line(self, path: Path) -> None:
        path.touch()
        dated(path)
        follower = drained(path)
        write(path, b"1\n")
        copytruncate(path, Path(f"{path}.1"))
        assert drain(follower) == [b"1"]

    def test_what_was_written_before_it_was_deleted_is_read(self, path: Path) -> None:
        write(path, b"1\n")
        follower = drained(path)
        empty(path)
        write(path, b"2\n")
        path.unlink()
        write(Path(f"{path}.1"), b"3\n")
        assert drain(follower) == [b"2", b"3"]

    def test_it_is_no_copy_of_its_successor_that_begins_alike(self, path: Path) -> None:
        write(path, b"1\n")
        position = position_of(drained(path))
        empty(path)
        write(path, b"same\n")
        path.rename(f"{path}.1")
        write(path, b"same\n")
        assert drain(follow(path, position)) == [b"same", b"same"]


class TestNeverRead:
    """Of a file at whose start the position is, there is no content to find it by."""

    def test_rotated_and_packed_while_stopped(self, path: Path) -> None:
        write(path, b"1\n")
        follower = follow(path)
        follower.read(10)
        position = position_of(follower)
        follower.close()
        path.rename(f"{path}.1")
        pack(Path(f"{path}.1"))
        assert drain(follow(path, position)) == [b"1"]

    def test_came_and_was_rotated_before_anybody_looked(self, path: Path) -> None:
        write(Path(f"{path}.2"), b"old\n")
        follower = follow(path, from_end=True)
        write(Path(f"{path}.1"), b"1\n")
        assert drain(follower) == [b"1"]

    def test_deleted_before_another_was_rotated(self, path: Path) -> None:
        follower = follow(path, from_end=True)
        write(path, b"1\n")
        follower.read(10)
        path.unlink()
        write(Path(f"{path}.1"), b"2\n")
        assert drain(follower) == [b"1", b"2"]

    @pytest.mark.parametrize("is_empty", [True, False])
    def test_an_old_file_whose_packed_one_got_the_number_is_not_read_again(self, path: Path, is_empty: bool) -> None:
        write(path, b"1\n")
        follower = drained(path)
        path.rename(f"{path}.1")
        write(path, b"" if is_empty else b"2\n")
        drain(follower)
        path.unlink()
        inode = pack(Path(f"{path}.1")).stat().st_ino
        assert drain(follow(path, replace(position_of(follower), inode=inode))) == []


class TestUnreadable:
    def test_a_folder(self, path: Path) -> None:
        path.mkdir()
        with pytest.raises(RetryLater, match=f"{path} is a directory, not a log file"):
            follow(path).read(10)

    def test_a_fifo_never_hangs(self, path: Path) -> None:
        os.mkfifo(path)
        with pytest.raises(RetryLater, match=f"{path} is a fifo, not a log file"):
            follow(path).read(10)

    def test_a_device(self) -> None:
        with pytest.raises(RetryLater, match="/dev/null is a special file"):
            follow(Path("/dev/null")).read(10)

    def test_a_loop_of_links(self, path: Path) -> None:
        path.symlink_to(path)
        with pytest.raises(RetryLater, match=f"{path} cannot be read: Too many levels"):
            follow(path).read(10)

    def test_a_file_without_permission_names_the_remedy_and_is_read_later(self, path: Path) -> None:
        append(path, b"one\n")
        path.chmod(0)
        follower = follow(path)
        with as_nobody(), pytest.raises(RetryLater, match=f"{path} cannot be read: Permission denied.*chmod"):
            follower.read(10)
        path.chmod(0o600)
        assert drain(follower) == [b"one"]

    def test_a_file_that_is_swapped_for_a_fifo_is_read_to_its_end_first(self, path: Path) -> None:
        append(path, b"one\n")
        follower = follow(path)
        drain(follower)
        append(path, b"two\n")
        path.rename(f"{path}.1")
        os.mkfifo(path)
        batch = follower.read(10)
        assert batch is not None
        assert [line.text for line in batch.lines] == [b"two"]
        follower.commit(batch)
        with pytest.raises(RetryLater, match="is a fifo"):
            follower.read(10)
        path.unlink()
        append(path, b"three\n")
        assert drain(follower) == [b"three"]
