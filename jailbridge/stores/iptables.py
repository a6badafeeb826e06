"""The store with a rule for each ban, for hosts without sets: few bans, since every packet passes every rule.

In our chain of each family stand the bans, and a rule that bears the token in its comment: its source is an address
that no packet comes from, and it would only return.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from jailbridge.config.settings import FirewallSettings, Target
from jailbridge.model.network import Network, parse_network
from jailbridge.model.plan import Action, Capabilities, Change, Observation, ObservedBan, Rejection
from jailbridge.model.token import Token
from jailbridge.stores.protocol import Drifted
from jailbridge.stores.xtables import Held, Kind, Xtables
from jailbridge.stores.xtables_rules import Family, Rule, verdicts

# 10,000 rules take seven of eight packets a second away; 1,000 up to two of three (iptables 1.8.9, Linux 6.18).
LIMIT = 1000
_EVERYTHING = {Family.IPV4: parse_network("0.0.0.0/0"), Family.IPV6: parse_network("::/0")}
_NOBODY = {Family.IPV4: parse_network("255.255.255.255"), Family.IPV6: parse_network("ffff" + ":ffff" * 7)}
# What a ban's rules may be, under any configuration.
_VERDICTS = {family: frozenset(rule for target in Target for rule in verdicts(target, family)) for family in Family}


class IptablesStore:
    """Bans as rules of our own chain; other chains are changed by our jumps only. Not thread-safe."""

    name = "firewall"
    capabilities = Capabilities(overlaps=True, ends=False, volatile=True, early=True, limit=LIMIT, guarded=True)

    def __init__(self, settings: FirewallSettings, *, kind: Kind | None = None) -> None:
        self._xtables = Xtables(settings, kind=kind)

    def observe(self, now: datetime) -> Observation:  # noqa: ARG002 - a rule has no end
        """Read our chain in both families. Raises FatalError (no iptables here, not permitted) and RetryLater."""
        held = self._xtables.read()
        seen = {family: seen_in(one.rules or (), family) for family, one in held.items()}
        return Observation(
            token=_common_token(seen),
            enforcing=all(
                not one.unhooked and one.rules is not None and seen[family].is_exactly(self._xtables.verdicts[family])
                for family, one in held.items()
            ),
            bans=tuple(ObservedBan(network=network) for one in seen.values() for network in one.bans),
            foreign=sum(one.foreign for one in seen.values()),
        )

    def touched(self) -> bool:
        """Tell whether another may have changed our chain or its hooks; see Xtables.touched."""
        return self._xtables.touched()

    def apply(
        self,
        changes: Sequence[Change],
        token: Token,
        now: datetime,  # noqa: ARG002
        *,
        expected: str | None = None,
    ) -> Sequence[Rejection]:
        """Make all changes of a family and write the token in one commit, IPv4 first.

        Whatever else stands in our chain is taken out. A hook is refused where it cannot be; bans are written then,
        too. Raises FatalError, RetryLater and Drifted.
        """

        def content(held: Mapping[Family, Held]) -> Mapping[Family, Sequence[Rule]]:
            seen = {family: seen_in(one.rules or (), family) for family, one in held.items()}
            if expected is not None and _common_token(seen) != expected:
                raise Drifted("our chain of iptables or ip6tables is not as it was left")
            return {
                family: [
                    *(
                        rule._replace(source=_source(network))
                        for network in _changed(seen[family].bans, changes, family)
                        for rule in self._xtables.verdicts[family]
                    ),
                    _sentinel(str(token), family),
                ]
                for family in Family
            }

        hooks = [change for change in changes if change.action is Action.HOOK]
        places = self._xtables.write(content, hooking=bool(hooks))
        why = "; ".join(map(str, places))
        return [Rejection(change=hook, why=why) for hook in hooks] if places else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What our chain of one family shows.

    bans     each banned network with its rules, without the source, in their order
    token    None: none, or more than one
    foreign  how many rules are neither bans nor the token's
    """

    bans: Mapping[Network, Sequence[Rule]]
    token: str | None
    foreign: int

    def is_exactly(self, expected: Sequence[Rule]) -> bool:
        """Tell whether nothing foreign is there, and each ban has just these rules."""
        return not self.foreign and all(list(rules) == list(expected) for rules in self.bans.values())


def seen_in(rules: Sequence[Rule | None], family: Family) -> Seen:
    """Return what these rules of our chain are."""
    bans: defaultdict[Network, list[Rule]] = defaultdict(list)
    tokens: list[str] = []
    foreign = 0
    for rule in rules:
        source = _EVERYTHING[family] if rule is None or rule.source is None else rule.source
        if rule is not None and rule._replace(source=None) in _VERDICTS[family] and Family.of(source) is family:
            bans[source].append(rule._replace(source=None))
        elif rule is not None and rule.comment is not None and rule == _sentinel(rule.comment, family):
            tokens.append(rule.comment)
        else:
            foreign += 1
    return Seen(bans=bans, token=tokens[0] if len(tokens) == 1 else None, foreign=foreign)


def _common_token(seen: Mapping[Family, Seen]) -> str | None:
    """Return the token that both families bear: they are written one after the other."""
    tokens = {one.token for one in seen.values()}
    return tokens.pop() if len(tokens) == 1 else None


def _changed(bans: Mapping[Network, object], changes: Sequence[Change], family: Family) -> list[Network]:
    left = dict.fromkeys(bans)
    for change in changes:
        if change.network is None or Family.of(change.network) is not family:
            continue
        if change.action is Action.REMOVE:
            left.pop(change.network, None)
        else:
            left[change.network] = None
    return list(left)


def _source(network: Network) -> Network | None:
    return network if network.prefixlen else None


def _sentinel(token: str, family: Family) -> Rule:
    return Rule(target="RETURN", source=_NOBODY[family], comment=token)
