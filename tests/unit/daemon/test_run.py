"""The loop itself, with real operations, one store in a file and nothing to follow."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jailbridge.config import parse
from jailbridge.daemon.operations import Operations
from jailbridge.daemon.run import Engine
from jailbridge.ledger import Ledger
from jailbridge.tailer.tailer import Tailer


@pytest.fixture
def operations(tmp_path: Path) -> Iterator[Operations]:
    settings = parse(
        f"""
[stores.hosts_deny]
path = "{tmp_path}/hosts.deny"
[stores.firewall]
enabled = false
[stores.fail2ban]
enabled = false
""",
        "test",
    )
    with Ledger(tmp_path / "ledger") as ledger:
        yield Operations(settings, ledger)


def test_a_store_is_read_when_it_is_due_though_a_pass_has_just_been(operations: Operations, tmp_path: Path) -> None:
    deny = tmp_path / "hosts.deny"
    engine = Engine(operations, Tailer([], {}, wake=lambda: None), None)
    engine.make_pass()
    operations.ban(["203.0.113.7"])
    engine.make_pass()
    deny.unlink()
    engine.make_pass()
    assert not deny.exists(), "it is not due yet"
    operations.controller._stores["hosts_deny"].read_at = 0.0
    engine.make_pass()
    assert "203.0.113.7" in deny.read_text()
