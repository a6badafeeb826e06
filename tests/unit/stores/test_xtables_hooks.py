"""Where our jump belongs among the rules of others."""

import pytest

from jailbridge.stores.xtables_hooks import Unhooked, hook_steps, unhooked
from jailbridge.stores.xtables_rules import BARE_JUMP, JUMP, Do, Family, Step, parse_table

OURS = "-m comment --comment jailbridge -j jailbridge"


def table(*rules: str, **chains: list[str]) -> dict[str, tuple[tuple[str, ...], ...]]:
    """A table whose INPUT holds `rules`; other chains by name, `_` for `-` in it."""
    lines = [f"-A INPUT {rule}" for rule in rules]
    for name, others in chains.items():
        lines += [f":{name.replace('_', '-')} - [0:0]", *(f"-A {name.replace('_', '-')} {rule}" for rule in others)]
    return parse_table("\n".join(lines))


def why(rules: list[str], hook: str = "first", /, **chains: list[str]) -> str | None:
    places = unhooked({Family.IPV4: table(*rules, **chains)}, ["INPUT"], hook)
    assert len(places) <= 1
    return places[0].why if places else None


def placed(rules: list[str], hook: str = "first", /, **chains: list[str]) -> list[tuple[str, int]]:
    steps = hook_steps(table(*rules, **chains), ["INPUT"], hook)
    assert all(step.rule == JUMP and step.chain == "INPUT" for step in steps)
    return [(step.do.value, step.position) for step in steps]


# first


def test_first_stands_behind_rules_that_are_not_for_everything() -> None:
    before = ["-i lo -j ACCEPT", "-p tcp -j others", "-m comment --comment all -j LOG", "-j counts", "-j NFLOG"]
    assert why([*before, OURS, "-j DROP"], counts=["-p udp -j ACCEPT", "-j RETURN", "-j ACCEPT"]) is None
    assert placed([*before, OURS]) == []


@pytest.mark.parametrize(
    "rule",
    [
        "-j ACCEPT",
        "-j DROP",
        "-j REJECT --reject-with icmp-port-unreachable",
        "-j RETURN",
        "-j NFQUEUE --queue-num 1",
        "-m comment --comment all -j ACCEPT",
        "-g elsewhere",
        "-j ends",
        "-j goes",
        "-j nested",
    ],
)
def test_first_is_before_every_rule_for_everything(rule: str) -> None:
    chains = {
        "ends": ["-p tcp -j ACCEPT", "-j DROP"],
        "goes": ["-g ends"],
        "nested": ["-j ends"],
        "elsewhere": [],
    }
    said = why([rule, OURS], "first", **chains)
    assert said == f"a rule for everything, `{rule}`, stands before the place of ours"
    assert placed([rule, OURS], "first", **chains) == [("delete", 0), ("insert", 1)]


def test_a_chain_from_which_some_packets_return_is_no_rule_for_everything() -> None:
    assert why(["-j some", OURS], some=["-p tcp -j RETURN", "-j DROP"]) is None
    assert why(["-j loop", OURS], loop=["-j loop"]) is None
    assert why(["-j absent", OURS]) is None


def test_our_jump_stands_once() -> None:
    assert why(["-i lo -j ACCEPT"]) == "no rule leads to ours"
    assert placed(["-i lo -j ACCEPT"]) == [("insert", 1)]
    assert why([OURS, "-i lo -j ACCEPT", OURS]) == "more than one rule leads to ours"
    assert placed([OURS, "-i lo -j ACCEPT", OURS]) == [("delete", 0), ("delete", 0), ("insert", 1)]


def test_a_jump_that_lost_its_comment_is_replaced() -> None:
    assert why(["-j jailbridge"]) == "the rule that leads to ours has lost its comment"
    assert why([OURS, "-j jailbridge"]) == "more than one rule leads to ours"
    steps = hook_steps(table("-j jailbridge", OURS), ["INPUT"], "first")
    assert [(step.do, step.rule) for step in steps] == [("delete", JUMP), ("delete", BARE_JUMP), ("insert", JUMP)]
    assert hook_steps(table("-p tcp -j jailbridge", OURS), ["INPUT"], "first") == [], "that one is another's"
    tables = {family: table("-j jailbridge") for family in Family}
    assert [place.chain for place in unhooked(tables, ["FORWARD"], "first")].count("INPUT") == len(tables)
    assert [step.do for step in hook_steps(tables[Family.IPV4], ["FORWARD"], "first")] == ["delete", "insert"]


@pytest.mark.parametrize("rule", ["-s 192.0.2.7/32 -j jailbridge", "-m comment --comment jailbridge"])
def test_a_rule_of_another_that_looks_like_ours_is_left(rule: str) -> None:
    assert why([rule]) == "no rule leads to ours"
    assert placed([rule]) == [("insert", 1)]


# after another's rules


@pytest.mark.parametrize("hook", ["after:allowed", "after:let these in"])
@pytest.mark.parametrize(
    "rule",
    [
        '-m comment --comment "let these in" -j allowed',
        '-p tcp -m comment --comment "let these in" -g allowed',
    ],
)
def test_after_is_right_behind_the_last_rule_it_names(hook: str, rule: str) -> None:
    rules = ["-i lo -j ACCEPT", rule, "-p udp -j ACCEPT", rule, "-p tcp -j DROP"]
    assert why(rules, hook, allowed=[]) == "no rule leads to ours"
    assert placed(rules, hook, allowed=[]) == [("insert", 5)]
    assert placed([OURS, *rules], hook, allowed=[]) == [("delete", 0), ("insert", 5)]
    assert why([OURS, *rules], hook, allowed=[]) == f"our rule stands before {hook[6:]}"
    assert why([*rules[:3], OURS, *rules[3:]], hook, allowed=[]) == f"our rule stands before {hook[6:]}"
    assert why([*rules[:4], OURS, *rules[4:]], hook, allowed=[]) is None
    assert why([*rules, OURS], hook, allowed=[]) is None


def test_after_what_is_not_there_is_no_place() -> None:
    said = why(["-i lo -j ACCEPT", OURS], "after:allowed", allowed=[])
    assert said == "no rule there jumps to allowed or has it as its comment: add one, or set another hook"
    assert placed(["-i lo -j ACCEPT"], "after:allowed") == []
    assert placed(["-i lo -j ACCEPT", OURS], "after:allowed") == [("delete", 0)], "those let in must not be cut off"


def test_after_what_no_packet_gets_past_is_no_place() -> None:
    rules = ["-j allowed"]
    said = why(rules, "after:allowed", allowed=["-j DROP"])
    assert said == "a rule for everything, `-j allowed`, stands before the place of ours"
    assert placed(rules, "after:allowed", allowed=["-j DROP"]) == []


def test_a_rule_for_everything_may_come_between_what_is_named_and_ours() -> None:
    rules = ["-j allowed", "-j ACCEPT", OURS]
    assert why(rules, "after:allowed", allowed=[]) == (
        "a rule for everything, `-j ACCEPT`, stands before the place of ours"
    )
    assert placed(rules, "after:allowed", allowed=[]) == [("delete", 0), ("insert", 2)]


# several chains


def test_a_chain_that_nobody_has_is_told_once_a_family() -> None:
    tables = {family: table(OURS) for family in Family}
    assert unhooked(tables, ["INPUT", "DOCKER-USER"], "first") == [
        Unhooked(family=family, chain="DOCKER-USER", why="there is no such chain") for family in Family
    ]


def test_a_chain_counts_in_the_families_that_have_it() -> None:
    tables = {Family.IPV4: table(OURS, DOCKER_USER=[OURS]), Family.IPV6: table(OURS)}
    assert unhooked(tables, ["INPUT", "DOCKER-USER"], "first") == []
    tables = {Family.IPV4: table(OURS, DOCKER_USER=[]), Family.IPV6: table(OURS)}
    (place,) = unhooked(tables, ["INPUT", "DOCKER-USER"], "first")
    assert str(place) == "iptables DOCKER-USER: no rule leads to ours"


def test_our_jump_leaves_a_chain_that_is_no_longer_configured() -> None:
    both = table(OURS, FORWARD=["-i lo -j ACCEPT", OURS])
    (place,) = unhooked({Family.IPV4: both}, ["INPUT"], "first")
    assert str(place) == "iptables FORWARD: our rules are reached from here, and should not"
    assert hook_steps(both, ["INPUT"], "first") == [Step(do=Do.DELETE, chain="FORWARD", rule=JUMP)]
