"""The text that our nftables table is written in and read back from. Pure.

Sets of table `inet jailbridge` (nft(8), libnftables-json(5)):

    hosts4, hosts6        single addresses, hash
    nets6                 IPv6 /64s by their first address, hash; matched as `ip6 saddr & ffff:ffff:ffff:ffff::`
    prefixes4, prefixes6  other prefixes, intervals; they hold no overlaps

Each set carries a sentinel, an address that is never a packet's source, whose comment is the token: a flush of any set
takes it away, and the transaction that writes any set rewrites all of them. A prefix around a sentinel (`0.0.0.0/0`)
is written as the range up to it.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address, summarize_address_range
from itertools import islice
from typing import Any

from jailbridge.config.settings import Chain
from jailbridge.errors import ParseError
from jailbridge.model.network import Address, Network, network_text, parse_address, parse_network
from jailbridge.model.plan import Observation, ObservedBan
from jailbridge.model.token import Token

TABLE = "jailbridge"
LAYOUT = 1
GRACE = timedelta(seconds=60)
# The kernel counts an element's timeout in nanoseconds, with 64 bits: at most 213,503 days.
LONGEST = timedelta(days=200_000)
# Before the filter priority (0), where others accept; after raw, mangle and destination NAT, as INPUT rules are.
PRIORITY = -10
# Elements in one command: keeps a line readable by a person who looks at the transaction.
BATCH = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class NftSet:
    """One of our sets: element type, whether it holds intervals, the match that its rule makes, its sentinel."""

    name: str
    type: str
    interval: bool
    match: str
    sentinel: Address


SETS = {
    s.name: s
    for s in (
        NftSet(
            name="hosts4", type="ipv4_addr", interval=False, match="ip saddr", sentinel=ip_address("255.255.255.255")
        ),
        NftSet(
            name="prefixes4", type="ipv4_addr", interval=True, match="ip saddr", sentinel=ip_address("255.255.255.255")
        ),
        NftSet(
            name="hosts6",
            type="ipv6_addr",
            interval=False,
            match="ip6 saddr",
            sentinel=ip_address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ),
        NftSet(
            name="nets6",
            type="ipv6_addr",
            interval=False,
            match="ip6 saddr & ffff:ffff:ffff:ffff::",
            sentinel=ip_address("ffff:ffff:ffff:ffff::"),
        ),
        NftSet(
            name="prefixes6",
            type="ipv6_addr",
            interval=True,
            match="ip6 saddr",
            sentinel=ip_address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ),
    )
}


def set_of(network: Network) -> NftSet:
    """Return the set that holds a network."""
    if network.prefixlen == network.max_prefixlen:
        return SETS[f"hosts{network.version}"]
    if network.version == 6 and network.prefixlen == 64:
        return SETS["nets6"]
    return SETS[f"prefixes{network.version}"]


def is_sentinel(network: Network) -> bool:
    """Tell whether a network would stand where its set's sentinel does: it cannot be held."""
    s = set_of(network)
    return not s.interval and network.network_address == s.sentinel


def interval_sets(networks: Iterable[Network]) -> set[str]:
    """Return the names of the interval sets that hold some of these networks."""
    return {s.name for s in map(set_of, networks) if s.interval}


def hooks(chains: Sequence[Chain]) -> tuple[str, ...]:
    """Return the netfilter hooks at which packets of these (iptables) chains pass."""
    return tuple(dict.fromkeys("input" if chain is Chain.INPUT else "forward" for chain in chains))


def layout(at: Sequence[str]) -> str:
    """Return the commands that lay our table anew and empty, whatever was there."""
    lines = [f"add table inet {TABLE}", f"delete table inet {TABLE}", f"add table inet {TABLE}"]
    for s in SETS.values():
        flags = "interval, timeout" if s.interval else "timeout"
        lines.append(f"add set inet {TABLE} {s.name} {{ type {s.type}; flags {flags}; }}")
    for hook in at:
        lines.append(f"add chain inet {TABLE} {hook} {{ type filter hook {hook} priority {PRIORITY}; policy accept; }}")
        lines += [
            f'add rule inet {TABLE} {hook} {s.match} @{s.name} counter drop comment "{_rule_mark(s)}"'
            for s in SETS.values()
        ]
    return "\n".join(lines) + "\n"


def adding(bans: Mapping[Network, datetime | None], now: datetime, *, fresh: Collection[Network] = ()) -> str:
    """Return the commands that put bans in with these ends, whether or not they are there with another one.

    `fresh` ones are believed not to be there. An interval set must not hold any of them, nor anything that overlaps.
    """
    elements: defaultdict[tuple[str, bool], list[tuple[str, str]]] = defaultdict(list)
    for network, until in bans.items():
        timeout = "" if until is None else f" timeout {_duration(until - now + GRACE)}"
        s = set_of(network)
        elements[s.name, s.interval or network in fresh].append((_element(network, s), timeout))
    text = ""
    for (name, is_absent), entries in elements.items():
        for batch in _batches(entries):
            if not is_absent:
                # Add, delete, add: an element that is there keeps its old timeout on kernels before 6.12, and a delete
                # of one that is not there fails the transaction.
                bare = ", ".join(address for address, _ in batch)
                text += f"add element inet {TABLE} {name} {{ {bare} }}\n"
                text += f"delete element inet {TABLE} {name} {{ {bare} }}\n"
            text += f"add element inet {TABLE} {name} {{ {', '.join(''.join(entry) for entry in batch)} }}\n"
    return text


def removing(networks: Iterable[Network]) -> str:
    """Return the commands that take bans out of hash sets; those that are not there do no harm."""
    elements: defaultdict[str, list[str]] = defaultdict(list)
    for network in networks:
        s = set_of(network)
        elements[s.name].append(_element(network, s))
    text = ""
    for name, addresses in elements.items():
        for batch in _batches(addresses):
            text += f"add element inet {TABLE} {name} {{ {', '.join(batch)} }}\n"
            text += f"delete element inet {TABLE} {name} {{ {', '.join(batch)} }}\n"
    return text


def flushing(names: Iterable[str]) -> str:
    """Return the commands that empty sets."""
    return "".join(f"flush set inet {TABLE} {name}\n" for name in names)


def sentinels(token: Token, emptied: Collection[str] = (), *, sure: bool = False) -> str:
    """Return the commands that write the token into every set; `emptied` ones have lost theirs in this transaction.

    `sure`: every other set must have one, or the transaction fails.
    """
    text = ""
    for s in SETS.values():
        if s.name not in emptied and not sure:
            text += f"add element inet {TABLE} {s.name} {{ {s.sentinel} }}\n"
        if s.name not in emptied:
            text += f"delete element inet {TABLE} {s.name} {{ {s.sentinel} }}\n"
        text += f'add element inet {TABLE} {s.name} {{ {s.sentinel} comment "{token}" }}\n'
    return text


def observation(objects: Sequence[Mapping[str, Any]], at: Sequence[str], now: datetime) -> Observation:
    """Return what a listing of our table shows; an empty one is a table that is not there."""
    bans: list[ObservedBan] = []
    tokens: set[str | None] = set()
    foreign = 0
    sets = {item["set"]["name"]: item["set"] for item in objects if "set" in item}
    for name, s in SETS.items():
        token = None
        for element in sets.get(name, {}).get("elem", []):
            value, until, comment = _parsed(element, now)
            if value == str(s.sentinel):
                token = comment
            elif (network := _network(s, value)) is not None:
                bans.append(ObservedBan(network=network, until=until))
            else:
                foreign += 1
        tokens.add(token)
    return Observation(
        token=tokens.pop() if len(tokens) == 1 else None,
        enforcing=_enforcing(objects, sets, at),
        bans=tuple(bans),
        foreign=foreign,
    )


def _enforcing(objects: Sequence[Mapping[str, Any]], sets: Mapping[str, Any], at: Sequence[str]) -> bool:
    # Ours has no flag. Which one another has set (`dormant`) cannot be told: nft 1.0.6 prints a wrong pointer's text.
    plain = not any("flags" in item["table"] for item in objects if "table" in item)
    chains = {item["chain"]["name"]: item["chain"] for item in objects if "chain" in item}
    hooked = chains.keys() == set(at) and all(
        (chain.get("hook"), chain.get("prio")) == (name, PRIORITY) for name, chain in chains.items()
    )
    rules = [item["rule"] for item in objects if "rule" in item]
    obeyed = [(rule["chain"], rule.get("comment")) for rule in rules if {"drop": None} in rule.get("expr", ())]
    expected = [(hook, _rule_mark(s)) for hook in at for s in SETS.values()]
    whole = all(
        s.name in sets
        and sets[s.name].get("type") == s.type
        and set(_listed(sets[s.name].get("flags"))) == ({"interval", "timeout"} if s.interval else {"timeout"})
        for s in SETS.values()
    )
    return plain and hooked and whole and len(rules) == len(expected) and set(obeyed) == set(expected)


def _parsed(element: Any, now: datetime) -> tuple[Any, datetime | None, str | None]:
    until = comment = None
    if isinstance(element, dict) and "elem" in element:
        element, details = element["elem"]["val"], element["elem"]
        comment = details.get("comment")
        if "expires" in details:
            until = now + timedelta(seconds=details["expires"]) - GRACE
    return element, until, comment


def _network(s: NftSet, value: Any) -> Network | None:
    """Return the network that an element of a set stands for; None for what we would not have written there."""
    try:
        match value:
            case str() if s.interval and value == str(s.sentinel - 1):
                network = parse_network(f"{value}/{s.sentinel.max_prefixlen - 1}")
            case str() if s.name == "nets6":
                network = parse_network(f"{value}/64")
                if network.network_address != parse_address(value):
                    return None
            case str():
                network = parse_network(value)
            case {"prefix": {"addr": str(address), "len": int(length)}}:
                network = parse_network(f"{address}/{length}")
            case {"range": [str(first), str(last)]} if last == str(s.sentinel - 1):
                network, *more = summarize_address_range(parse_address(first), s.sentinel)
                if more:
                    return None
            case _:
                return None
    except ParseError:
        return None
    return network if set_of(network) is s else None


def _element(network: Network, s: NftSet) -> str:
    if s.interval and network.broadcast_address == s.sentinel:
        before = s.sentinel - 1
        return str(before) if network.network_address == before else f"{network.network_address}-{before}"
    return str(network.network_address) if s.name == "nets6" else network_text(network)


def _rule_mark(s: NftSet) -> str:
    return f"jailbridge {LAYOUT} {s.name}"


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _duration(duration: timedelta) -> str:
    """Return a time as nft takes it: no number of more than eight digits (nft 1.0.6, src/datatype.c), no zero."""
    days, seconds = divmod(max(1, round(min(duration, LONGEST).total_seconds())), 86400)
    return f"{days}d{seconds}s" if days else f"{seconds}s"


def _batches(items: list[Any]) -> Iterable[list[Any]]:
    rest = iter(items)
    while batch := list(islice(rest, BATCH)):
        yield batch
