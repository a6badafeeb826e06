import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from jailbridge.config.settings import TailSettings, Watch
from jailbridge.errors import FatalError
from jailbridge.tailer import POLL_S, Tailer

DEADLINE_S = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def woken() -> threading.Event:
    return threading.Event()


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [tmp_path / name for name in ("a", "b", "c")]


@pytest.fixture
def tailer(paths: list[Path], woken: threading.Event) -> Iterator[Tailer]:
    one = tail(paths, woken)
    one.start()
    yield one
    one.stop()


def tail(paths: Sequence[Path], woken: threading.Event, watch: Watch = Watch.POLL, **options: Any) -> Tailer:
    return Tailer([TailSettings(path=path, watch=watch) for path in paths], {}, wake=woken.set, **options)


def append(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)


def drain(tailer: Tailer, limit: int = 1) -> list[bytes]:
    lines = []
    while (batch := tailer.read(limit)) is not None:
        lines += [line.text for line in batch.lines]
        tailer.commit(batch)
    return lines


def test_files_are_read_in_turn(tailer: Tailer, paths: list[Path]) -> None:
    append(paths[0], b"a1\na2\na3\n")
    append(paths[1], b"b1\nb2\n")
    append(paths[2], b"c1\n")
    assert drain(tailer) == [b"a1", b"b1", b"c1", b"a2", b"b2", b"a3"]


def test_nothing_new_is_none(tailer: Tailer) -> None:
    assert tailer.read(10) is None


def test_batches_of_two_files_can_be_open_at_once(tailer: Tailer, paths: list[Path]) -> None:
    append(paths[0], b"a1\n")
    append(paths[1], b"b1\n")
    first, second = tailer.read(10), tailer.read(10)
    assert first is not None
    assert second is not None
    tailer.commit(first)
    tailer.commit(second)
    assert tailer.read(10) is None


def test_what_is_not_committed_comes_again(tailer: Tailer, paths: list[Path]) -> None:
    append(paths[0], b"a1\n")
    assert tailer.read(10) == tailer.read(10)


def test_positions_are_what_was_committed(tailer: Tailer, paths: list[Path]) -> None:
    append(paths[0], b"a1\na2\n")
    batch = tailer.read(1)
    assert batch is not None
    assert {path: place.offset for path, place in tailer.positions().items()} == {str(path): 0 for path in paths}
    tailer.commit(batch)
    assert tailer.positions()[str(paths[0])] == batch.position
    assert batch.position.offset == 3


def test_an_unreadable_file_holds_up_no_other_and_is_said_once(
    tailer: Tailer, paths: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    paths[0].mkdir()
    append(paths[1], b"b1\nb2\n")
    assert drain(tailer) == [b"b1", b"b2"]
    assert [record.getMessage() for record in caplog.records] == [
        f"event=unreadable path={paths[0]} reason={tailer.troubles()[str(paths[0])]}"
    ]
    paths[0].rmdir()
    append(paths[0], b"a1\n")
    assert drain(tailer) == [b"a1"]
    assert tailer.troubles() == {}
    assert caplog.records[-1].getMessage() == f"event=readable-again path={paths[0]}"


def test_another_reason_is_said_again(tailer: Tailer, paths: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    paths[0].mkdir()
    drain(tailer)
    paths[0].rmdir()
    paths[0].symlink_to(paths[0])
    drain(tailer)
    assert ["is a directory" in line for line in caplog.messages] == [True, False]


def test_an_end_that_is_not_known_yet_has_no_position(tmp_path: Path, woken: threading.Event) -> None:
    (tmp_path / "a").mkdir()
    one = tail([tmp_path / "a"], woken)
    assert one.positions() == {}


def test_a_path_is_followed_once(paths: list[Path], woken: threading.Event) -> None:
    with pytest.raises(FatalError, match=f"{paths[0]} is followed twice"):
        tail([paths[0], paths[0]], woken)


def test_a_stopped_tailer_lets_go_of_its_files_and_goes_on_when_started(tailer: Tailer, paths: list[Path]) -> None:
    append(paths[0], b"a1\n")
    assert drain(tailer) == [b"a1"]
    tailer.stop()
    append(paths[0], b"a2\n")
    tailer.start()
    assert drain(tailer) == [b"a2"]


@pytest.mark.parametrize("kind", [Watch.AUTO, Watch.WATCHDOG, Watch.PYINOTIFY])
def test_a_written_line_wakes_the_owner(kind: Watch, tmp_path: Path, woken: threading.Event) -> None:
    one = tail([tmp_path / "a"], woken, kind)
    one.start()
    try:
        assert drain(one) == []
        woken.clear()
        append(tmp_path / "a", b"a1\n")
        assert woken.wait(DEADLINE_S)
        assert drain(one) == [b"a1"]
    finally:
        one.stop()


def test_each_path_can_have_its_own_watch(tmp_path: Path, woken: threading.Event) -> None:
    a, b = tmp_path / "a" / "log", tmp_path / "b" / "log"
    for path in (a, b):
        path.parent.mkdir()
    one = Tailer(
        [TailSettings(path=a, watch=Watch.POLL), TailSettings(path=b, watch=Watch.PYINOTIFY)], {}, wake=woken.set
    )
    one.start()
    try:
        woken.clear()
        append(a, b"a1\n")
        assert not woken.wait(0.3)
        append(b, b"b1\n")
        assert woken.wait(DEADLINE_S)
    finally:
        one.stop()


def test_the_safety_poll_watches_a_folder_that_was_made_later(tmp_path: Path, woken: threading.Event) -> None:
    clock = Clock()
    path = tmp_path / "later" / "log"
    one = tail([path], woken, Watch.WATCHDOG, clock=clock)
    one.start()
    try:
        path.parent.mkdir()
        assert drain(one) == []
        assert not woken.is_set()
        clock.now += POLL_S
        assert drain(one) == []
        assert woken.is_set()
    finally:
        one.stop()
