"""Opening a ledger: what is not one, and what stands in the way, is one clear line."""

import os
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jailbridge.errors import FatalError
from jailbridge.ledger import Ledger
from jailbridge.ledger.schema import APPLICATION_ID, MIGRATIONS
from jailbridge.model.ban import Ban, Origin
from jailbridge.model.network import parse_network

NOW = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
NOBODY = 65534
AS_NOBODY = f"""
import os, sys
from pathlib import Path
from jailbridge.errors import FatalError
from jailbridge.ledger import Ledger
if os.geteuid() == 0:
    os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
try:
    ledger = Ledger(Path(sys.argv[1]), create=sys.argv[2] == "create")
    ledger.hold()
except FatalError as error:
    print(error)
else:
    print("opened")
"""


def refusal(path: Path, *, create: bool = True) -> str:
    with pytest.raises(FatalError) as caught:
        Ledger(path, create=create)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def as_nobody(path: Path, *, create: bool = True) -> str:
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(path), "create" if create else ""],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    return done.stdout.strip()


def test_a_new_ledger_is_its_owners_alone_and_so_is_its_folder(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Ledger(tmp_path / "lib" / "ledger.sqlite3") as ledger:
            ledger.record([], now=NOW)
            files = list((tmp_path / "lib").iterdir())
            assert len(files) > 1
            assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    finally:
        os.umask(before)
    assert (tmp_path / "lib").stat().st_mode & 0o777 == 0o700


def test_a_ledger_keeps_its_id_and_every_ledger_has_its_own(tmp_path: Path) -> None:
    with Ledger(tmp_path / "one") as one, Ledger(tmp_path / "two") as two:
        ids = one.id, two.id
    with Ledger(tmp_path / "one") as one:
        assert one.id == ids[0]
    assert ids[0] != ids[1]


def test_a_missing_ledger_is_made_only_when_asked_for(tmp_path: Path) -> None:
    assert "there is no ledger at" in refusal(tmp_path / "no" / "ledger", create=False)
    assert not (tmp_path / "no").exists()


def test_an_empty_file_becomes_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger").touch()
    with Ledger(tmp_path / "ledger") as ledger:
        assert not ledger.bans()


@pytest.mark.parametrize(
    "content",
    [b"sshd: 192.0.2.7\n", b"SQLite format 3\0" + b"\xff" * 4096, os.urandom(8192)],
    ids=["text", "head", "noise"],
)
def test_what_is_not_a_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger"
    path.write_bytes(content)
    assert "is not a sound JailBridge ledger" in refusal(path)
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["ledger"]


@pytest.mark.parametrize("application", [0, 1])
def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path, application: int) -> None:
    path = tmp_path / "ledger"
    foreign = sqlite3.connect(path)
    foreign.executescript(
        f"PRAGMA application_id = {application}; CREATE TABLE cookies (value); INSERT INTO cookies VALUES (1)"
    )
    foreign.close()
    before = path.read_bytes()
    assert "is not a sound JailBridge ledger" in refusal(path)
    assert path.read_bytes() == before


def test_a_database_that_only_calls_itself_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    foreign = sqlite3.connect(path)
    foreign.executescript(
        f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {len(MIGRATIONS)};"
        "CREATE TABLE cookies (value)"
    )
    foreign.close()
    refusal(path)


def test_a_ledger_of_a_newer_release_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    Ledger(path).close()
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    newer.close()
    before = path.read_bytes()
    assert f"newer JailBridge (form {len(MIGRATIONS) + 1})" in refusal(path)
    assert path.read_bytes() == before


def test_a_torn_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger(path) as ledger:
        ledger.record([ban(f"10.0.{n // 256}.{n % 256}") for n in range(2000)], now=NOW)
    content = path.read_bytes()
    assert len(content) > 100_000
    path.write_bytes(content[:20_000] + bytes(60_000) + content[80_000:])
    refusal(path)
    path.write_bytes(content[: len(content) // 2])
    refusal(path)


@pytest.mark.parametrize(("column", "value"), [("origin", "'martian'"), ("network", "'nowhere'"), ("since", "1e300")])
def test_a_ban_that_makes_no_sense_is_refused(tmp_path: Path, column: str, value: str) -> None:
    path = tmp_path / "ledger"
    with Ledger(path) as ledger:
        ledger.record([ban("192.0.2.7")], now=NOW)
    odd = sqlite3.connect(path)
    with odd:
        odd.execute(f"UPDATE ban SET {column} = {value}")
    odd.close()
    assert "is not a sound JailBridge ledger" in refusal(path)


def test_a_folder_is_no_ledger(tmp_path: Path) -> None:
    assert "cannot be opened" in refusal(tmp_path)


def test_a_ledger_below_a_file_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be opened" in refusal(tmp_path / "file" / "ledger")
    refusal(tmp_path / "file" / "ledger", create=False)


def test_an_interrupted_migration_is_made_good(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    half = sqlite3.connect(path, isolation_level=None)
    half.execute("PRAGMA journal_mode = WAL")
    half.execute("BEGIN IMMEDIATE")
    half.execute("CREATE TABLE meta (name TEXT)")
    half.close()
    with Ledger(path) as ledger:
        ledger.record([ban("192.0.2.7")], now=NOW)
        assert len(ledger.bans()) == 1


def test_each_migration_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    Ledger(path).close()
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert database.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


def test_processes_that_make_the_ledger_at_the_same_moment_share_one(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from jailbridge.ledger import Ledger\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "ledger = Ledger(Path(sys.argv[1])); print(ledger.id)"
    )
    for attempt in range(3):
        command = [sys.executable, "-c", code, str(tmp_path / f"ledger{attempt}")]
        started = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(8)
        ]
        for one in started:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        for one in started:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        ends = [one.communicate(timeout=60) for one in started]
        assert [error for _, error in ends] == [""] * len(started)
        assert len({out for out, _ in ends}) == 1


def test_an_unreadable_ledger_is_one_line(open_folder: Path) -> None:
    path = open_folder / "ledger"
    Ledger(path).close()
    path.chmod(0)
    assert "cannot be opened" in as_nobody(path)


def test_a_ledger_in_a_closed_folder_is_one_line(open_folder: Path) -> None:
    folder = open_folder / "closed"
    folder.mkdir()
    Ledger(folder / "ledger").close()
    folder.chmod(0)
    for create in (True, False):
        assert f"ledger {folder / 'ledger'} cannot be opened: Permission denied" in as_nobody(
            folder / "ledger", create=create
        )
    folder.chmod(0o700)


def test_a_new_ledger_in_a_read_only_folder_is_one_line(open_folder: Path) -> None:
    folder = open_folder / "read-only"
    folder.mkdir(mode=0o555)
    assert "cannot be opened: Permission denied" in as_nobody(folder / "ledger")
    assert "cannot be opened: Permission denied" in as_nobody(folder / "lib" / "ledger")


def test_a_ledger_that_may_only_be_read_is_one_line(open_folder: Path) -> None:
    folder = open_folder / "read-only"
    folder.mkdir()
    path = folder / "ledger"
    Ledger(path).close()
    path.chmod(0o444)
    folder.chmod(0o555)
    assert str(path) in as_nobody(path)
    assert as_nobody(path) != "opened"


@pytest.mark.e2e
def test_a_ledger_in_a_folder_where_no_lock_can_be_made_is_one_line(open_folder: Path) -> None:
    folder = open_folder / "folder"
    folder.mkdir()
    path = folder / "ledger"
    with Ledger(path) as ledger:
        ledger.hold()
        path.chmod(0o666)
        for beside in folder.iterdir():
            if beside.suffix != ".lock":
                beside.chmod(0o666)
        folder.chmod(0o755)
        assert f"ledger {path} cannot be held: {path}.lock: Permission denied" in as_nobody(path)


def ban(address: str) -> Ban:
    return Ban(network=parse_network(address), since=NOW, until=None, origin=Origin.SENSOR, reason="scan")
