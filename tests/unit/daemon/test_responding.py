"""The ledger's feed joined to the responder: where a new queue begins."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jailbridge.config import Settings, parse
from jailbridge.daemon.responding import Responding
from jailbridge.ledger import Ledger
from jailbridge.model.ban import Ban, EndReason, Origin
from jailbridge.model.network import parse_network
from tests.settings import settings_text

NOW = datetime.now(UTC)
DEADLINE_S = 60.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "told").touch()
    (tmp_path / "script").write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/told\n')
    (tmp_path / "script").chmod(0o755)
    respond = (
        f'[respond]\nqueue = "{tmp_path}/queue"\n'
        f'[[respond.command]]\nrun = ["{tmp_path}/script", "{{what}}", "{{address}}"]\n'
        'on = ["ban", "unban"]\nfirst = true\n'
    )
    return parse(settings_text(tmp_path) + respond, "jailbridge.toml")


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    with Ledger.held(settings.ledger.path) as held:
        yield held


def record(ledger: Ledger, address: str, origin: Origin = Origin.SENSOR) -> None:
    made = Ban(network=parse_network(address), since=NOW, until=None, origin=origin, reason="for a test")
    ledger.record([made], now=NOW)


def told(tmp_path: Path, number: int) -> list[str]:
    """Return what was told once it is so much."""
    deadline = time.monotonic() + DEADLINE_S
    while len(lines := (tmp_path / "told").read_text().splitlines()) < number:
        assert time.monotonic() < deadline, lines
        time.sleep(0.01)
    return sorted(lines)


def test_of_the_first_pass_all_is_told_but_what_it_found_in_the_stores(
    tmp_path: Path, settings: Settings, ledger: Ledger
) -> None:
    record(ledger, "192.0.2.1")
    with Responding() as responding:
        responding.check(settings)
        record(ledger, "192.0.2.2", Origin.STORE)
        record(ledger, "192.0.2.3")
        record(ledger, "192.0.2.4", Origin.OPERATOR)
        ledger.end([parse_network("192.0.2.1")], EndReason.OPERATOR, now=NOW)
        responding.begin(settings)
        record(ledger, "192.0.2.5", Origin.STORE)
        assert told(tmp_path, 4) == ["ban 192.0.2.3", "ban 192.0.2.4", "ban 192.0.2.5", "unban 192.0.2.1"]


def test_what_a_first_pass_found_is_told_by_a_responder_that_has_begun_before(
    tmp_path: Path, settings: Settings, ledger: Ledger
) -> None:
    with Responding() as responding:
        responding.check(settings)
        responding.begin(settings)
        record(ledger, "192.0.2.1")
        told(tmp_path, 1)
    with Responding() as responding:
        responding.check(settings)
        record(ledger, "192.0.2.2", Origin.STORE)
        responding.begin(settings)
        assert told(tmp_path, 2) == ["ban 192.0.2.1", "ban 192.0.2.2"]


def test_of_more_than_is_read_at_once_nothing_is_lost(tmp_path: Path, settings: Settings, ledger: Ledger) -> None:
    found = [
        Ban(network=parse_network(f"10.0.{n >> 8}.{n & 255}"), since=NOW, until=None, origin=Origin.STORE, reason="")
        for n in range(2500)
    ]
    with Responding() as responding:
        responding.check(settings)
        record(ledger, "192.0.2.1")
        ledger.record(found, now=NOW)
        record(ledger, "192.0.2.2")
        responding.begin(settings)
        record(ledger, "192.0.2.3")
        assert told(tmp_path, 3) == ["ban 192.0.2.1", "ban 192.0.2.2", "ban 192.0.2.3"]
