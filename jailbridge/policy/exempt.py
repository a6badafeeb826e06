"""Who is never banned, and why. Pure: the lists are arguments.

Permanent exemptions (what an admin or a standard says) end a ban; dynamic ones (own addresses, gateways, resolvers,
sessions) mask it while they hold.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Self

from jailbridge.host import Surroundings
from jailbridge.model.network import Address, Network, host_network, maximal, network_text, parse_network

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
    """All exemptions of one moment, asked by network. A ban that would touch an exempt address is exempt.

    Two are equal where their entries are.
    """

    def __init__(self, entries: Iterable[Exemption] = ()) -> None:
        self._entries = (*_special(), *entries)
        self._touched = {
            version: _merged(e.network for e in self._entries if e.network.version == version) for version in (4, 6)
        }
        # What is permanent is told first.
        self._ranges = {
            version: [
                _Ranges(e for e in self._entries if e.permanent is permanent and e.network.version == version)
                for permanent in (True, False)
            ]
            for version in (4, 6)
        }

    @classmethod
    def of(
        cls,
        allow: Iterable[tuple[Network, str]],
        around: Surroundings,
        present: Iterable[tuple[Address, str]] = (),
    ) -> Self:
        """Join the allow lists, as (network, where it says so), with the host's own place in the network.

        `present` are further addresses, each with the reason, that are exempt for as long as they are named.
        """
        permanent = [Exemption(network=network, why=why, permanent=True) for network, why in allow]
        dynamic = [
            *_dynamic(around.addresses, "own address"),
            *_dynamic(around.broadcasts, "broadcast address"),
            *_dynamic(around.gateways, "default gateway"),
            *(Exemption(network=host_network(address), why=why, permanent=False) for address, why in present),
        ]
        return cls([*permanent, *dynamic])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Exemptions) and self._entries == other._entries

    __hash__ = None  # type: ignore[assignment]

    def touching(self, network: Network) -> list[Exemption]:
        """Return every exemption that a ban of `network` would break."""
        return [e for e in self._entries if e.network.overlaps(network)]

    def touched(self, networks: Iterable[Network]) -> Set[Network]:
        """Return those of these networks that `find` finds an exemption for."""
        return {network for network in networks if self._touches(network)}

    def find(self, network: Network) -> Exemption | None:
        """Return the exemption that a ban of `network` would break, a permanent one first, or None."""
        # Nearly all whom a line, or a ban, is about touch nothing: one look tells.
        if self._touches(network):
            for ranges in self._ranges[network.version]:
                if (found := ranges.touching(network.start, network.last)) is not None:
                    return found
        return None

    def _touches(self, network: Network) -> bool:
        starts, ends = self._touched[network.version]
        at = bisect_right(starts, network.last)
        return bool(at) and ends[at - 1] >= network.start


class _Ranges:
    """Those of some exemptions of one family that lie within no other one, in order."""

    def __init__(self, entries: Iterable[Exemption]) -> None:
        self._entries: list[Exemption] = []
        self._ends: list[int] = []
        # Networks are nested or apart, and of those that start at one place the largest comes first.
        for entry in sorted(entries, key=lambda entry: entry.network):
            if not self._ends or entry.network.start > self._ends[-1]:
                self._entries.append(entry)
                self._ends.append(entry.network.last)
        self._starts = [entry.network.start for entry in self._entries]

    def touching(self, first: int, last: int) -> Exemption | None:
        """Return the one that holds the network from `first` to `last`, or the first one inside it."""
        at = bisect_right(self._starts, first)
        if at and first <= self._ends[at - 1]:
            return self._entries[at - 1]
        return self._entries[at] if at < len(self._starts) and self._starts[at] <= last else None


def _merged(networks: Iterable[Network]) -> tuple[list[int], list[int]]:
    """Return where the ranges start and end that these networks of one version make up, in order."""
    largest = sorted(maximal(networks))
    return [network.start for network in largest], [network.last for network in largest]


def _special() -> Iterator[Exemption]:
    return (Exemption(network=network, why=why, permanent=True) for network, why in SPECIAL.items())


def _dynamic(addresses: Iterable[Address], why: str) -> Iterator[Exemption]:
    networks = map(host_network, sorted(addresses, key=str))
    return (Exemption(network=network, why=why, permanent=False) for network in networks)
