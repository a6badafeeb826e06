import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from jailbridge.config import parse
from jailbridge.daemon.operations import Operations
from jailbridge.errors import GiveUp, ParseError, RetryLater
from jailbridge.ledger import Ledger
from jailbridge.model.ban import Ban, Origin
from jailbridge.model.network import Network, network_text, parse_network
from tests.settings import settings_text


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 22, 6, 30, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


class Doubt:
    """For how long yet the clock may be wrong."""

    def __init__(self) -> None:
        self.left = timedelta(0)

    def __call__(self) -> timedelta:
        return self.left


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def doubt() -> Doubt:
    return Doubt()


@pytest.fixture
def operations(tmp_path: Path, clock: Clock, doubt: Doubt) -> Iterator[Operations]:
    allowing = f'allow = ["192.0.2.0/28"]\nallow_files = ["{tmp_path}/allowed"]'
    settings = parse(settings_text(tmp_path, policy=allowing), "test")
    (tmp_path / "allowed").touch()
    with Ledger(tmp_path / "ledger") as ledger:
        yield Operations(settings, ledger, clock, doubt)


def asked(answer: object) -> dict[str, Any]:
    return cast("dict[str, Any]", answer)


def live(operations: Operations) -> set[str]:
    return {network_text(network) for network in operations.ledger.bans()}


def automatic(operations: Operations, network: str) -> None:
    now = operations.clock()
    ban = Ban(network=parse_network(network), since=now, until=None, origin=Origin.SENSOR, reason="scan")
    operations.ledger.record([ban], now=now)


def test_a_ban_reaches_the_store_at_once(operations: Operations, tmp_path: Path) -> None:
    answer = asked(operations.ban(["203.0.113.7"], "10m"))
    assert answer["banned"] == ["203.0.113.7"]
    assert answer["changes"] == []
    assert "ALL: 203.0.113.7\n" in (tmp_path / "hosts.deny").read_text()


def test_one_bad_address_bans_none(operations: Operations) -> None:
    with pytest.raises(ParseError):
        operations.ban(["203.0.113.7", "203.0.113.256"])
    with pytest.raises(GiveUp):
        operations.ban(["203.0.113.7", "127.0.0.1"])
    assert live(operations) == set()


@pytest.mark.parametrize(
    "network", ["192.0.2.3", "192.0.2.0/24", "0.0.0.0/0", "::/0", "127.0.0.1", "fe80::1", "224.0.0.1"]
)
def test_what_would_touch_an_exempt_address_needs_force(operations: Operations, network: str) -> None:
    with pytest.raises(GiveUp, match="--force"):
        operations.ban([network])


def test_a_forced_ban_of_an_allowed_address_stands(operations: Operations) -> None:
    operations.ban(["192.0.2.3"], force=True)
    operations.reconcile()
    assert live(operations) == {"192.0.2.3"}
    assert asked(operations.list_bans())[0]["stores"]["hosts_deny"] == "present"  # type: ignore[index]


def test_the_callers_own_session_needs_force(operations: Operations) -> None:
    with pytest.raises(GiveUp, match="own session"):
        operations.ban(["203.0.113.0/24"], session="203.0.113.9")
    operations.ban(["203.0.113.0/24"], session="203.0.114.9")


def test_nobody_is_banned_while_an_allow_file_cannot_be_read(operations: Operations, tmp_path: Path) -> None:
    (tmp_path / "allowed").write_text("not an address\n")
    with pytest.raises(RetryLater, match=r"allowed:1.*--force"):
        operations.ban(["203.0.113.7"])
    assert live(operations) == set()
    operations.ban(["203.0.113.7"], force=True)
    assert live(operations) == {"203.0.113.7"}


def test_a_newer_command_replaces_the_ban(operations: Operations) -> None:
    operations.ban(["203.0.113.7"])
    operations.ban(["203.0.113.7"], "10m")
    (row,) = cast("list[dict[str, Any]]", operations.list_bans())
    assert row["until"] == "2026-11-22T06:40:00Z"


def test_a_ban_ends_at_its_time_everywhere(operations: Operations, clock: Clock, tmp_path: Path) -> None:
    operations.ban(["203.0.113.7"], "10m")
    clock.now += timedelta(minutes=9, seconds=59)
    operations.reconcile()
    assert live(operations) == {"203.0.113.7"}
    clock.now += timedelta(seconds=1)
    operations.reconcile()
    assert live(operations) == set()
    assert "203.0.113.7" not in (tmp_path / "hosts.deny").read_text()


# The clock after a boot


def test_no_ban_ends_while_the_clock_may_be_wrong(
    operations: Operations, clock: Clock, doubt: Doubt, tmp_path: Path
) -> None:
    operations.ban(["203.0.113.7"], "10m")
    operations.ban(["203.0.113.8"], "2h")
    doubt.left, clock.now = timedelta(minutes=5), clock.now + timedelta(hours=1)
    assert asked(operations.reconcile())["changes"] == []
    assert asked(operations.status())["agreement"]
    assert live(operations) == {"203.0.113.7", "203.0.113.8"}
    assert "203.0.113.7" in (tmp_path / "hosts.deny").read_text()
    assert len(cast("list[dict[str, Any]]", operations.list_bans())) == 2
    assert asked(operations.explain("203.0.113.7"))["banned"] is not None
    doubt.left = timedelta(0)
    operations.reconcile()
    assert live(operations) == {"203.0.113.8"}
    assert "203.0.113.7" not in (tmp_path / "hosts.deny").read_text()
    # It ended at its own time, not at that of our waiting.
    assert asked(operations.explain("203.0.113.7"))["ended"]["time"] == "2026-11-22T06:40:00Z"


def test_in_doubt_time_runs_on_and_comes_to_the_first_end_when_the_doubt_is_over(
    operations: Operations, clock: Clock, doubt: Doubt
) -> None:
    operations.ban(["203.0.113.7"], "10m")
    end, clock.now = clock.now + timedelta(minutes=10), clock.now + timedelta(hours=1)
    for left in (300, 200, 100, 1):
        doubt.left = timedelta(seconds=left)
        assert operations.ended_by() == end - doubt.left
    doubt.left = timedelta(0)
    assert operations.ended_by() == clock.now


def test_a_clock_that_ends_nothing_soon_is_believed(operations: Operations, clock: Clock, doubt: Doubt) -> None:
    doubt.left = timedelta(minutes=5)
    assert operations.ended_by() == clock.now
    operations.ban(["203.0.113.7"], "10m")
    assert operations.ended_by() == clock.now


def test_a_ban_in_doubt_has_its_full_time_by_the_clock(operations: Operations, clock: Clock, doubt: Doubt) -> None:
    operations.ban(["203.0.113.7"], "1m")
    doubt.left = timedelta(minutes=5)
    operations.ban(["203.0.113.8"], "10m")
    rows = cast("list[dict[str, Any]]", operations.list_bans())
    assert [row["until"] for row in rows] == ["2026-11-22T06:31:00Z", "2026-11-22T06:40:00Z"]


def older_copy(operations: Operations) -> Path:
    """Return a copy of the ledger as it is now."""
    backup = operations.ledger.path.with_name("backup")
    with closing(sqlite3.connect(operations.ledger.path)) as database:
        database.execute("VACUUM INTO ?", (str(backup),))
    return backup


@pytest.mark.parametrize("restores", [False, True])
def test_what_is_taken_over_while_the_clock_may_be_wrong_does_not_end_with_the_doubt(
    operations: Operations, clock: Clock, doubt: Doubt, restores: bool
) -> None:
    operations.ban(["203.0.113.7"], "10m")
    backup = older_copy(operations)
    operations.ban(["203.0.113.8"])
    doubt.left, clock.now = timedelta(minutes=5), clock.now + timedelta(days=7)
    with Ledger(backup) as ledger:
        older = Operations(operations.settings, ledger, clock, doubt)
        if restores:
            older.restore()
        older.reconcile()
        assert ledger.bans()[parse_network("203.0.113.8")].until == clock.now + timedelta(days=1)
        doubt.left, clock.now = timedelta(0), clock.now + timedelta(minutes=5)
        older.reconcile()
        assert live(older) == {"203.0.113.8"}


def test_nothing_is_forgotten_while_the_clock_may_be_wrong(operations: Operations, clock: Clock, doubt: Doubt) -> None:
    operations.ban(["203.0.113.7"])
    operations.unban(["203.0.113.7"])
    doubt.left, clock.now = timedelta(minutes=5), clock.now + timedelta(days=3650)
    operations.forget()
    assert operations.ledger.tombstone(parse_network("203.0.113.7")) is not None
    doubt.left = timedelta(0)
    operations.forget()
    assert operations.ledger.tombstone(parse_network("203.0.113.7")) is None


def test_a_pause_that_is_over_by_the_clock_is_over(operations: Operations, clock: Clock, doubt: Doubt) -> None:
    operations.ban(["203.0.113.7"])
    operations.pause("10m")
    doubt.left, clock.now = timedelta(minutes=5), clock.now + timedelta(hours=1)
    operations.restore()
    assert asked(operations.status())["paused"] is False


def test_unban_of_a_network_ends_every_ban_inside(operations: Operations) -> None:
    operations.ban(["203.0.113.7", "203.0.113.8", "198.51.100.1"])
    answer = asked(operations.unban(["203.0.113.0/24"]))
    assert set(answer["unbanned"]) == {"203.0.113.7", "203.0.113.8"}
    assert live(operations) == {"198.51.100.1"}


def test_unban_of_a_host_ends_the_automatic_network_around_it(operations: Operations) -> None:
    automatic(operations, "2001:db8::/64")
    assert asked(operations.unban(["2001:db8::7"]))["unbanned"] == ["2001:db8::/64"]


def test_unban_of_a_host_in_an_operators_network_is_refused(operations: Operations) -> None:
    operations.ban(["203.0.113.0/24"])
    with pytest.raises(GiveUp, match=r"unban 203\.0\.113\.0/24"):
        operations.unban(["203.0.113.7"])


def test_unban_of_what_is_not_banned_says_so(operations: Operations) -> None:
    answer = asked(operations.unban(["203.0.113.7"]))
    assert (answer["unbanned"], answer["not_banned"]) == ([], ["203.0.113.7"])


def test_unban_of_everything_leaves_nothing(operations: Operations) -> None:
    operations.ban(["203.0.113.7", "2001:db8::/48"])
    operations.unban([], everything=True)
    assert live(operations) == set()


def test_an_address_that_becomes_allowed_is_unbanned(operations: Operations, tmp_path: Path) -> None:
    automatic(operations, "192.0.2.3")
    operations.reconcile()
    assert live(operations) == set()


def test_status_tells_the_problem(operations: Operations, tmp_path: Path) -> None:
    (tmp_path / "allowed").write_text("nonsense\n")
    (problem,) = asked(operations.status())["problems"]
    assert "allowed:1" in problem


# What an operator allows


def test_what_is_allowed_ends_every_ban_that_touches_it_but_a_forced_one(
    operations: Operations, tmp_path: Path
) -> None:
    operations.ban(["100.64.0.0/10", "203.0.113.7", "203.0.113.8", "198.51.100.1"])
    operations.ban(["203.0.113.9"], force=True)
    answer = asked(operations.allow_add(["203.0.113.0/24", "100.64.2.3"], "ours"))
    assert set(answer["unbanned"]) == {"100.64.0.0/10", "203.0.113.7", "203.0.113.8"}
    assert answer["forced"] == ["203.0.113.9"]
    assert live(operations) == {"198.51.100.1", "203.0.113.9"}
    assert "203.0.113.7" not in (tmp_path / "hosts.deny").read_text()
    with pytest.raises(GiveUp, match=r"203\.0\.113\.0/24 is exempt: jailbridge allow \(ours\)"):
        operations.ban(["203.0.113.7"])


def test_what_is_allowed_no_more_can_be_banned(operations: Operations) -> None:
    operations.allow_add(["203.0.113.0/24"])
    answer = asked(operations.allow_remove(["203.0.113.0/24", "203.0.113.7", "192.0.2.0/28"]))
    assert answer == {"removed": ["203.0.113.0/24"], "not_there": ["203.0.113.7", "192.0.2.0/28"]}
    operations.ban(["203.0.113.7"])
    assert live(operations) == {"203.0.113.7"}


def test_one_bad_network_allows_none(operations: Operations) -> None:
    with pytest.raises(ParseError):
        operations.allow_add(["203.0.113.0/24", "203.0.113.256"])
    assert not operations.ledger.orders.allowed


def test_the_list_of_the_allowed_names_every_source(operations: Operations, tmp_path: Path) -> None:
    (tmp_path / "allowed").write_text("198.51.100.0/24\n")
    operations.allow_add(["203.0.113.7"], "ours")
    rows = cast("list[dict[str, Any]]", operations.allow_list())
    assert {(row["network"], row["source"], row["reason"], row["since"]) for row in rows} >= {
        ("203.0.113.7", "jailbridge allow", "ours", "2026-11-22T06:30:00Z"),
        ("192.0.2.0/28", "policy.allow", None, None),
        ("198.51.100.0/24", f"{tmp_path}/allowed:1", None, None),
    }


# Explain


def test_an_address_that_nobody_saw_is_explained_as_such(operations: Operations) -> None:
    assert asked(operations.explain("203.0.113.7")) == {
        "address": "203.0.113.7",
        "network": "203.0.113.7",
        "banned": None,
        "exempt": [],
        "problem": None,
        "ended": None,
        "stores": {"hosts_deny": "absent", "firewall": "disabled", "fail2ban": "disabled"},
        "story": [],
    }


def test_a_host_within_a_banned_network_is_explained_by_that(operations: Operations) -> None:
    operations.ban(["2001:db8::/64"], "1h", "a reason")
    answer = asked(operations.explain("2001:db8::7"))
    assert answer["network"] == "2001:db8::/64"
    assert answer["banned"]["until"] == "2026-11-22T07:30:00Z"
    assert answer["stores"]["hosts_deny"] == "present"
    assert ("banned", "a reason, until 2026-11-22T07:30:00Z") in [(t["what"], t["detail"]) for t in answer["story"]]


def test_every_exemption_is_named_with_its_source(operations: Operations, tmp_path: Path) -> None:
    (tmp_path / "allowed").write_text("192.0.2.3\n")
    operations.allow_add(["192.0.2.0/24"], "ours")
    assert asked(operations.explain("192.0.2.3"))["exempt"] == [
        {"network": "192.0.2.0/28", "why": "policy.allow", "permanent": True},
        {"network": "192.0.2.3", "why": f"{tmp_path}/allowed:1", "permanent": True},
        {"network": "192.0.2.0/24", "why": "jailbridge allow (ours)", "permanent": True},
    ]
    assert asked(operations.explain("127.0.0.1"))["exempt"][0]["why"] == "loopback"


def test_an_end_is_explained_and_what_a_store_holds_all_the_same(operations: Operations, tmp_path: Path) -> None:
    operations.ban(["203.0.113.7"])
    before = (tmp_path / "hosts.deny").read_bytes()
    operations.unban(["203.0.113.7"])
    answer = asked(operations.explain("203.0.113.7"))
    assert (answer["banned"], answer["stores"]["hosts_deny"]) == (None, "absent")
    assert answer["ended"] == {
        "network": "203.0.113.7", "time": "2026-11-22T06:30:00Z", "why": "operator", "bans": 0
    }  # fmt: skip
    (tmp_path / "hosts.deny").write_bytes(before)
    assert asked(operations.explain("203.0.113.7"))["stores"]["hosts_deny"] == "present"


# Pause


def test_a_pause_is_shown_and_ends_by_itself(operations: Operations, clock: Clock) -> None:
    operations.ban(["203.0.113.7"])
    assert asked(operations.pause("10m"))["until"] == "2026-11-22T06:40:00Z"
    status = asked(operations.status())
    assert (status["paused"], status["paused_until"], status["bans"]) == (True, "2026-11-22T06:40:00Z", 1)
    clock.now += timedelta(minutes=10)
    assert operations.ledger.next_end == clock.now
    operations.settle(patient=True)
    assert asked(operations.status())["paused"] is False
    assert operations.ledger.orders.pause_ends is None
    assert not asked(operations.resume())["was_paused"]


def test_a_long_list_of_addresses_is_unbanned_from_a_long_ledger_in_no_time(operations: Operations) -> None:
    bans = [f"10.{n >> 8}.{n & 255}.1" for n in range(5000)]
    assert cast("dict[str, Any]", operations.ban(bans))["banned"] == bans
    looked_at = 0

    class Counted(dict[Network, Ban]):
        def __iter__(self) -> Iterator[Network]:
            nonlocal looked_at
            looked_at += len(self)
            return super().__iter__()

    held = Counted(operations.ledger.bans())
    found = [operations._bans_of(parse_network(address), held) for address in bans]
    assert [network_text(network) for group in found for network in group] == bans
    assert looked_at == 0, "nobody looks at every ban for each address"
    assert len(cast("dict[str, Any]", operations.unban(bans))["unbanned"]) == 5000


@pytest.mark.parametrize("reason", ["two\nlines", "\x1b[2J", "x" * 201])
def test_a_reason_that_could_play_a_log_line_is_refused(operations: Operations, reason: str) -> None:
    with pytest.raises(ParseError, match="a reason should be one line"):
        operations.ban(["203.0.113.7"], reason=reason)
    with pytest.raises(ParseError, match="a reason should be one line"):
        operations.allow_add(["203.0.113.7"], reason)
    assert not operations.ledger.bans()
