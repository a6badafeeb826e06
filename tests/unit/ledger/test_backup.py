"""Copies of a ledger that is being written: of one moment, sound, and never over what is there."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jailbridge.errors import FatalError
from jailbridge.ledger import Ledger
from jailbridge.ledger.backup import backup, check
from jailbridge.model.ban import Ban, Origin
from jailbridge.model.network import Network, parse_network

NOW = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
PAIRS = 400
MAKE = """
import sys
from pathlib import Path
from jailbridge.ledger.backup import backup
backup(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def ban(text: str) -> Ban:
    return Ban(network=parse_network(text), since=NOW, until=None, origin=Origin.SENSOR, reason="scan")


def pair(n: int) -> list[Ban]:
    return [ban(f"198.18.{n >> 8}.{n & 255}"), ban(f"198.19.{n >> 8}.{n & 255}")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a #?%ledger"
    with Ledger(path) as ledger:
        ledger.record([ban("203.0.113.7")], now=NOW)
    return path


def held(path: Path) -> set[Network]:
    with Ledger(path, create=False) as ledger:
        return set(ledger.bans())


def test_a_copy_is_whole_its_owners_alone_and_has_nothing_beside_it(path: Path, tmp_path: Path) -> None:
    to = tmp_path / "kept" / "copy"
    to.parent.mkdir()
    # What was written last is not in the file itself.
    with Ledger(path) as ledger:
        ledger.record([ban("203.0.113.8")], now=NOW)
        assert backup(path, to) == 2
    assert [file.name for file in to.parent.iterdir()] == ["copy"]
    assert to.stat().st_mode & 0o777 == 0o600
    assert check(to) == 2
    assert [file.name for file in to.parent.iterdir()] == ["copy"], "to look at it leaves nothing there"
    with Ledger(to) as copy, Ledger(path) as ledger:
        assert copy.id == ledger.id
    assert held(to) == held(path)


def test_copies_made_in_a_storm_are_each_of_one_moment(path: Path, tmp_path: Path) -> None:
    begun = threading.Event()

    def storm() -> None:
        with Ledger(path) as ledger:
            for n in range(PAIRS):
                ledger.record(pair(n), now=NOW)
                if n == 5:
                    begun.set()

    thread = threading.Thread(target=storm)
    thread.start()
    assert begun.wait(30)
    copies: list[Path] = []
    while thread.is_alive() or not copies:
        copies.append(tmp_path / f"copy{len(copies)}")
        backup(path, copies[-1])
    thread.join()
    for copy in copies:
        found = held(copy) - {parse_network("203.0.113.7")}
        # Each pair was one transaction, and they came in order.
        assert found == {one.network for n in range(len(found) // 2) for one in pair(n)}
    assert check(path) == 1 + 2 * PAIRS


def test_what_is_there_is_replaced_only_by_force(path: Path, tmp_path: Path) -> None:
    to = tmp_path / "copy"
    to.write_text("mine")
    with pytest.raises(FatalError, match="is there already: name another file, or replace it with --force"):
        backup(path, to)
    assert to.read_text() == "mine"
    backup(path, to, force=True)
    assert held(to) == held(path)
    # A link that leads nowhere is there too.
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FatalError, match="is there already"):
        backup(path, link)


@pytest.mark.parametrize("force", [False, True])
def test_the_ledger_is_never_its_own_copy(path: Path, tmp_path: Path, force: bool) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    for to in (path, link):
        with pytest.raises(FatalError, match="is the ledger itself"):
            backup(path, to, force=force)
    assert check(path) == 1


def test_a_failure_leaves_nothing_behind_and_names_the_thing(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    with pytest.raises(FatalError, match=r"there is no ledger at .*none yet"):
        backup(tmp_path / "none", folder / "copy")
    other = tmp_path / "other"
    sqlite3.connect(other).execute("CREATE TABLE x (y)").connection.close()
    with pytest.raises(FatalError, match="is not a sound JailBridge ledger"):
        backup(other, folder / "copy")
    torn = tmp_path / "torn"
    shutil.copy(path, torn)
    with torn.open("r+b") as file:
        for page in range(1, torn.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xa5" * 2048)
    with pytest.raises(FatalError, match=r"torn is not a sound JailBridge ledger"):
        backup(torn, folder / "copy")
    assert not list(folder.iterdir())
    with pytest.raises(FatalError, match=r"nosuch/copy cannot be written: No such file or directory"):
        backup(path, folder / "nosuch" / "copy")
    with pytest.raises(FatalError, match=r"kept cannot be written: Is a directory"):
        backup(path, folder, force=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a small disk of its own")
def test_a_full_disk_is_named_with_both_files(path: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with Ledger(path) as ledger:
        ledger.record([one for n in range(2000) for one in pair(n)], now=NOW)
    within = 'mount -t tmpfs -o size=64k none "$1" && shift && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", within, "sh", str(disk)]
    argv += [sys.executable, "-c", MAKE, str(path), str(disk / "copy")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert f"ledger {path} cannot be copied to {disk / 'copy'}: database or disk is full" in done.stderr
