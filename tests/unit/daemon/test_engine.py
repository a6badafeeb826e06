"""The loop itself, with real operations, one store in a file and nothing to follow."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jailbridge.config import parse
from jailbridge.daemon.engine import TURN_S, Engine
from jailbridge.daemon.operations import Operations, utc_now
from jailbridge.ledger import Ledger
from jailbridge.tailer.tailer import Tailer
from tests.settings import settings_text


@pytest.fixture
def operations(tmp_path: Path) -> Iterator[Operations]:
    settings = parse(settings_text(tmp_path), "test")
    with Ledger(tmp_path / "ledger") as ledger:
        yield Operations(settings, ledger)


def test_a_store_is_read_when_it_is_due_though_a_pass_has_just_been(operations: Operations, tmp_path: Path) -> None:
    deny = tmp_path / "hosts.deny"
    engine = Engine(operations, Tailer([], {}, wake=lambda: None), None)
    engine._notice_at = float("inf")
    engine.make_pass()
    operations.ban(["203.0.113.7"])
    engine.make_pass()
    deny.unlink()
    engine.make_pass()
    assert not deny.exists(), "it is not due yet"
    operations.controller._stores["hosts_deny"].read_at = 0.0
    engine.make_pass()
    assert "203.0.113.7" in deny.read_text()


def test_a_store_that_another_got_at_is_read_as_soon_as_that_is_noticed(operations: Operations, tmp_path: Path) -> None:
    deny = tmp_path / "hosts.deny"
    engine = Engine(operations, Tailer([], {}, wake=lambda: None), None)
    engine.make_pass()
    operations.ban(["203.0.113.7"])
    engine.make_pass()
    deny.unlink()
    engine._notice_at = 0.0
    operations.controller._stores["hosts_deny"].touch_at = 0.0
    engine.make_pass()
    assert "203.0.113.7" in deny.read_text()


def test_a_ban_ends_at_its_time(operations: Operations, tmp_path: Path) -> None:
    engine = Engine(operations, Tailer([], {}, wake=lambda: None), None)
    engine.make_pass()
    assert engine._rest_s() > 0.5, "nothing is to be done before the next look"
    operations.ban(["203.0.113.7"], duration="1s")
    engine.make_pass()
    end = operations.ledger.next_end
    assert end is not None
    while (rest_s := engine._rest_s()) > TURN_S:
        time.sleep(rest_s)
    assert abs((utc_now() - end).total_seconds()) < 0.2
    engine.make_pass()
    assert operations.ledger.bans() == {}
    operations.controller._stores["hosts_deny"].write_at = 0.0
    engine.make_pass()
    assert "203.0.113.7" not in (tmp_path / "hosts.deny").read_text()
