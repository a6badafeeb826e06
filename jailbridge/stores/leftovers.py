"""What another firewall backend left behind when the configuration was changed: it would go on cutting hosts off.

It is taken away once the present backend is in force. Only what bears our name is touched.
"""

import shlex
from collections.abc import Iterator, Sequence

from jailbridge import process
from jailbridge.config.settings import FirewallBackend
from jailbridge.stores.ipset_text import SETS
from jailbridge.stores.nft_sets import TABLE
from jailbridge.stores.xtables_rules import CHAIN

TIMEOUT_S = 30.0


def clear(present: FirewallBackend) -> Sequence[str]:
    """Take away what the other backends left; return what that was. Where a program is missing nothing is found."""
    return tuple(_cleared(present))


def _cleared(present: FirewallBackend) -> Iterator[str]:
    if present is not FirewallBackend.NFTABLES and _do("nft", "delete", "table", "inet", TABLE):
        yield f"the nftables table {TABLE}"
    if present is FirewallBackend.NFTABLES:
        for tool in ("iptables", "ip6tables"):
            rules = _listed(tool)
            if f"-N {CHAIN}" in rules:
                for rule in rules:
                    words = shlex.split(rule)
                    if words[:1] == ["-A"] and words[1] != CHAIN and words[-2:] == ["-j", CHAIN]:
                        _do(tool, "-w", "-D", *words[1:])
                _do(tool, "-w", "-F", CHAIN)
                if _do(tool, "-w", "-X", CHAIN):
                    yield f"the chain {CHAIN} of {tool}"
    if present is not FirewallBackend.IPSET:
        for one in SETS.values():
            if _do("ipset", "destroy", one.name):
                yield f"the ipset {one.name}"


def _listed(tool: str) -> Sequence[str]:
    if not process.has(tool):
        return ()
    return process.run([process.find(tool, "iptables"), "-w", "-S"], timeout_s=TIMEOUT_S).out.splitlines()


def _do(tool: str, *words: str) -> bool:
    return process.has(tool) and process.run([process.find(tool, tool), *words], timeout_s=TIMEOUT_S).code == 0
