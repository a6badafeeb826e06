"""What another firewall backend left behind when the configuration was changed: it would go on cutting hosts off.

It is taken away once the present backend is in force. Only what bears our name is touched.
"""

import shutil
from collections.abc import Iterator
from itertools import product

from jailbridge import process
from jailbridge.config.settings import FirewallBackend
from jailbridge.stores.ipset_text import SETS
from jailbridge.stores.nft_sets import TABLE
from jailbridge.stores.xtables_rules import BARE_JUMP, CHAIN, JUMP, Family, Table, parse_table, words_of

# 100,000 rules are listed in 1 s, and the daemon waits meanwhile.
TIMEOUT_S = 10.0


def clear(present: FirewallBackend) -> Iterator[str]:
    """Take away what the other backends left, and yield what that was. Where a program is missing nothing is found.

    Raises RetryLater where one hangs or does not run.
    """
    if present is not FirewallBackend.NFTABLES and _do("nft", "delete", "table", "inet", TABLE):
        yield f"the nftables table {TABLE}"
    if present is FirewallBackend.NFTABLES:
        for tool in Family:
            table = _table(tool)
            if CHAIN not in table:
                continue
            for chain, jump in product(table, (JUMP, BARE_JUMP)):
                for _ in range(table[chain].count(words_of(jump))):
                    _do(tool, "-w", "-D", chain, *words_of(jump))
            # Where another's rule leads to it the chain stays, empty.
            _do(tool, "-w", "-F", CHAIN)
            if _do(tool, "-w", "-X", CHAIN):
                yield f"the chain {CHAIN} of {tool}"
    if present is not FirewallBackend.IPSET:
        for one in SETS.values():
            if _do("ipset", "destroy", one.name):
                yield f"the ipset {one.name}"


def _table(tool: Family) -> Table:
    program = shutil.which(f"{tool}-save", path=process.SEARCH_PATH)
    if program is None:
        return {}
    return parse_table(process.run([program, "-t", "filter"], timeout_s=TIMEOUT_S).out)


def _do(tool: str, *words: str) -> bool:
    program = shutil.which(tool, path=process.SEARCH_PATH)
    return program is not None and process.run([program, *words], timeout_s=TIMEOUT_S).code == 0
