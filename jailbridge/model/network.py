"""What is banned: a normalised IP network. Knows text forms and containment, nothing of policy.

Normalised means: host bits cleared, an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2) unwrapped, a zone dropped.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from jailbridge.errors import ParseError

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

# The longest text of a network: an IPv6 address with an embedded IPv4 one (45), a zone (16), "/128".
MAX_TEXT = 72
# A zone is an interface's name: IFNAMSIZ bytes, the last of them NUL (netdevice(7)).
MAX_ZONE = 15
_MAPPED = IPv6Network("::ffff:0:0/96")


def parse_address(text: str) -> Address:
    """Return the address that `text` names, unwrapped and without zone.

    Raises ParseError. Leading zeros, unicode digits and abbreviations are not addresses.
    """
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
        return ip_network(host)
    if not size.isascii() or not size or size.strip() != size:
        raise ParseError(f"{shown(text)} is not an IP network")
    mapped = ":" in address and isinstance(host, IPv4Address)
    try:
        if mapped:
            if not size.isdigit() or not _MAPPED.prefixlen <= int(size) <= 128:
                raise ParseError(f"{shown(text)} is not an IP network")
            size = str(int(size) - _MAPPED.prefixlen)
        return ip_network(f"{host}/{size}", strict=False)
    except ValueError:
        raise ParseError(f"{shown(text)} is not an IP network") from None


def network_text(network: Network) -> str:
    """Return the shortest text of a network: a host without its `/32` or `/128`."""
    return str(network.network_address) if is_host(network) else str(network)


def is_host(network: Network) -> bool:
    """Tell whether the network holds a single address."""
    return network.prefixlen == network.max_prefixlen


def source_network(address: Address, ipv6_prefix: int) -> Network:
    """Return what is banned for a source: an IPv4 host, or the IPv6 network of `ipv6_prefix` bits around it."""
    if isinstance(address, IPv4Address):
        return IPv4Network(address)
    return IPv6Network((address, ipv6_prefix), strict=False)


def shown(text: str, limit: int = 80) -> str:
    """Return an outsider's text quoted, with everything unprintable escaped, cut to about `limit` characters."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    return ascii(cut) if not cut.isprintable() else repr(cut)


class NetworkSet:
    """A set of networks that answers containment in one look-up per prefix length in use."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._members: dict[tuple[int, int], set[int]] = defaultdict(set)
        for network in networks:
            self._members[network.version, network.prefixlen].add(int(network.network_address))

    def __contains__(self, network: Network) -> bool:
        members = self._members.get((network.version, network.prefixlen))
        return members is not None and int(network.network_address) in members

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


def maximal(networks: Iterable[Network]) -> Iterator[Network]:
    """Yield the networks that no other one holds, in their own order."""
    listed = list(networks)
    members = NetworkSet(listed)
    return (network for network in listed if members.covering(network, strictly=True) is None)
