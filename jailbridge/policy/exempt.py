"""Who is never banned, and why. Pure: the lists are arguments.

Permanent exemptions (what an admin or a standard says) end a ban; dynamic ones (own addresses, gateways) mask it while
they hold.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from operator import itemgetter
from typing import Self

from jailbridge.host import Surroundings
from jailbridge.model.network import Address, Network, NetworkSet, network_text, parse_network

# IANA special-purpose registries (RFC 6890): never a source that a ban could sensibly name.
SPECIAL = {
    parse_network("0.0.0.0/8"): "this network (RFC 1122)",
    parse_network("127.0.0.0/8"): "loopback",
    parse_network("169.254.0.0/16"): "link-local",
    parse_network("224.0.0.0/4"): "multicast",
    parse_network("255.255.255.255"): "broadcast",
    parse_network("::"): "unspecified address",
    parse_network("::1"): "loopback",
    parse_network("fe80::/10"): "link-local",
    parse_network("ff00::/8"): "multicast",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemption:
    """Why a network is not banned: the exempt network it touches, and who says so."""

    network: Network
    why: str
    permanent: bool

    def __str__(self) -> str:
        return f"{network_text(self.network)} is exempt: {self.why}"


class Exemptions:
    """All exemptions of one moment, asked by network. A ban that would touch an exempt address is exempt."""

    def __init__(self, entries: Iterable[Exemption] = ()) -> None:
        listed = [*_special(), *entries]
        self._groups = [
            _Group(entry for entry in listed if entry.permanent is permanent) for permanent in (True, False)
        ]

    @classmethod
    def of(cls, allow: Iterable[tuple[Network, str]], around: Surroundings) -> Self:
        """Join the allow lists, as (network, where it says so), with the host's own place in the network."""
        permanent = [Exemption(network=network, why=why, permanent=True) for network, why in allow]
        dynamic = [
            *_dynamic(around.addresses, "own address"),
            *_dynamic(around.broadcasts, "broadcast address"),
            *_dynamic(around.gateways, "default gateway"),
        ]
        return cls([*permanent, *dynamic])

    def find(self, network: Network) -> Exemption | None:
        """Return the exemption that a ban of `network` would break, a permanent one first, or None."""
        return next((found for group in self._groups if (found := group.touching(network)) is not None), None)


class _Group:
    """Exemptions of one kind, asked without looking at each: an allow list may be long, and every line asks."""

    def __init__(self, entries: Iterable[Exemption]) -> None:
        self._entries: dict[Network, Exemption] = {}
        for entry in entries:
            self._entries.setdefault(entry.network, entry)
        self._networks = NetworkSet(self._entries)
        self._starts = {
            version: sorted((int(n.network_address), n) for n in self._entries if n.version == version)
            for version in (4, 6)
        }

    def touching(self, network: Network) -> Exemption | None:
        """Return the one that holds `network`, or the first one inside it."""
        covering = self._networks.covering(network)
        if covering is not None:
            return self._entries[covering]
        # Networks are nested or apart: what does not hold this one but touches it begins inside it.
        starts = self._starts[network.version]
        at = bisect_left(starts, int(network.network_address), key=itemgetter(0))
        if at < len(starts) and starts[at][0] <= int(network.broadcast_address):
            return self._entries[starts[at][1]]
        return None


def _special() -> Iterator[Exemption]:
    return (Exemption(network=network, why=why, permanent=True) for network, why in SPECIAL.items())


def _dynamic(addresses: Iterable[Address], why: str) -> Iterator[Exemption]:
    return (Exemption(network=ip_network(address), why=why, permanent=False) for address in sorted(addresses, key=str))
