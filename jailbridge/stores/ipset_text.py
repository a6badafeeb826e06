"""Our two ipsets, and the text that `ipset restore` reads and `ipset save` writes of them (ipset(8)). Pure.

`jailbridge4` and `jailbridge6` are of type hash:net: hosts and prefixes in one set, overlaps too, and the most exact
element is the one that is held, listed and taken out. Each bears a sentinel: a host of the multicast range, never a
packet's source, whose place in it tells the token's sequence and whose comment is the whole token. So who takes out the
sentinel of one token takes out no other's. More than one sentinel is no token. While a set is written, an empty place
in the same range stands for it, so that a full set cannot lose its token to a ban.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from jailbridge.errors import ParseError, RetryLater
from jailbridge.model.network import Network, is_host, network_text, parse_address, parse_network, source_network
from jailbridge.model.plan import Observation, ObservedBan
from jailbridge.model.token import Token

LAYOUT = 1
TYPE = "hash:net"
GRACE = timedelta(seconds=60)
# IPSET_MAX_TIMEOUT (linux/netfilter/ipset/ip_set_timeout.h): the kernel counts in milliseconds, with 31 bits.
LONGEST_S = 2_147_483
# Elements that a set takes, 65,536 by default. Memory is used by those that are there (46 bytes each), so nothing is
# saved by less; twice as many are twice as long to look through when the table grows, in one packet's way.
CAPACITY = 1 << 20
# Bans held at once: what is new comes in before what is over goes out, and the sentinel needs a place of its own.
LIMIT = 1_000_000

# Options of a set: those that are words by themselves, and those that say how far it has grown.
_FLAGS = {"comment", "counters", "forceadd", "skbinfo"}
_GROWN = {"hashsize", "bucketsize", "initval"}
# What is told of an element: counters only where another made the set.
_TOLD = {"timeout", "packets", "bytes"}
_DIGITS = len(str(LONGEST_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ipset:
    """One of our sets: the IP version of its bans, its name, the address family as ipset says it, its sentinels."""

    version: int
    name: str
    family: str
    sentinels: Network

    @property
    def draft(self) -> str:
        """The name under which it is built anew, to be swapped with the one in force."""
        return f"{self.name}-new"


SETS: Mapping[int, Ipset] = {
    s.version: s
    for s in (
        Ipset(version=4, name="jailbridge4", family="inet", sentinels=parse_network("224.0.0.0/4")),
        Ipset(version=6, name="jailbridge6", family="inet6", sentinels=parse_network("ff00::/8")),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What a set was found with. `type` and `options` are its own, whatever ours should have; `sentinels` by token."""

    type: str
    options: Mapping[str, str]
    bans: tuple[ObservedBan, ...]
    sentinels: Mapping[str, Network]
    foreign: int

    @property
    def token(self) -> str | None:
        """The token, where there is exactly one."""
        return next(iter(self.sentinels)) if len(self.sentinels) == 1 else None

    def is_ours(self, s: Ipset, capacity: int = CAPACITY) -> bool:
        """Tell whether the set is as we make it."""
        return self.type == TYPE and self.options == _options(s, capacity)

    def may_be_swapped(self, s: Ipset) -> bool:
        """Tell whether the kernel lets one of ours take this set's place, under the rules that refer to it."""
        return self.type == TYPE and self.options.get("family") == s.family


def set_of(network: Network) -> Ipset:
    """Return the set that holds a network."""
    return SETS[network.version]


def refusal(network: Network) -> str | None:
    """Return why a network cannot be held; None where it can."""
    if network.prefixlen == 0:
        return "an ipset holds no network of size 0: ban its two halves"
    return "its address is never a packet's source" if _is_sentinel(network, set_of(network)) else None


def sentinel(s: Ipset, token: Token) -> Network:
    """Return the element that bears a token in a set. IPv4's come again after 2^28 writings."""
    return _host(s, 1 + token.sequence % (s.sentinels.last - s.sentinels.start))


def placeholder(s: Ipset) -> Network:
    """Return the element that keeps the sentinel's place while a set is written."""
    return _host(s, 0)


def timeout_s(until: datetime | None, now: datetime) -> int:
    """Return after how many seconds the kernel takes a ban out, 0 for never: some time after us, if we live."""
    if until is None:
        return 0
    return max(1, min(LONGEST_S, round((until - now + GRACE).total_seconds())))


def creating(s: Ipset, capacity: int = CAPACITY, *, draft: bool = False) -> str:
    """Return the command that makes a set, or under `-exist` leaves one that is as ours must be.

    A stream that begins with it is read into large messages, one without element by element (ipset 7.17).
    """
    options = " ".join(f"{word} {value}".rstrip() for word, value in _options(s, capacity).items())
    return f"create {s.draft if draft else s.name} {TYPE} {options}\n"


def adding(bans: Mapping[Network, datetime | None], now: datetime, *, draft: bool = False) -> str:
    """Return the commands that put bans in with these ends, under `-exist` whether or not they are there."""
    names = {version: s.draft if draft else s.name for version, s in SETS.items()}
    return "".join(
        [
            f"add {names[network.version]} {network_text(network)} timeout {timeout_s(until, now)}\n"
            for network, until in bans.items()
        ]
    )


def removing(networks: Iterable[Network]) -> str:
    """Return the commands that take bans out; under `-exist` those that are not there do no harm."""
    return "".join([f"del {set_of(network).name} {network_text(network)}\n" for network in networks])


def replacing(s: Ipset) -> str:
    """Return the commands that put the draft in the set's place, at once for every packet, and drop what was there."""
    return f"swap {s.draft} {s.name}\ndestroy {s.draft}\n"


def marks(text: str) -> str:
    """Return of what `ipset save` wrote the set itself and all that may be sentinels: quick, however many bans."""
    first, *lines = text.split("\n")
    return "\n".join([first, *(line for line in lines if ' comment "' in line)])


def holding(text: str, s: Ipset, now: datetime) -> Holding:
    """Return what `ipset save` wrote of a set under our name; whatever is no ban and no sentinel counts as foreign.

    Raises RetryLater where it does not begin with the set.
    """
    first, *lines = text.rstrip("\n").split("\n")
    match first.split(" "):
        case ["create", s.name, kind, *options]:
            pass
        case _:
            raise RetryLater(f"ipset: what is said of {s.name} cannot be read")
    bans: list[ObservedBan] = []
    sentinels: dict[str, Network] = {}
    foreign = 0
    told_at = now - GRACE
    for line in lines:
        network, left_s, comment = _element(line, s)
        if network is None:
            foreign += 1
        elif not _is_sentinel(network, s):
            bans.append(ObservedBan(network, None, told_at + timedelta(seconds=left_s) if left_s else None))
        elif (token := Token.parse(comment)) is not None and sentinel(s, token) == network:
            sentinels[str(token)] = network
        elif network != placeholder(s):
            foreign += 1
    return Holding(type=kind, options=_options_of(options), bans=tuple(bans), sentinels=sentinels, foreign=foreign)


def observation(holdings: Iterable[Holding | None], *, enforcing: bool) -> Observation:
    """Return what our sets together hold; None is one that is not there."""
    found = [held for held in holdings if held is not None]
    tokens = {held.token for held in found}
    return Observation(
        token=tokens.pop() if len(tokens) == 1 and len(found) == len(SETS) else None,
        enforcing=enforcing,
        bans=tuple(ban for held in found for ban in held.bans),
        foreign=sum(held.foreign for held in found),
    )


def _options(s: Ipset, capacity: int) -> dict[str, str]:
    return {"family": s.family, "maxelem": str(capacity), "timeout": "0", "comment": ""}


def _options_of(words: Iterable[str]) -> dict[str, str]:
    rest = iter(words)
    found = {word: "" if word in _FLAGS else next(rest, "") for word in rest}
    return {word: value for word, value in found.items() if word not in _GROWN}


def _element(line: str, s: Ipset) -> tuple[Network | None, int, str | None]:
    """Return what a line says is in the set, for how many seconds (0: ever), its comment; None for none."""
    before, quote, comment = line.partition(' comment "')
    words = before.split(" ")
    told = dict(zip(words[3::2], words[4::2], strict=False))
    # `nomatch` among others: an exception from a ban is no ban.
    if words[:2] != ["add", s.name] or len(words) % 2 == 0 or not told.keys() <= _TOLD:
        return None, 0, None
    network, left = _network(words[2], s), told.get("timeout", "0")
    if network is None or not _is_number(left):
        return None, 0, None
    return network, int(left), comment.removesuffix('"') if quote else None


def _network(text: str, s: Ipset) -> Network | None:
    try:
        if s.version == 4:
            network = parse_network(text)
        else:
            # As parse_network does, in half the time: what the kernel lists is in its shortest form.
            address, slash, size = text.partition("/")
            if slash and not _is_number(size):
                return None
            network = source_network(parse_address(address), int(size) if slash else 128)
    except (ParseError, ValueError):
        return None
    return network if network.version == s.version else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _DIGITS


def _host(s: Ipset, number: int) -> Network:
    return Network(s.version, s.sentinels.start + number, s.sentinels.max_prefixlen)


def _is_sentinel(network: Network, s: Ipset) -> bool:
    return is_host(network) and s.sentinels.holds(network)
