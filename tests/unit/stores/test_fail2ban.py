import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from jailbridge.model.network import parse_network
from jailbridge.model.plan import ObservedBan
from jailbridge.stores.fail2ban import parse_entry

NIGHT = datetime(2026, 11, 22, 6, 31, 6, tzinfo=UTC)
LATER = datetime(2101, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_times_are_local_and_the_end_is_the_start_and_the_bantime() -> None:
    entry = "192.0.2.7 \t2026-11-22 07:31:06 + 600 = 2026-11-22 07:41:06"
    assert parse_entry(entry, LATER) == ObservedBan(
        network=parse_network("192.0.2.7"), since=NIGHT, until=NIGHT + timedelta(minutes=10)
    )


def test_a_negative_bantime_is_permanent() -> None:
    ban = parse_entry("2001:db8::/64 \t2026-11-22 07:31:06 + -1 = 9999-12-31 23:59:59", LATER)
    assert ban == ObservedBan(network=parse_network("2001:db8::/64"), since=NIGHT, until=None)


@pytest.mark.parametrize(("minute", "hour"), [(29, 0), (30, 1)])
def test_the_repeated_hour_of_autumn_is_its_second_once_that_has_come(minute: int, hour: int) -> None:
    now = datetime(2026, 10, 25, 1, minute, tzinfo=UTC)
    ban = parse_entry("192.0.2.7 \t2026-10-25 02:30:00 + 60 = 2026-10-25 02:31:00", now)
    assert ban is not None
    assert ban.since == datetime(2026, 10, 25, hour, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "time_text", ["2026-02-30 07:31:06 + 1", "2026-11-22 25:31:06 + 1", "9999-12-31 23:59:59 + 999999999999"]
)
def test_an_impossible_time_is_no_time(time_text: str) -> None:
    assert parse_entry(f"192.0.2.7 \t{time_text} = x", LATER) == ObservedBan(network=parse_network("192.0.2.7"))


def test_an_address_alone_is_a_ban_without_times() -> None:
    assert parse_entry("192.0.2.7", LATER) == ObservedBan(network=parse_network("192.0.2.7"))


@pytest.mark.parametrize(
    "entry", ["", " \t", "not-an-ip \t2026-11-22 07:31:06 + 600 = 2026-11-22 07:41:06", "192.0.2.7 x", "192.0.2.256"]
)
def test_what_is_no_network_is_none(entry: str) -> None:
    assert parse_entry(entry, LATER) is None
