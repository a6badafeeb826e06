"""The text that goes to nft, and what its listings say of our table."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jailbridge.config.settings import Chain
from jailbridge.model.network import Network, parse_network
from jailbridge.model.token import Token
from jailbridge.stores import nft_text
from jailbridge.stores.nft_sets import GRACE, PRIORITY, SETS, TABLE, adding, claiming, marking, places

NOW = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
TOKEN = Token(ledger="0123456789ab", boot="ba9876543210", layout=1, sequence=7)
HOOKS = ("input",)


def net(text: str) -> Network:
    return parse_network(text)


def added(bans: dict[Network, datetime | None]) -> str:
    return nft_text.commands(adding(bans, NOW))


def listing(hooks: tuple[str, ...] = HOOKS) -> list[dict[str, Any]]:
    """What nft --json --terse lists of a whole table of ours."""
    here: dict[str, Any] = {"family": "inet", "table": TABLE}
    objects: list[dict[str, Any]] = [{"table": {"family": "inet", "name": TABLE, "handle": 1}}]
    objects += [
        {"chain": {**here, "name": hook, "hook": hook, "prio": PRIORITY, "type": "filter", "policy": "accept"}}
        for hook in hooks
    ]
    for s in SETS.values():
        flags = ["interval", "timeout"] if s.interval else ["timeout"]
        objects.append({"set": {**here, "name": s.name, "type": s.type, "flags": flags}})
    objects += [
        {"rule": {**here, "chain": hook, "comment": f"jailbridge 2 {name}", "expr": [{"match": {}}, {"drop": None}]}}
        for hook in hooks
        for name in SETS
    ]
    return objects


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
    assert added({net("192.0.2.7"): NOW + lasting}).endswith(f"{{ 192.0.2.7 {timeout} }}\n")


def test_a_permanent_ban_has_no_timeout() -> None:
    assert "timeout" not in added({net("192.0.2.7"): None, net("10.0.0.0/8"): None})


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
    assert added({net(network): None}).endswith(f"{{ {element} }}\n")


# listings


def test_no_table_is_not_in_force_and_has_no_sets() -> None:
    assert not nft_text.is_enforcing([], HOOKS)
    assert nft_text.fitting([]) == []


@pytest.mark.parametrize("hooks", [("input",), ("input", "forward")])
def test_a_whole_table_is_in_force_and_has_all_sets(hooks: tuple[str, ...]) -> None:
    assert nft_text.is_enforcing(listing(hooks), hooks)
    assert nft_text.fitting(listing(hooks)) == [*SETS]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("hosts4", {"type": "ipv6_addr"}),
        ("hosts4", {"type": ["ipv4_addr", "inet_service"]}),
        ("hosts4", {"flags": ["interval", "timeout"]}),
        ("prefixes6", {"flags": "timeout"}),
        ("nets6", {"name": "other"}),
    ],
)
def test_a_set_of_another_type_is_not_read_and_not_in_force(name: str, wrong: dict[str, Any]) -> None:
    objects = listing()
    next(item for item in objects if item.get("set", {}).get("name") == name)["set"].update(wrong)
    assert nft_text.fitting(objects) == [other for other in SETS if other != name]
    assert not nft_text.is_enforcing(objects, HOOKS)


@pytest.mark.parametrize("flags", [["timeout", "dynamic"], None])
def test_a_set_that_only_differs_in_what_it_can_do_is_read_though_not_in_force(flags: list[str] | None) -> None:
    objects = listing()
    next(item for item in objects if item.get("set", {}).get("name") == "hosts4")["set"]["flags"] = flags
    assert nft_text.fitting(objects) == [*SETS]
    assert not nft_text.is_enforcing(objects, HOOKS)


def test_of_a_whole_ruleset_only_what_is_in_our_table_is_ours() -> None:
    others: list[Any] = [
        {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
        {"table": {"family": "ip", "name": TABLE}},
        {"set": {"family": "ip", "table": TABLE, "name": "hosts4", "type": "ipv4_addr"}},
        {"table": {"family": "inet", "name": "filter"}},
        {"chain": {"family": "inet", "table": "filter", "name": TABLE}},
        {"rule": {"family": "inet", "table": "filter", "chain": "input", "expr": [{"drop": None}]}},
        {"set": {"family": "inet", "table": "jailbridge2", "name": "hosts4"}},
        {},
        {"table": None},
        "junk",
        None,
    ]
    assert nft_text.ours([*others, *listing(), *others]) == listing()


# sentinels, as text


def test_sentinels_are_written_with_the_token_and_taken_away_without() -> None:
    place = places(str(TOKEN))["hosts4"].network_address
    assert nft_text.commands(claiming(str(TOKEN))).splitlines()[0] == (
        f"delete element inet jailbridge hosts4 {{ {place} }}"
    )
    lines = nft_text.commands(marking(TOKEN)).splitlines()
    assert lines[0] == f'add element inet jailbridge hosts4 {{ {place} comment "{TOKEN}" }}'
    assert lines[1] == f'add element inet jailbridge prefixes4 {{ 255.255.255.255 comment "{TOKEN}" }}'
    assert len(lines) == len(SETS)
