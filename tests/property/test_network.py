"""Any network reads back from its text, normalised; containment agrees with the standard library's."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from jailbridge.errors import ParseError
from jailbridge.model.network import (
    Address,
    Network,
    NetworkIndex,
    NetworkSet,
    host_network,
    maximal,
    network_text,
    parse_address,
    parse_network,
    shown,
    source_network,
)
from jailbridge.model.token import Token

V4 = st.builds(IPv4Address, st.integers(0, 2**32 - 1))
V6 = st.builds(IPv6Address, st.integers(0, 2**128 - 1)).filter(lambda address: address.ipv4_mapped is None)
ADDRESSES: st.SearchStrategy[Address] = V4 | V6
NETWORKS: st.SearchStrategy[Network] = st.builds(
    lambda host, size: host_network(host).supernet(min(size, host.max_prefixlen)), ADDRESSES, st.integers(0, 128)
)
# Networks of a few bits, so that one often holds another.
NEAR = st.builds(
    lambda version, bits, size: (
        Network(4, bits << 24, 32).supernet(size) if version == 4 else Network(6, bits << 120, 128).supernet(size)
    ),
    st.sampled_from([4, 6]),
    st.integers(0, 255),
    st.integers(0, 8),
)


def plain(network: Network) -> IPv4Network | IPv6Network:
    return (IPv4Network if network.version == 4 else IPv6Network)((network.start, network.prefixlen))


def holds(outer: Network, inner: Network) -> bool:
    return outer.version == inner.version and plain(inner).subnet_of(plain(outer))  # type: ignore[arg-type]


@given(network=NETWORKS)
def test_a_network_reads_back_from_both_its_texts(network: Network) -> None:
    assert parse_network(str(plain(network))) == network
    assert parse_network(network_text(network)) == network


@given(address=ADDRESSES, size=st.integers(0, 128), zone=st.text("abz019.-_", min_size=1, max_size=15))
def test_host_bits_and_zones_never_make_a_difference(address: Address, size: int, zone: str) -> None:
    size = min(size, address.max_prefixlen)
    network = parse_network(f"{address}/{size}")
    assert address in plain(network)
    assert parse_network(f"{network.network_address}/{size}") == network
    if address.version == 6:
        assert parse_network(f"{address}%{zone}/{size}") == network
        assert parse_address(f"{address}%{zone}") == address


@given(address=V4, size=st.integers(0, 32))
def test_a_mapped_network_is_its_ipv4_network(address: IPv4Address, size: int) -> None:
    expected = parse_network(f"{address}/{size}")
    assert parse_network(f"::ffff:{address}/{size + 96}") == expected
    assert parse_network(f"{IPv6Address((0xFFFF << 32) + int(address))}/{size + 96}") == expected
    assert parse_network(f"{address}/{plain(expected).netmask}") == expected
    assert parse_address(f"::ffff:{address}") == address


@given(text=st.text(max_size=80) | st.text("0123456789abcdef:./%", max_size=80))
def test_any_text_is_a_normalised_network_or_one_line_of_complaint(text: str) -> None:
    try:
        network = parse_network(text)
    except ParseError as error:
        complaint = str(error)
        assert complaint.isprintable()
        return
    assert parse_network(str(network)) == network
    assert network == network.supernet(network.prefixlen)


@given(text=st.text(), limit=st.integers(0, 100))
def test_shown_text_is_printable_and_bounded(text: str, limit: int) -> None:
    assert shown(text, limit).isprintable()
    assert len(shown(text, limit)) <= 10 * (limit + 1) + 2


@given(address=ADDRESSES, prefix=st.integers(32, 128))
def test_a_source_lies_in_what_is_banned_for_it(address: Address, prefix: int) -> None:
    network = source_network(address, prefix)
    assert address in plain(network)
    assert network.prefixlen == (32 if address.version == 4 else prefix)


@given(members=st.lists(NEAR, max_size=12), asked=NEAR)
def test_covering_is_the_largest_member_that_holds_it(members: list[Network], asked: Network) -> None:
    networks = NetworkSet(members)
    held_by = sorted({m for m in members if holds(m, asked)}, key=lambda m: m.prefixlen)
    assert networks.covering(asked) == (held_by[0] if held_by else None)
    others = [m for m in held_by if m != asked]
    assert networks.covering(asked, strictly=True) == (others[0] if others else None)
    assert (asked in networks) == (asked in members)


@given(steps=st.lists(st.tuples(st.booleans(), NEAR), max_size=20))
def test_an_index_knows_who_is_alone_after_any_changes(steps: list[tuple[bool, Network]]) -> None:
    index, members = NetworkIndex(), set[Network]()
    for comes, network in steps:
        (index.add if comes else index.discard)(network)
        (members.add if comes else members.discard)(network)
    assert all((network in index) == (network in members) for _, network in steps)
    for one in members:
        alone = not any(holds(one, other) or holds(other, one) for other in members - {one})
        assert index.is_alone(one) == alone
        assert NetworkIndex(members).is_alone(one) == alone


@given(members=st.lists(NEAR, max_size=12, unique=True))
def test_maximal_networks_hold_all_and_never_each_other(members: list[Network]) -> None:
    largest = list(maximal(members))
    assert all(any(holds(outer, member) for outer in largest) for member in members)
    assert not any(holds(a, b) for a in largest for b in largest if a is not b)
    assert largest == [member for member in members if member in largest]


@given(
    ledger=st.from_regex(r"[0-9a-f]{1,32}", fullmatch=True),
    boot=st.from_regex(r"-|[0-9a-f]{1,32}", fullmatch=True),
    layout=st.integers(0, 10**6),
    sequence=st.integers(0, 2**53),
)
def test_a_token_reads_back_as_written(ledger: str, boot: str, layout: int, sequence: int) -> None:
    token = Token(ledger=ledger, boot=boot, layout=layout, sequence=sequence)
    assert Token.parse(str(token)) == token


@given(text=st.text() | st.builds("jb1:{}:{}:{}:{}".format, st.text(), st.text(), st.text("0123456789"), st.text()))
def test_what_is_read_as_a_token_is_written_the_same(text: str) -> None:
    token = Token.parse(text)
    assert token is None or str(token) == text


@given(one=NETWORKS | NEAR, other=NETWORKS | NEAR, data=st.data())
def test_a_network_answers_as_the_librarys_does(one: Network, other: Network, data: st.DataObject) -> None:
    same = plain(one)
    short = str(same.network_address) if same.num_addresses == 1 else str(same)
    assert str(one) == network_text(one) == short
    assert (one.network_address, one.packed) == (same.network_address, same.network_address.packed)
    assert (one.last, one.max_prefixlen) == (int(same.broadcast_address), same.max_prefixlen)
    length = data.draw(st.integers(0, one.prefixlen))
    assert plain(one.supernet(length)) == same.supernet(new_prefix=length)
    assert one.holds(other) == holds(one, other)
    assert one.overlaps(other) == (one.version == other.version and same.overlaps(plain(other)))
    if one.version == other.version:
        assert (one < other) == (same < plain(other))  # type: ignore[operator]


@given(start=st.integers(0, 2**48))
def test_an_ipv6_text_never_has_dots(start: int) -> None:
    assert "." not in network_text(Network(6, start, 128))
    assert network_text(Network(6, start, 128)) == str(IPv6Address(start))
