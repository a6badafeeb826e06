"""Where our jump belongs among the rules of others, and whether a packet gets that far. Pure.

`first`: no rule for everything stands before it. `after:X`: it stands behind the last rule that jumps to the chain X or
has X as its comment, so that whom those rules let in is not cut off.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from jailbridge.config.fields import AFTER
from jailbridge.config.settings import Chain
from jailbridge.model.network import shown
from jailbridge.stores.xtables_rules import BARE_JUMP, JUMP, Do, Family, Step, Table, Words, words_of

# After these no packet comes to the next rule. Everything else is taken for a target that lets it go on, like LOG.
_FINAL = frozenset({"ACCEPT", "DROP", "REJECT", "RETURN", "QUEUE", "NFQUEUE", "TARPIT", "DELUDE", "CHAOS", "STEAL"})
_OURS, _BARE = words_of(JUMP), words_of(BARE_JUMP)


class Unhooked(NamedTuple):
    """A chain in which our rules are not reached, and why: text for people."""

    family: Family
    chain: str
    why: str

    def __str__(self) -> str:
        return f"{self.family} {self.chain}: {self.why}"


def hook_steps(table: Table, chains: Sequence[str], hook: str) -> list[Step]:
    """Return the steps that have our chain reached from each of `chains` where it can be, and from no other."""
    steps = []
    for chain in (chain.value for chain in Chain if chain in table):
        is_wanted = chain in chains
        if is_wanted and _unreached(table, chain, hook) is None:
            continue
        for jump in (JUMP, BARE_JUMP):
            steps += [Step(do=Do.DELETE, chain=chain, rule=jump)] * table[chain].count(words_of(jump))
        if is_wanted and (position := _place(table, chain, hook)) is not None:
            steps.append(Step(do=Do.INSERT, chain=chain, rule=JUMP, position=position))
    return steps


def unhooked(tables: Mapping[Family, Table], chains: Sequence[str], hook: str) -> list[Unhooked]:
    """Return where our chain is not reached as it should be.

    A chain that is no built-in one (Docker makes DOCKER-USER) counts in the families that have it.
    """
    found = []
    for family, table in tables.items():
        for chain in map(str, chains):
            if chain in table:
                why = _unreached(table, chain, hook)
            else:
                why = None if any(chain in other for other in tables.values()) else "there is no such chain"
            if why is not None:
                found.append(Unhooked(family=family, chain=chain, why=why))
        found += [
            Unhooked(family=family, chain=chain, why="our rules are reached from here, and should not")
            for chain in Chain
            if chain not in chains and not {_OURS, _BARE}.isdisjoint(table.get(chain, ()))
        ]
    return found


def _unreached(table: Table, chain: str, hook: str) -> str | None:
    """Return why packets in this chain do not come to ours, None where they do."""
    rules = table[chain]
    ours = [n for n, words in enumerate(rules) if words in {_OURS, _BARE}]
    first = _first_place(rules, hook)
    if first is None:
        return f"no rule there jumps to {_anchor(hook)} or has it as its comment: add one, or set another hook"
    if (blocking := _blocking(table, rules[: max([first, *ours[:1]])])) is not None:
        return f"a rule for everything, `{_shown(blocking)}`, stands before the place of ours"
    if len(ours) != 1:
        return "more than one rule leads to ours" if ours else "no rule leads to ours"
    if rules[ours[0]] != _OURS:
        return "the rule that leads to ours has lost its comment"
    return f"our rule stands before {_anchor(hook)}" if ours[0] < first else None


def _place(table: Table, chain: str, hook: str) -> int | None:
    """Return where our jump belongs, counted from 1 in the chain without it; None where it cannot be put."""
    rules = [words for words in table[chain] if words not in {_OURS, _BARE}]
    first = _first_place(rules, hook)
    if first is None or _blocking(table, rules[:first]) is not None:
        return None
    return first + 1


def _first_place(rules: Sequence[Words], hook: str) -> int | None:
    """Return how many rules ours must stand behind, None where what the hook names is not there."""
    if not hook.startswith(AFTER):
        return 0
    anchor = _anchor(hook)
    named = [n for n, words in enumerate(rules) if words not in {_OURS, _BARE} and _names(words, anchor)]
    return named[-1] + 1 if named else None


def _anchor(hook: str) -> str:
    return hook.removeprefix(AFTER)


def _names(words: Words, anchor: str) -> bool:
    pairs = list(pairwise(words))
    return ("--comment", anchor) in pairs or ("-j", anchor) in pairs or ("-g", anchor) in pairs


def _blocking(table: Table, rules: Sequence[Words]) -> Words | None:
    return next((words for words in rules if _is_final(table, words, frozenset())), None)


def _is_final(table: Table, words: Words, through: frozenset[str]) -> bool:
    """Tell whether no packet at all gets past this rule; `through` are the chains that led here."""
    match _unconditional(words):
        case None:
            return False
        case ["-g", _]:
            return True
        case [_, target]:
            return target in _FINAL or _swallows(table, target, through)
        case _:
            return False


def _swallows(table: Table, chain: str, through: frozenset[str]) -> bool:
    """Tell whether no packet comes back from a chain."""
    if chain in through:
        return False
    for words in table.get(chain, ()):
        verdict = _unconditional(words)
        if verdict is not None and verdict[1] == "RETURN":
            return False
        if verdict is not None and verdict[0] == "-g":
            return _swallows(table, verdict[1], through | {chain})
        if _is_final(table, words, through | {chain}):
            return True
        if "RETURN" in words:
            # Some come back.
            return False
    return False


def _unconditional(words: Words) -> Words | None:
    """Return ("-j" or "-g", target) of a rule for every packet, None for others. A comment is no condition."""
    if words[:3] == ("-m", "comment", "--comment"):
        return _unconditional(words[4:])
    return words[:2] if len(words) >= 2 and words[0] in {"-j", "-g"} else None


def _shown(words: Words) -> str:
    return shown(" ".join(words))[1:-1]
