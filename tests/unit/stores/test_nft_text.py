"""The text that goes to nft, and what its listings say."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jailbridge.config.settings import Chain
from jailbridge.model.network import Network, parse_network
from jailbridge.model.token import Token
from jailbridge.stores import nft_text
from jailbridge.stores.nft_text import GRACE, PRIORITY, SETS, TABLE

NOW = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
TOKEN = Token(ledger="0123456789ab", boot="ba9876543210", layout=1, sequence=7)
HOOKS = ("input",)


def net(text: str) -> Network:
    return parse_network(text)


def listing(elements: dict[str, list[Any]] | None = None, hooks: tuple[str, ...] = HOOKS) -> list[dict[str, Any]]:
    """What nft --json lists of a whole table of ours with these elements."""
    objects: list[dict[str, Any]] = [{"table": {"family": "inet", "name": TABLE, "handle": 1}}]
    objects += [
        {"chain": {"table": TABLE, "name": hook, "hook": hook, "prio": PRIORITY, "type": "filter", "policy": "accept"}}
        for hook in hooks
    ]
    for s in SETS.values():
        flags = ["interval", "timeout"] if s.interval else ["timeout"]
        entries = [*(elements or {}).get(s.name, []), {"elem": {"val": str(s.sentinel), "comment": str(TOKEN)}}]
        objects.append({"set": {"table": TABLE, "name": s.name, "type": s.type, "flags": flags, "elem": entries}})
    objects += [
        {
            "rule": {
                "table": TABLE,
                "chain": hook,
                "comment": f"jailbridge 1 {name}",
                "expr": [{"match": {}}, {"drop": None}],
            }
        }
        for hook in hooks
        for name in SETS
    ]
    return objects


def read(elements: dict[str, list[Any]]) -> dict[Network, datetime | None]:
    return {ban.network: ban.until for ban in nft_text.observation(listing(elements), HOOKS, NOW).bans}


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
    assert nft_text.set_of(net(network)).name == name


@pytest.mark.parametrize(
    ("chains", "hooks"),
    [
        ((Chain.INPUT,), ("input",)),
        ((Chain.INPUT, Chain.FORWARD), ("input", "forward")),
        ((Chain.FORWARD, Chain.DOCKER_USER, Chain.INPUT), ("forward", "input")),
    ],
)
def test_chains_stand_for_the_hooks_that_their_packets_pass(chains: tuple[Chain, ...], hooks: tuple[str, ...]) -> None:
    assert nft_text.hooks(chains) == hooks


@pytest.mark.parametrize(
    ("lasting", "timeout"),
    [
        (timedelta(seconds=10), "timeout 70s"),
        (timedelta(seconds=-59.4), "timeout 1s"),
        (timedelta(days=-9), "timeout 1s"),
        (timedelta(days=1), "timeout 1d60s"),
        # nft takes no number of nine digits.
        (timedelta(days=4096), "timeout 4096d60s"),
        (timedelta(days=36500), "timeout 36500d60s"),
        (datetime.max.replace(tzinfo=UTC) - NOW, "timeout 200000d0s"),
    ],
)
def test_an_element_outlives_its_ban_by_the_grace(lasting: timedelta, timeout: str) -> None:
    assert timedelta(seconds=60) == GRACE
    assert nft_text.adding({net("192.0.2.7"): NOW + lasting}, NOW).endswith(f"{{ 192.0.2.7 {timeout} }}\n")


def test_a_permanent_ban_has_no_timeout() -> None:
    assert "timeout" not in nft_text.adding({net("192.0.2.7"): None, net("10.0.0.0/8"): None}, NOW)


def test_an_element_that_is_there_is_replaced_and_one_that_is_not_does_no_harm() -> None:
    lines = nft_text.adding({net("192.0.2.7"): NOW}, NOW).splitlines()
    assert lines == [
        "add element inet jailbridge hosts4 { 192.0.2.7 }",
        "delete element inet jailbridge hosts4 { 192.0.2.7 }",
        "add element inet jailbridge hosts4 { 192.0.2.7 timeout 60s }",
    ]
    assert nft_text.removing([net("2001:db8:1::/64")]).splitlines() == [
        "add element inet jailbridge nets6 { 2001:db8:1:: }",
        "delete element inet jailbridge nets6 { 2001:db8:1:: }",
    ]


@pytest.mark.parametrize("count", [0, 1, 512, 513, 1025])
def test_many_elements_go_in_batches_and_none_is_lost(count: int) -> None:
    networks = [net(f"10.0.{n >> 8}.{n & 255}") for n in range(count)]
    lines = nft_text.adding(dict.fromkeys(networks), NOW).splitlines()[2::3]
    assert [line.count(",") + 1 for line in lines] == [min(512, count - done) for done in range(0, count, 512)]
    assert all(f" {network.network_address}" in " ".join(lines) for network in networks)


@pytest.mark.parametrize(
    ("network", "element"),
    [
        ("0.0.0.0/0", "0.0.0.0-255.255.255.254"),
        ("255.255.255.0/24", "255.255.255.0-255.255.255.254"),
        ("255.255.255.254/31", "255.255.255.254"),
        ("255.255.254.0/24", "255.255.254.0/24"),
        ("ff00::/8", "ff00::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"),
    ],
)
def test_a_prefix_around_the_sentinel_ends_before_it(network: str, element: str) -> None:
    assert nft_text.adding({net(network): None}, NOW).endswith(f"{{ {element} }}\n")


@pytest.mark.parametrize(
    ("network", "is_one"),
    [
        ("255.255.255.255", True),
        ("ffff:ffff:ffff:ffff::/64", True),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", True),
        ("255.255.255.254", False),
        ("0.0.0.0/0", False),
        ("::/0", False),
        ("ffff:ffff:ffff:ffff::", False),
        ("ffff:ffff:ffff:ffff::/65", False),
    ],
)
def test_what_would_stand_in_the_sentinels_place_is_known(network: str, is_one: bool) -> None:
    assert nft_text.is_sentinel(net(network)) is is_one


# listings


def test_no_table_is_an_empty_store_that_is_not_in_force() -> None:
    seen = nft_text.observation([], HOOKS, NOW)
    assert (seen.token, seen.enforcing, seen.bans, seen.foreign) == (None, False, (), 0)


def test_a_whole_table_is_in_force_and_bears_the_token() -> None:
    seen = nft_text.observation(listing(), HOOKS, NOW)
    assert (seen.token, seen.enforcing, seen.bans, seen.foreign) == (str(TOKEN), True, (), 0)
    both = ("input", "forward")
    assert nft_text.observation(listing(hooks=both), both, NOW).enforcing


@pytest.mark.parametrize(
    ("name", "element", "network"),
    [
        ("hosts4", "192.0.2.7", "192.0.2.7"),
        ("hosts6", "2001:db8::7", "2001:db8::7"),
        ("hosts6", "::1.2.3.4", "::102:304"),
        ("nets6", "2001:db8:1::", "2001:db8:1::/64"),
        ("prefixes4", {"prefix": {"addr": "10.0.0.0", "len": 8}}, "10.0.0.0/8"),
        ("prefixes6", {"prefix": {"addr": "2001:db8::", "len": 61}}, "2001:db8::/61"),
        ("prefixes4", {"range": ["0.0.0.0", "255.255.255.254"]}, "0.0.0.0/0"),
        ("prefixes4", {"range": ["240.0.0.0", "255.255.255.254"]}, "240.0.0.0/4"),
        ("prefixes4", "255.255.255.254", "255.255.255.254/31"),
        ("prefixes6", {"range": ["::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"]}, "::/0"),
    ],
)
def test_each_form_of_element_is_its_network(name: str, element: Any, network: str) -> None:
    assert read({name: [element]}) == {net(network): None}
    limited = {"elem": {"val": element, "timeout": 3660, "expires": 3600}}
    assert read({name: [limited]}) == {net(network): NOW + timedelta(seconds=3600) - GRACE}


@pytest.mark.parametrize(
    ("name", "element"),
    [
        ("hosts4", "eth0"),
        ("hosts4", 22),
        ("hosts4", {"concat": ["192.0.2.7", 22]}),
        ("hosts4", "2001:db8::7"),
        ("hosts6", "::ffff:192.0.2.7"),
        ("nets6", "2001:db8::7"),
        ("prefixes4", "192.0.2.7"),
        ("prefixes4", {"range": ["10.0.0.5", "10.0.0.9"]}),
        ("prefixes4", {"range": ["10.0.0.1", "255.255.255.254"]}),
        ("prefixes4", {"range": [1, 2]}),
        ("prefixes4", {"prefix": {"addr": "10.0.0.0", "len": 99}}),
        ("prefixes6", {"prefix": {"addr": "2001:db8::", "len": 64}}),
        ("prefixes4", {"prefix": {"addr": "eth0", "len": 8}}),
        ("hosts4", None),
    ],
)
def test_an_element_that_we_would_not_have_written_is_foreign(name: str, element: Any) -> None:
    seen = nft_text.observation(listing({name: [element]}), HOOKS, NOW)
    assert (seen.bans, seen.foreign, seen.token) == ((), 1, str(TOKEN))


@pytest.mark.parametrize("name", SETS)
def test_a_set_without_its_sentinel_or_with_an_older_one_takes_the_token_away(name: str) -> None:
    for sentinel in (None, "jb1:0123456789ab:ba9876543210:1:6"):
        objects = listing()
        elements = next(item["set"]["elem"] for item in objects if item.get("set", {}).get("name") == name)
        elements.pop()
        if sentinel is not None:
            elements.append({"elem": {"val": str(SETS[name].sentinel), "comment": sentinel}})
        seen = nft_text.observation(objects, HOOKS, NOW)
        assert seen.token is None
        assert seen.enforcing
