"""A damaged ledger: set aside whole, its allowed networks taken over, and who is meant by that and who is not."""

import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jailbridge.errors import FatalError
from jailbridge.ledger import Ledger
from jailbridge.ledger.schema import MIGRATIONS
from jailbridge.model.ban import Ban, Origin
from jailbridge.model.network import Network, parse_network

NOW = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with 2,000 bans and an allowed network."""
    path = tmp_path / "ledger"
    with Ledger.held(path) as ledger:
        ledger.orders.allow([net("203.0.113.0/24")], "the office", NOW)
        ledger.record([ban(f"10.0.{n // 256}.{n % 256}") for n in range(2000)], now=NOW)
    return path


def net(text: str) -> Network:
    return parse_network(text)


def ban(address: str) -> Ban:
    return Ban(network=net(address), since=NOW, until=None, origin=Origin.SENSOR, reason="scan")


def be_garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)


def be_cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def lose_pages_of(table: str) -> Callable[[Path], None]:
    def lose(path: Path) -> None:
        with closing(sqlite3.connect(path)) as database:
            query = "SELECT rootpage, (SELECT page_size FROM pragma_page_size) FROM sqlite_master WHERE name = ?"
            page, size = database.execute(query, (table,)).fetchone()
        content = path.read_bytes()
        path.write_bytes(content[: (page - 1) * size] + bytes(size) + content[page * size :])

    return lose


def have_an_odd_ban(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE ban SET origin = 'martian' WHERE network = '10.0.0.0'")


DAMAGES = {
    "garbage": be_garbage,
    "cut off": be_cut_off,
    "a page of the bans lost": lose_pages_of("ban"),
    "a page of the allowed networks lost": lose_pages_of("allowed"),
    "a page of what is noted beside lost": lose_pages_of("meta"),
    "a ban that makes no sense": have_an_odd_ban,
}
UNREADABLE = "garbage", "cut off", "a page of the allowed networks lost"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger_is_set_aside_whole_and_a_new_one_begun(
    path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    DAMAGES[damage](path)
    before = path.read_bytes()
    with caplog.at_level(logging.INFO), Ledger.held(path) as ledger:
        assert not ledger.bans()
        with pytest.raises(FatalError, match=f"process {os.getpid()}"), Ledger(path) as other:
            other.hold()
    aside = path.with_name("ledger.damaged")
    assert aside.read_bytes() == before
    assert f"ledger {path} is damaged: it lies at {aside} now" in caplog.text
    assert {record.levelname for record in caplog.records} <= {"ERROR", "WARNING"}


@pytest.mark.parametrize("damage", DAMAGES)
def test_whom_operators_allowed_is_taken_over_or_a_problem_until_the_file_is_moved_away(
    path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES[damage](path)
    aside = path.with_name("ledger.damaged")
    for _ in range(2):
        caplog.clear()
        with Ledger.held(path) as ledger:
            if damage not in UNREADABLE:
                assert ledger.predecessors.problem is None
                order = ledger.orders.allowed[net("203.0.113.0/24")]
                assert (order.reason, order.since) == ("the office", NOW)
                continue
            assert not ledger.orders.allowed
            assert str(aside) in (problem := str(ledger.predecessors.problem))
            assert problem in caplog.messages
            with Ledger(path) as looking_on:
                assert looking_on.predecessors.problem == problem
    with Ledger.held(path) as ledger:
        aside.unlink()
        assert ledger.predecessors.problem is None
    with Ledger.held(path) as ledger:
        assert ledger.predecessors.problem is None


def test_what_was_taken_over_once_and_is_not_allowed_any_more_does_not_come_back(path: Path) -> None:
    have_an_odd_ban(path)
    with Ledger.held(path) as ledger:
        ledger.orders.disallow([net("203.0.113.0/24")])
    with Ledger.held(path) as ledger:
        assert not ledger.orders.allowed


def test_nor_does_it_come_back_from_an_older_one_when_the_ledger_is_damaged_again(path: Path) -> None:
    have_an_odd_ban(path)
    with Ledger.held(path) as ledger:
        ledger.orders.disallow([net("203.0.113.0/24")])
        ledger.orders.allow([net("198.51.100.0/24")], "the new office", NOW)
        ledger.record([ban("10.0.0.0")], now=NOW)
    have_an_odd_ban(path)
    for _ in range(2):
        with Ledger.held(path) as ledger:
            assert set(ledger.orders.allowed) == {net("198.51.100.0/24")}
            assert ledger.predecessors.problem is None


def test_what_was_not_written_into_the_ledger_itself_yet_is_taken_over_too(path: Path) -> None:
    code = (
        "import os, sys; from datetime import UTC, datetime; from pathlib import Path\n"
        "from jailbridge.ledger import Ledger; from jailbridge.model.network import parse_network\n"
        "ledger = Ledger.held(Path(sys.argv[1]))\n"
        "ledger.orders.allow([parse_network('198.51.100.0/24')], 'at the last', datetime.now(UTC))\n"
        "ledger._db.execute(\"UPDATE ban SET origin = 'martian'\")\n"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    wal = path.with_name("ledger-wal").read_bytes()
    assert wal
    with Ledger.held(path) as ledger:
        assert set(ledger.orders.allowed) == {net("203.0.113.0/24"), net("198.51.100.0/24")}
    assert path.with_name("ledger.damaged-wal").read_bytes() == wal


def test_no_damaged_ledger_takes_the_place_of_another(path: Path) -> None:
    contents = [f"garbage {number}" * 1000 for number in range(3)]
    path.with_name("ledger.damaged.2-wal").write_text("of another one")
    for content in contents:
        path.write_text(content)
        Ledger.held(path).close()
    names = "ledger.damaged", "ledger.damaged.3", "ledger.damaged.4"
    assert [path.with_name(name).read_text() for name in names] == contents
    assert path.with_name("ledger.damaged.2-wal").read_text() == "of another one"


def test_a_damaged_ledger_that_another_process_holds_is_left_to_it(path: Path) -> None:
    with Ledger.held(path):
        be_garbage(path)
        with pytest.raises(FatalError, match=f"process {os.getpid()}"):
            Ledger.held(path)
    assert not path.with_name("ledger.damaged").exists()


def test_who_only_asks_sets_nothing_aside(path: Path) -> None:
    be_garbage(path)
    with pytest.raises(FatalError, match="is not a sound JailBridge ledger"):
        Ledger(path)
    assert not path.with_name("ledger.damaged").exists()


def refused(path: Path, match: str) -> None:
    before = {file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    with pytest.raises(FatalError, match=match):
        Ledger.held(path)
    assert before.items() <= {file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}.items()
    assert not list(path.parent.glob("*.damaged*"))


def test_somebody_elses_file_that_ledger_path_names_is_left_where_it_is(tmp_path: Path) -> None:
    file = tmp_path / "passwd"
    file.write_text("root:x:0:0:root:/root:/bin/bash\n")
    refused(file, "is not a sound JailBridge ledger")


def test_another_programs_database_is_left_where_it_is(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as foreign:
        foreign.executescript("CREATE TABLE cookies (value); INSERT INTO cookies VALUES (1)")
    refused(path, "is not a sound JailBridge ledger")


def test_a_newer_ledger_is_left_where_it_is(path: Path) -> None:
    with closing(sqlite3.connect(path)) as newer:
        newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    refused(path, "newer JailBridge")


def test_a_ledger_that_cannot_be_read_now_is_left_where_it_is(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        refused(path, "cannot be used: database is locked")


def test_a_ledger_that_cannot_take_over_is_let_go_of(path: Path) -> None:
    be_garbage(path)
    Ledger.held(path).close()
    path.with_name("ledger.damaged.2").write_bytes(path.read_bytes())
    with closing(sqlite3.connect(path)) as full, full:
        full.execute(
            "CREATE TRIGGER full BEFORE INSERT ON meta WHEN NEW.name LIKE '%.damaged.2' BEGIN"
            " SELECT RAISE(ABORT, 'no room'); END"
        )
    with pytest.raises(FatalError, match="cannot be written: no room"):
        Ledger.held(path)
    with Ledger(path) as ledger:
        ledger.hold()


def test_a_folder_that_is_closed_to_us_is_told_in_one_line(open_folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become another")
    code = (
        "import os, sys; from pathlib import Path; from jailbridge.errors import FatalError\n"
        "from jailbridge.ledger import Ledger\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "try: Ledger.held(Path(sys.argv[1]))\n"
        "except FatalError as error: print(error)"
    )
    (closed := open_folder / "closed").mkdir(mode=0o700)
    argv = [sys.executable, "-c", code, str(closed / "ledger")]
    told = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert told == f"ledger {closed / 'ledger'} cannot be opened: Permission denied\n"
