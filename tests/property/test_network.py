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
    maximal,
    network_text,
    numbered,
    parse_address,
    parse_network,
    shown,
    source_network,
)
from jailbridge.model.token import Token

V4 = st.builds(IPv4Address, st.integers(0, 2**32 - 1))
V6 = st.builds(IPv6Address, st.integers(0, 2**128 - 1)).filter(lambda address: address.ipv4_mapped is None)
ADDRESSES: st.SearchStrategy[Address] = V4 | V6
V4_NETWORKS = st.builds(lambda host, size: IPv4Network((host, size), strict=False), V4, st.integers(0, 32))
V6_NETWORKS = st.builds(lambda host, size: IPv6Network((host, size), strict=False), V6, st.integers(0, 128))
NETWORKS: st.SearchStrategy[Network] = V4_NETWORKS | V6_NETWORKS
# Networks of a few bits, so that one often holds another.
NEAR = st.builds(
    lambda version, bits, size: (
        IPv4Network((bits << 24, size), strict=False)
        if version == 4
        else IPv6Network((bits << 120, size), strict=False)
    ),
    st.sampled_from([4, 6]),
    st.integers(0, 255),
    st.integers(0, 8),
)


def holds(outer: Network, inner: Network) -> bool:
    return outer.version == inner.version and inner.subnet_of(outer)  # type: ignore[arg-type]


@given(network=NETWORKS)
def test_a_network_reads_back_from_both_its_texts(network: Network) -> None:
    assert parse_network(str(network)) == network
    assert parse_network(network_text(network)) == network


@given(address=ADDRESSES, size=st.integers(0, 128), zone=st.text("abz019.-_", min_size=1, max_size=15))
def test_host_bits_and_zones_never_make_a_difference(address: Address, size: int, zone: str) -> None:
    size = min(size, address.max_prefixlen)
    network = parse_network(f"{address}/{size}")
    assert address in network
    assert parse_network(f"{network.network_address}/{size}") == network
    if address.version == 6:
        assert parse_network(f"{address}%{zone}/{size}") == network
        assert parse_address(f"{address}%{zone}") == address


@given(address=V4, size=st.integers(0, 32))
def test_a_mapped_network_is_its_ipv4_network(address: IPv4Address, size: int) -> None:
    plain = parse_network(f"{address}/{size}")
    assert parse_network(f"::ffff:{address}/{size + 96}") == plain
    assert parse_network(f"{IPv6Address((0xFFFF << 32) + int(address))}/{size + 96}") == plain
    assert parse_network(f"{address}/{plain.netmask}") == plain
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
    assert isinstance(network, IPv4Network) or network.network_address.scope_id is None


@given(text=st.text(), limit=st.integers(0, 100))
def test_shown_text_is_printable_and_bounded(text: str, limit: int) -> None:
    assert shown(text, limit).isprintable()
    assert len(shown(text, limit)) <= 10 * (limit + 1) + 2


@given(address=ADDRESSES, prefix=st.integers(32, 128))
def test_a_source_lies_in_what_is_banned_for_it(address: Address, prefix: int) -> None:
    network = source_network(address, prefix)
    assert address in network
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


@given(version=st.sampled_from([4, 6]), data=st.data())
def test_a_network_made_from_a_number_is_the_librarys_own(version: int, data: st.DataObject) -> None:
    width = 32 if version == 4 else 128
    length = data.draw(st.integers(0, width))
    start = data.draw(st.integers(0, (1 << width) - 1)) >> width - length << width - length
    ours, plain = numbered(version, start, length), (IPv4Network if version == 4 else IPv6Network)((start, length))
    assert (ours, hash(ours), str(ours), ours.netmask) == (plain, hash(plain), str(plain), plain.netmask)
    assert (ours.broadcast_address, ours.num_addresses) == (plain.broadcast_address, plain.num_addresses)
    assert ours.overlaps(plain)
    if length:
        assert ours.supernet() == plain.supernet()
        assert ours.subnet_of(plain.supernet())  # type: ignore[arg-type]
