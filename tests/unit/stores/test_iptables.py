"""What the rules of our chain mean as bans; what the store does with real programs stands in tests/contract."""

import pytest

from jailbridge.config.settings import Target
from jailbridge.model.network import Network, parse_network
from jailbridge.stores.iptables import seen_in
from jailbridge.stores.xtables_rules import Family, Rule, verdicts

NOBODY = {Family.IPV4: "255.255.255.255", Family.IPV6: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}
HOST = {Family.IPV4: "192.0.2.7", Family.IPV6: "2001:db8::7"}


def net(text: str) -> Network:
    return parse_network(text)


def sentinel(family: Family, token: str = "jb1:a:b:1:2") -> Rule:
    return Rule(target="RETURN", source=net(NOBODY[family]), comment=token)


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("target", list(Target))
def test_a_ban_is_read_whatever_target_it_was_written_with(family: Family, target: Target) -> None:
    wanted = verdicts(target, family)
    host = [rule._replace(source=net(HOST[family])) for rule in wanted]
    seen = seen_in([*host, sentinel(family)], family)
    assert dict(seen.bans) == {net(HOST[family]): list(wanted)}
    assert (seen.token, seen.foreign) == ("jb1:a:b:1:2", 0)
    assert seen.is_exactly(wanted)
    other = verdicts(Target.REJECT_NET if target is not Target.REJECT_NET else Target.DROP, family)
    assert not seen.is_exactly(other)


def test_a_ban_that_lost_one_of_its_rules_or_their_order_is_no_whole_one() -> None:
    wanted = verdicts(Target.REJECT_RESET, Family.IPV4)
    tcp, rest = [rule._replace(source=net("192.0.2.7")) for rule in wanted]
    for rules in ([tcp], [rest], [rest, tcp], [tcp, rest, rest]):
        seen = seen_in(rules, Family.IPV4)
        assert list(seen.bans) == [net("192.0.2.7")]
        assert not seen.is_exactly(wanted)


@pytest.mark.parametrize("family", list(Family))
def test_a_rule_for_every_source_is_the_ban_of_all(family: Family) -> None:
    seen = seen_in([Rule(target="DROP")], family)
    assert list(seen.bans) == [net("0.0.0.0/0" if family is Family.IPV4 else "::/0")]


@pytest.mark.parametrize(
    "rule",
    [
        None,
        Rule(target="DROP", source=net("192.0.2.7"), comment="by-hand"),
        Rule(target="DROP", match_set="jailbridge4"),
        Rule(target="RETURN", source=net("192.0.2.7"), comment="jb1:a:b:1:2"),
        Rule(target="RETURN", source=net("255.255.255.255")),
        Rule(target="RETURN", source=net("192.0.2.7")),
        Rule(target="DROP", source=net("2001:db8::7")),
        Rule(target="REJECT", options=("--reject-with", "icmp6-no-route"), source=net("192.0.2.7")),
    ],
)
def test_another_rule_is_foreign(rule: Rule | None) -> None:
    seen = seen_in([rule, sentinel(Family.IPV4)], Family.IPV4)
    assert (dict(seen.bans), seen.token, seen.foreign) == ({}, "jb1:a:b:1:2", 1)
    assert not seen.is_exactly(verdicts(Target.DROP, Family.IPV4))


def test_two_tokens_are_none() -> None:
    rules = [sentinel(Family.IPV4), sentinel(Family.IPV4, "jb1:a:b:1:3")]
    assert seen_in(rules, Family.IPV4).token is None
