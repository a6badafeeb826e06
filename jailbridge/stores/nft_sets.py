"""What our nftables table holds, and the steps that change it, however they are carried to the kernel. Pure.

Sets of table `inet jailbridge`:

    hosts4, hosts6        single addresses, hash
    nets6                 IPv6 /64s by their first address, hash; matched as `ip6 saddr & ffff:ffff:ffff:ffff::`
    prefixes4, prefixes6  other prefixes, intervals; they hold no overlaps

Each set carries a sentinel, an element that is never a packet's source, whose comment is the token: a flush of any set
takes it away, and the transaction that writes any set rewrites all of them. In a hash set its place among the multicast
addresses is made from the token, so whoever deletes the sentinel of one token fails where another's is. In an interval
set its place is fixed, the last address, and a prefix around it (`0.0.0.0/0`) is written as the range up to it. In
layout 1 all stood at the last address.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple, TypeAlias

from jailbridge.model.network import Address, Network, host_network, parse_network
from jailbridge.model.token import Token

# A NamedTuple's own way to make one takes three times as long.
_new = tuple.__new__
TABLE = "jailbridge"
LAYOUT = 2
GRACE = timedelta(seconds=60)
# The kernel counts an element's timeout in nanoseconds, with 64 bits: at most 213,503 days.
LONGEST = timedelta(days=200_000)
# Before the filter priority (0), where others accept; after raw, mangle and destination NAT, as INPUT rules are.
PRIORITY = -10
# Elements in one command, which a person may read, and in one netlink message, whose attributes end at 64 KiB.
BATCH = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class NftSet:
    """One of our sets: element type, whether it holds intervals, the match that its rule makes.

    sentinels  where its sentinels may stand, one of `width` bits for each token
    last       where it stood in layout 1, whatever the token
    """

    name: str
    type: str
    interval: bool
    match: str
    width: int
    sentinels: Network
    last: Address


_LAST4, _LAST6 = ip_address("255.255.255.255"), ip_address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
_MULTICAST4, _MULTICAST6 = parse_network("224.0.0.0/4"), parse_network("ff00::/8")
SETS = {
    s.name: s
    for s in (
        NftSet(
            name="hosts4",
            type="ipv4_addr",
            interval=False,
            match="ip saddr",
            width=32,
            sentinels=_MULTICAST4,
            last=_LAST4,
        ),
        NftSet(
            name="prefixes4",
            type="ipv4_addr",
            interval=True,
            match="ip saddr",
            width=32,
            sentinels=host_network(_LAST4),
            last=_LAST4,
        ),
        NftSet(
            name="hosts6",
            type="ipv6_addr",
            interval=False,
            match="ip6 saddr",
            width=128,
            sentinels=_MULTICAST6,
            last=_LAST6,
        ),
        NftSet(
            name="nets6",
            type="ipv6_addr",
            interval=False,
            match="ip6 saddr & ffff:ffff:ffff:ffff::",
            width=64,
            sentinels=_MULTICAST6,
            last=ip_address("ffff:ffff:ffff:ffff::"),
        ),
        NftSet(
            name="prefixes6",
            type="ipv6_addr",
            interval=True,
            match="ip6 saddr",
            width=128,
            sentinels=host_network(_LAST6),
            last=_LAST6,
        ),
    )
}


class Verb(StrEnum):
    """What a step does to elements of a set."""

    ADD = "add"
    DELETE = "delete"


class Element(NamedTuple):
    """An element: what it stands for, its timeout in seconds (None for ever), its comment."""

    network: Network
    timeout_s: int | None = None
    comment: str | None = None


class Step(NamedTuple):
    """One command of a transaction: some elements, at most BATCH, of one set."""

    verb: Verb
    set: NftSet
    elements: Sequence[Element]


Sentinels: TypeAlias = Mapping[str, Collection[Network]]
"""The places in each set, by its name, where a sentinel stands."""


_KINDS = {(4, 32): "hosts4", (6, 128): "hosts6", (6, 64): "nets6"}
# By IP version and prefix length, ready made: every change asks, some of them several times.
_HOLDING = {
    (version, length): SETS[_KINDS.get((version, length), f"prefixes{version}")]
    for version, bits in ((4, 32), (6, 128))
    for length in range(bits + 1)
}
_RESERVED = {s.name: range(s.sentinels.start, s.sentinels.last + 1) for s in SETS.values()}
_FORBIDDEN = {shape: range(0) if s.interval else _RESERVED[s.name] for shape, s in _HOLDING.items()}


def set_of(network: Network) -> NftSet:
    """Return the set that holds a network."""
    return _HOLDING[network.version, network.prefixlen]


def is_sentinel(network: Network) -> bool:
    """Tell whether a network would stand where its set's sentinels do: it cannot be held."""
    version, start, length = network
    return start in _FORBIDDEN[version, length]


def sentinel_addresses(s: NftSet) -> range:
    """Return the addresses, as numbers, among which a set's sentinels stand."""
    return _RESERVED[s.name]


# Asked for twice, when it is written and when it is expected.
@lru_cache(maxsize=4)
def places(token: str) -> Mapping[str, Network]:
    """Return where a token's sentinel stands in each set, by the set's name.

    It is another place for each token, whatever they differ in; in hosts4 for all but one in 2^28.
    """
    number = int.from_bytes(hashlib.sha256(token.encode()).digest())
    return {s.name: _place(s, number) for s in SETS.values()}


def _place(s: NftSet, number: int) -> Network:
    chosen = number % (1 << s.width - s.sentinels.prefixlen) << s.sentinels.max_prefixlen - s.width
    return standing(s, s.sentinels.start + chosen)


def standing(s: NftSet, address: int) -> Network:
    """Return an element's place in a set as a network."""
    return Network(s.sentinels.version, address, s.width)


def interval_sets(networks: Iterable[Network]) -> set[str]:
    """Return the names of the interval sets that hold some of these networks."""
    return {s.name for s in map(set_of, networks) if s.interval}


def adding(
    bans: Mapping[Network, datetime | None], now: datetime, *, fresh: Collection[Network] = ()
) -> Iterator[Step]:
    """Yield the steps that put bans in with these ends, whether or not they are there with another one.

    `fresh` ones are believed not to be there. An interval set must not hold any of them, nor anything that overlaps.
    """
    elements: defaultdict[tuple[str, bool], list[Element]] = defaultdict(list)
    for network, until in bans.items():
        s = _HOLDING[network.version, network.prefixlen]
        timeout_s = None if until is None else _timeout_s(until - now + GRACE)
        elements[s.name, s.interval or network in fresh].append(_new(Element, (network, timeout_s, None)))
    for (name, is_absent), entries in elements.items():
        for batch in _batches(entries):
            if not is_absent:
                # Add, delete, add: an element that is there keeps its old timeout on kernels before 6.12, and a delete
                # of one that is not there fails the transaction.
                yield from _clearing(SETS[name], [Element(element.network) for element in batch])
            yield Step(Verb.ADD, SETS[name], batch)


def removing(networks: Iterable[Network]) -> Iterator[Step]:
    """Yield the steps that take bans out of hash sets; those that are not there do no harm."""
    elements: defaultdict[str, list[Element]] = defaultdict(list)
    for network in networks:
        elements[set_of(network).name].append(Element(network))
    for name, entries in elements.items():
        for batch in _batches(entries):
            yield from _clearing(SETS[name], batch)


def claiming(token: str, *, emptied: Collection[str] = ()) -> Iterator[Step]:
    """Yield the steps that take the sentinels of a token out; the transaction fails where one of them is not there.

    `emptied` sets are left out: nft (1.0.6) deletes nothing from an interval set that it flushes in the same
    transaction.
    """
    for name, place in places(token).items():
        if name not in emptied:
            yield Step(Verb.DELETE, SETS[name], [Element(place)])


def sweeping(seen: Sentinels, *, emptied: Collection[str] = ()) -> Iterator[Step]:
    """Yield the steps that take out the sentinels that were seen, and what may stand in the fixed places."""
    for s in SETS.values():
        if s.name in emptied:
            continue
        there = {*seen.get(s.name, ()), *([standing(s, int(s.last))] if s.interval else [])}
        for batch in _batches([Element(place) for place in there]):
            yield from _clearing(s, batch)


def marking(token: Token) -> Iterator[Step]:
    """Yield the steps that put the sentinels of a token in."""
    text = str(token)
    for name, place in places(text).items():
        yield Step(Verb.ADD, SETS[name], [Element(place, comment=text)])


def _clearing(s: NftSet, elements: Sequence[Element]) -> Iterator[Step]:
    yield Step(Verb.ADD, s, elements)
    yield Step(Verb.DELETE, s, elements)


def _timeout_s(duration: timedelta) -> int:
    """Return a timeout in whole seconds; zero would be none at all."""
    return max(1, round(min(duration, LONGEST).total_seconds()))


def _batches(elements: Sequence[Element]) -> Iterator[Sequence[Element]]:
    return (elements[start : start + BATCH] for start in range(0, len(elements), BATCH))
