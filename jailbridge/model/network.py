"""What is banned: a normalised IP network. Knows text forms and containment, nothing of policy.

Normalised means: host bits cleared, an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2) unwrapped, a zone dropped.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TypeAlias

from jailbridge.errors import ParseError

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

# The longest text of a network: an IPv6 address with an embedded IPv4 one (45), a zone (16), "/128".
MAX_TEXT = 72
# A zone is an interface's name: IFNAMSIZ bytes, the last of them NUL (netdevice(7)).
MAX_ZONE = 15
_MAPPED = IPv6Network("::ffff:0:0/96")
_OCTETS = {str(number): number for number in range(256)}


class _Remembering:
    """Works out once what every table and every store asks of a network: its hash and its text.

    Equal to the plain network, hash included; mixed in before the library's class.
    """

    _hash: int | None = None
    _text: str | None = None

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = super().__hash__()
        return self._hash

    def __eq__(self, other: object) -> bool:
        # Of its own kind without a call for each part: a table of 100,000 asks that often each time it is gone through.
        if not isinstance(other, type(self)):
            return bool(super().__eq__(other))
        same: bool = self.network_address._ip == other.network_address._ip and self._prefixlen == other._prefixlen  # type: ignore[attr-defined]
        return same

    def text(self) -> str:
        """Return what `network_text` does."""
        if self._text is None:
            self._text = _text(self)  # type: ignore[arg-type]
        return self._text


class _Network4(_Remembering, IPv4Network):
    pass


class _Network6(_Remembering, IPv6Network):
    pass


def parse_address(text: str) -> Address:
    """Return the address that `text` names, unwrapped and without zone.

    Raises ParseError. Leading zeros, unicode digits and abbreviations are not addresses.
    """
    # Five times as fast as ip_address, which has the last word on everything else.
    try:
        a, b, c, d = [_OCTETS[octet] for octet in text.split(".", 4)]
    except (KeyError, ValueError):
        return _other_address(text)
    return IPv4Address(a << 24 | b << 16 | c << 8 | d)


def _other_address(text: str) -> Address:
    zone = text.partition("%")[2]
    if len(text) > MAX_TEXT or len(zone) > MAX_ZONE or " " in zone or not (text.isascii() and text.isprintable()):
        raise ParseError(f"{shown(text)} is not an IP address")
    try:
        address = ip_address(text)
    except ValueError:
        raise ParseError(f"{shown(text)} is not an IP address") from None
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.scope_id is not None:
            return IPv6Address(int(address))
    return address


def parse_network(text: str) -> Network:
    """Return the network that `text` names: `192.0.2.7`, `192.0.2.0/24`, `192.0.2.0/255.255.255.0`, `2001:db8::/64`.

    Host bits are cleared. Raises ParseError.
    """
    address, slash, size = text.partition("/")
    host = parse_address(address)
    if not slash:
        return source_network(host, host.max_prefixlen)
    if not size.isascii() or not size or size.strip() != size:
        raise ParseError(f"{shown(text)} is not an IP network")
    mapped = ":" in address and isinstance(host, IPv4Address)
    try:
        if mapped:
            if not size.isdigit() or not _MAPPED.prefixlen <= int(size) <= 128:
                raise ParseError(f"{shown(text)} is not an IP network")
            size = str(int(size) - _MAPPED.prefixlen)
        network = f"{host}/{size}"
        return _Network4(network, strict=False) if host.version == 4 else _Network6(network, strict=False)
    except ValueError:
        raise ParseError(f"{shown(text)} is not an IP network") from None


def network_text(network: Network) -> str:
    """Return the shortest text of a network: a host without its `/32` or `/128`."""
    return network.text() if isinstance(network, _Remembering) else _text(network)


def _text(network: Network) -> str:
    return str(network.network_address) if is_host(network) else str(network)


def is_host(network: Network) -> bool:
    """Tell whether the network holds a single address."""
    return network.prefixlen == network.max_prefixlen


def source_network(address: Address, ipv6_prefix: int) -> Network:
    """Return what is banned for a source: an IPv4 host, or the IPv6 network of `ipv6_prefix` bits around it."""
    if isinstance(address, IPv4Address):
        return numbered(4, int(address), 32)
    beside = 128 - ipv6_prefix
    return numbered(6, int(address) >> beside << beside, ipv6_prefix)


def numbered(version: int, start: int, length: int) -> Network:
    """Return the network of `length` bits whose first address is the number `start`; its other bits must be 0.

    What the library's own constructor makes of them, in a third of the time: every new source, and every ban that is
    read from a store, needs one.
    """
    if version == 4:
        four = _Network4.__new__(_Network4)
        four.network_address = IPv4Address(start)
        four.netmask, four._prefixlen = four._make_netmask(length)  # type: ignore[attr-defined]  # noqa: SLF001
        return four
    six = _Network6.__new__(_Network6)
    six.network_address = IPv6Address(start)
    six.netmask, six._prefixlen = six._make_netmask(length)  # type: ignore[attr-defined]  # noqa: SLF001
    return six


def shown(text: str, limit: int = 80) -> str:
    """Return an outsider's text quoted, with everything unprintable escaped, cut to about `limit` characters."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    return ascii(cut) if not cut.isprintable() else repr(cut)


class NetworkSet:
    """A set of networks that answers containment in one look-up per prefix length in use."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._members: dict[tuple[int, int], set[int]] = {}
        for network in networks:
            self._members.setdefault((network.version, network.prefixlen), set()).add(int(network.network_address))

    def __contains__(self, network: Network) -> bool:
        members = self._members.get((network.version, network.prefixlen))
        return members is not None and int(network.network_address) in members

    @property
    def may_be_nested(self) -> bool:
        """Whether its members have several sizes, so that one may lie in another."""
        return len(self._members) > len({version for version, _ in self._members})

    def covering(self, network: Network, *, strictly: bool = False) -> Network | None:
        """Return the largest member that holds `network`; `strictly`: other than itself. None where none does."""
        for version, length in sorted(self._members):
            if version != network.version or length > network.prefixlen - strictly:
                continue
            shift = network.max_prefixlen - length
            start = int(network.network_address) >> shift << shift
            if start in self._members[version, length]:
                return IPv4Network((start, length)) if version == 4 else IPv6Network((start, length))
        return None


class NetworkIndex:
    """A changing set of networks that tells which of them have to do with each other, whatever their number."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        # By IP version and prefix length: where the members of this size start, and how many smaller ones lie in each
        # network of this size that has some.
        self._starts: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        self._inside: dict[int, dict[int, Counter[int]]] = {4: {}, 6: {}}
        for network in networks:
            self.add(network)

    def __contains__(self, network: Network) -> bool:
        return int(network.network_address) in self._starts[network.version].get(network.prefixlen, ())

    def add(self, network: Network) -> None:
        """Put a network in, once."""
        version, length, start = network.version, network.prefixlen, int(network.network_address)
        sizes = self._starts[version]
        if length not in sizes:
            sizes[length] = set()
            shift = network.max_prefixlen - length
            smaller = (starts for size, starts in sizes.items() if size > length)
            self._inside[version][length] = Counter(one >> shift << shift for starts in smaller for one in starts)
        if start not in sizes[length]:
            sizes[length].add(start)
            self._count(version, length, start, 1)

    def discard(self, network: Network) -> None:
        """Take a network out, if it is there."""
        version, length, start = network.version, network.prefixlen, int(network.network_address)
        starts = self._starts[version].get(length, set())
        if start in starts:
            starts.remove(start)
            self._count(version, length, start, -1)

    def is_alone(self, network: Network) -> bool:
        """Tell of a member whether no other one holds it or lies in it."""
        version, length, start = network.version, network.prefixlen, int(network.network_address)
        sizes, bits = self._starts[version], network.max_prefixlen
        inside = self._inside[version].get(length)
        if inside and inside[start]:
            return False
        for size, starts in sizes.items():
            if size < length and start >> (bits - size) << (bits - size) in starts:
                return False
        return True

    def _count(self, version: int, length: int, start: int, by: int) -> None:
        bits = 32 if version == 4 else 128
        for size, counts in self._inside[version].items():
            if size < length:
                around = start >> (bits - size) << (bits - size)
                counts[around] += by
                if not counts[around]:
                    del counts[around]


def maximal(networks: Iterable[Network]) -> Iterator[Network]:
    """Yield the networks that no other one holds, in their own order."""
    listed = list(networks)
    members = NetworkSet(listed)
    return (network for network in listed if members.covering(network, strictly=True) is None)
