"""The history file between root, who makes it, and the user that writes it; and on a disk that is full."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

USER, GROUP, ADM = 65534, 65533, 4
# What the sensor does: claims and hands over as root, then goes on as the user, whose umask may be any.
SENSOR = """
import os, sys
from pathlib import Path
from jailbridge.errors import JailBridgeError
from jailbridge.history.file import HistoryFile
from jailbridge.model.event import Protocol

path, hand_over, user, group = Path(sys.argv[1]), *map(int, sys.argv[2:])
os.umask(0o077)
file = HistoryFile(path)
try:
    file.claim(list(Protocol))
    if hand_over:
        file.hand_over(user, group)
        file.hand_over(user, group)
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    file.check()
    file.append(["first"])
    path.rename(f"{path}.1")
    file.append(["second"])
except (JailBridgeError, OSError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
ROTATION = """
import os, sys
from pathlib import Path
from jailbridge.errors import RetryLater
from jailbridge.history import file as module

path, user = Path(sys.argv[1]), int(sys.argv[2])
os.setresuid(user, user, user)
file = module.HistoryFile(path)
file.append(["first"])
path.rename(f"{path}.1")
os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0))
try:
    file.append(["refused"])
except RetryLater as error:
    print(error)
# The rest of the rotation happens while the writer waits.
module.time.sleep = lambda _: path.chmod(0o640)
file.append(["second"])
"""
FULL = """
import sys
from pathlib import Path
from jailbridge import process
from jailbridge.errors import RetryLater
from jailbridge.history.file import HistoryFile

folder = Path(sys.argv[1])
assert process.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]).code == 0
file, lines = HistoryFile(folder / "portsentry.history"), [f"{n:063}" for n in range(1000)]
done = file.append(lines)
try:
    file.append(lines[done:])
except RetryLater as error:
    print(done, error)
"""


def run(script: str, *arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    argv = [*prefix, sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def owner(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid


def test_a_user_writes_and_rotates_in_a_folder_that_was_made_for_it(open_folder: Path) -> None:
    path = open_folder / "lib" / "portsentry" / "portsentry.history"
    path.parent.parent.mkdir()
    done = run(SENSOR, path, 1, USER, GROUP)
    assert done.stderr == ""
    rotated = path.with_suffix(".history.1")
    assert (rotated.read_text(), path.read_text()) == ("first\n", "second\n")
    assert [owner(each) for each in (path.parent, rotated, path)] == [(USER, GROUP)] * 3
    assert owner(path.parent.parent) == (0, 0)


def test_in_the_midst_of_a_rotation_a_line_waits_for_the_new_file_to_be_ours(open_folder: Path) -> None:
    path = open_folder / "portsentry.history"
    os.chown(open_folder, USER, GROUP)
    done = run(ROTATION, path, USER)
    assert done.stderr == ""
    assert "Permission denied" in done.stdout
    assert (path.with_suffix(".history.1").read_text(), path.read_text()) == ("first\n", "second\n")


def test_a_folder_that_was_there_stays_its_owners_and_a_group_that_was_chosen_stays(open_folder: Path) -> None:
    path = open_folder / "portsentry.history"
    path.write_text("kept\n")
    os.chown(path, 0, ADM)
    path.chmod(0o640)
    done = run(SENSOR, path, 1, USER, GROUP)
    # The line is written; only the test's rotation is refused to the user.
    assert done.stderr.startswith("PermissionError")
    assert path.read_text() == "kept\nfirst\n"
    assert owner(path) == (USER, ADM)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert owner(open_folder) == (0, 0)


def test_a_user_who_was_given_nothing_is_told_so(open_folder: Path) -> None:
    path = open_folder / "portsentry.history"
    done = run(SENSOR, path, 0, USER, GROUP)
    assert done.stderr == (
        f"FatalError: history {path} cannot be written: Permission denied: "
        f"chown nobody {path}, in folders that nobody may enter, or set sensor.user\n"
    )


def test_a_full_disk_takes_whole_lines_and_is_told_with_a_remedy(tmp_path: Path) -> None:
    done = run(FULL, tmp_path, prefix=("unshare", "--mount"))
    assert done.stderr == ""
    whole, _, error = done.stdout.partition(" ")
    assert 0 < int(whole) <= 256
    assert error == (
        f"history {tmp_path}/portsentry.history cannot be written: No space left on device: make room there\n"
    )
