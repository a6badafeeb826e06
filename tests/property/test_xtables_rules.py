"""Our chain and its hooks converge whatever stands there, and nobody else's rule is moved or lost."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from jailbridge.config.settings import Target
from jailbridge.model.network import host_network
from jailbridge.stores.xtables_hooks import hook_steps, unhooked
from jailbridge.stores.xtables_rules import (
    JUMP,
    Do,
    Family,
    Rule,
    Step,
    Words,
    content_steps,
    parse_rule,
    parse_table,
    restore_text,
    verdicts,
    words_of,
)

OURS = words_of(JUMP)
FOREIGN = st.sampled_from(
    [
        ("-i", "lo", "-j", "ACCEPT"),
        ("-j", "ACCEPT"),
        ("-j", "LOG"),
        ("-g", "allowed"),
        ("-j", "allowed"),
        ("-m", "comment", "--comment", "allowed", "-j", "loop"),
        ("-m", "comment", "--comment", "jailbridge", "-j", "allowed"),
        ("-s", "192.0.2.7/32", "-j", "jailbridge"),
        ("-j", "loop"),
        ("-p", "tcp", "-j", "RETURN"),
    ]
)
CHAINS = st.lists(st.one_of(FOREIGN, st.just(OURS)), max_size=6).map(tuple)
TABLES = st.fixed_dictionaries(
    {"INPUT": CHAINS, "FORWARD": CHAINS, "allowed": CHAINS, "loop": CHAINS}, optional={"DOCKER-USER": CHAINS}
)
CONFIGURED = st.lists(st.sampled_from(["INPUT", "FORWARD", "DOCKER-USER"]), min_size=1, unique=True)
HOOKS = st.sampled_from(["first", "after:allowed"])
PLAIN = st.from_regex(r"[A-Za-z0-9_.:-]{1,30}", fullmatch=True)
# What is IPv4 to us is never written as IPv6.
ADDRESSES = st.ip_addresses().filter(lambda a: a.version == 4 or a.ipv4_mapped is None)
NETWORKS = st.one_of(
    ADDRESSES.map(host_network),
    st.builds(lambda address, length: host_network(address).supernet(length), ADDRESSES, st.integers(1, 32)),
)
VERDICTS = [rule for target in Target for family in Family for rule in verdicts(target, family)]
RULES = st.builds(
    Rule._replace,
    st.sampled_from([*VERDICTS, JUMP, Rule(target="RETURN")]),
    source=st.none() | NETWORKS,
    match_set=st.none() | PLAIN,
    comment=st.none() | PLAIN,
)
SOME = [Rule(target="DROP", comment=name) for name in "ABCDEF"]
CONTENT = st.lists(st.sampled_from(SOME), unique=True)


def carried_out(table: dict[str, tuple[Words, ...]], steps: Sequence[Step]) -> dict[str, tuple[Words, ...]]:
    """Do as iptables does. A rule to delete must be there."""
    chains = {name: list(rules) for name, rules in table.items()}
    for step in steps:
        words = words_of(step.rule) if step.rule is not None else ()
        match step.do:
            case Do.MAKE | Do.FLUSH:
                chains[step.chain] = []
            case Do.APPEND:
                chains[step.chain].append(words)
            case Do.INSERT:
                assert 1 <= step.position <= len(chains[step.chain]) + 1
                chains[step.chain].insert(step.position - 1, words)
            case Do.DELETE:
                chains[step.chain].remove(words)
            case Do.REMOVE:
                assert chains.pop(step.chain) == []
    return {name: tuple(rules) for name, rules in chains.items()}


def foreign(table: dict[str, tuple[Words, ...]]) -> dict[str, list[Words]]:
    return {name: [words for words in rules if words != OURS] for name, rules in table.items()}


@given(TABLES, CONFIGURED, HOOKS)
def test_hooking_moves_nobody_elses_rule_and_settles(
    table: dict[str, tuple[Words, ...]], chains: list[str], hook: str
) -> None:
    after = carried_out(table, hook_steps(table, chains, hook))
    for name in ("INPUT", "FORWARD", "DOCKER-USER"):
        if name in table:
            assert foreign(after)[name] == foreign(table)[name]
            assert after[name].count(OURS) <= (name in chains)
    assert after["allowed"] == table["allowed"]
    again = hook_steps(after, chains, hook)
    assert carried_out(after, again) == after


@given(TABLES, CONFIGURED)
def test_first_is_reached_in_every_chain_that_there_is(table: dict[str, tuple[Words, ...]], chains: list[str]) -> None:
    after = carried_out(table, hook_steps(table, chains, "first"))
    left = unhooked({Family.IPV4: after}, chains, "first")
    assert {place.chain for place in left} == set(chains) - set(table)


@given(TABLES, CONFIGURED)
def test_after_is_never_before_what_it_names(table: dict[str, tuple[Words, ...]], chains: list[str]) -> None:
    after = carried_out(table, hook_steps(table, chains, "after:allowed"))
    refused = {place.chain for place in unhooked({Family.IPV4: after}, chains, "after:allowed")}
    for name in set(chains) & set(after):
        named = [n for n, words in enumerate(after[name]) if words != OURS and "allowed" in words]
        places = [n for n, words in enumerate(after[name]) if words == OURS]
        assert (places == []) == (name in refused)
        assert all(named and place > named[-1] for place in places)


@given(st.none() | st.lists(st.sampled_from([None, *SOME])), CONTENT)
def test_the_content_becomes_what_is_wanted_in_its_order(seen: list[Rule | None] | None, wanted: list[Rule]) -> None:
    alien = ("-d", "192.0.2.7", "-j", "DROP")
    table = {} if seen is None else {"jailbridge": tuple(words_of(rule) if rule else alien for rule in seen)}
    after = carried_out(table, content_steps(seen, wanted))
    assert after["jailbridge"] == tuple(map(words_of, wanted))
    assert content_steps(wanted, wanted) == []


@given(st.lists(RULES))
def test_what_is_written_is_read_back(rules: list[Rule]) -> None:
    text = restore_text([Step(do=Do.APPEND, chain="jailbridge", rule=rule) for rule in rules])
    assert list(map(parse_rule, parse_table(text).get("jailbridge", ()))) == rules


@given(st.text(alphabet=st.sampled_from('-A INPUT"\\:\n jx'), max_size=60))
def test_any_listing_is_taken_apart(text: str) -> None:
    for chain, rules in parse_table(text).items():
        for words in rules:
            if (rule := parse_rule(words)) is not None:
                words_of(rule)
        assert isinstance(chain, str)


@given(st.text(alphabet=st.characters(min_codepoint=32, exclude_categories=["Cs", "Zl", "Zp"]), max_size=40))
def test_a_comment_is_read_whatever_it_holds(comment: str) -> None:
    quoted = comment.replace("\\", "\\\\").replace('"', '\\"')
    ((*_, read, _, _),) = parse_table(f'-A INPUT -m comment --comment "{quoted}" -j ACCEPT\n')["INPUT"]
    assert read == comment
