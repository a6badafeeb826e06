import gzip
import os
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from jailbridge.config.settings import TailSettings, Watch
from jailbridge.model.event import TailPosition
from jailbridge.tailer import Tailer, pattern
from jailbridge.tailer.pattern import matcher


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    return tmp_path / "log"


def follow(*paths: Path, positions: Mapping[str, TailPosition] | None = None, clock: Clock | None = None) -> Tailer:
    tails = [TailSettings(path=path, watch=Watch.POLL) for path in paths]
    return Tailer(tails, positions or {}, wake=lambda: None, clock=clock or Clock())


def append(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)


def drain(tailer: Tailer) -> list[bytes]:
    lines: list[bytes] = []
    while (batch := tailer.read(1000)) is not None:
        lines += [line.text for line in batch.lines]
        tailer.commit(batch)
    return lines


def look(tailer: Tailer, clock: Clock) -> list[bytes]:
    """Read as after the next safety poll."""
    clock.now += 2
    return drain(tailer)


def restarted(tailer: Tailer, *paths: Path) -> Tailer:
    positions = dict(tailer.positions())
    tailer.stop()
    return follow(*paths, positions=positions)


def open_under(folder: Path) -> list[str]:
    return [name for fd in Path("/proc/self/fd").iterdir() if str(folder) in (name := os.path.realpath(fd))]


def test_a_new_ledger_starts_at_the_end_and_what_comes_later_is_read_whole(folder: Path) -> None:
    append(folder / "a.history", b"old\n")
    tailer = follow(folder / "*.history")
    append(folder / "a.history", b"new\n")
    append(folder / "b.history", b"first\n")
    assert sorted(drain(tailer)) == [b"first", b"new"]


def test_what_appeared_while_nobody_read_is_read_whole(folder: Path) -> None:
    append(folder / "a.history", b"old\n")
    one = follow(folder / "*.history")
    assert str(folder / "*.history") in one.positions()
    append(folder / "b.history", b"first\n")
    assert drain(restarted(one, folder / "*.history")) == [b"first"]


def test_a_batch_says_under_which_setting_it_came(folder: Path) -> None:
    tailer = follow(folder / "*.history", folder / "plain")
    append(folder / "a.history", b"a\n")
    append(folder / "plain", b"b\n")
    found = {}
    while (batch := tailer.read(10)) is not None:
        found[batch.position.path] = batch.tail.name
        tailer.commit(batch)
    assert found == {
        str(folder / "a.history"): str(folder / "*.history"),
        str(folder / "plain"): str(folder / "plain"),
    }


def test_what_is_no_regular_file_is_no_file_of_the_pattern(folder: Path) -> None:
    tailer = follow(folder / "*.history")
    (folder / "a.history").mkdir()
    os.mkfifo(folder / "b.history")
    (folder / "c.history").symlink_to(folder / "c.history")
    (folder / "d.history").symlink_to("/dev/zero")
    (folder / "e.history").symlink_to("nowhere")
    append(folder / ".hidden.history", b"hidden\n")
    append(folder / "f.history", b"one\n")
    assert drain(tailer) == [b"one"]
    assert tailer.troubles() == {}


def test_a_file_with_two_names_is_read_once(folder: Path) -> None:
    tailer = follow(folder / "*.history")
    append(folder / "b.history", b"one\n")
    (folder / "a.history").symlink_to(folder / "b.history")
    (folder / "c.history").hardlink_to(folder / "b.history")
    assert drain(tailer) == [b"one"]


@pytest.mark.parametrize("name", ["{}.1", "{}.12", "{}-20261122", "{}.2026-11-22", "{}-1795329059"])
def test_a_rotated_file_that_matches_is_no_new_one(folder: Path, name: str) -> None:
    path = folder / "x.history"
    tailer = follow(folder / "x.history*")
    append(path, b"one\n")
    assert drain(tailer) == [b"one"]
    append(path, b"two\n")
    path.rename(name.format(path))
    append(path, b"three\n")
    assert drain(tailer) == [b"two", b"three"]
    assert drain(restarted(tailer, folder / "x.history*")) == []


def test_a_rotated_file_is_no_new_one_while_its_original_is_not_there(folder: Path) -> None:
    clock, path = Clock(), folder / "x.history"
    tailer = follow(folder / "x.history*", clock=clock)
    append(path, b"one\n")
    drain(tailer)
    append(path, b"two\n")
    path.rename(f"{path}.1")
    assert look(tailer, clock) == [b"two"]
    assert look(tailer, clock) == []
    assert open_under(folder) == []
    tailer = restarted(tailer, folder / "x.history*")
    assert drain(tailer) == []
    append(Path(f"{path}.1"), b"three\n")
    append(path, b"four\n")
    assert drain(tailer) == [b"three", b"four"]


def test_a_copy_is_no_new_file_when_its_original_is_deleted(folder: Path) -> None:
    clock, path = Clock(), folder / "x.history"
    tailer = follow(folder / "x.history*", clock=clock)
    append(path, b"one\n")
    drain(tailer)
    shutil.copyfile(path, f"{path}.1")
    path.unlink()
    assert look(tailer, clock) == []
    assert look(tailer, clock) == []
    assert drain(restarted(tailer, folder / "x.history*")) == []


def test_compressed_files_are_never_followed(folder: Path) -> None:
    tailer = follow(folder / "*")
    (folder / "stranger.gz").write_bytes(gzip.compress(b"one\n"))
    append(folder / "stranger.zst", b"one\n")
    assert drain(tailer) == []


def test_logs_with_a_date_in_their_own_name_are_followed(folder: Path) -> None:
    tailer = follow(folder / "scan-*.log")
    for day in (21, 22):
        append(folder / f"scan-202611{day}.log", b"%d\n" % day)
    assert drain(tailer) == [b"21", b"22"]


def test_a_file_that_gets_another_matching_name_is_not_read_again(folder: Path) -> None:
    clock = Clock()
    tailer = follow(folder / "*.history", clock=clock)
    append(folder / "a.history", b"one\n")
    assert drain(tailer) == [b"one"]
    append(folder / "a.history", b"two\n")
    (folder / "a.history").rename(folder / "b.history")
    append(folder / "a.history", b"three\n")
    assert sorted(look(tailer, clock)) == [b"three", b"two"]
    append(folder / "b.history", b"four\n")
    tailer = restarted(tailer, folder / "*.history")
    assert drain(tailer) == [b"four"]


def test_a_deleted_file_is_drained_let_go_and_forgotten(folder: Path) -> None:
    clock, path = Clock(), folder / "a.history"
    tailer = follow(folder / "*.history", clock=clock)
    append(path, b"one\n")
    drain(tailer)
    append(path, b"two\n")
    path.unlink()
    assert look(tailer, clock) == [b"two"]
    assert look(tailer, clock) == []
    assert open_under(folder) == []
    assert tailer.take_gone() == {str(path)}
    assert tailer.take_gone() == frozenset()
    assert set(tailer.positions()) == {str(folder / "*.history")}
    append(path, b"three\n")
    assert look(tailer, clock) == [b"three"]


def test_a_file_that_the_ledger_knows_and_that_is_gone_is_forgotten(folder: Path) -> None:
    append(folder / "a.history", b"one\n")
    tailer = follow(folder / "*.history")
    (folder / "a.history").unlink()
    tailer = restarted(tailer, folder / "*.history")
    assert tailer.take_gone() == {str(folder / "a.history")}


def test_rotated_files_of_a_known_file_are_read_though_it_is_gone(folder: Path) -> None:
    path = folder / "a.history"
    append(path, b"one\n")
    tailer = follow(folder / "*.history")
    append(path, b"two\n")
    path.rename(f"{path}.1")
    assert drain(restarted(tailer, folder / "*.history")) == [b"two"]


def test_the_first_of_two_tails_has_a_file(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    clock = Clock()
    path, stars = folder / "a.history", folder / "*.history"
    for tails in ((path, stars), (stars, path), (stars, folder / "a*")):
        caplog.clear()
        path.unlink(missing_ok=True)
        tailer = follow(*tails, clock=clock)
        append(path, b"one\n")
        batch = tailer.read(10)
        assert batch is not None
        assert batch.tail.path == tails[0]
        tailer.commit(batch)
        assert look(tailer, clock) == []
        assert [message.split()[0] for message in caplog.messages] == ["event=followed-once"]
        tailer.stop()


def test_more_files_than_can_be_followed_are_said_and_the_others_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pattern, "MAX_FILES", 3)
    clock = Clock()
    tailer = follow(folder / "*.history", clock=clock)
    for number in range(5):
        append(folder / f"{number}.history", b"%d\n" % number)
    assert look(tailer, clock) == [b"0", b"1", b"2"]
    assert "names 5 files, and 3 of them at most are followed" in tailer.troubles()[str(folder / "*.history")]
    for number in (0, 1):
        (folder / f"{number}.history").unlink()
    look(tailer, clock)
    assert look(tailer, clock) == [b"3", b"4"] or drain(tailer) == []
    assert tailer.troubles() == {}
    assert caplog.text.count("event=unreadable") == 1


def test_what_a_new_ledger_could_not_follow_at_first_is_never_read_from_its_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pattern, "MAX_FILES", 1)
    for name in ("a", "b"):
        append(folder / f"{name}.history", b"old\n")
    tailer = follow(folder / "*.history")
    monkeypatch.setattr(pattern, "MAX_FILES", 2)
    assert drain(restarted(tailer, folder / "*.history")) == []


def test_a_folder_that_is_not_there_yet_and_one_that_may_not_be_read(folder: Path) -> None:
    clock = Clock()
    tailer = follow(folder / "later" / "*.history", clock=clock)
    assert drain(tailer) == []
    append(folder / "later", b"no folder")
    assert look(tailer, clock) == []
    (folder / "later").unlink()
    (folder / "later").mkdir()
    append(folder / "later" / "a.history", b"one\n")
    assert look(tailer, clock) == [b"one"]


def test_ten_thousand_rotated_files_cost_no_descriptor(folder: Path) -> None:
    for number in range(1, 10_001):
        (folder / f"x.history.{number}").touch()
    append(folder / "x.history", b"one\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    tailer = follow(folder / "x.history*")
    append(folder / "x.history", b"two\n")
    assert drain(tailer) == [b"two"]
    assert len(open_under(folder)) == 1
    assert set(tailer.positions()) == {str(folder / "x.history*"), str(folder / "x.history")}
    # Some 0.3 s where a quadratic comparison of names takes minutes.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 10


def test_lines_too_long_are_counted_by_file(folder: Path) -> None:
    clock = Clock()
    tailer = follow(folder / "*.history", clock=clock)
    for name in ("a", "b"):
        append(folder / f"{name}.history", b"x" * 5000 + b"\nshort\n")
    append(folder / "c.history", b"short\n")
    assert look(tailer, clock) == [b"short"] * 3
    (folder / "a.history").unlink()
    look(tailer, clock)
    assert tailer.refused() == {str(folder / "a.history"): 1, str(folder / "b.history"): 1}


@pytest.mark.parametrize(
    ("glob", "name", "does"),
    [
        ("*.history", "a.history", True),
        ("*.history", ".a.history", False),
        (".*.history", ".a.history", True),
        ("*.history", "a.history\n", False),
        ("a?c", "abc", True),
        ("[ab]", "b", True),
        ("[!ab]", "b", False),
        ("A*", "abc", False),
        ("*", "a\nb", True),
    ],
)
def test_a_pattern_means_what_a_shell_takes_it_for(glob: str, name: str, does: bool) -> None:
    assert matcher(glob)(name) is does


@pytest.mark.parametrize("name", [b"\xff\xfe.history", b"a\nlevel=INFO banned.history", b"\x1b[2J.history"])
def test_a_name_that_no_ledger_and_no_log_line_can_carry_is_not_followed_and_told(folder: Path, name: bytes) -> None:
    clock = Clock()
    tailer = follow(folder / "*.history", clock=clock)
    append(Path(os.fsdecode(os.fsencode(folder) + b"/" + name)), b"hostile\n")
    append(folder / "b.history", b"first\n")
    assert look(tailer, clock) == [b"first"]
    (trouble,) = tailer.troubles().values()
    assert "rename" in trouble
    assert trouble.isprintable()
    assert all(path.isprintable() for path in tailer.positions())
    os.unlink(os.fsencode(folder) + b"/" + name)  # noqa: PTH108
    assert look(tailer, clock) == []
    assert tailer.troubles() == {}


def test_in_a_storm_the_folder_is_listed_once_a_poll_and_not_at_each_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    append(folder / "a.history", b"old\n")
    tailer = follow(folder / "*.history", clock=clock)
    append(folder / "a.history", b"new\n" * 50)
    listed: list[object] = []
    scandir = os.scandir

    def counted(path: str) -> object:
        listed.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    clock.now += 2
    for _ in range(50):
        batch = tailer.read(1)
        assert batch is not None
        tailer.commit(batch)
    assert len(listed) == 1
