import os
import resource
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest

from jailbridge.config.settings import HistoryDialect, HistorySettings
from jailbridge.errors import RetryLater
from jailbridge.history.dialects import parse
from jailbridge.history.writer import HistoryWriter
from jailbridge.model.event import Dialect, Kind, Protocol, ScanEvent


def event(port: int = 23) -> ScanEvent:
    return ScanEvent(
        time=datetime(2026, 11, 22, 6, 32, 8, 215000, tzinfo=UTC),
        address=ip_address("192.0.2.7"),
        port=port,
        protocol=Protocol.TCP,
        kind=Kind.SYN,
        ignored=False,
        triggered=True,
    )


def writer(path: Path, dialect: HistoryDialect = HistoryDialect.PORTSENTRY_1) -> HistoryWriter:
    return HistoryWriter(HistorySettings(path=path, dialect=dialect))


def ports(path: Path) -> list[int]:
    content = path.read_bytes()
    assert content.endswith(b"\n")
    return [parse(line)[0].port for line in content[:-1].split(b"\n")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "portsentry.history"


def test_1_2_has_a_line_when_a_source_triggers_and_no_other(path: Path) -> None:
    history = writer(path)
    for port, newly_triggered in ((1, False), (2, True), (3, False)):
        history.report(event(port), newly_triggered)
    assert ports(path) == [2]
    assert parse(path.read_bytes().removesuffix(b"\n"))[1] is Dialect.PORTSENTRY_1


def test_2_has_a_line_for_every_event(path: Path) -> None:
    history = writer(path, HistoryDialect.PORTSENTRY_2)
    for port, newly_triggered in ((1, False), (2, True), (3, False)):
        history.report(event(port), newly_triggered)
    assert ports(path) == [1, 2, 3]
    assert parse(path.read_bytes().split(b"\n")[0]) == (event(1), Dialect.PORTSENTRY_2)


def test_a_new_file_is_readable_by_its_group_and_nobody_else(path: Path) -> None:
    before = os.umask(0)
    try:
        writer(path).report(event(), True)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "lib" / "portsentry" / "portsentry.history"
    writer(path).report(event(), True)
    assert ports(path) == [23]


def test_a_torn_last_line_is_ended_first(path: Path) -> None:
    path.write_bytes(b"1795329128 - 11/22/2026 06:32:08 Host: 192.0.2.8/192.0.2.8 Po")
    writer(path).report(event(1), True)
    writer(path).report(event(2), True)
    torn, *lines = path.read_bytes().split(b"\n")
    assert torn.endswith(b" Po")
    assert [parse(line)[0].port for line in lines[:-1]] == [1, 2]
    assert lines[-1] == b""


def test_what_stands_there_is_kept(path: Path) -> None:
    path.write_bytes(b"foreign\n")
    writer(path).report(event(), True)
    assert path.read_bytes().startswith(b"foreign\n1795329128 - ")


def test_a_rotated_file_is_left_alone_and_a_new_one_begun(path: Path) -> None:
    history = writer(path)
    history.report(event(1), True)
    rotated = path.rename(path.with_suffix(".1"))
    history.report(event(2), True)
    assert ports(rotated) == [1]
    assert ports(path) == [2]


def test_a_file_that_was_cut_short_goes_on_from_its_start(path: Path) -> None:
    history = writer(path)
    history.report(event(1), True)
    os.truncate(path, 0)
    history.report(event(2), True)
    assert ports(path) == [2]


def test_lines_from_several_threads_stay_whole(path: Path) -> None:
    history = writer(path)

    def write() -> None:
        for port in range(1, 101):
            history.report(event(port), True)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ports(path)) == sorted(list(range(1, 101)) * 4)


def refusal(path: Path) -> str:
    with pytest.raises(RetryLater) as error:
        writer(path).report(event(), True)
    assert str(error.value).startswith(f"history {path} cannot be written: ")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_symbolic_link_is_not_followed(tmp_path: Path, path: Path) -> None:
    (tmp_path / "passwd").write_text("root\n")
    path.symlink_to(tmp_path / "passwd")
    assert "is a symbolic link: set history.path to the file itself" in refusal(path)
    assert (tmp_path / "passwd").read_text() == "root\n"


def test_a_dangling_link_makes_no_file(tmp_path: Path, path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    refusal(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_is_refused(path: Path) -> None:
    path.mkdir()
    assert "Is a directory" in refusal(path)


def test_a_pipe_is_refused(path: Path) -> None:
    # It would take lines until it is full, then hold up the sensor for ever.
    os.mkfifo(path)
    assert "is not a regular file: set history.path" in refusal(path)


def test_a_path_through_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory" in refusal(tmp_path / "file" / "portsentry.history")


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 10])
def test_a_line_that_does_not_fit_whole_is_an_error_and_can_be_written_later(path: Path, room: int) -> None:
    writer(path).report(event(1), True)
    with no_file_beyond(path.stat().st_size + room):
        refusal(path)
    writer(path).report(event(2), True)
    lines = path.read_bytes().split(b"\n")
    assert [parse(line)[0].port for line in (lines[0], lines[-2])] == [1, 2]
