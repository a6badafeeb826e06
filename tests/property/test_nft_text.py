"""nft: every network goes into one set, as an element that is read back as that network; in text and in bytes."""

import re
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from jailbridge.model.network import Network, maximal, network_text, parse_address, parse_network
from jailbridge.model.token import Token
from jailbridge.stores import nft_netlink, nft_reading, nft_sets, nft_text
from jailbridge.stores.nft_netlink import Held
from jailbridge.stores.nft_sets import Element, NftSet

NOW = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
networks: st.SearchStrategy[Network] = st.one_of(
    st.builds(lambda a, n: Network(4, a, 32).supernet(n), st.integers(0, 2**32 - 1), st.integers(0, 32)),
    st.builds(lambda a, n: Network(6, a, 128).supernet(n), st.integers(0, 2**128 - 1), st.integers(0, 128)),
    st.builds(lambda n: Network(4, 2**32 - 1, 32).supernet(n), st.integers(0, 32)),
    st.builds(lambda n: Network(6, 2**128 - 1, 128).supernet(n), st.integers(0, 128)),
).map(lambda network: parse_network(network_text(network)))
ends = st.one_of(
    st.none(), st.timedeltas(timedelta(days=-20000), timedelta(days=2900000)).map(lambda lasting: NOW + lasting)
)


MULTICAST = parse_network("224.0.0.0/4"), parse_network("ff00::/8")


def as_listed(element: str) -> list[Held]:
    """Return an element as the kernel lists what nft was told to add with this text."""
    place, _, rest = element.partition(" ")
    first, _, last = place.partition("-")
    network = parse_network(first)
    start, past = network.start, (int(parse_address(last)) if last else network.last) + 1
    remaining_ms = None
    if rest:
        match = re.fullmatch(r"timeout (?:(\d{1,8})d)?(\d{1,8})s", rest)
        assert match is not None, "nft 1.0.6 reads at most eight digits"
        remaining_ms = (int(match[1] or 0) * 86400 + int(match[2])) * 1000
        assert remaining_ms > 0
    return [Held(past, is_end=True), Held(start, remaining_ms)]


@given(bans=st.dictionaries(networks, ends, max_size=8))
def test_what_is_added_is_what_is_read_back(bans: dict[Network, datetime | None]) -> None:
    bans = {network: until for network, until in bans.items() if not nft_sets.is_sentinel(network)}
    bans = {network: bans[network] for network in maximal(bans)}
    sets: dict[str, list[Held]] = {}
    for line in nft_text.commands(nft_sets.adding(bans, NOW)).splitlines():
        match = re.fullmatch(r"(add|delete) element inet jailbridge (\w+) \{ (.+) \}", line)
        assert match is not None
        if match[1] == "add":
            parts = [as_listed(element) for element in match[3].split(", ")]
            is_interval = nft_sets.SETS[match[2]].interval
            sets[match[2]] = [held for part in parts for held in (part if is_interval else part[1:])]
    seen = nft_reading.reading(sets, NOW).observation
    assert seen.foreign == 0
    assert len(seen.bans) == len(bans)
    for ban in seen.bans:
        until = bans[ban.network]
        if until is None or ban.until is None:
            assert until is ban.until
        elif NOW - nft_sets.GRACE < until < NOW + nft_sets.LONGEST - nft_sets.GRACE:
            assert abs(ban.until - until) <= timedelta(seconds=1)


@given(network=networks)
def test_no_element_is_a_sentinel(network: Network) -> None:
    step = list(nft_sets.adding({network: None}, NOW))[-1]
    text = nft_text.commands([step])
    stands_at_one = any(text.endswith(f" {s.name} {{ {s.last} }}\n") for s in nft_sets.SETS.values() if s.interval)
    assert not stands_at_one
    assert nft_sets.is_sentinel(network) is (
        not step.set.interval and any(multicast.holds(network) for multicast in MULTICAST)
    )


tokens = st.builds(
    Token, ledger=st.just("0123456789ab"), boot=st.just("ba9876543210"), layout=st.just(2), sequence=st.integers(0)
)


@given(token=tokens, network=networks)
def test_a_token_is_read_back_from_where_it_is_written_and_no_ban_stands_there(token: Token, network: Network) -> None:
    elements = {
        name: [Held(int(place.network_address), None, str(token))]
        for name, place in nft_sets.places(str(token)).items()
    }
    seen = nft_reading.reading(elements, NOW)
    assert (seen.observation.token, seen.observation.bans, seen.observation.foreign) == (str(token), (), 0)
    assert network != nft_sets.places(str(token))[nft_sets.set_of(network).name] or nft_sets.is_sentinel(network)


@given(
    name=st.sampled_from([*nft_sets.SETS]),
    address=st.one_of(st.none(), st.integers(0, 2**128 - 1), st.integers(0, 2**32 - 1).map(lambda n: 2**128 - 1 - n)),
    end=st.booleans(),
    remaining_ms=st.one_of(st.none(), st.integers(0, 2**44)),
    comment=st.one_of(st.none(), st.text(max_size=9), tokens.map(str)),
)
def test_an_element_of_any_content_is_a_ban_a_sentinel_or_foreign_and_never_an_error(
    name: str, address: int | None, end: bool, remaining_ms: int | None, comment: str | None
) -> None:
    s = nft_sets.SETS[name]
    element = Held(None if address is None else address % (int(s.last) + 1), remaining_ms, comment)
    past = [Held(element.address + 1, is_end=True)] if end and s.interval and element.address is not None else []
    seen = nft_reading.reading({name: [*past, element]}, NOW)
    assert len(seen.observation.bans) + seen.observation.foreign + len(seen.sentinels[name]) == 1


def attributes(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and content of netlink attributes, which must fill all of it."""
    at = 0
    while at < len(content):
        length, kind = struct.unpack_from("=HH", content, at)
        assert 4 <= length <= len(content) - at
        yield kind & 0x7FFF, content[at + 4 : at + length]
        at += length + 3 & ~3


def unpacked(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and content of netlink messages, numbered in their order."""
    at = count = 0
    while at < len(message):
        length, kind, _, number, _ = struct.unpack_from("=IHHII", message, at)
        assert number == count
        assert length % 4 == 0
        yield kind, message[at + 16 : at + length]
        at, count = at + length, count + 1


@given(bans=st.dictionaries(networks.filter(lambda n: not nft_sets.set_of(n).interval), ends, max_size=8), token=tokens)
def test_steps_are_the_same_in_bytes(bans: dict[Network, datetime | None], token: Token) -> None:
    removes = list(bans)[::2]
    steps = [*nft_sets.removing(removes), *nft_sets.adding(bans, NOW, fresh=removes), *nft_sets.marking(token)]
    (first, _), *messages, (last, _) = unpacked(nft_netlink.batch(steps))
    assert (first, last) == (0x10, 0x11)
    assert [kind for kind, _ in messages] == [0xA0C if step.verb is nft_sets.Verb.ADD else 0xA0E for step in steps]
    for (_, content), step in zip(messages, steps, strict=True):
        assert content[0] == 1, "inet"
        table, name, elements = attributes(content[4:])
        assert (table[1], name[1]) == (b"jailbridge\0", step.set.name.encode() + b"\0")
        for (_, one), (network, timeout_s, comment) in zip(attributes(elements[1]), step.elements, strict=True):
            parts = dict(attributes(one))
            assert dict(attributes(parts.pop(1))) == {1: network.network_address.packed}
            assert parts.pop(4, None) == (None if timeout_s is None else (timeout_s * 1000).to_bytes(8))
            more = parts.pop(6, b"")
            assert (comment is None) or more.startswith(bytes((0, len(comment) + 1)) + comment.encode() + b"\0")
            assert not parts


def listed(elements: list[Element], s: NftSet) -> bytes:
    """Return elements as the kernel lists them, in the order in which it puts their attributes."""

    def attribute(kind: int, content: bytes) -> bytes:
        return struct.pack("=HH", 4 + len(content), kind) + content + bytes(-len(content) % 4)

    body = b""
    for network, timeout_s, comment in elements:
        one = attribute(1, attribute(1, network.network_address.packed))
        if timeout_s is not None:
            one += attribute(4, struct.pack("!Q", timeout_s * 1000)) + attribute(5, struct.pack("!Q", timeout_s * 1000))
        if comment is not None:
            text = comment.encode() + b"\0"
            one += attribute(6, bytes((1, 1, 0, 0, len(text))) + text)
        body += attribute(1, one)
    content = bytes((1, 0, 0, 9)) + attribute(1, b"jailbridge\0") + attribute(2, s.name.encode() + b"\0")
    content += attribute(3, body)
    return struct.pack("=IHHII", 16 + len(content), 0xA0C, 2, 0, 7) + content


@given(st.data())
def test_what_the_kernel_lists_is_read_whatever_stands_beside_a_key(data: st.DataObject) -> None:
    s = data.draw(st.sampled_from([s for s in nft_sets.SETS.values() if not s.interval]))
    element = st.builds(
        Element,
        st.integers(0, 2**s.width - 1).map(lambda n: nft_sets.standing(s, n << s.last.max_prefixlen - s.width)),
        st.one_of(st.none(), st.integers(1, 2**40)),
        st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)),
    )
    elements = data.draw(st.lists(element, max_size=6))
    expected = [
        Held(int(network.network_address), timeout_s and timeout_s * 1000, comment)
        for network, timeout_s, comment in elements
    ]
    cut = data.draw(st.integers(0, len(elements)))
    part = listed(elements[:cut], s) + listed(elements[cut:], s)
    assert [*nft_netlink.held(part, s)] == expected
    assert nft_netlink.outcome(part) is None
