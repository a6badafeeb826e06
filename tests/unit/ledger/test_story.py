"""What the story tells, in which order, and how it stays within its bounds."""

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jailbridge.ledger import Ledger
from jailbridge.ledger.story import FIRST, LAST, TOLD, trim_story, trim_tombstones
from jailbridge.model.ban import Ban, EndReason, Origin, Sighting, Sightings
from jailbridge.model.event import LogLine
from jailbridge.model.network import parse_network
from jailbridge.model.plan import Action, Change

NOW = datetime(2026, 11, 22, 6, 30, 59, 123456, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path) as opened:
        yield opened


def sighting(network: str, n: int = 0, text: bytes = b"the line") -> Sighting:
    return Sighting(network, NOW + n * SECOND, f"sighting {n}", LogLine("/log", 1, 2, n, text))


def ban(network: str, *, until: datetime | None = None) -> Ban:
    return Ban(network=parse_network(network), since=NOW, until=until, origin=Origin.SENSOR, reason="scan")


def see(ledger: Ledger, *sightings: Sighting) -> None:
    ledger.record([], now=NOW, story=sightings)


def told(ledger: Ledger, network: str) -> list[tuple[str, str]]:
    return [(one.what, one.detail) for one in ledger.story.of(parse_network(network))]


def change(network: str | None, action: Action = Action.ADD) -> Change:
    return Change(store="firewall", action=action, network=parse_network(network) if network else None, why="missing")


def test_the_whole_story_is_told_oldest_first_and_survives_the_process(path: Path) -> None:
    with Ledger(path) as ledger:
        made = ban("192.0.2.7", until=NOW + 9 * SECOND)
        ledger.record([made], now=NOW, story=[sighting("192.0.2.7", text=b"\x1b[2J \xff")])
        ledger.story.placed("firewall", [change("192.0.2.7"), change("192.0.2.8"), change(None, Action.HOOK)], NOW)
        ledger.record([made], now=NOW + SECOND)
        ledger.end([made.network], EndReason.OPERATOR, now=NOW + 2 * SECOND)
    with Ledger(path) as ledger:
        story = ledger.story.of(parse_network("192.0.2.7"))
    assert [(one.what, one.detail, one.until) for one in story] == [
        ("seen", "sighting 0", None),
        ("banned", "scan", NOW + 9 * SECOND),
        ("placed", "firewall: add: missing", None),
        ("changed", "scan", NOW + 9 * SECOND),
        ("unbanned", "operator", None),
    ]
    assert (story[0].time, story[0].file, story[0].offset, story[0].line) == (NOW, "/log", 0, "\x1b[2J \\xff")


def test_the_story_of_a_host_has_that_of_the_networks_around_it_and_no_other(ledger: Ledger) -> None:
    around = ["2001:db8::/64", "2001:db8::/48", "::/0", "2001:db8::7"]
    see(ledger, *(sighting(n, i) for i, n in enumerate([*around, "2001:db8::8", "2001:db8:0:1::/64", "0.0.0.0/0"])))
    assert told(ledger, "2001:db8::7") == [("seen", f"sighting {n}") for n in range(4)]


def test_the_story_of_a_network_has_all_within_it(ledger: Ledger) -> None:
    see(ledger, *(sighting(n, i) for i, n in enumerate(["10.0.0.7", "10.1.0.0/16", "11.0.0.0", "::10.0.0.7"])))
    assert told(ledger, "10.0.0.0/8") == [("seen", "sighting 0"), ("seen", "sighting 1")]


def test_the_last_of_a_very_long_story_is_told(ledger: Ledger) -> None:
    see(ledger, *(sighting(f"10.0.{n >> 8}.{n & 255}", n) for n in range(TOLD + 5)))
    story = told(ledger, "10.0.0.0/8")
    assert (story[0], story[-1], len(story)) == (("seen", "sighting 5"), ("seen", f"sighting {TOLD + 4}"), TOLD)


def test_what_is_known_later_is_told_later_whatever_the_logs_own_clock_says(ledger: Ledger) -> None:
    ledger.record([ban("192.0.2.7")], now=NOW)
    ledger.end([parse_network("192.0.2.7")], EndReason.OPERATOR, now=NOW + SECOND)
    ledger.record([], now=NOW + 2 * SECOND, story=[sighting("192.0.2.7", -99)])
    assert [what for what, _ in told(ledger, "192.0.2.7")] == ["banned", "unbanned", "seen"]


def test_what_fails_to_be_recorded_is_not_told(ledger: Ledger) -> None:
    # Nothing can be seen of a network that is not banned; by then the rest has been written.
    odd = {parse_network("192.0.2.8"): Sightings(NOW, NOW, 2, ())}
    with pytest.raises(KeyError):
        ledger.record([ban("192.0.2.7")], now=NOW, story=[sighting("192.0.2.7")], merged=odd)
    assert told(ledger, "192.0.2.7") == []


# Bounds


def test_of_a_long_story_the_first_and_the_last_are_kept_however_often_it_is_cut(ledger: Ledger) -> None:
    see(ledger, sighting("192.0.2.8", 7))
    for start in range(0, 300, 100):
        see(ledger, *(sighting("192.0.2.7", n) for n in range(start, start + 100)))
        trim_story(ledger._db)
    kept = [*range(FIRST), *range(300 - LAST, 300)]
    assert told(ledger, "192.0.2.7") == [("seen", f"sighting {n}") for n in kept]
    assert told(ledger, "192.0.2.8") == [("seen", "sighting 7")]


def test_a_flood_of_sources_that_were_never_banned_takes_nobody_elses_story(ledger: Ledger) -> None:
    ledger.record([ban("192.0.2.7"), ban("192.0.2.8")], now=NOW, story=[sighting("192.0.2.7"), sighting("192.0.2.8")])
    ledger.end([parse_network("192.0.2.8")], EndReason.OPERATOR, now=NOW)
    see(ledger, *(sighting(f"10.0.{n >> 8}.{n & 255}", n) for n in range(500)))
    assert trim_story(ledger._db, most=10) == 10
    assert ("seen", "sighting 0") in told(ledger, "192.0.2.7")
    assert ("seen", "sighting 0") in told(ledger, "192.0.2.8")
    assert told(ledger, "10.0.0.0/8") == [("seen", f"sighting {n}") for n in range(492, 500)]
    assert trim_story(ledger._db, most=1) == 1


def test_the_story_is_cut_by_itself(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jailbridge.ledger.story.SLACK", 1000)
    monkeypatch.setattr("jailbridge.ledger.story.ROWS", 100)
    monkeypatch.setattr(trim_story, "__kwdefaults__", {"first": FIRST, "last": LAST, "most": 100})
    for start in range(0, 3000, 500):
        see(ledger, *(sighting(f"10.0.{n >> 8}.{n & 255}", n) for n in range(start, start + 500)))
        assert rows(ledger, "story") <= 1100


def rows(ledger: Ledger, table: str) -> int:
    return int(ledger._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_too_many_tombstones_lose_the_oldest_natural_ends_first_and_none_that_a_store_holds(ledger: Ledger) -> None:
    bans = [ban(f"10.0.0.{n}", until=NOW + n * SECOND) for n in range(6)]
    ledger.record(bans, now=NOW)
    ledger.places.attempt("firewall", {bans[1].network: None}, boot="-", layout=1, now=NOW)
    ledger.end([bans[0].network], EndReason.OPERATOR, now=NOW)
    ledger.end([one.network for one in bans[1:]], EndReason.EXPIRED, now=NOW + 9 * SECOND)
    trim_tombstones(ledger._db, most=3)
    assert [n for n, one in enumerate(bans) if ledger.tombstone(one.network) is not None] == [0, 1, 5]
    trim_tombstones(ledger._db, most=3)
    assert rows(ledger, "tombstone") == 3


def test_a_ledger_of_the_first_form_is_brought_up_to_date_with_its_bans(path: Path) -> None:
    from jailbridge.ledger.schema import APPLICATION_ID, MIGRATIONS

    old = sqlite3.connect(path)
    old.executescript(MIGRATIONS[0])
    old.execute("INSERT INTO ban VALUES ('192.0.2.7', 1, NULL, 'sensor', 'scan', NULL, NULL, NULL, NULL, NULL, 0)")
    old.execute("INSERT INTO feed (time, what, network, why) VALUES (1, 'ban', '192.0.2.7', 'scan')")
    old.executescript(f"PRAGMA user_version = 1; PRAGMA application_id = {APPLICATION_ID}")
    old.commit()
    old.close()
    with Ledger(path) as ledger:
        (kept,) = ledger.bans().values()
        assert (kept.network, kept.seen) == (parse_network("192.0.2.7"), None)
        assert told(ledger, "192.0.2.7") == [("banned", "scan")]
