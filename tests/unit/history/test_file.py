import fcntl
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from jailbridge.errors import FatalError, RetryLater
from jailbridge.history.file import HistoryFile
from jailbridge.model.event import Protocol

CLAIM = """
import sys
from pathlib import Path
from jailbridge.errors import FatalError
from jailbridge.history.file import HistoryFile
from jailbridge.model.event import Protocol
try:
    HistoryFile(Path(sys.argv[1])).claim([Protocol(sys.argv[2])])
except FatalError as error:
    print(error, flush=True)
else:
    file = HistoryFile(Path(sys.argv[1]))
    print("claimed", flush=True)
sys.stdin.read()
"""
HOLD = CLAIM.replace(
    "    HistoryFile(Path(sys.argv[1])).claim",
    "    kept = HistoryFile(Path(sys.argv[1]))\n    kept.claim",
)


BOTH = list(Protocol)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "portsentry.history"


@pytest.fixture
def file(path: Path) -> Iterator[HistoryFile]:
    file = HistoryFile(path)
    yield file
    file.close()


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def refusal(file: HistoryFile, path: Path, lines: Sequence[str] = ("refused",)) -> str:
    with pytest.raises(RetryLater) as error:
        file.append(lines)
    assert str(error.value).startswith(f"history {path} ")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_lines_are_appended_in_order_and_in_one_write(file: HistoryFile, path: Path) -> None:
    assert file.append(["first"]) == 1
    assert file.append(["second", "third"]) == 2
    assert path.read_text() == "first\nsecond\nthird\n"


def test_no_lines_make_no_file(file: HistoryFile, path: Path) -> None:
    assert file.append([]) == 0
    assert not path.exists()


def test_a_new_file_is_readable_by_its_group_and_nobody_else(file: HistoryFile, path: Path) -> None:
    before = os.umask(0)
    try:
        file.append(["line"])
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_missing_folders_are_made_and_only_their_owner_may_write_there(tmp_path: Path) -> None:
    path = tmp_path / "lib" / "portsentry" / "portsentry.history"
    before = os.umask(0)
    try:
        HistoryFile(path).append(["line"])
    finally:
        os.umask(before)
    assert path.read_text() == "line\n"
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (path.parent, path.parent.parent)] == [0o755] * 2


def test_a_torn_last_line_is_ended_first(file: HistoryFile, path: Path) -> None:
    path.write_text("whole\nto")
    file.append(["first"])
    file.append(["second"])
    assert path.read_text() == "whole\nto\nfirst\nsecond\n"


def test_the_file_is_kept_open_and_followed_by_its_name(file: HistoryFile, path: Path) -> None:
    file.append(["first"])
    opened = descriptors()
    file.append(["second"])
    rotated = path.rename(path.with_suffix(".1"))
    file.append(["third"])
    path.unlink()
    path.write_text("made by logrotate\n")
    file.append(["fourth"])
    assert descriptors() == opened
    assert rotated.read_text() == "first\nsecond\n"
    assert path.read_text() == "made by logrotate\nfourth\n"


def test_a_file_that_was_cut_short_goes_on_from_its_start(file: HistoryFile, path: Path) -> None:
    file.append(["first"])
    os.truncate(path, 0)
    file.append(["second"])
    assert path.read_text() == "second\n"


def test_a_closed_file_is_opened_again_by_the_next_line(file: HistoryFile, path: Path) -> None:
    file.append(["first"])
    file.close()
    file.close()
    file.append(["second"])
    assert path.read_text() == "first\nsecond\n"


def test_lines_from_several_threads_stay_whole(file: HistoryFile, path: Path) -> None:
    def write(name: int) -> None:
        for n in range(100):
            file.append([f"{name} {n}", f"{name} {n} again"])

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = path.read_text().splitlines()
    assert len(lines) == 800
    for name in range(4):
        own = [line for line in lines if line.startswith(f"{name} ")]
        assert own == [line for n in range(100) for line in (f"{name} {n}", f"{name} {n} again")]


def test_a_symbolic_link_is_not_followed(file: HistoryFile, tmp_path: Path, path: Path) -> None:
    (tmp_path / "passwd").write_text("root\n")
    path.symlink_to(tmp_path / "passwd")
    assert "is a symbolic link: set history.path to the file itself" in refusal(file, path)
    assert (tmp_path / "passwd").read_text() == "root\n"


def test_a_link_put_in_the_place_of_the_open_file_is_not_followed(
    file: HistoryFile, tmp_path: Path, path: Path
) -> None:
    file.append(["first"])
    path.rename(tmp_path / "passwd")
    path.symlink_to(tmp_path / "passwd")
    assert "is a symbolic link" in refusal(file, path)
    assert (tmp_path / "passwd").read_text() == "first\n"


def test_a_dangling_link_makes_no_file(file: HistoryFile, tmp_path: Path, path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    refusal(file, path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_is_refused(file: HistoryFile, path: Path) -> None:
    path.mkdir()
    assert "Is a directory: set history.path to the file itself" in refusal(file, path)


def test_a_pipe_is_refused(file: HistoryFile, path: Path) -> None:
    # It would take lines until it is full, then hold up the sensor for ever.
    os.mkfifo(path)
    before = descriptors()
    assert "is not a regular file: set history.path to the file itself" in refusal(file, path)
    assert descriptors() == before


def test_a_path_through_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "portsentry.history"
    assert "Not a directory" in refusal(HistoryFile(path), path)


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("room", "whole"), [(0, 0), (4, 0), (5, 1), (9, 1), (10, 2), (14, 2)])
def test_what_does_not_fit_can_be_written_later_and_no_line_is_lost(
    file: HistoryFile, path: Path, room: int, whole: int
) -> None:
    lines = ["1111", "2222", "3333"]
    file.append(["0000"])
    with no_file_beyond(5 + room):
        if whole:
            assert file.append(lines) == whole
        assert "File too large: " in refusal(file, path, lines[whole:])
    assert file.append(lines[whole:]) == 3 - whole
    written = path.read_text().splitlines()
    torn = lines[whole][: room % 5]
    assert written == ["0000", *lines[:whole], *[torn] * bool(torn), *lines[whole:]]


def test_a_torn_line_that_nothing_fits_behind_is_not_counted(file: HistoryFile, path: Path) -> None:
    path.write_text("to")
    with no_file_beyond(3):
        refusal(file, path)
    assert file.append(["whole"]) == 1
    assert path.read_text() == "to\nwhole\n"


def test_a_protocol_has_one_writer(file: HistoryFile, path: Path) -> None:
    file.claim(BOTH)
    file.claim(BOTH)
    for protocol in Protocol:
        with pytest.raises(FatalError) as error:
            HistoryFile(path).claim([protocol])
        assert str(error.value) == (
            f"history {path} is written by another process ('fuser {path}' tells which): end it, or set history.path"
        )
    file.close()
    HistoryFile(path).claim(BOTH)


def test_two_protocols_may_have_two_writers(file: HistoryFile, path: Path) -> None:
    other = HistoryFile(path)
    file.claim([Protocol.TCP])
    other.claim([Protocol.UDP])
    for turn in range(2):
        file.append([f"tcp {turn}"])
        other.append([f"udp {turn}"])
    assert path.read_text() == "tcp 0\nudp 0\ntcp 1\nudp 1\n"
    path.rename(path.with_suffix(".1"))
    other.append(["udp 2"])
    file.append(["tcp 2"])
    assert path.read_text() == "udp 2\ntcp 2\n"
    other.close()


def test_the_claim_goes_over_to_a_rotated_files_successor(file: HistoryFile, path: Path) -> None:
    file.claim([Protocol.TCP])
    path.rename(path.with_suffix(".1"))
    file.append(["line"])
    with pytest.raises(FatalError, match="is written by another process"):
        HistoryFile(path).claim([Protocol.TCP])


def test_a_successor_that_another_process_took_first_is_left_to_it(file: HistoryFile, path: Path) -> None:
    file.claim([Protocol.TCP])
    path.rename(path.with_suffix(".1"))
    other = HistoryFile(path)
    other.claim([Protocol.TCP])
    opened = descriptors()
    for _ in range(2):
        assert "is written by another process" in refusal(file, path)
    assert descriptors() == opened
    other.close()
    assert file.append(["line"]) == 1


def test_a_claim_holds_against_another_process_and_ends_with_its_own(file: HistoryFile, path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), "tcp"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "claimed\n"
        with pytest.raises(FatalError, match="is written by another process"):
            file.claim([Protocol.TCP])
        file.claim([Protocol.UDP])
        holder.kill()
        holder.wait()
    file.claim(BOTH)
    asked = subprocess.run(
        [sys.executable, "-c", CLAIM, str(path), "udp"], input="", capture_output=True, text=True, check=True
    )
    assert "is written by another process" in asked.stdout


def test_another_programs_lock_of_the_whole_file_does_not_count_as_a_writer(file: HistoryFile, path: Path) -> None:
    path.touch()
    script = (
        "import fcntl, sys\nwith open(sys.argv[1], 'a') as file:\n"
        "    fcntl.lockf(file, fcntl.LOCK_EX, 1 << 50)\n    print(flush=True)\n    sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with path.open("a") as own, pytest.raises(BlockingIOError):
            fcntl.lockf(own, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        file.claim(BOTH)
        other.communicate()


def test_a_file_that_cannot_be_made_is_fatal_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = HistoryFile(tmp_path / "file" / "portsentry.history")
    starts: list[Callable[[], None]] = [lambda: file.claim(BOTH), lambda: file.hand_over(os.geteuid(), 0), file.check]
    for start in starts:
        with pytest.raises(FatalError, match=r"cannot be written: Not a directory: set history\.path"):
            start()


def test_handing_over_makes_folder_and_file_and_may_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "portsentry" / "portsentry.history"
    file = HistoryFile(path)
    for _ in range(2):
        file.hand_over(os.geteuid(), os.getegid())
        file.check()
    assert path.read_bytes() == b""
    assert stat.S_IMODE(path.stat().st_mode) & ~0o640 == 0
    file.close()


def test_a_file_with_a_second_name_is_not_given_away(file: HistoryFile, tmp_path: Path, path: Path) -> None:
    (tmp_path / "shadow").touch()
    path.hardlink_to(tmp_path / "shadow")
    with pytest.raises(FatalError, match=r"is the same file as another name \(a hard link\): set history.path"):
        file.hand_over(os.geteuid(), os.getegid())


def test_a_link_is_not_given_away(file: HistoryFile, tmp_path: Path, path: Path) -> None:
    (tmp_path / "shadow").touch()
    path.symlink_to(tmp_path / "shadow")
    with pytest.raises(FatalError, match="is a symbolic link"):
        file.hand_over(os.geteuid(), os.getegid())
