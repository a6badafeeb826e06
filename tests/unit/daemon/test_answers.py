from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from jailbridge.daemon.answers import is_agreement, time_text, told_answer
from jailbridge.ledger.story import Told

NOW = datetime(2026, 11, 22, 6, 30, 59, 999999, tzinfo=UTC)
CHANGE = {"store": "firewall", "action": "add", "address": "192.0.2.7", "why": "syn scan, port tcp/23"}


@pytest.mark.parametrize(
    ("changes", "reachable", "enforcing", "agrees"),
    [
        ([], True, True, True),
        ([], True, None, True),
        ([], True, False, False),
        ([], False, None, False),
        ([CHANGE], True, True, False),
    ],
)
def test_agreement_is_nothing_to_do_and_every_store_in_reach_and_not_known_to_be_out_of_force(
    changes: list[dict[str, Any]], reachable: bool, enforcing: bool | None, agrees: bool
) -> None:
    store = {"reachable": reachable, "enforcing": enforcing}
    sound = {"reachable": True, "enforcing": True}
    assert is_agreement({"changes": changes, "stores": {"hosts_deny": sound, "firewall": store}}) is agrees


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=-9))])
def test_a_time_is_shown_in_utc_to_the_second(zone: timezone) -> None:
    assert time_text(NOW.astimezone(zone)) == "2026-11-22T06:30:59Z"


def test_no_time_stays_none() -> None:
    assert time_text(None) is None


@pytest.mark.parametrize(
    ("what", "until", "detail"),
    [
        ("banned", None, "scan, for ever"),
        ("changed", NOW, "scan, until 2026-11-22T06:30:59Z"),
        ("unbanned", None, "scan"),
        ("seen", None, "scan"),
    ],
)
def test_the_story_says_of_bans_alone_how_long_they_last(what: str, until: datetime | None, detail: str) -> None:
    assert told_answer(Told(time=NOW, what=what, network="192.0.2.7", detail="scan", until=until))["detail"] == detail
