"""What is known of where each ban was placed, and when that is no longer believed."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jailbridge.ledger import Ledger
from jailbridge.model.ban import Ban, EndReason, Origin, Sighting, Sightings
from jailbridge.model.event import LogLine
from jailbridge.model.network import Network, parse_network
from jailbridge.model.plan import Placement
from jailbridge.model.token import Token

NOW = datetime(2026, 11, 22, 6, 30, 59, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)


def net(text: str) -> Network:
    return parse_network(text)


def ban(network: str) -> Ban:
    return Ban(network=net(network), since=NOW, until=None, origin=Origin.SENSOR, reason="scan")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path) as made:
        yield made


def test_placements_go_from_attempted_to_confirmed_to_none(path: Path) -> None:
    one, two = net("192.0.2.7"), net("2001:db8::/64")
    with Ledger(path) as ledger:
        ledger.places.attempt("firewall", dict.fromkeys([one, two]), boot="-", layout=1)
        assert ledger.places.of("firewall") == {one: Placement.ATTEMPTED, two: Placement.ATTEMPTED}
        ledger.places.confirm("firewall", [one], (), None)
        ledger.places.attempt("firewall", dict.fromkeys([one]), boot="-", layout=1)
    with Ledger(path) as ledger:
        assert ledger.places.of("firewall") == {one: Placement.CONFIRMED, two: Placement.ATTEMPTED}
        assert ledger.places.of("hosts_deny") == {}
        ledger.places.confirm("firewall", (), [one, two], None)
        assert ledger.places.of("firewall") == {}


def test_tokens_count_up_over_all_stores_and_restarts_and_are_recorded_only_when_confirmed(path: Path) -> None:
    with Ledger(path) as ledger:
        assert ledger.places.last_sequence == 0
        first = ledger.places.attempt("firewall", {}, boot="abc", layout=3)
        assert first == Token(ledger=ledger.id, boot="abc", layout=3, sequence=1)
        assert ledger.places.token("firewall") is None
        ledger.places.confirm("firewall", (), (), first)
    with Ledger(path) as ledger:
        second = ledger.places.attempt("hosts_deny", {}, boot="-", layout=1)
        assert (second.sequence, ledger.places.last_sequence) == (2, 2)
        assert ledger.places.token("firewall") == first
        assert ledger.places.token("hosts_deny") is None


def placed(ledger: Ledger, *networks: str) -> None:
    ledger.record([ban(network) for network in networks], now=NOW)
    for store in ("firewall", "hosts_deny"):
        ledger.places.attempt(store, dict.fromkeys(map(net, networks)), boot="-", layout=1)
        ledger.places.confirm(store, map(net, networks), (), None)


def test_what_was_seen_of_an_earlier_ban_proves_nothing_of_a_new_or_changed_one(path: Path, ledger: Ledger) -> None:
    placed(ledger, "192.0.2.7", "192.0.2.8", "192.0.2.9")
    ledger.record([replace(ban("192.0.2.7"), until=NOW + HOUR)], now=NOW)
    ledger.end([net("192.0.2.8")], EndReason.OPERATOR, now=NOW)
    ledger.record([ban("192.0.2.8")], now=NOW)
    expected = {
        net("192.0.2.7"): Placement.ATTEMPTED,
        net("192.0.2.8"): Placement.ATTEMPTED,
        net("192.0.2.9"): Placement.CONFIRMED,
    }
    assert [ledger.places.of(store) for store in ("firewall", "hosts_deny")] == [expected, expected]
    with Ledger(path) as again:
        assert again.places.of("hosts_deny") == expected
    ledger.places.confirm("firewall", expected, (), None)
    assert set(ledger.places.of("firewall").values()) == {Placement.CONFIRMED}


def test_what_is_seen_again_of_a_ban_that_stands_leaves_its_placements(ledger: Ledger) -> None:
    placed(ledger, "192.0.2.7")
    ledger.record([], now=NOW, merged={net("192.0.2.7"): Sightings(NOW, NOW, 2, ("tcp/23",))})
    assert ledger.places.of("firewall") == {net("192.0.2.7"): Placement.CONFIRMED}


def test_a_placement_that_is_undone_with_its_ban_is_as_before(ledger: Ledger) -> None:
    placed(ledger, "192.0.2.7")
    with pytest.raises(KeyboardInterrupt):
        ledger.record([ban("192.0.2.7")], now=NOW, story=_killed())
    assert ledger.places.of("firewall") == {net("192.0.2.7"): Placement.CONFIRMED}


def _killed() -> Iterator[Sighting]:
    yield from ()
    raise KeyboardInterrupt


def test_the_end_that_a_store_was_told_last_is_kept_however_often_it_is_told(path: Path, ledger: Ledger) -> None:
    one, two = net("192.0.2.7"), net("2001:db8::/64")
    ledger.places.attempt("firewall", {one: NOW + HOUR, two: None}, boot="-", layout=1)
    ledger.places.confirm("firewall", [one, two], (), None)
    assert (ledger.places.own_end("firewall", one), ledger.places.own_end("firewall", two)) == (NOW + HOUR, None)
    assert ledger.places.own_end("hosts_deny", one) is None
    ledger.places.attempt("firewall", {one: NOW + 2 * HOUR}, boot="-", layout=1)
    assert ledger.places.of("firewall")[one] is Placement.CONFIRMED
    with Ledger(path) as again:
        assert again.places.own_end("firewall", one) == NOW + 2 * HOUR
    ledger.places.confirm("firewall", (), [one], None)
    assert ledger.places.own_end("firewall", one) is None


def test_the_story_tells_whether_a_network_was_ever_in_a_log(ledger: Ledger) -> None:
    line = LogLine("/log", 1, 2, 0, b"scan")
    seen = [Sighting("192.0.2.7", NOW, "scan: banned", line), Sighting("10.0.0.0/8", NOW, "scan: banned", line)]
    ledger.record([ban("192.0.2.7"), ban("192.0.2.8"), ban("10.0.0.0/8")], now=NOW, story=seen)
    told = [n for n in ("192.0.2.7", "192.0.2.8", "10.0.0.0/8", "10.0.0.1") if ledger.story.tells_of(net(n))]
    assert told == ["192.0.2.7", "10.0.0.0/8"]
