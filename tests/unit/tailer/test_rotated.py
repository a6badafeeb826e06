import gzip
import os
from pathlib import Path

import pytest

from jailbridge.config.settings import TailSettings
from jailbridge.model.event import TailPosition
from jailbridge.tailer import unpacked
from jailbridge.tailer.follower import Follower
from jailbridge.tailer.rotated import originals


def append(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)


def follow(path: Path, position: TailPosition | None = None) -> Follower:
    return Follower(TailSettings(path=path), path, position, from_end=False)


def drain(follower: Follower) -> list[bytes]:
    lines: list[bytes] = []
    while (batch := follower.read(1000)) is not None:
        lines += [line.text for line in batch.lines]
        follower.commit(batch)
    return lines


def stopped_after(path: Path, text: bytes) -> TailPosition:
    append(path, text)
    follower = follow(path)
    drain(follower)
    position = follower.position
    follower.close()
    assert position is not None
    return position


def pack(path: Path, suffix: str = ".gz") -> Path:
    """Compress as gzip does: the time stays, the plain file goes."""
    packed, status = Path(f"{path}{suffix}"), path.stat()
    packed.write_bytes(gzip.compress(path.read_bytes()))
    os.utime(packed, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.unlink()
    return packed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.history"


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("x.history.1", "x.history"),
        ("x.history.12.gz", "x.history"),
        ("x.1.history", "x.history"),
        ("x.1.history.xz", "x.history"),
        ("x.history-20261122", "x.history"),
        ("x-20261122.history.bz2", "x.history"),
        ("x.history-1795329059.zst", "x.history"),
        ("x.history.2026-11-22_10", "x.history"),
        ("x.history-2026112210", "x.history"),
        ("x.history-22112026", "x.history"),
    ],
)
def test_a_rotated_name_says_of_what(name: str, of: str) -> None:
    assert of in {one.of for one in originals(name)}


@pytest.mark.parametrize(
    "name",
    ["x.history", "x.history.bak", "x.history.1~", "x.history2", "x.history.gz", ".1", "-2026"],
)
def test_other_names_are_no_rotated_ones(name: str) -> None:
    assert "x.history" not in {one.of for one in originals(name)}
    assert "" not in {one.of for one in originals(name)}


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("x.history.2", "x.history.1"),
        ("x.history.10.gz", "x.history.9"),
        ("x.history-20251231", "x.history-20260101"),
        ("x.history-1795329059.gz", "x.history-1795329060"),
    ],
)
def test_names_tell_the_order(older: str, newer: str) -> None:
    (old,), (new,) = ([one for one in originals(name) if one.of == "x.history"] for name in (older, newer))
    assert old.style == new.style != ""
    assert old.rank < new.rank


@pytest.mark.parametrize("name", ["x.history-22112026", "x.history-31102026", "x.history-202647"])
def test_names_that_sort_wrongly_leave_the_order_to_the_time(name: str) -> None:
    assert {one.style for one in originals(name) if one.of == "x.history"} == {""}


def test_a_file_that_cannot_be_unpacked_here_is_named(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    position = stopped_after(path, b"one\n")
    append(path, b"two\n")
    path.rename(f"{path}.1")
    pack(Path(f"{path}.1"), ".zst")
    append(path, b"three\n")
    assert drain(follow(path, position)) == [b"three"]
    assert "event=lines-maybe-lost" in caplog.text
    assert "cannot be read here: x.history.1.zst" in caplog.text


def test_a_damaged_file_is_said_once_and_those_after_it_are_read(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    position = stopped_after(path, b"1\n")
    path.rename(f"{path}.3")
    Path(f"{path}.2.gz").write_bytes(gzip.compress(b"2\n")[:-5])
    append(Path(f"{path}.1"), b"3\n")
    follower = follow(path, position)
    assert drain(follower) == [b"3"]
    append(path, b"4\n")
    assert drain(follower) == [b"4"]
    assert caplog.text.count("is damaged") == 1


def test_a_bomb_is_said_and_left_out(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacked, "MAX_TEXT", 1000)
    position = stopped_after(path, b"1\n")
    path.rename(f"{path}.2")
    Path(f"{path}.1.gz").write_bytes(gzip.compress(b"2\n" * 1000))
    append(path, b"3\n")
    assert drain(follow(path, position)) == [b"3"]
    assert "event=lines-maybe-lost" in caplog.text
    assert "unpacks to more than 1000 bytes" in caplog.text


def test_a_file_that_is_just_being_compressed_is_read_as_it_was(path: Path) -> None:
    position = stopped_after(path, b"1\n")
    append(path, b"2\n")
    path.rename(f"{path}.1")
    Path(f"{path}.1.gz").write_bytes(gzip.compress(Path(f"{path}.1").read_bytes())[:-4])
    append(path, b"3\n")
    assert drain(follow(path, position)) == [b"2", b"3"]


def test_an_open_file_that_is_compressed_and_deleted_gives_no_line_twice(path: Path) -> None:
    append(path, b"1\n")
    follower = follow(path)
    assert drain(follower) == [b"1"]
    append(path, b"2\n")
    path.rename(f"{path}.1")
    packed = pack(Path(f"{path}.1"))
    # A tool that does not keep the time.
    os.utime(packed)
    assert drain(follower) == [b"2"]
    append(path, b"3\n")
    assert drain(follower) == [b"3"]
    position = follower.position
    follower.close()
    assert drain(follow(path, position)) == []


def test_another_hosts_log_of_the_same_name_in_a_folder_below_is_left_alone(path: Path, tmp_path: Path) -> None:
    position = stopped_after(path, b"1\n")
    (tmp_path / "host-b").mkdir()
    append(path, b"2\n")
    path.rename(f"{path}.2")
    append(tmp_path / "host-b" / "x.history.1", b"stranger\n")
    append(path, b"3\n")
    assert drain(follow(path, position)) == [b"2", b"3"]


def test_a_copy_that_is_not_yet_followed_by_the_emptying_is_not_read(path: Path) -> None:
    follower = follow(path)
    append(path, b"1\n")
    drain(follower)
    path.rename(f"{path}.2")
    path.touch()
    assert drain(follower) == []
    append(path, b"2\n3\n")
    for copied in (b"", b"2", b"2\n3\n"):
        Path(f"{path}.1").write_bytes(copied)
        batch = follower.read(10)
        assert batch is not None
        assert [line.text for line in batch.lines] == [b"2", b"3"]


def test_ten_thousand_rotated_files_are_searched_by_content(path: Path) -> None:
    for number in range(2, 10_001):
        Path(f"{path}.{number}").write_bytes(b"%d\n" % number)
    position = stopped_after(path, b"one\n")
    append(path, b"two\n")
    Path(f"{path}.1").write_bytes(path.read_bytes())
    path.write_bytes(b"three\n")
    follower = follow(path, position)
    assert drain(follower) == [b"two", b"three"]
    follower.close()


def test_a_clock_set_back_does_not_change_the_order_of_names(path: Path) -> None:
    position = stopped_after(path, b"1\n")
    path.rename(f"{path}.3")
    for number, when in ((2, 900), (1, 100)):
        append(Path(f"{path}.{number}"), b"%d\n" % (4 - number))
        os.utime(f"{path}.{number}", (when, when))
    path.touch()
    follower = follow(path, position)
    assert drain(follower) == [b"2", b"3"]
    later = follower.position
    follower.close()
    append(path, b"4\n")
    assert drain(follow(path, later)) == [b"4"]
