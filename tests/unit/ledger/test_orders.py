"""What an operator ordered is kept."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jailbridge.errors import ParseError
from jailbridge.ledger import Ledger
from jailbridge.ledger.orders import Allowed
from jailbridge.model.network import parse_network

NOW = datetime(2026, 11, 22, 6, 30, 59, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)
ONE, TWO = parse_network("192.0.2.0/24"), parse_network("2001:db8::/48")


def test_allowed_networks_are_kept_until_taken_back(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        before = ledger.orders.allowed
        ledger.orders.allow([ONE, TWO, ONE], "naïve\n", NOW)
        assert not before
    with Ledger(tmp_path / "ledger") as ledger:
        assert ledger.orders.allowed == dict.fromkeys([ONE, TWO], Allowed(since=NOW, reason="naïve\n"))
        assert ledger.orders.disallow([TWO, TWO, parse_network("192.0.2.7")]) == [TWO]
        assert list(ledger.orders.allowed) == [ONE]
    with Ledger(tmp_path / "ledger") as ledger:
        assert list(ledger.orders.allowed) == [ONE]


def test_a_reason_that_is_no_text_allows_nobody(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        with pytest.raises(ParseError):
            ledger.orders.allow([ONE], "\udc80", NOW)
        assert not ledger.orders.allowed


@pytest.mark.parametrize("until", [None, NOW + HOUR])
def test_a_pause_lasts_until_its_end_or_resume_over_restarts(tmp_path: Path, until: datetime | None) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        assert not ledger.paused(NOW)
        assert not ledger.orders.resume()
        ledger.orders.pause(until)
        assert ledger.next_end == until
    with Ledger(tmp_path / "ledger") as ledger:
        assert ledger.paused(NOW)
        assert ledger.orders.pause_ends == until
        assert ledger.paused(NOW + HOUR) is (until is None)
        assert ledger.orders.resume()
        assert not ledger.paused(NOW)
    with Ledger(tmp_path / "ledger") as ledger:
        assert not ledger.paused(NOW)
        assert ledger.next_end is None


def test_orders_that_another_process_gave_are_known_once_the_ledger_is_held(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ours:
        with Ledger(tmp_path / "ledger") as theirs:
            theirs.orders.allow([ONE], "x", NOW)
            theirs.orders.pause(None)
        ours.hold()
        assert ours.paused(NOW)
        assert list(ours.orders.allowed) == [ONE]
