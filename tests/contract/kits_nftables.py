"""The kit of the store behind nftables."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from jailbridge import process
from jailbridge.config.settings import FirewallSettings
from jailbridge.stores.nftables import NftablesStore
from jailbridge.stores.protocol import Store
from tests.contract.programs import done

FOREIGN_RULES = """
table inet filter {
    set jailbridge {
        type ipv4_addr
        flags interval
        elements = { 192.0.2.0/24 }
    }
    chain input {
        type filter hook input priority -10; policy accept;
        ip saddr @jailbridge counter accept
    }
}
table ip jailbridge {
    set hosts4 {
        type ipv4_addr
        flags timeout
        elements = { 192.0.2.7 }
    }
}
"""


class NftablesKit:
    """The tables of a network namespace of the test's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store: Store = NftablesStore(FirewallSettings())
        self._monkeypatch = monkeypatch

    def prepare(self) -> None:
        done("nft", "-f", "-", given=FOREIGN_RULES)

    def foreign(self) -> object:
        return done("nft", "-s", "list", "table", "inet", "filter"), done("nft", "list", "table", "ip", "jailbridge")

    def lose(self) -> None:
        done("nft", "delete", "table", "inet", "jailbridge")

    def older_copy(self) -> Callable[[], None]:
        saved = done("nft", "list", "ruleset")

        def put_back() -> None:
            done("nft", "-f", "-", given="flush ruleset\n" + saved)

        return put_back

    def unhook(self) -> bool:
        done("nft", "flush", "chain", "inet", "jailbridge", "input")
        return True

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        with self._monkeypatch.context() as patch:
            patch.setattr(process, "SEARCH_PATH", "/nowhere")
            yield
