"""The feed as another process reads it: live, by a connection of its own, whatever becomes of the file."""

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jailbridge.errors import ParseError, RetryLater
from jailbridge.ledger import Ledger
from jailbridge.ledger.feed import FeedReader, Placed
from jailbridge.model.ban import Ban, EndReason, Origin, Sightings
from jailbridge.model.event import Evidence
from jailbridge.model.network import parse_network

NOW = datetime(2026, 11, 22, 6, 30, 59, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)
A, B, AROUND = parse_network("192.0.2.7"), parse_network("2001:db8::/64"), parse_network("192.0.2.0/24")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a #?%ledger"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path) as opened:
        yield opened


@pytest.fixture
def feed(path: Path) -> Iterator[FeedReader]:
    with FeedReader(path) as reader:
        yield reader


def ban(network: object = A, *, until: datetime | None = None, seen: Sightings | None = None) -> Ban:
    return Ban(
        network=network,  # type: ignore[arg-type]
        since=NOW,
        until=until,
        origin=Origin.SENSOR,
        reason="syn scan",
        evidence=Evidence.HANDSHAKE,
        seen=seen,
    )


def test_a_ban_tells_who_asked_for_it_and_what_was_seen_and_so_does_its_end(ledger: Ledger, feed: FeedReader) -> None:
    seen = Sightings(NOW, NOW, 3, ("tcp/23", "udp/53"))
    ledger.record([ban(until=NOW + HOUR, seen=seen)], now=NOW)
    # What was seen later is told at the end.
    ledger.record([], now=NOW, merged={A: seen.also(NOW, "tcp/99")})
    ledger.end([A], EndReason.EXPIRED, now=NOW + HOUR)
    made, ended = feed.after(0, 10)
    assert made == (
        *(1, NOW, "ban", A, "syn scan", NOW + HOUR, Origin.SENSOR, Evidence.HANDSHAKE, ("tcp/23", "udp/53")),
    )
    assert ended == (
        *(2, NOW + HOUR, "unban", A, "expired", None, Origin.SENSOR, Evidence.HANDSHAKE),
        ("tcp/23", "udp/53", "tcp/99"),
    )


def test_a_persons_ban_has_neither_evidence_nor_ports(ledger: Ledger, feed: FeedReader) -> None:
    ledger.record([Ban(B, NOW, None, Origin.OPERATOR, "by hand")], now=NOW)
    (made,) = feed.after(0, 10)
    assert (made.origin, made.evidence, made.ports, made.until) == (Origin.OPERATOR, None, (), None)


def test_it_sees_what_is_written_meanwhile(ledger: Ledger, feed: FeedReader) -> None:
    assert feed.end() == (ledger.id, 0)
    ledger.record([ban(), ban(B)], now=NOW)
    assert feed.end() == (ledger.id, 2)
    assert [change.sequence for change in feed.after(0, 1)] == [1]
    assert [change.sequence for change in feed.after(1, 10)] == [2]
    assert feed.after(2, 10) == []


def test_it_never_writes_nor_waits(ledger: Ledger, feed: FeedReader, path: Path) -> None:
    ledger.record([ban()], now=NOW)
    with ledger._transaction():
        ledger._db.execute("DELETE FROM feed")
        assert feed.end() == (ledger.id, 1)
    assert feed._db is not None
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        feed._db.execute("DELETE FROM ban")


def test_the_numbers_have_no_gap_so_that_what_is_forgotten_can_be_counted(ledger: Ledger, feed: FeedReader) -> None:
    ledger.record([ban(parse_network(f"10.0.0.{n}")) for n in range(20)], now=NOW)
    # A transaction that is rolled back gives its number back.
    with pytest.raises(ParseError):
        ledger.record([ban(B)._replace(reason="\udcff")], now=NOW)
    ledger.record([ban(B)], now=NOW)
    ledger.prune(now=NOW, memory=HOUR, feed_kept=5)
    assert [change.sequence for change in feed.after(0, 100)] == [17, 18, 19, 20, 21]


def test_how_networks_stand(ledger: Ledger, feed: FeedReader) -> None:
    c, inside = parse_network("203.0.113.9"), parse_network("192.0.2.99")
    ledger.record([ban(A), ban(B), ban(AROUND), ban(inside)], now=NOW)
    ledger.places.attempt("firewall", {B: None, AROUND: None}, boot="b", layout=1, now=NOW)
    ledger.places.confirm("firewall", [AROUND], [], None)
    ledger.places.attempt("hosts_deny", {B: None}, boot="b", layout=1, now=NOW)
    ledger.places.confirm("hosts_deny", [B], [], None)
    assert feed.placed([A, B, c, AROUND], ["firewall"]) == {
        # Not seen itself, but what is around it.
        A: Placed(banned=True, seen=True, noted=False),
        B: Placed(banned=True, seen=False, noted=True),
        c: Placed(banned=False, seen=False, noted=False),
        AROUND: Placed(banned=True, seen=True, noted=True),
    }
    assert feed.placed([B], ["firewall", "hosts_deny"])[B].seen
    ledger.end([AROUND], EndReason.OPERATOR, now=NOW)
    assert feed.placed([AROUND], ["firewall"])[AROUND] == Placed(banned=False, seen=True, noted=True)
    ledger.places.confirm("firewall", [], [AROUND], None)
    assert feed.placed([AROUND], ["firewall"])[AROUND] == Placed(banned=False, seen=False, noted=False)


def test_a_ledger_that_comes_goes_and_is_another_one(path: Path, feed: FeedReader) -> None:
    with pytest.raises(RetryLater, match="cannot be read: No such file"):
        feed.end()
    with Ledger(path) as first:
        first.record([ban()], now=NOW)
        assert feed.end() == (first.id, 1)
    for file in path.parent.iterdir():
        file.unlink()
    with pytest.raises(RetryLater):
        feed.end()
    with Ledger(path) as second:
        assert second.id != first.id
        assert feed.end() == (second.id, 0)


@pytest.mark.parametrize("form", [0, 1, 99])
def test_one_of_another_release_is_waited_for(path: Path, feed: FeedReader, form: int) -> None:
    Ledger(path).close()
    with sqlite3.connect(path) as other:
        other.execute(f"PRAGMA user_version = {form}")
    other.close()
    with pytest.raises(RetryLater, match="not of this release's form: restart"):
        feed.end()


def test_what_is_no_ledger_is_told(path: Path, feed: FeedReader) -> None:
    path.write_bytes(b"not a ledger " * 1000)
    with pytest.raises(RetryLater, match="cannot be read: file is not a database"):
        feed.end()
