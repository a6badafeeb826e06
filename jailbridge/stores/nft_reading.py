"""What the elements of our nftables sets mean: bans, sentinels and the token that they bear. Pure.

Where what stands, and why, is nft_sets' business; how it is read, nft_netlink's and nft_text's.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from typing import NamedTuple

from jailbridge.model.network import Network, parse_network
from jailbridge.model.plan import Observation, ObservedBan
from jailbridge.model.token import Token
from jailbridge.stores.nft_netlink import Held
from jailbridge.stores.nft_sets import GRACE, SETS, NftSet, Sentinels, places, sentinel_addresses, set_of, standing

# A NamedTuple's own way to make one takes three times as long.
_new = tuple.__new__
# What an IPv6 address that stands for an IPv4 one begins with (RFC 4291, 2.5.5.2): it is the latter that we ban.
_MAPPED = 0xFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What our table shows; by the name of each set: where sentinels stand, whosever, and the token that it bears."""

    observation: Observation
    sentinels: Sentinels
    tokens: Mapping[str, str | None]


class _Content(NamedTuple):
    """What stands in one set; of its sentinels the place and the comment."""

    bans: list[ObservedBan]
    marks: list[tuple[Network, str | None]]
    foreign: int


def reading(elements: Mapping[str, Sequence[Held]], now: datetime, *, enforcing: bool | None = None) -> Reading:
    """Return what stands in our sets, by their names; one that is not there holds nothing."""
    contents = {
        name: (_intervals if s.interval else _hashed)(s, elements.get(name, ()), now) for name, s in SETS.items()
    }
    tokens = {name: _token(SETS[name], content.marks) for name, content in contents.items()}
    agreed = set(tokens.values())
    observation = Observation(
        token=agreed.pop() if len(agreed) == 1 else None,
        enforcing=enforcing,
        bans=tuple(chain.from_iterable(content.bans for content in contents.values())),
        foreign=sum(content.foreign for content in contents.values()),
    )
    sentinels = {name: [place for place, _ in content.marks] for name, content in contents.items()}
    return Reading(observation=observation, sentinels=sentinels, tokens=tokens)


def _hashed(s: NftSet, elements: Iterable[Held], now: datetime) -> _Content:
    """Return what stands in a hash set; what we would not have written there is foreign."""
    bans: list[ObservedBan] = []
    marks: list[tuple[Network, str | None]] = []
    foreign = 0
    version, width, reserved, last = s.sentinels.version, s.width, sentinel_addresses(s), int(s.last)
    beside = (1 << s.last.max_prefixlen - s.width) - 1
    for address, remaining_ms, comment, _ in elements:
        if address is None or address & beside or (version == 6 and address >> 32 == _MAPPED):
            foreign += 1
        elif address in reserved or (address == last and Token.parse(comment) is not None):
            marks.append((standing(s, address), comment))
        else:
            bans.append(_new(ObservedBan, (_new(Network, (version, address, width)), None, _end(now, remaining_ms))))
    return _Content(bans, marks, foreign)


def _intervals(s: NftSet, elements: Iterable[Held], now: datetime) -> _Content:
    """Return the same of an interval set, from the elements with which intervals start and end."""
    content = _Content([], [], 0)
    for held, last in _paired(s, elements):
        first = held.address
        network = None if first is None or last is None else _prefix(s, first, last)
        if first == int(s.last):
            content.marks.append((standing(s, first), held.comment))
        elif network is not None:
            content.bans.append(ObservedBan(network, None, _end(now, held.remaining_ms)))
        else:
            content = content._replace(foreign=content.foreign + 1)
    return content


def _paired(s: NftSet, elements: Iterable[Held]) -> Iterator[tuple[Held, int | None]]:
    """Yield the start of each interval and its last address."""
    start: Held | None = None
    for held in sorted(elements, key=_place):
        if start is not None:
            yield start, None if held.address is None else held.address - 1
        start = None if held.is_end else held
    if start is not None:
        yield start, int(s.last)


def _place(held: Held) -> tuple[int, bool]:
    # Where one ends and the next one starts, the end is first.
    return -1 if held.address is None else held.address, not held.is_end


def _prefix(s: NftSet, first: int, last: int) -> Network | None:
    if last == int(s.last) - 1:
        # It ends where the sentinel stands, which belongs to it.
        last += 1
    size = last - first + 1
    if size & size - 1 or first % size or (s.last.version == 6 and first >> 32 == _MAPPED):
        return None
    network = parse_network(f"{type(s.last)(first)}/{s.width - size.bit_length() + 1}")
    return network if set_of(network) is s else None


def _token(s: NftSet, marks: Sequence[tuple[Network, str | None]]) -> str | None:
    """Return the token that a set bears: one, and in its place; None where that is in doubt."""
    if len(marks) != 1:
        return None
    [(place, comment)] = marks
    is_right = comment is not None and (place == places(comment)[s.name] or place.start == int(s.last))
    return comment if is_right else None


def _end(now: datetime, remaining_ms: int | None) -> datetime | None:
    return None if remaining_ms is None else now + timedelta(milliseconds=remaining_ms) - GRACE
