"""What stands where in our nftables table, and in which steps it is changed."""

from datetime import UTC, datetime

import pytest

from jailbridge.model.network import Network, parse_network
from jailbridge.model.token import Token
from jailbridge.stores import nft_sets
from jailbridge.stores.nft_sets import SETS, Verb
from jailbridge.stores.nft_text import commands

NOW = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
TOKEN = Token(ledger="0123456789ab", boot="ba9876543210", layout=2, sequence=7)


def net(text: str) -> Network:
    return parse_network(text)


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("192.0.2.7", "hosts4"),
        ("192.0.2.0/31", "prefixes4"),
        ("0.0.0.0/0", "prefixes4"),
        ("2001:db8::7", "hosts6"),
        ("2001:db8::/64", "nets6"),
        ("2001:db8::/63", "prefixes6"),
        ("2001:db8::/65", "prefixes6"),
        ("::/0", "prefixes6"),
    ],
)
def test_each_network_has_its_set(network: str, name: str) -> None:
    assert nft_sets.set_of(net(network)).name == name


def test_an_element_that_is_there_is_replaced_and_one_that_is_not_does_no_harm() -> None:
    lines = commands(nft_sets.adding({net("192.0.2.7"): NOW}, NOW)).splitlines()
    assert lines == [
        "add element inet jailbridge hosts4 { 192.0.2.7 }",
        "delete element inet jailbridge hosts4 { 192.0.2.7 }",
        "add element inet jailbridge hosts4 { 192.0.2.7 timeout 60s }",
    ]
    assert commands(nft_sets.removing([net("2001:db8:1::/64")])).splitlines() == [
        "add element inet jailbridge nets6 { 2001:db8:1:: }",
        "delete element inet jailbridge nets6 { 2001:db8:1:: }",
    ]


@pytest.mark.parametrize("count", [0, 1, 512, 513, 1025])
def test_many_elements_go_in_batches_and_none_is_lost(count: int) -> None:
    networks = [net(f"10.0.{n >> 8}.{n & 255}") for n in range(count)]
    lines = commands(nft_sets.adding(dict.fromkeys(networks), NOW)).splitlines()[2::3]
    assert [line.count(",") + 1 for line in lines] == [min(512, count - done) for done in range(0, count, 512)]
    assert all(f" {network.network_address}" in " ".join(lines) for network in networks)


@pytest.mark.parametrize(
    ("network", "is_one"),
    [
        ("224.0.0.0", True),
        ("239.255.255.255", True),
        ("ff00::1", True),
        ("ff00::/64", True),
        ("ffff:ffff:ffff:ffff::/64", True),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", True),
        ("255.255.255.255", False),
        ("240.0.0.0", False),
        ("223.255.255.255", False),
        ("224.0.0.0/4", False),
        ("224.0.0.0/31", False),
        ("feff:ffff:ffff:ffff::/64", False),
        ("0.0.0.0/0", False),
        ("::/0", False),
        ("ffff:ffff:ffff:ffff::", True),
        ("ffff:ffff:ffff:ffff::/65", False),
    ],
)
def test_what_would_stand_in_the_sentinels_place_is_known(network: str, is_one: bool) -> None:
    assert nft_sets.is_sentinel(net(network)) is is_one


# sentinels


@pytest.mark.parametrize(
    "other",
    [
        "jb1:0123456789ab:ba9876543210:2:8",
        "jb1:0123456789ab:ba9876543210:1:7",
        "jb1:0123456789ab:ba9876543211:2:7",
        "jb1:0123456789ac:ba9876543210:2:7",
        "by hand",
    ],
)
def test_another_token_stands_elsewhere_in_every_hash_set(other: str) -> None:
    one, two = nft_sets.places(str(TOKEN)), nft_sets.places(other)
    assert {name for name in SETS if one[name] == two[name]} == {"prefixes4", "prefixes6"}


def test_a_token_stands_where_no_ban_can() -> None:
    for name, place in nft_sets.places(str(TOKEN)).items():
        s = SETS[name]
        assert s.sentinels.holds(place)
        assert s.interval or nft_sets.is_sentinel(place)
        assert place.prefixlen == s.width


def test_claiming_deletes_one_sentinel_in_each_set_but_the_emptied() -> None:
    steps = list(nft_sets.claiming(str(TOKEN), emptied={"prefixes4"}))
    assert [(step.verb, step.set.name, len(step.elements)) for step in steps] == [
        (Verb.DELETE, name, 1) for name in SETS if name != "prefixes4"
    ]


def test_sweeping_deletes_all_that_were_seen_whether_or_not_they_are_there_still() -> None:
    seen = [nft_sets.standing(SETS["hosts4"], 0xE0000000 + n) for n in range(1025)]
    steps = [step for step in nft_sets.sweeping({"hosts4": seen}) if step.set.name == "hosts4"]
    assert [step.verb for step in steps] == [Verb.ADD, Verb.DELETE] * 3
    for verb in Verb:
        assert {e.network for step in steps if step.verb is verb for e in step.elements} == set(seen)
    assert {step.set.name for step in nft_sets.sweeping({})} == {"prefixes4", "prefixes6"}, "whose place is fixed"
    assert not list(nft_sets.sweeping({}, emptied={"prefixes4", "prefixes6"}))
