"""Blocked files: whatever stands there, only whole records of the named hosts go, and nothing else changes."""

from ipaddress import IPv4Address, IPv6Address, ip_address

from hypothesis import given
from hypothesis import strategies as st

from jailbridge.model.network import Network, parse_network
from jailbridge.stores.blocked_records import hosts, record, without

addresses = st.one_of(
    st.builds(IPv4Address, st.integers(0, 7)), st.builds(IPv6Address, st.integers(2**64, 2**64 + 7))
).map(lambda address: ip_address(int(address) + (0xC0000200 if address.version == 4 else 0)))
junk = st.binary(max_size=12).map(lambda data: data.replace(b"\x00", b"") + b"\n")


def network(address: IPv4Address | IPv6Address) -> Network:
    return parse_network(str(address))


def line(address: IPv4Address | IPv6Address) -> bytes:
    return f"1795329057 - 11/22/2026 06:30:57 Host: {address}/{address} Port: 11 TCP Blocked\n".encode()


@given(entries=st.lists(st.one_of(addresses, junk)), ended=st.sets(addresses))
def test_lines_of_others_stay_in_their_order(
    entries: list[IPv4Address | IPv6Address | bytes], ended: set[IPv4Address | IPv6Address]
) -> None:
    def text(kept: list[IPv4Address | IPv6Address | bytes]) -> bytes:
        return b"".join(entry if isinstance(entry, bytes) else line(entry) for entry in kept)

    gone = {network(address) for address in ended}
    # What begins as a binary list does is taken for one.
    content = b"1\n" + text(entries)
    rest = without(content, gone)
    assert rest == b"1\n" + text([entry for entry in entries if isinstance(entry, bytes) or entry not in ended])
    assert hosts(content) - hosts(rest) == hosts(content) & gone


@given(entries=st.lists(addresses, min_size=1), ended=st.sets(addresses), tail=st.binary(max_size=20))
def test_binary_records_of_others_stay_in_their_order(
    entries: list[IPv4Address | IPv6Address], ended: set[IPv4Address | IPv6Address], tail: bytes
) -> None:
    def data(kept: list[IPv4Address | IPv6Address]) -> bytes:
        return b"".join(record(entry.packed) for entry in kept)

    end = b"\xff\xff" + tail
    rest = without(data(entries) + end, {network(address) for address in ended})
    assert rest == data([entry for entry in entries if entry not in ended]) + end


@given(content=st.binary(max_size=200), ended=st.sets(addresses))
def test_any_bytes_are_a_blocked_file(content: bytes, ended: set[IPv4Address | IPv6Address]) -> None:
    assert without(content, ()) == content
    gone = {network(address) for address in ended}
    assert not hosts(without(content, gone)) & gone
