"""The text that our nftables table is laid and changed with, and what a listing of it says. Pure.

nft(8), libnftables-json(5). What stands in the table, and why, is nft_sets' business.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jailbridge.config.settings import Chain
from jailbridge.model.network import Network, network_text
from jailbridge.stores.nft_sets import (
    LAYOUT,
    PRIORITY,
    SETS,
    TABLE,
    Element,
    NftSet,
    Step,
)


def hooks(chains: Sequence[Chain]) -> tuple[str, ...]:
    """Return the netfilter hooks at which packets of these (iptables) chains pass."""
    return tuple(dict.fromkeys("input" if chain is Chain.INPUT else "forward" for chain in chains))


def layout(at: Sequence[str]) -> str:
    """Return the commands that lay our table anew and empty, whatever was there."""
    lines = [f"add table inet {TABLE}", f"delete table inet {TABLE}", f"add table inet {TABLE}"]
    for s in SETS.values():
        flags = "interval, timeout" if s.interval else "timeout"
        lines.append(f"add set inet {TABLE} {s.name} {{ type {s.type}; flags {flags}; }}")
    for hook in at:
        lines.append(f"add chain inet {TABLE} {hook} {{ type filter hook {hook} priority {PRIORITY}; policy accept; }}")
        lines += [
            f'add rule inet {TABLE} {hook} {s.match} @{s.name} counter drop comment "{_rule_mark(s)}"'
            for s in SETS.values()
        ]
    return "\n".join(lines) + "\n"


def commands(steps: Iterable[Step]) -> str:
    """Return steps as nft takes them."""
    return "".join(
        f"{step.verb} element inet {TABLE} {step.set.name} "
        f"{{ {', '.join(_element_text(element, step.set) for element in step.elements)} }}\n"
        for step in steps
    )


def flushing(names: Iterable[str]) -> str:
    """Return the commands that empty sets."""
    return "".join(f"flush set inet {TABLE} {name}\n" for name in names)


def ours(objects: Sequence[Any]) -> list[Mapping[str, Any]]:
    """Return those of the objects in a listing that are our table or in it."""
    found = []
    for item in objects:
        for kind, content in item.items() if isinstance(item, dict) else ():
            name = content.get("name" if kind == "table" else "table") if isinstance(content, dict) else None
            if name == TABLE and content.get("family") == "inet":
                found.append(item)
    return found


def fitting(objects: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of those of our sets that are there and of the type that they should be."""
    sets = _sets(objects)
    return [
        s.name
        for s in SETS.values()
        if s.name in sets
        and sets[s.name].get("type") == s.type
        and ("interval" in _listed(sets[s.name].get("flags"))) is s.interval
    ]


def is_enforcing(objects: Sequence[Mapping[str, Any]], at: Sequence[str]) -> bool:
    """Tell whether our table is whole: chains at these hooks, and in each a rule that drops for each of our sets."""
    # Ours has no flag. Which one another has set (`dormant`) cannot be told: nft 1.0.6 prints a wrong pointer's text.
    plain = not any("flags" in item["table"] for item in objects if "table" in item)
    chains = {item["chain"]["name"]: item["chain"] for item in objects if "chain" in item}
    hooked = chains.keys() == set(at) and all(
        (chain.get("hook"), chain.get("prio")) == (name, PRIORITY) for name, chain in chains.items()
    )
    rules = [item["rule"] for item in objects if "rule" in item]
    obeyed = [(rule["chain"], rule.get("comment")) for rule in rules if {"drop": None} in rule.get("expr", ())]
    expected = [(hook, _rule_mark(s)) for hook in at for s in SETS.values()]
    sets = _sets(objects)
    whole = len(fitting(objects)) == len(SETS) and all(
        set(_listed(sets[s.name].get("flags"))) == ({"interval", "timeout"} if s.interval else {"timeout"})
        for s in SETS.values()
    )
    return plain and hooked and whole and len(rules) == len(expected) and set(obeyed) == set(expected)


def _sets(objects: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {item["set"]["name"]: item["set"] for item in objects if "set" in item}


def _element_text(element: Element, s: NftSet) -> str:
    network, timeout_s, comment = element
    text = _place_text(network, s)
    if timeout_s is not None:
        text += f" timeout {_duration(timeout_s)}"
    if comment is not None:
        text += f' comment "{comment}"'
    return text


def _place_text(network: Network, s: NftSet) -> str:
    if s.interval and network.last == int(s.last) != network.start:
        before = s.last - 1
        return str(before) if network.start == int(before) else f"{network.network_address}-{before}"
    return str(network.network_address) if s.name == "nets6" else network_text(network)


def _rule_mark(s: NftSet) -> str:
    return f"jailbridge {LAYOUT} {s.name}"


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _duration(seconds: int) -> str:
    """Return a time as nft takes it: no number of more than eight digits (nft 1.0.6, src/datatype.c)."""
    days, seconds = divmod(seconds, 86400)
    return f"{days}d{seconds}s" if days else f"{seconds}s"
