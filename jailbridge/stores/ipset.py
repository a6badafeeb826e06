"""The store behind iptables and ipset: bans in two sets of our own, a rule for each in our own chain.

Few changes go to the kernel as messages, many, and what is made anew, through `ipset restore`. Neither is atomic: the
sentinels go first and come last, so an apply that did not finish leaves no token, and what comes is put in before what
goes is taken out. Other sets are never looked at.
"""

import errno
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from jailbridge import process
from jailbridge.config.settings import FirewallSettings
from jailbridge.errors import FatalError, JailBridgeError, RetryLater
from jailbridge.model.network import Network
from jailbridge.model.plan import Action, Capabilities, Change, Observation, Rejection
from jailbridge.model.token import Token
from jailbridge.stores import ipset_netlink, ipset_text
from jailbridge.stores.ipset_netlink import Request, Standing, Verb
from jailbridge.stores.ipset_text import SETS, Holding, Ipset
from jailbridge.stores.protocol import Drifted
from jailbridge.stores.xtables import Kind, Xtables
from jailbridge.stores.xtables_rules import Family, Rule

# More changes than this are quicker through a program: it puts some hundred of them into one message.
SINGLY = 500
# Counting the elements of a set costs the kernel 2 ms at 100,000.
COUNTED = 200_000
# 100,000 elements are loaded in half a second; a hung ipset must not hang us.
TIMEOUT_S = 60.0
# nftables lets go of a removed rule's set some ms after the removal, in a worker of the kernel.
RELEASE_S = 2.0

_log = logging.getLogger("jailbridge.stores.ipset")


class _Left(NamedTuple):
    """What our sets were left with: the token that they bear, and how each stands (None: there is no such set)."""

    token: Token | None
    standings: Mapping[int, Standing | None]


class IpsetStore:
    """Bans in our own two sets. Not thread-safe. `capacity` is what one set takes; `kind` of iptables, None: ask it."""

    name = "firewall"
    capabilities = Capabilities(
        overlaps=True,
        ends=True,
        volatile=True,
        early=True,
        layout=ipset_text.LAYOUT,
        limit=ipset_text.LIMIT,
        guarded=True,
        longest=timedelta(seconds=ipset_text.LONGEST_S) - ipset_text.GRACE,
    )

    def __init__(
        self, settings: FirewallSettings, *, kind: Kind | None = None, capacity: int = ipset_text.CAPACITY
    ) -> None:
        self._xtables = Xtables(settings, kind=kind)
        self._capacity = capacity
        self._left: _Left | None = None

    def observe(self, now: datetime) -> Observation:
        """Read our sets and rules. Raises FatalError (no ipset, no iptables, not permitted) and RetryLater."""
        self._left = None
        standings = _standings()
        holdings = _holdings(standings, now)
        chains = self._xtables.read()
        obeyed = all(
            chains[family].rules == rules and not chains[family].unhooked for family, rules in self._rules().items()
        )
        whole = all(self._is_whole(holdings[s.version], s) for s in SETS.values())
        seen = ipset_text.observation(holdings.values(), enforcing=obeyed and whole)
        self._left = _Left(Token.parse(seen.token), standings)
        return seen

    def touched(self) -> bool:
        """Tell whether a sentinel, the number of elements or of rules in a set, or our chain is not as it was left.

        Not seen, as ipset tells of no change: one element exchanged for another, an end that was moved, and of more
        than 200,000 elements any but the sentinel. The next reading finds them.
        """
        try:
            return self._left is None or not _is_left(self._left) or self._xtables.touched()
        except JailBridgeError:
            return True

    def apply(
        self, changes: Sequence[Change], token: Token, now: datetime, *, expected: str | None = None
    ) -> Sequence[Rejection]:
        """Make the changes, then write the token into both sets.

        Refuses networks of size 0, sentinels, what a set has no room for, and a hook where our chain is not reached.
        Raises FatalError, RetryLater and Drifted.
        """
        self._left = None
        rejections = [
            Rejection(change=c, why=why)
            for c in changes
            if c.network is not None and c.action is not Action.REMOVE and (why := ipset_text.refusal(c.network))
        ]
        hook = next((change for change in changes if change.action is Action.HOOK), None)
        if expected is not None:
            _take_sentinels(Token.parse(expected))
        if expected is None or hook is not None:
            self._prepare(now, anew=hook is not None)
        _keep_places()
        rejections += self._change([c for c in changes if c.network and not ipset_text.refusal(c.network)], now)
        if hook is not None:
            rules = self._rules()
            unhooked = self._xtables.write(lambda _: rules, hooking=True)
            rejections += [Rejection(change=hook, why=str(where)) for where in unhooked]
        _write_sentinels(token)
        self._left = _Left(token, _standings())
        return rejections

    def _rules(self) -> Mapping[Family, tuple[Rule, ...]]:
        return {
            family: tuple(rule._replace(match_set=SETS[family.version].name) for rule in rules)
            for family, rules in self._xtables.verdicts.items()
        }

    def _is_whole(self, held: Holding | None, s: Ipset) -> bool:
        return held is not None and held.is_ours(s, self._capacity)

    # writing

    def _prepare(self, now: datetime, *, anew: bool) -> None:
        """Take out all sentinels; `anew`: and have both sets as ours must be, with all that they held."""
        holdings = _holdings(_standings(), now, bans=anew)
        if anew:
            self._lay(holdings, now)
        elif not all(self._is_whole(holdings[s.version], s) for s in SETS.values()):
            raise RetryLater("ipset: our sets are gone or another's: they must be put back first")
        sentinels = ((s, network) for s in SETS.values() for network in _sentinels(holdings[s.version]))
        _make(Request(Verb.DELETE, s.name, network) for s, network in sentinels)

    def _lay(self, holdings: Mapping[int, Holding | None], now: datetime) -> None:
        text = ""
        for s in SETS.values():
            held = holdings[s.version]
            bans = {ban.network: ban.until for ban in held.bans} if held is not None else {}
            if held is None or self._is_whole(held, s):
                text += ipset_text.creating(s, self._capacity)
            elif held.may_be_swapped(s):
                # A draft may be left of a time when we were stopped in the middle.
                text += f"destroy {s.draft}\n" if ipset_netlink.standing(s.draft) is not None else ""
                text += ipset_text.creating(s, self._capacity, draft=True)
                text += ipset_text.adding(bans, now, draft=True) + ipset_text.replacing(s)
            else:
                self._displace(s, held)
                text += ipset_text.creating(s, self._capacity) + ipset_text.adding(bans, now)
        _restore(text)

    def _displace(self, s: Ipset, held: Holding) -> None:
        """Destroy a set of another type under our name: the kernel swaps like with like only.

        Until the hook is put back our rules stop nobody. Raises FatalError where others use it.
        """
        of_ours = sum(
            rule is not None and rule.match_set == s.name
            for chain in self._xtables.read().values()
            for rule in chain.rules or ()
        )
        before = ipset_netlink.standing(s.name)
        if before is not None and before.references > of_ours:
            raise FatalError(
                f"ipset: {s.name} is of type {held.type}, and a rule or set that is not ours uses it: "
                f"take that out, then run `ipset destroy {s.name}`"
            )
        self._xtables.write(lambda _: dict.fromkeys(Family, ()), hooking=False)
        deadline = time.monotonic() + RELEASE_S
        while (still := ipset_netlink.standing(s.name)) is not None and still.references:
            if time.monotonic() > deadline:
                raise RetryLater(f"ipset: {s.name} is still in use, though our rules are gone")
            time.sleep(0.005)
        _restore(f"destroy {s.name}\n")

    def _change(self, changes: Sequence[Change], now: datetime) -> list[Rejection]:
        adds = {c.network: c for c in changes if c.network and c.action in {Action.ADD, Action.UPDATE}}
        removes = {c.network: c for c in changes if c.network and c.action is Action.REMOVE and c.network not in adds}
        if len(adds) + len(removes) > SINGLY:
            text = "".join(ipset_text.creating(s, self._capacity) for s in SETS.values())
            text += ipset_text.adding({network: change.until for network, change in adds.items()}, now)
            result = _restored(text + ipset_text.removing(removes))
            if result.code == 0:
                return []
            # It stops at the first error, in words. What becomes of each change the kernel tells in numbers.
            _log.warning("ipset failed, each change is made by itself: %s", result.first_error)
        requests = [
            Request(Verb.ADD, ipset_text.set_of(network).name, network, ipset_text.timeout_s(change.until, now))
            for network, change in adds.items()
        ]
        requests += [Request(Verb.DELETE, ipset_text.set_of(network).name, network) for network in removes]
        return [
            Rejection(change=change, why=f"the set {request.set} is full: it takes {self._capacity} elements (maxelem)")
            for change, request, code in zip(
                [*adds.values(), *removes.values()], requests, ipset_netlink.ask(requests), strict=True
            )
            if code and _is_full(code, request)
        ]


def _standings() -> dict[int, Standing | None]:
    return {s.version: ipset_netlink.standing(s.name) for s in SETS.values()}


def _holdings(
    standings: Mapping[int, Standing | None], now: datetime, *, bans: bool = True
) -> Mapping[int, Holding | None]:
    """Read the sets that there are; `bans` False: all but their bans."""
    program = _program()
    holdings: dict[int, Holding | None] = dict.fromkeys(SETS)
    for s in SETS.values():
        if standings[s.version] is not None:
            result = process.run([program, "save", s.name], timeout_s=TIMEOUT_S)
            if result.code != 0:
                raise RetryLater(f"ipset failed: {result.first_error}")
            holdings[s.version] = ipset_text.holding(result.out if bans else ipset_text.marks(result.out), s, now)
    return holdings


def _sentinels(held: Holding | None) -> Iterable[Network]:
    return held.sentinels.values() if held is not None else ()


def _is_left(left: _Left) -> bool:
    """Tell whether our sets stand as they were left, as far as can be told for next to nothing."""
    if left.token is not None:
        token = left.token
        tests = [Request(Verb.TEST, s.name, ipset_text.sentinel(s, token)) for s in SETS.values()]
        if any(ipset_netlink.ask(tests)):
            return False
    if any(standing is not None and standing.elements > COUNTED for standing in left.standings.values()):
        return True
    return _standings() == left.standings


def _take_sentinels(token: Token | None) -> None:
    """Take a token's sentinels out of both sets. Raises Drifted where one is not there; then nothing was written."""
    for verb in (Verb.TEST, Verb.DELETE):
        requests = [
            Request(verb, s.name, ipset_text.sentinel(s, token), strict=True)
            for s in SETS.values()
            if token is not None
        ]
        codes = ipset_netlink.ask(requests)
        if not codes or set(codes) & {ipset_netlink.EXIST, errno.ENOENT}:
            raise Drifted("our ipsets, or the token in one of them, are gone")
        _check(codes, requests)


def _keep_places() -> None:
    _make(Request(Verb.ADD, s.name, ipset_text.placeholder(s)) for s in SETS.values())


def _write_sentinels(token: Token) -> None:
    for s in SETS.values():
        mark = ipset_text.sentinel(s, token)
        _make([Request(Verb.DELETE, s.name, ipset_text.placeholder(s)), Request(Verb.ADD, s.name, mark, 0, str(token))])


def _make(requests: Iterable[Request]) -> None:
    listed = list(requests)
    _check(ipset_netlink.ask(listed), listed)


def _check(codes: Iterable[int], requests: Iterable[Request]) -> None:
    for code, request in zip(codes, requests, strict=True):
        if code and _is_full(code, request):
            raise FatalError(f"ipset: {request.set} is full of what is not ours: run `ipset flush {request.set}`")


def _is_full(code: int, request: Request) -> bool:
    """Tell of an error whether the set has no room. Raises what any other means."""
    if code != ipset_netlink.HASH_FULL:
        raise ipset_netlink.failure(code, request.set)
    return True


def _restored(text: str) -> process.Result:
    result = process.run([_program(), "-exist", "restore"], given=text, timeout_s=TIMEOUT_S)
    if result.code < 0:
        raise RetryLater(f"ipset was stopped by signal {-result.code}")
    return result


def _restore(text: str) -> None:
    result = _restored(text)
    if result.code != 0:
        raise RetryLater(f"ipset failed: {result.first_error}")


def _program() -> str:
    return process.find("ipset", "ipset")
