"""Our chain as iptables and ip6tables have it: the forms of its rules, what a listing shows, steps to change it. Pure.

The chain `jailbridge` stands in the table filter of both families, jumped to from others by one rule with the comment
`jailbridge`. Text: iptables-save(8), iptables-restore(8), iptables-extensions(8).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from jailbridge.config.settings import Chain, Target
from jailbridge.errors import ParseError
from jailbridge.model.network import Network, parse_network, shown

CHAIN = "jailbridge"
# Where a target is tried out; nothing ever jumps there.
PROBE = "jailbridge-probe"
# One of our chains' or sets' names, and a token: what stands in our rules needs no quoting.
_PLAIN = re.compile(r"[A-Za-z0-9_.:-]{1,200}")
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)', re.DOTALL)
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
# A quote that nothing closes must not swallow the rest: the longest comment has 255 bytes, other matches no more.
_LONGEST_LINE = 8192
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)

Words: TypeAlias = tuple[str, ...]
"""A rule as iptables-save prints it, without `-A CHAIN`."""
Table: TypeAlias = Mapping[str, Sequence[Words]]
"""The chains of a table filter, their rules in order."""


class Family(StrEnum):
    """The two tables, by the program that writes them."""

    IPV4 = "iptables"
    IPV6 = "ip6tables"

    @property
    def version(self) -> int:
        """The IP version, as a network has it."""
        return 4 if self is Family.IPV4 else 6

    @classmethod
    def of(cls, network: Network) -> "Family":
        """Return the family whose rules a network belongs in."""
        return cls.IPV4 if network.version == 4 else cls.IPV6


class Rule(NamedTuple):
    """A rule of the forms that we write.

    target     what becomes of the packet, with the target's own `options`
    protocol   `tcp`, None for any
    source     the packet comes from here, None for anywhere (a rule has no /0)
    match_set  the packet's source is in this ipset
    comment    letters, digits and `_.:-`
    """

    target: str
    options: tuple[str, ...] = ()
    protocol: str | None = None
    source: Network | None = None
    match_set: str | None = None
    comment: str | None = None


JUMP = Rule(target=CHAIN, comment="jailbridge")
# What nft(8) makes of it, which lists rules of iptables without their comments, where its listing is loaded again.
BARE_JUMP = JUMP._replace(comment=None)


class Do(StrEnum):
    """What a step does. MAKE makes a chain, or empties it; REMOVE removes an empty one."""

    MAKE = "make"
    FLUSH = "flush"
    REMOVE = "remove"
    APPEND = "append"
    INSERT = "insert"
    DELETE = "delete"


class Step(NamedTuple):
    """One step of a writing; the steps of one family are made together or not at all.

    rule      what is appended, inserted, or (its first equal) deleted
    position  where it is inserted, from 1
    """

    do: Do
    chain: str
    rule: Rule | None = None
    position: int = 0


_REJECTIONS = {
    Target.REJECT: ("icmp-port-unreachable", "icmp6-port-unreachable"),
    Target.REJECT_PORT: ("icmp-port-unreachable", "icmp6-port-unreachable"),
    Target.REJECT_HOST: ("icmp-host-unreachable", "icmp6-addr-unreachable"),
    Target.REJECT_NET: ("icmp-net-unreachable", "icmp6-no-route"),
    Target.REJECT_ADMIN: ("icmp-admin-prohibited", "icmp6-adm-prohibited"),
}


def verdicts(target: Target, family: Family) -> tuple[Rule, ...]:
    """Return the rules, in order, that do to every packet what the configuration asks; a caller adds whose packets.

    CHAOS and DELUDE are made for IPv4 only (xtables-addons(8)), TARPIT and DELUDE for TCP only: the rest is dropped.
    """
    drop = Rule(target="DROP")
    match target:
        case Target.DROP:
            return (drop,)
        case Target.REJECT_RESET:
            reset = Rule(target="REJECT", options=("--reject-with", "tcp-reset"), protocol="tcp")
            return (reset, *verdicts(Target.REJECT_PORT, family))
        case Target.TARPIT:
            return (Rule(target="TARPIT", options=("--tarpit",), protocol="tcp"), drop)
        case Target.DELUDE:
            return (Rule(target="DELUDE", protocol="tcp"), drop) if family is Family.IPV4 else (drop,)
        case Target.CHAOS:
            return (Rule(target="CHAOS"),) if family is Family.IPV4 else (drop,)
        case _:
            kind = _REJECTIONS[target][family is Family.IPV6]
            return (Rule(target="REJECT", options=("--reject-with", kind)),)


# What a rule of ours may do to which protocol, under any configuration.
_FORMS = frozenset(
    {
        (rule.target, rule.options, rule.protocol)
        for target in Target
        for family in Family
        for rule in (*verdicts(target, family), JUMP, Rule(target="RETURN"))
    }
)


def parse_table(text: str) -> dict[str, tuple[Words, ...]]:
    """Return the chains of a listing by `iptables-save -t filter` (or ip6tables-save)."""
    # In nftables' kind the built-in chains are made with their first rule.
    chains: dict[str, list[Words]] = {Chain.INPUT.value: [], Chain.FORWARD.value: []}
    for line in _lines(text):
        match [line[:1], *_words(line)]:
            case [":", str(name), *_] if name != ":":
                chains.setdefault(name[1:], [])
            case ["-", "-A", chain, *words]:
                chains.setdefault(chain, []).append(tuple(words))
    return {chain: tuple(rules) for chain, rules in chains.items()}


def parse_rule(words: Words) -> Rule | None:
    """Return the rule that a line of a listing is, None for one that we would never write."""
    rule = Rule(target="")
    rest = list(words)
    while rest:
        match rest:
            case ["-s", source, *rest]:
                network = _network(source)
                if network is None:
                    return None
                rule = rule._replace(source=network)
            case ["-p", "tcp", *rest]:
                rule = rule._replace(protocol="tcp")
            case ["-m", "set", "--match-set", name, "src", *rest]:
                rule = rule._replace(match_set=name)
            case ["-m", "comment", "--comment", comment, *rest]:
                rule = rule._replace(comment=comment)
            case ["-j", target, *options]:
                rule = rule._replace(target=target, options=tuple(options))
                return rule if _is_ours(rule) else None
            case _:
                return None
    return None


def words_of(rule: Rule) -> Words:
    """Return a rule as iptables takes it and iptables-save prints it. Raises ValueError for what would need quoting."""
    words: Words = ("-s", rule.source.with_prefixlen) if rule.source is not None else ()
    words += ("-p", rule.protocol) if rule.protocol is not None else ()
    words += ("-m", "set", "--match-set", rule.match_set, "src") if rule.match_set is not None else ()
    words += ("-m", "comment", "--comment", rule.comment) if rule.comment is not None else ()
    for word in (rule.protocol, rule.match_set, rule.comment, rule.target, *rule.options):
        if word is not None and not _PLAIN.fullmatch(word):
            raise ValueError(f"no word of a rule of ours: {shown(word)}")
    return (*words, "-j", rule.target, *rule.options)


def restore_text(steps: Sequence[Step]) -> str:
    """Return the steps as `iptables-restore --noflush` takes them: one transaction."""
    return "\n".join(["*filter", *map(_line, steps), "COMMIT", ""])


def asked(steps: Sequence[Step]) -> list[object]:
    """Return the steps as plain values, the way the helper process takes them."""
    return [
        [step.do, step.chain, step.position, _plain_values(step.rule) if step.rule is not None else None]
        for step in steps
    ]


def content_steps(seen: Sequence[Rule | None] | None, wanted: Sequence[Rule]) -> list[Step]:
    """Return the steps that make our chain hold exactly `wanted`, in order.

    `seen` is what it holds, None in it for rules of another form, None for no chain. What goes is deleted by name: so
    the writing fails where it is gone already.
    """
    adding = [Step(do=Do.APPEND, chain=CHAIN, rule=rule) for rule in wanted]
    if seen is None:
        return [Step(do=Do.MAKE, chain=CHAIN), *adding]
    keeping, staying = frozenset(wanted), frozenset(seen)
    deleting = [
        Step(do=Do.DELETE, chain=CHAIN, rule=rule) for rule in dict.fromkeys(seen) if rule and rule not in keeping
    ]
    kept = [rule for rule in seen if rule in keeping]
    new = [rule for rule in wanted if rule not in staying]
    if len(staying) != len(seen) or None in staying or kept + new != list(wanted):
        return [*deleting, Step(do=Do.FLUSH, chain=CHAIN), *adding]
    return [*deleting, *(Step(do=Do.APPEND, chain=CHAIN, rule=rule) for rule in new)]


def _network(text: str) -> Network | None:
    try:
        network = parse_network(text)
    except ParseError:
        return None
    # An IPv4-mapped one would be unwrapped, and is no source of ip6tables' any more.
    return network if (network.version == 6) == (":" in text) else None


def _is_ours(rule: Rule) -> bool:
    words = (word for word in (rule.match_set, rule.comment) if word is not None)
    return (rule.target, rule.options, rule.protocol) in _FORMS and all(map(_PLAIN.fullmatch, words))


def _line(step: Step) -> str:
    rule = " ".join(words_of(step.rule)) if step.rule is not None else ""
    match step.do:
        case Do.MAKE:
            return f":{step.chain} - [0:0]"
        case Do.FLUSH:
            return f"-F {step.chain}"
        case Do.REMOVE:
            return f"-X {step.chain}"
        case Do.APPEND:
            return f"-A {step.chain} {rule}"
        case Do.INSERT:
            return f"-I {step.chain} {step.position} {rule}"
        case Do.DELETE:
            return f"-D {step.chain} {rule}"


def _plain_values(rule: Rule) -> dict[str, object]:
    words_of(rule)  # refuses what is not ours
    return {**rule._asdict(), "source": rule.source.with_prefixlen if rule.source is not None else None}


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a listing; a comment may have line breaks of its own, between its quotes."""
    begun = ""
    for line in text.split("\n"):
        begun = f"{begun}\n{line}" if begun else line
        if '"' not in begun or '"' not in _QUOTED.sub("", begun) or len(begun) > _LONGEST_LINE:
            yield begun
            begun = ""


def _words(line: str) -> list[str]:
    if '"' not in line:
        return line.split()
    return [_ESCAPED.sub(r"\1", match[1]) if match[1] is not None else match[2] for match in _WORD.finditer(line)]
