"""What the kernel says of this host's own place in the network: addresses and gateways.

Read through `ip -json` (iproute2), which speaks netlink for us; `netlink.ChangeWatch` tells when that is worth it.
"""

import json
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from jailbridge import process
from jailbridge.errors import ParseError, RetryLater
from jailbridge.model.network import Address, parse_address


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Own unicast addresses, their broadcast addresses, and the next hops of the default routes of every table."""

    addresses: frozenset[Address]
    broadcasts: frozenset[Address]
    gateways: frozenset[Address]


def surroundings() -> Surroundings:
    """Read the host's place in the network. Raises FatalError (no iproute2) and RetryLater."""
    addresses: set[Address] = set()
    broadcasts: set[Address] = set()
    for link in _ip("address", "show"):
        for entry in link.get("addr_info", []):
            if (address := _address(entry.get("local"))) is None:
                continue
            addresses.add(address)
            if "broadcast" in entry and (broadcast := _address(entry["broadcast"])) is not None:
                broadcasts.add(broadcast)
            elif address.version == 4 and entry.get("prefixlen", 32) < 31:
                broadcasts.add(IPv4Network((address, entry["prefixlen"]), strict=False).broadcast_address)
    gateways = {
        gateway
        for family in ("-4", "-6")
        for route in _ip(family, "route", "show", "default", "table", "all")
        for hop in (route, *route.get("nexthops", []))
        if (gateway := _address(hop.get("gateway") or hop.get("via", {}).get("host"))) is not None
    }
    return Surroundings(addresses=frozenset(addresses), broadcasts=frozenset(broadcasts), gateways=frozenset(gateways))


def _ip(*arguments: str) -> list[dict[str, Any]]:
    result = process.run([process.find("ip", "iproute2"), "-json", *arguments])
    if result.code != 0:
        raise RetryLater(f"ip {' '.join(arguments)} failed: {result.first_error}")
    try:
        rows = json.loads(result.out or "[]")
    except ValueError:
        raise RetryLater(f"ip {' '.join(arguments)} did not answer in JSON") from None
    return [row for row in rows if isinstance(row, dict)]


def _address(text: object) -> Address | None:
    try:
        return parse_address(text) if isinstance(text, str) else None
    except ParseError:
        return None
