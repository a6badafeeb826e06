"""Who is banned in a benchmark: made up, the same each time; and the files that other programs load them from. Pure.

Of a hundred 80 are IPv4 hosts and 15 IPv6 /64s, for ever, and 5 IPv4 hosts with an end; none forged on the ground.
"""

import random
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address

from jailbridge.model.ban import Ban, Origin, Sightings
from jailbridge.model.event import Evidence
from jailbridge.model.network import Network, source_network
from jailbridge.stores import ipset_text, nft_sets, nft_text
from jailbridge.stores.deny_file import client

PORT = 11
_FOUR = range(16 << 24, 126 << 24)
_SIX = int(IPv6Address("2001:db8::"))  # RFC 3849: 2^32 /64s of documentation
_MOST_DAYS = 7


def crowd(number: int, now: datetime) -> dict[Network, datetime | None]:
    """Return so many networks to ban, and the end of each: None, or a day and more after now."""
    chance = random.Random(1)
    hosts = iter(chance.sample(_FOUR, number))
    sixes = iter(chance.sample(range(1 << 32), number))

    def one(place: int) -> tuple[Network, datetime | None]:
        if place % 20 in {7, 11, 15}:
            return source_network(IPv6Address(_SIX + (next(sixes) << 64)), 64), None
        until = now + timedelta(days=chance.randint(1, _MOST_DAYS)) if place % 20 == 3 else None
        return source_network(IPv4Address(next(hosts)), 32), until

    return dict(map(one, range(number)))


def line(address: str, now: datetime) -> str:
    """Return a line of a history that has the address banned."""
    return f"{int(now.timestamp())} - {now:%m/%d/%Y %H:%M:%S} Host: {address}/{address} Port: {PORT} TCP Blocked\n"


def bans(networks: Mapping[Network, datetime | None], now: datetime, history: str) -> Iterable[Ban]:
    """Yield the bans as the lines of this history would have made them."""
    offset = 0
    for network, until in networks.items():
        text = line(str(network.network_address), now)
        yield Ban(
            network=network,
            since=now,
            until=until,
            origin=Origin.SENSOR,
            reason=f"scan of tcp/{PORT}",
            evidence=Evidence.SPOOFABLE,
            port=PORT,
            file=history,
            offset=offset,
            line=text.rstrip(),
            seen=Sightings(now, now, 1, (f"tcp/{PORT}",)),
        )
        offset += len(text)


def nft_load(networks: Mapping[Network, datetime | None], now: datetime) -> str:
    """Return what `nft -f` loads a table like ours from."""
    return nft_text.layout(["input"]) + nft_text.commands(nft_sets.adding(networks, now, fresh=networks))


def ipset_load(networks: Mapping[Network, datetime | None], now: datetime) -> str:
    """Return what `ipset restore` loads sets like ours from."""
    return "".join(map(ipset_text.creating, ipset_text.SETS.values())) + ipset_text.adding(networks, now)


def hosts_deny(networks: Iterable[Network]) -> str:
    """Return a hosts.deny of them all."""
    return "".join(f"ALL: {client(network)}\n" for network in networks)
