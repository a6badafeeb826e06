import fcntl
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jailbridge.errors import FatalError
from jailbridge.ledger import Ledger
from jailbridge.ledger.copied import copied
from jailbridge.model.ban import Ban, Origin
from jailbridge.model.network import parse_network
from jailbridge.model.token import Token, TokenState, token_state

NOW = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
NETWORK = parse_network("203.0.113.7")
BAN = Ban(network=NETWORK, since=NOW, until=None, origin=Origin.SENSOR, reason="scan")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def attempted(ledger: Ledger) -> Token:
    return ledger.places.attempt("firewall", {NETWORK: None}, boot="b", layout=1, now=NOW)


def test_a_copy_holds_what_was_written_last_and_is_its_owners_alone(path: Path, tmp_path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.record([BAN], now=NOW)
        # A cut of power: nobody has taken the journal into the file.
        for file in tmp_path.glob("ledger*"):
            shutil.copy(file, tmp_path / f"cut-{file.name}")
    with copied(tmp_path / "cut-ledger") as copy:
        assert set(copy.bans()) == {NETWORK}
        assert copy.path.parent.stat().st_mode & 0o777 == 0o700
    assert not copy.path.parent.exists()


def test_what_is_written_to_a_copy_is_lost_with_it(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.record([BAN], now=NOW)
    before = path.read_bytes()
    with copied(path) as copy:
        copy.record([BAN._replace(network=parse_network("203.0.113.8"))], now=NOW)
    assert path.read_bytes() == before


def test_a_copys_token_is_an_old_one_to_the_ledger(path: Path) -> None:
    with Ledger(path) as ledger:
        recorded = [attempted(ledger) for _ in range(3)][-1]
    with copied(path) as copy:
        token = attempted(copy)
    with Ledger(path) as ledger:
        last = ledger.places.last_sequence("firewall")
        state = token_state(str(token), recorded=recorded, ledger=ledger.id, last_sequence=last, boot="b")
    assert state is TokenState.STALE


def test_nothing_is_copied_of_a_ledger_that_somebody_works_on(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.hold()
        with pytest.raises(FatalError, match="another jailbridge works on ledger"), copied(path):
            raise AssertionError


def test_nobody_may_begin_to_work_on_a_ledger_while_its_copy_is_used(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.hold()
    lock = path.with_name("ledger.lock")
    with copied(path), lock.open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with Ledger(path) as ledger:
        ledger.hold()


def test_of_what_is_no_ledger_there_is_no_copy(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(FatalError), copied(path):
        raise AssertionError


def test_a_ledger_that_cannot_be_read_is_named(path: Path) -> None:
    with pytest.raises(FatalError, match=f"ledger {path} cannot be copied to .*: No such file"), copied(path):
        raise AssertionError
