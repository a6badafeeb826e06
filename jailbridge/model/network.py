"""What is banned: a normalised IP network. Knows text forms and containment, nothing of policy.

Normalised means: host bits cleared, an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2) unwrapped, a zone dropped.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from socket import AF_INET6, inet_ntoa, inet_ntop
from typing import NamedTuple, TypeAlias

from jailbridge.errors import ParseError

Address: TypeAlias = IPv4Address | IPv6Address

# The longest text of a network: an IPv6 address with an embedded IPv4 one (45), a zone (16), "/128".
MAX_TEXT = 72
# A zone is an interface's name: IFNAMSIZ bytes, the last of them NUL (netdevice(7)).
MAX_ZONE = 15
_MAPPED = IPv6Network("::ffff:0:0/96")
_OCTETS = {str(number): number for number in range(256)}
_BITS = {4: 32, 6: 128}


class Network(NamedTuple):
    """A normalised network: IP version, first address as a number, prefix length. The other bits of `start` are 0.

    Plain numbers: 100,000 bans stand in a dozen tables each, and the library's networks take ten times as long there,
    and four times the memory. In order, networks of one version follow each other by address, the larger one first.
    """

    version: int
    start: int
    prefixlen: int

    @property
    def max_prefixlen(self) -> int:
        """The number of an address's bits."""
        return _BITS[self.version]

    @property
    def last(self) -> int:
        """The last address, as a number."""
        return self.start + (1 << _BITS[self.version] - self.prefixlen) - 1

    @property
    def network_address(self) -> Address:
        """The first address."""
        return IPv4Address(self.start) if self.version == 4 else IPv6Address(self.start)

    @property
    def packed(self) -> bytes:
        """The first address in the network's byte order."""
        return self.start.to_bytes(_BITS[self.version] // 8)

    @property
    def with_prefixlen(self) -> str:
        """Its text with the prefix length, a host's too."""
        return f"{self.network_address}/{self.prefixlen}"

    def supernet(self, new_prefix: int) -> "Network":
        """Return the network of `new_prefix` bits, no longer than its own, around this one."""
        beside = _BITS[self.version] - new_prefix
        return Network(self.version, self.start >> beside << beside, new_prefix)

    def holds(self, other: "Network") -> bool:
        """Tell whether every address of the other one is one of its own."""
        return self.version == other.version and self.start <= other.start and other.last <= self.last

    def overlaps(self, other: "Network") -> bool:
        """Tell whether they have an address in common: then one holds the other."""
        return self.holds(other) or other.holds(self)

    def __str__(self) -> str:
        return network_text(self)


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
        return host_network(host)
    if not size.isascii() or not size or size.strip() != size:
        raise ParseError(f"{shown(text)} is not an IP network")
    mapped = ":" in address and isinstance(host, IPv4Address)
    try:
        if mapped:
            if not size.isdigit() or not _MAPPED.prefixlen <= int(size) <= 128:
                raise ParseError(f"{shown(text)} is not an IP network")
            size = str(int(size) - _MAPPED.prefixlen)
        network = f"{host}/{size}"
        plain = IPv4Network(network, strict=False) if host.version == 4 else IPv6Network(network, strict=False)
    except ValueError:
        raise ParseError(f"{shown(text)} is not an IP network") from None
    return Network(plain.version, int(plain.network_address), plain.prefixlen)


def network_text(network: Network) -> str:
    """Return the shortest text of a network: a host without its `/32` or `/128`."""
    version, start, length = network
    if version == 4:
        text = inet_ntoa(start.to_bytes(4))
    elif start >> 48:
        text = inet_ntop(AF_INET6, start.to_bytes(16))
    else:
        # There the C library writes some addresses with dots.
        text = str(IPv6Address(start))
    return text if length == _BITS[version] else f"{text}/{length}"


def is_host(network: Network) -> bool:
    """Tell whether the network holds a single address."""
    return network.prefixlen == _BITS[network.version]


def source_network(address: Address, ipv6_prefix: int) -> Network:
    """Return what is banned for a source: an IPv4 host, or the IPv6 network of `ipv6_prefix` bits around it."""
    if isinstance(address, IPv4Address):
        return Network(4, int(address), 32)
    beside = 128 - ipv6_prefix
    return Network(6, int(address) >> beside << beside, ipv6_prefix)


def host_network(address: Address) -> Network:
    """Return the network of a single address."""
    return source_network(address, 128)


def shown(text: str, limit: int = 80) -> str:
    """Return an outsider's text quoted, with everything unprintable escaped, cut to about `limit` characters."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    return ascii(cut) if not cut.isprintable() else repr(cut)


class NetworkSet:
    """A set of networks that answers containment in one look-up per prefix length in use."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._members: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
        for version, start, length in networks:
            self._members[version, length].add(start)

    def __contains__(self, network: Network) -> bool:
        version, start, length = network
        members = self._members.get((version, length))
        return members is not None and start in members

    def covering(self, network: Network, *, strictly: bool = False) -> Network | None:
        """Return the largest member that holds `network`; `strictly`: other than itself. None where none does."""
        for version, length in sorted(self._members):
            if version != network.version or length > network.prefixlen - strictly:
                continue
            around = network.supernet(length)
            if around.start in self._members[version, length]:
                return around
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
        return network.start in self._starts[network.version].get(network.prefixlen, ())

    def add(self, network: Network) -> None:
        """Put a network in, once."""
        version, start, length = network
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
        version, start, length = network
        starts = self._starts[version].get(length, set())
        if start in starts:
            starts.remove(start)
            self._count(version, length, start, -1)

    def is_alone(self, network: Network) -> bool:
        """Tell of a member whether no other one holds it or lies in it."""
        version, start, length = network
        sizes, bits = self._starts[version], network.max_prefixlen
        inside = self._inside[version].get(length)
        if inside and inside[start]:
            return False
        for size, starts in sizes.items():
            if size < length and start >> (bits - size) << (bits - size) in starts:
                return False
        return True

    def _count(self, version: int, length: int, start: int, by: int) -> None:
        bits = _BITS[version]
        for size, counts in self._inside[version].items():
            if size < length:
                around = start >> (bits - size) << (bits - size)
                counts[around] += by
                if not counts[around]:
                    del counts[around]


def may_be_nested(networks: Iterable[Network]) -> bool:
    """Tell whether some of these networks are of several sizes, so that one may lie in another."""
    shapes = {(version, length) for version, _, length in networks}
    return len(shapes) > len({version for version, _ in shapes})


def maximal(networks: Iterable[Network]) -> Iterator[Network]:
    """Yield the networks that no other one holds, in their own order."""
    listed = list(networks)
    members = NetworkSet(listed)
    return (network for network in listed if members.covering(network, strictly=True) is None)
