"""A file that others write too. What hosts.deny needs of it is tested there; here is the rest."""

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jailbridge.errors import FatalError, RetryLater
from jailbridge.stores import replaced_file
from jailbridge.stores.replaced_file import ReplacedFile


@pytest.fixture
def file(tmp_path: Path) -> ReplacedFile:
    (tmp_path / "file").write_bytes(b"old\n")
    return ReplacedFile(tmp_path / "file", "set x.path")


def test_an_edit_that_changes_nothing_writes_nothing(file: ReplacedFile) -> None:
    before = file.path.stat()
    file.rewrite(lambda content: content)
    assert file.path.stat() == before
    file.path.unlink()
    file.rewrite(lambda content: content)
    assert not file.path.exists()


def test_a_file_is_made_where_none_is_and_removed_where_one_is(file: ReplacedFile) -> None:
    for _ in range(2):
        file.remove()
        assert not file.path.exists()
        assert not file.touched()
    file.rewrite(lambda content: content + b"new\n")
    assert file.path.read_bytes() == b"new\n"
    assert not file.touched()


def test_what_an_edit_raises_leaves_everything_as_it_was(file: ReplacedFile) -> None:
    file.read()

    def edit(content: bytes) -> bytes:
        raise RetryLater("not now")

    with pytest.raises(RetryLater, match=r"^not now$"):
        file.rewrite(edit)
    assert not file.touched()
    assert list(file.path.parent.iterdir()) == [file.path]


def test_what_is_no_file_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match=rf"^{tmp_path} is not a regular file of at most 64 MiB: set x.path$"):
        ReplacedFile(tmp_path, "set x.path").content()


def test_a_file_system_without_exchange_gets_a_renaming(file: ReplacedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: object) -> int:
        ctypes.set_errno(errno.EINVAL)
        return -1

    # Stands for NFS and the like, which the kernel refuses so.
    for function in (refusing, None):
        monkeypatch.setattr(replaced_file, "_renameat2", lambda function=function: function)
        file.rewrite(lambda content: content + b"new\n")
        assert list(file.path.parent.iterdir()) == [file.path]
    assert file.path.read_bytes() == b"old\nnew\nnew\n"


def test_who_keeps_it_open_for_writing_is_not_waited_for_longer_than_patience(file: ReplacedFile) -> None:
    with file.path.open("ab"):
        file.rewrite(lambda content: content + b"new\n")
    assert file.path.read_bytes() == b"old\nnew\n"


def test_who_opens_the_file_while_it_is_looked_at_does_not_end_us(tmp_path: Path) -> None:
    # SIGIO, which a lease's breaking sends by default, would.
    code = """
import os, sys
from jailbridge.stores import replaced_file
child = os.fork()
if child == 0:
    for _ in range(20000): os.close(os.open(sys.argv[1], os.O_WRONLY))
    os._exit(0)
seen = set()
with open(sys.argv[1], "rb", buffering=0) as file:
    while os.waitpid(child, os.WNOHANG) == (0, 0): seen.add(replaced_file._is_being_written(file))
print(seen)
"""
    (tmp_path / "file").touch()
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "file"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "{False, True}\n"), done.stderr


def test_a_file_of_another_owner_keeps_it(file: ReplacedFile) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    os.chown(file.path, 65534, 65534)
    file.path.chmod(0o604)
    file.rewrite(lambda content: b"new\n")
    status = file.path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (65534, 65534, 0o604)


# As the hardened service is: root without CAP_CHOWN.
WRITING = """
import sys
from pathlib import Path
from jailbridge.errors import RetryLater
from jailbridge.stores.replaced_file import ReplacedFile
try:
    ReplacedFile(Path(sys.argv[1]), "set x.path").rewrite(lambda content: content + b"new")
except RetryLater as error:
    print(error)
"""


def test_without_the_right_to_give_it_away_a_file_keeps_its_group_or_stays_as_it_is(file: ReplacedFile) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root has capabilities to give up")
    os.chown(file.path, 0, 65534)
    file.path.chmod(0o640)

    def written(groups: str) -> str:
        argv = ["setpriv", "--bounding-set=-chown", "--groups", groups, sys.executable, "-c", WRITING, str(file.path)]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    before = file.path.stat().st_ino
    assert written("0") == (
        f"{file.path} is left as it is: it belongs to root:nogroup, to whom this process may give no file: "
        'chgrp root it, or give the service "SupplementaryGroups=nogroup" and "SystemCallFilter=@chown" in a drop-in '
        "(systemctl edit)\n"
    )
    assert (file.path.stat().st_ino, file.path.read_bytes()) == (before, b"old\n")
    assert list(file.path.parent.iterdir()) == [file.path]
    assert written("0,65534") == ""
    status = file.path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (0, 65534, 0o640)
    assert file.path.read_bytes() == b"old\nnew"
    os.chown(file.path, 65534, 65534)
    file.path.chmod(0o644)
    assert written("0,65534").endswith(
        "belongs to nobody:nogroup, to whom this process may give no file: chown root it\n"
    )
