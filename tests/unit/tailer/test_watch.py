import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jailbridge.config.settings import Watch
from jailbridge.tailer.watch import Backend, FolderWatcher, PollWatcher, Watcher, watcher

DEADLINE_S = 10.0
# Long enough for an event that must not come to have come: the slowest measured took 20 ms.
QUIET_S = 0.3
EVENT_KINDS = [Watch.WATCHDOG, Watch.PYINOTIFY]


@pytest.fixture
def woken() -> threading.Event:
    return threading.Event()


@pytest.fixture
def start(woken: threading.Event) -> Iterator[Callable[[Watch, Path], Watcher]]:
    started: list[Watcher] = []

    def _start(kind: Watch, path: Path) -> Watcher:
        one = watcher(kind)
        started.append(one)
        one.start([path], woken.set)
        settle(woken)
        return one

    yield _start
    for one in started:
        one.stop()


def settle(woken: threading.Event) -> None:
    """Forget every event that is still under way."""
    while woken.wait(QUIET_S):
        woken.clear()


def append(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)


@pytest.mark.parametrize("kind", EVENT_KINDS)
class TestEvents:
    def test_a_written_line_wakes(
        self, kind: Watch, start: Callable[[Watch, Path], Watcher], woken: threading.Event, tmp_path: Path
    ) -> None:
        path = tmp_path / "history"
        path.touch()
        start(kind, path)
        append(path, b"one\n")
        assert woken.wait(DEADLINE_S)

    def test_a_file_that_is_made_later_wakes(
        self, kind: Watch, start: Callable[[Watch, Path], Watcher], woken: threading.Event, tmp_path: Path
    ) -> None:
        start(kind, tmp_path / "history")
        append(tmp_path / "history", b"one\n")
        assert woken.wait(DEADLINE_S)

    def test_the_new_file_after_a_rotation_wakes(
        self, kind: Watch, start: Callable[[Watch, Path], Watcher], woken: threading.Event, tmp_path: Path
    ) -> None:
        path = tmp_path / "history"
        path.touch()
        start(kind, path)
        path.rename(tmp_path / "history.1")
        path.touch()
        settle(woken)
        append(path, b"one\n")
        assert woken.wait(DEADLINE_S)

    def test_a_deleted_file_wakes(
        self, kind: Watch, start: Callable[[Watch, Path], Watcher], woken: threading.Event, tmp_path: Path
    ) -> None:
        path = tmp_path / "history"
        path.touch()
        start(kind, path)
        path.unlink()
        assert woken.wait(DEADLINE_S)

    def test_a_line_in_the_target_of_a_link_wakes(
        self, kind: Watch, start: Callable[[Watch, Path], Watcher], woken: threading.Event, tmp_path: Path
    ) -> None:
        target = tmp_path / "data" / "log"
        target.parent.mkdir()
        target.touch()
        path = tmp_path / "history"
        path.symlink_to(target)
        start(kind, path)
        append(target, b"one\n")
        assert woken.wait(DEADLINE_S)

    def test_a_folder_that_is_a_link_is_watched(
        self, kind: Watch, start: Callable[[Watch, Path], Watcher], woken: threading.Event, tmp_path: Path
    ) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "data")
        start(kind, tmp_path / "link" / "history")
        append(tmp_path / "data" / "history", b"one\n")
        assert woken.wait(DEADLINE_S)

    def test_a_new_file_of_a_pattern_wakes_and_no_other(
        self, kind: Watch, start: Callable[[Watch, Path], Watcher], woken: threading.Event, tmp_path: Path
    ) -> None:
        start(kind, tmp_path / "*.history")
        append(tmp_path / "other", b"one\n")
        assert not woken.wait(QUIET_S)
        append(tmp_path / "a.history", b"one\n")
        assert woken.wait(DEADLINE_S)

    def test_our_own_reading_and_other_files_do_not_wake(
        self, kind: Watch, start: Callable[[Watch, Path], Watcher], woken: threading.Event, tmp_path: Path
    ) -> None:
        path = tmp_path / "history"
        append(path, b"one\n")
        start(kind, path)
        assert path.read_bytes() == b"one\n"
        append(tmp_path / "other", b"one\n")
        assert not woken.wait(QUIET_S)

    def test_a_folder_removed_and_made_again_wakes_and_is_watched_by_the_next_poll(
        self, kind: Watch, start: Callable[[Watch, Path], Watcher], woken: threading.Event, tmp_path: Path
    ) -> None:
        path = tmp_path / "folder" / "history"
        path.parent.mkdir()
        path.touch()
        one = start(kind, path)
        shutil.rmtree(path.parent)
        settle(woken)
        one.rearm()
        path.parent.mkdir()
        one.rearm()
        assert woken.is_set()
        settle(woken)
        append(path, b"one\n")
        assert woken.wait(DEADLINE_S)

    def test_a_folder_replaced_between_two_polls_is_watched_by_the_next_one(
        self, kind: Watch, start: Callable[[Watch, Path], Watcher], woken: threading.Event, tmp_path: Path
    ) -> None:
        path = tmp_path / "folder" / "history"
        path.parent.mkdir()
        one = start(kind, path)
        path.parent.rename(tmp_path / "aside")
        path.parent.mkdir()
        one.rearm()
        settle(woken)
        append(path, b"one\n")
        assert woken.wait(DEADLINE_S)

    def test_a_folder_that_is_made_later_is_watched_by_the_next_poll(
        self, kind: Watch, start: Callable[[Watch, Path], Watcher], woken: threading.Event, tmp_path: Path
    ) -> None:
        path = tmp_path / "later" / "history"
        one = start(kind, path)
        path.parent.mkdir()
        one.rearm()
        settle(woken)
        append(path, b"one\n")
        assert woken.wait(DEADLINE_S)

    def test_a_link_that_is_swapped_has_its_new_target_watched_by_the_next_poll(
        self, kind: Watch, start: Callable[[Watch, Path], Watcher], woken: threading.Event, tmp_path: Path
    ) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "log").touch()
        path = tmp_path / "history"
        path.symlink_to(tmp_path / "a" / "log")
        one = start(kind, path)
        (tmp_path / "swap").symlink_to(tmp_path / "b" / "log")
        (tmp_path / "swap").rename(path)
        one.rearm()
        settle(woken)
        append(tmp_path / "b" / "log", b"one\n")
        assert woken.wait(DEADLINE_S)

    def test_a_file_name_that_is_no_text_ends_nothing(
        self, kind: Watch, start: Callable[[Watch, Path], Watcher], woken: threading.Event, tmp_path: Path
    ) -> None:
        path = tmp_path / "history"
        path.touch()
        start(kind, path)
        with open(os.fsencode(tmp_path) + b"/\xff\xfe", "wb"):  # noqa: PTH123
            pass
        settle(woken)
        append(path, b"one\n")
        assert woken.wait(DEADLINE_S)

    def test_a_poll_with_nothing_new_wakes_nobody(
        self, kind: Watch, start: Callable[[Watch, Path], Watcher], woken: threading.Event, tmp_path: Path
    ) -> None:
        one = start(kind, tmp_path / "history")
        one.rearm()
        assert not woken.wait(QUIET_S)

    def test_stopping_ends_every_thread_and_every_descriptor(
        self, kind: Watch, woken: threading.Event, tmp_path: Path
    ) -> None:
        loaded = watcher(kind)
        loaded.start([tmp_path / "history"], woken.set)
        loaded.stop()
        threads, descriptors = set(threading.enumerate()), set(Path("/proc/self/fd").iterdir())
        one = watcher(kind)
        one.start([tmp_path / "history"], woken.set)
        assert set(threading.enumerate()) > threads
        one.stop()
        assert set(threading.enumerate()) <= threads
        assert set(Path("/proc/self/fd").iterdir()) <= descriptors


def test_auto_is_watchdog(start: Callable[[Watch, Path], Watcher], woken: threading.Event, tmp_path: Path) -> None:
    start(Watch.AUTO, tmp_path / "history")
    assert "InotifyObserver" in {type(thread).__name__ for thread in threading.enumerate()}
    append(tmp_path / "history", b"one\n")
    assert woken.wait(DEADLINE_S)


def test_poll_watches_nothing(start: Callable[[Watch, Path], Watcher], woken: threading.Event, tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    one = start(Watch.POLL, tmp_path / "history")
    assert isinstance(one, PollWatcher)
    append(tmp_path / "history", b"one\n")
    one.rearm()
    assert not woken.wait(QUIET_S)
    assert set(threading.enumerate()) <= threads


class Limited:
    """A backend at the kernel's limit of watches (inotify(7): max_user_watches) until `is_free`."""

    def __init__(self) -> None:
        self.is_free = False
        self.added: list[str] = []

    def add(self, folder: str) -> object:
        if not self.is_free:
            raise OSError(28, "inotify watch limit\nreached")
        self.added.append(folder)
        return folder

    def is_alive(self, handle: object) -> bool:
        return True

    def remove(self, handle: object) -> None:
        raise KeyError(handle)

    def close(self) -> None:
        raise OSError(9, "Bad file descriptor")


def test_a_folder_that_cannot_be_watched_is_logged_once_and_tried_again(
    woken: threading.Event, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Limited()
    one = FolderWatcher(lambda changed: backend)
    one.start([tmp_path / "history"], woken.set)
    one.rearm()
    reason = "OSError [Errno 28] inotify watch limit reached: only the poll is left"
    assert caplog.messages == [f"event=watch-failed path={tmp_path} reason={reason}"]
    assert not woken.is_set()
    backend.is_free = True
    one.rearm()
    assert backend.added == [str(tmp_path)]
    assert woken.is_set()
    one.stop()
    assert "event=watch-not-closed" in caplog.text


def test_a_library_that_cannot_be_loaded_leaves_the_poll(
    woken: threading.Event, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def connect(changed: Callable[[str], None]) -> Backend:
        raise ModuleNotFoundError("No module named 'asyncore'")

    one = FolderWatcher(connect)
    one.start([tmp_path / "history"], woken.set)
    one.rearm()
    one.stop()
    assert "event=watch-failed reason=ModuleNotFoundError No module named 'asyncore'" in caplog.text
