"""What is known of where each ban was placed, and when that is no longer believed."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jailbridge.ledger import Ledger
from jailbridge.ledger.places import FEW
from jailbridge.model.ban import Ban, EndReason, Origin, Sightings
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
        ledger.places.attempt("firewall", dict.fromkeys([one, two]), boot="-", layout=1, now=NOW)
        assert ledger.places.of("firewall") == {one: Placement.ATTEMPTED, two: Placement.ATTEMPTED}
        ledger.places.confirm("firewall", [one], (), None)
    with Ledger(path) as ledger:
        assert ledger.places.of("firewall") == {one: Placement.CONFIRMED, two: Placement.ATTEMPTED}
        assert ledger.places.of("hosts_deny") == {}
        ledger.places.confirm("firewall", (), [one, two], None)
        assert ledger.places.of("firewall") == {}


def test_tokens_count_up_over_all_stores_and_restarts_and_are_recorded_only_when_confirmed(path: Path) -> None:
    with Ledger(path) as ledger:
        assert ledger.places.last_sequence("firewall") == 0
        first = ledger.places.attempt("firewall", {}, boot="abc", layout=3, now=NOW)
        assert first == Token(ledger=ledger.id, boot="abc", layout=3, sequence=int(NOW.timestamp() * 1000))
        assert ledger.places.token("firewall") is None
        ledger.places.confirm("firewall", (), (), first)
    with Ledger(path) as ledger:
        second = ledger.places.attempt("hosts_deny", {}, boot="-", layout=1, now=NOW)
        assert (second.sequence, ledger.places.last_sequence("hosts_deny")) == (first.sequence + 1,) * 2
        assert ledger.places.token("firewall") == first
        assert ledger.places.token("hosts_deny") is None


def test_when_a_store_was_written_last_is_remembered(path: Path) -> None:
    with Ledger(path) as ledger:
        assert ledger.places.written("firewall") is None
        for now in (NOW, NOW + HOUR):
            ledger.places.attempt("firewall", {}, boot="-", layout=1, now=now)
    with Ledger(path) as ledger:
        assert ledger.places.written("firewall") == NOW + HOUR
        assert ledger.places.written("hosts_deny") is None


def placed(ledger: Ledger, *networks: str) -> None:
    ledger.record([ban(network) for network in networks], now=NOW)
    for store in ("firewall", "hosts_deny"):
        ledger.places.attempt(store, dict.fromkeys(map(net, networks)), boot="-", layout=1, now=NOW)
        ledger.places.confirm(store, map(net, networks), (), None)


def test_what_was_seen_of_an_earlier_ban_proves_nothing_of_a_new_or_changed_one(path: Path, ledger: Ledger) -> None:
    placed(ledger, "192.0.2.7", "192.0.2.8", "192.0.2.9")
    ledger.record([ban("192.0.2.7")._replace(until=NOW + HOUR)], now=NOW)
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
    # What was seen of a network that is not banned cannot be recorded; by then the rest has been.
    with pytest.raises(KeyError):
        ledger.record([ban("192.0.2.7")], now=NOW, merged={net("192.0.2.8"): Sightings(NOW, NOW, 2, ())})
    assert ledger.places.of("firewall") == {net("192.0.2.7"): Placement.CONFIRMED}


@pytest.mark.parametrize("many", [3, FEW + 3])
def test_of_few_and_of_many_those_that_are_seen_are_confirmed_and_no_others(path: Path, many: int) -> None:
    networks = [net(f"10.0.{n >> 8}.{n & 255}") for n in range(many)]
    with Ledger(path) as ledger:
        ledger.places.attempt("firewall", dict.fromkeys(networks), boot="-", layout=1, now=NOW)
        ledger.places.attempt("hosts_deny", dict.fromkeys(networks), boot="-", layout=1, now=NOW)
        ledger.places.confirm("firewall", networks[1:], (), None)
        ledger.places.attempt("firewall", dict.fromkeys(networks), boot="-", layout=1, now=NOW)
        ledger.places.confirm("firewall", networks, (), None)
        ledger.places.confirm("hosts_deny", networks[1:], (), None)
        kept = [dict(ledger.places.of(store)) for store in ("firewall", "hosts_deny")]
    assert kept[0] == dict.fromkeys(networks, Placement.CONFIRMED)
    assert kept[1] == {**kept[0], networks[0]: Placement.ATTEMPTED}
    with Ledger(path) as again:
        assert [again.places.of(store) for store in ("firewall", "hosts_deny")] == kept


def test_the_end_that_a_store_was_told_last_is_kept_however_often_it_is_told(path: Path, ledger: Ledger) -> None:
    one, two = net("192.0.2.7"), net("2001:db8::/64")
    ledger.places.attempt("firewall", {one: NOW + HOUR, two: None}, boot="-", layout=1, now=NOW)
    ledger.places.confirm("firewall", [one, two], (), None)
    assert (ledger.places.own_end("firewall", one), ledger.places.own_end("firewall", two)) == (NOW + HOUR, None)
    assert ledger.places.own_end("hosts_deny", one) is None
    ledger.places.attempt("firewall", {one: NOW + 2 * HOUR}, boot="-", layout=1, now=NOW)
    with Ledger(path) as again:
        assert again.places.own_end("firewall", one) == NOW + 2 * HOUR
    ledger.places.confirm("firewall", (), [one], None)
    assert ledger.places.own_end("firewall", one) is None


def test_a_tombstone_tells_whether_a_log_had_led_to_any_of_its_bans(ledger: Ledger) -> None:
    made = {"192.0.2.7": ban("192.0.2.7")._replace(file="/log"), "192.0.2.8": ban("192.0.2.8")}
    ledger.record(made.values(), now=NOW)
    ledger.end(map(net, made), EndReason.OPERATOR, now=NOW)
    ledger.record([ban("192.0.2.7")], now=NOW)
    ledger.end([net("192.0.2.7")], EndReason.OPERATOR, now=NOW)
    stones = ledger.tombstones(map(net, made))
    assert [stones[net(network)].logged for network in made] == [True, False]


def test_each_stores_last_sequence_is_its_own(path: Path, ledger: Ledger) -> None:
    assert ledger.places.last_sequence("firewall") == 0
    for store in ("firewall", "hosts_deny", "firewall", "firewall"):
        ledger.places.attempt(store, {}, boot="-", layout=1, now=NOW)
    with Ledger(path) as again:
        last = [again.places.last_sequence(store) for store in ("hosts_deny", "firewall", "fail2ban")]
    assert last == [int(NOW.timestamp() * 1000) + 1, int(NOW.timestamp() * 1000) + 3, 0]


def test_what_is_about_to_be_written_or_taken_out_is_not_proven_until_it_is_seen_again(ledger: Ledger) -> None:
    placed(ledger, "192.0.2.7", "192.0.2.8", "192.0.2.9")
    ledger.places.attempt(
        "firewall", {net("192.0.2.7"): None}, boot="-", layout=1, now=NOW, removed=[net("192.0.2.8"), net("192.0.2.1")]
    )
    assert ledger.places.of("firewall") == {
        net("192.0.2.7"): Placement.ATTEMPTED,
        net("192.0.2.8"): Placement.ATTEMPTED,
        net("192.0.2.9"): Placement.CONFIRMED,
    }


def test_very_many_that_are_doubted_at_once_are_doubted_in_the_file_too(
    path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jailbridge.ledger.places.FEW", 2)
    networks = [f"192.0.2.{n}" for n in range(5)]
    placed(ledger, *networks)
    ledger.places.miss("firewall", [net(network) for network in networks[:3]])
    ledger.places.miss("hosts_deny", [net(network) for network in networks])
    with Ledger(path) as again:
        states = [list(map(again.places.of(store).get, map(net, networks))) for store in ("firewall", "hosts_deny")]
    assert states == [[Placement.ATTEMPTED] * 3 + [Placement.CONFIRMED] * 2, [Placement.ATTEMPTED] * 5]


def test_an_end_that_a_store_is_no_longer_told_is_forgotten(ledger: Ledger) -> None:
    one = net("192.0.2.7")
    for end in (NOW + HOUR, None):
        ledger.places.attempt("firewall", {one: end}, boot="-", layout=1, now=NOW)
        assert ledger.places.own_end("firewall", one) == end
