"""nft: every network goes into exactly one set, as an element that is read back as that network."""

import re
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jailbridge.model.network import Network, network_text, parse_network
from jailbridge.model.token import Token
from jailbridge.stores import nft_text

NOW = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
TOKEN = Token(ledger="0123456789ab", boot="ba9876543210", layout=1, sequence=7)
networks: st.SearchStrategy[Network] = st.one_of(
    st.builds(lambda a, n: IPv4Network((a, n), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)),
    st.builds(lambda a, n: IPv6Network((a, n), strict=False), st.integers(0, 2**128 - 1), st.integers(0, 128)),
    st.builds(lambda n: IPv4Network((2**32 - 1, n), strict=False), st.integers(0, 32)),
    st.builds(lambda n: IPv6Network((2**128 - 1, n), strict=False), st.integers(0, 128)),
).map(lambda network: parse_network(network_text(network)))
ends = st.one_of(
    st.none(), st.timedeltas(timedelta(days=-20000), timedelta(days=2900000)).map(lambda lasting: NOW + lasting)
)


def listed(element: str) -> Any:
    """Return an element as nft --json lists what was added as this text."""
    address, _, rest = element.partition(" ")
    value: Any = address
    if "/" in address:
        value = {"prefix": {"addr": address.partition("/")[0], "len": int(address.partition("/")[2])}}
    elif "-" in address:
        value = {"range": address.split("-")}
    if not rest:
        return value
    match = re.fullmatch(r"timeout (?:(\d{1,8})d)?(\d{1,8})s", rest)
    assert match is not None, "nft 1.0.6 reads at most eight digits"
    timeout = int(match[1] or 0) * 86400 + int(match[2])
    assert timeout > 0
    return {"elem": {"val": value, "timeout": timeout, "expires": timeout}}


@given(bans=st.dictionaries(networks, ends, max_size=8))
def test_what_is_added_is_what_is_read_back(bans: dict[Network, datetime | None]) -> None:
    bans = {network: until for network, until in bans.items() if not nft_text.is_sentinel(network)}
    sets: dict[str, list[Any]] = {}
    for line in nft_text.adding(bans, NOW).splitlines():
        match = re.fullmatch(r"(add|delete) element inet jailbridge (\w+) \{ (.+) \}", line)
        assert match is not None
        if match[1] == "add":
            sets[match[2]] = [listed(element) for element in match[3].split(", ")]
    objects = [{"set": {"name": name, "elem": elements}} for name, elements in sets.items()]
    seen = nft_text.observation(objects, ("input",), NOW)
    assert seen.foreign == 0
    assert len(seen.bans) == len(bans)
    for ban in seen.bans:
        until = bans[ban.network]
        if until is None or ban.until is None:
            assert until is ban.until
        elif NOW - nft_text.GRACE < until < NOW + nft_text.LONGEST - nft_text.GRACE:
            assert abs(ban.until - until) <= timedelta(seconds=1)


@given(network=networks)
def test_no_element_is_a_sentinel(network: Network) -> None:
    text = nft_text.adding({network: None}, NOW)
    sentinels = {(s.name, str(s.sentinel)) for s in nft_text.SETS.values()}
    is_sentinel = any(f" {name} {{ {address} }}" in text for name, address in sentinels)
    assert is_sentinel is nft_text.is_sentinel(network)


junk = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=30), st.booleans()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["prefix", "range", "addr", "len", "concat"]), inner, max_size=3),
    ),
)


@given(element=junk)
def test_an_element_of_any_form_is_a_ban_or_foreign_and_never_an_error(element: Any) -> None:
    for name in nft_text.SETS:
        seen = nft_text.observation([{"set": {"name": name, "elem": [element]}}], ("input",), NOW)
        assert len(seen.bans) + seen.foreign == 1
