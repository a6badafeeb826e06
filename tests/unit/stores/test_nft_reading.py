"""What the elements of our sets mean."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest

from jailbridge.model.network import Network, parse_network
from jailbridge.model.token import Token
from jailbridge.stores import nft_reading
from jailbridge.stores.nft_netlink import Held
from jailbridge.stores.nft_sets import GRACE, SETS, NftSet, places

NOW = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
TOKEN = str(Token(ledger="0123456789ab", boot="ba9876543210", layout=1, sequence=7))
OLDER = "jb1:0123456789ab:ba9876543210:1:6"


def net(text: str) -> Network:
    return parse_network(text)


def number(text: str) -> int:
    return int(ip_address(text))


def sentinel(s: NftSet, token: str) -> Held:
    return Held(int(places(token)[s.name].network_address), None, token)


def marked(**elements: list[Held]) -> dict[str, list[Held]]:
    """Return these elements in sets that bear the token."""
    return {name: [*elements.get(name, []), sentinel(s, TOKEN)] for name, s in SETS.items()}


def read(**elements: list[Held]) -> dict[Network, datetime | None]:
    seen = nft_reading.reading(marked(**elements), NOW).observation
    assert (seen.token, seen.foreign) == (TOKEN, 0)
    return {ban.network: ban.until for ban in seen.bans}


def interval(first: str, past: str | None, remaining_ms: int | None = None) -> list[Held]:
    """Return how the kernel lists an interval: it goes from the last address to the first."""
    end = [] if past is None else [Held(number(past), is_end=True)]
    return [*end, Held(number(first), remaining_ms)]


def test_no_sets_hold_nothing_and_bear_no_token() -> None:
    seen = nft_reading.reading({}, NOW)
    assert (seen.observation.token, seen.observation.bans, seen.observation.foreign) == (None, (), 0)
    assert not any(seen.sentinels.values())


@pytest.mark.parametrize("enforcing", [True, False, None])
def test_empty_sets_bear_the_token(enforcing: bool | None) -> None:
    seen = nft_reading.reading(marked(), NOW, enforcing=enforcing).observation
    assert (seen.token, seen.enforcing, seen.bans, seen.foreign) == (TOKEN, enforcing, (), 0)


@pytest.mark.parametrize(
    ("name", "address", "network"),
    [
        ("hosts4", "192.0.2.7", "192.0.2.7"),
        ("hosts4", "0.0.0.0", "0.0.0.0"),
        ("hosts4", "0.0.255.255", "0.0.255.255"),
        ("hosts6", "2001:db8::7", "2001:db8::7"),
        ("hosts6", "::1.2.3.4", "::102:304"),
        ("nets6", "2001:db8:1::", "2001:db8:1::/64"),
    ],
)
def test_an_element_of_a_hash_set_is_its_network(name: str, address: str, network: str) -> None:
    assert read(**{name: [Held(number(address))]}) == {net(network): None}
    until = NOW + timedelta(seconds=3600.5) - GRACE
    assert read(**{name: [Held(number(address), 3_600_500)]}) == {net(network): until}


@pytest.mark.parametrize(
    ("name", "first", "past", "network"),
    [
        ("prefixes4", "10.0.0.0", "11.0.0.0", "10.0.0.0/8"),
        ("prefixes4", "0.0.0.0", "255.255.255.255", "0.0.0.0/0"),
        ("prefixes4", "240.0.0.0", "255.255.255.255", "240.0.0.0/4"),
        ("prefixes4", "255.255.255.254", "255.255.255.255", "255.255.255.254/31"),
        ("prefixes6", "2001:db8::", "2001:db8:0:8::", "2001:db8::/61"),
        ("prefixes6", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::/0"),
    ],
)
def test_a_start_and_an_end_are_a_prefix(name: str, first: str, past: str, network: str) -> None:
    assert read(**{name: interval(first, past)}) == {net(network): None}
    assert read(**{name: interval(first, past, 90_000)}) == {net(network): NOW + timedelta(seconds=90) - GRACE}


def test_neighbouring_intervals_are_told_apart_in_any_order_and_with_or_without_an_end_between() -> None:
    both = {net("10.0.0.0/9"): None, net("10.128.0.0/9"): None}
    first, second = interval("10.0.0.0", "10.128.0.0"), interval("10.128.0.0", "11.0.0.0")
    for entries in ([*first, *second], [*second, *first], [first[1], *second], [*second, first[1]]):
        assert read(prefixes4=entries) == both


def test_an_end_without_a_start_is_nothing() -> None:
    # nft puts one at the first address; and the start of an interval is gone before its end.
    ends = [Held(number(text), is_end=True) for text in ("0.0.0.0", "9.0.0.0", "12.0.0.0")]
    assert read(prefixes4=[*interval("10.0.0.0", "11.0.0.0"), *ends]) == {net("10.0.0.0/8"): None}


def test_an_interval_up_to_the_last_address_is_its_prefix() -> None:
    seen = nft_reading.reading({"prefixes4": interval("255.255.255.0", None)}, NOW)
    assert {ban.network for ban in seen.observation.bans} == {net("255.255.255.0/24")}


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("hosts4", [Held(None)]),
        ("hosts6", [Held(number("::ffff:192.0.2.7"))]),
        ("nets6", [Held(number("2001:db8::7"))]),
        ("nets6", [Held(number("ff02::7"))]),
        ("prefixes4", interval("192.0.2.7", "192.0.2.8")),
        ("prefixes4", interval("10.0.0.5", "10.0.0.10")),
        ("prefixes4", interval("10.0.0.1", "255.255.255.255")),
        ("prefixes4", [Held(None)]),
        ("prefixes6", interval("2001:db8::", "2001:db8:0:1::")),
        ("prefixes6", interval("::ffff:10.0.0.0", "::ffff:11.0.0.0")),
    ],
)
def test_what_we_would_not_have_written_is_foreign(name: str, entries: list[Held]) -> None:
    seen = nft_reading.reading(marked(**{name: entries}), NOW).observation
    assert (seen.bans, seen.foreign, seen.token) == ((), 1, TOKEN)


def seen_with(name: str, *entries: Held) -> nft_reading.Reading:
    """Return the reading of sets of which one has these sentinels in place of its own."""
    return nft_reading.reading({**marked(), name: [*entries]}, NOW)


@pytest.mark.parametrize("name", SETS)
def test_a_set_whose_sentinel_is_not_the_one_takes_the_token_away(name: str) -> None:
    s = SETS[name]
    own, older = sentinel(s, TOKEN), sentinel(s, OLDER)
    bare, misplaced = own._replace(comment=None), own._replace(comment=OLDER)
    for entries in ([], [older], [bare], *([] if s.interval else [[own, older], [bare, older], [misplaced]])):
        seen = seen_with(name, *entries)
        assert (seen.observation.token, seen.observation.bans, seen.observation.foreign) == (None, (), 0)
        assert len(seen.sentinels[name]) == len(entries)


@pytest.mark.parametrize("name", SETS)
def test_every_sentinel_is_seen_where_it_stands(name: str) -> None:
    s = SETS[name]
    assert [*seen_with(name, sentinel(s, OLDER)).sentinels[name]] == [places(OLDER)[name]]
    assert seen_with(name, sentinel(s, OLDER)).tokens == {**dict.fromkeys(SETS, TOKEN), name: OLDER}
    assert [*seen_with(name).sentinels[name]] == []


def test_the_sentinels_of_layout_1_bear_the_token_too() -> None:
    seen = nft_reading.reading({name: [Held(int(s.last), None, OLDER)] for name, s in SETS.items()}, NOW)
    assert (seen.observation.token, seen.observation.bans) == (OLDER, ())
    assert {name: [str(place.network_address) for place in there] for name, there in seen.sentinels.items()} == {
        name: [str(s.last)] for name, s in SETS.items()
    }


@pytest.mark.parametrize("comment", [None, "by hand"])
def test_the_broadcast_address_is_a_ban_unless_a_token_stands_there(comment: str | None) -> None:
    last = number("255.255.255.255")
    assert read(hosts4=[Held(last, None, comment)]) == {net("255.255.255.255"): None}
