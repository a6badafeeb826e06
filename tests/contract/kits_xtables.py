"""The kit of the iptables store, on either kind of iptables, and what tests of both kinds share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from jailbridge import process
from jailbridge.config.settings import FirewallSettings
from jailbridge.stores.iptables import IptablesStore
from jailbridge.stores.protocol import Store
from jailbridge.stores.xtables import Kind
from jailbridge.stores.xtables_rules import Family
from tests.contract.programs import done

FOREIGN_RULES = """*filter
:others - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -m comment --comment "let in: \\"jailbridge\\" or not" -j others
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A others -m limit --limit 3/min -j LOG --log-prefix "others: "
-A others -j RETURN
COMMIT
*mangle
-A INPUT -m mark --mark 0x1 -j MARK --set-xmark 0x2/0xffffffff
COMMIT
"""


class Tables:
    """Both families' tables of one kind, as a person sees and changes them."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._wait = ["-w"] if kind == "legacy" else []

    def run(self, family: Family, *words: str) -> str:
        return done(f"{family}-{self.kind}", *self._wait, *words)

    def save(self, family: Family) -> str:
        return done(f"{family}-{self.kind}-save")

    def restore(self, family: Family, text: str, *options: str) -> None:
        done(f"{family}-{self.kind}-restore", *self._wait, *options, given=text)

    def rules(self, family: Family) -> list[str]:
        """The rules of the table filter, as `-A CHAIN …`."""
        text = done(f"{family}-{self.kind}-save", "-t", "filter")
        return [line for line in text.splitlines() if line.startswith("-A ")]

    def foreign(self) -> list[str]:
        """Everything that is not ours, without counters and the time."""
        return [
            line.partition(" [")[0]
            for family in Family
            for line in self.save(family).splitlines()
            if not line.startswith(("#", ":jailbridge ", "-A jailbridge ")) and not line.endswith("-j jailbridge")
        ]


class XtablesKit:
    """The tables of a network namespace of the test's own."""

    def __init__(self, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store: Store = IptablesStore(FirewallSettings(), kind=kind)
        self.tables = Tables(kind)
        self._monkeypatch = monkeypatch

    def prepare(self) -> None:
        for family in Family:
            self.tables.restore(family, FOREIGN_RULES, "--noflush")

    def foreign(self) -> object:
        return self.tables.foreign()

    def lose(self) -> None:
        for family in Family:
            self.unhook_in(family)
            self.tables.run(family, "-F", "jailbridge")
            self.tables.run(family, "-X", "jailbridge")

    def older_copy(self) -> Callable[[], None]:
        saved = {family: self.tables.save(family) for family in Family}

        def put_back() -> None:
            for family, text in saved.items():
                self.tables.restore(family, text)

        return put_back

    def unhook_in(self, family: Family) -> None:
        self.tables.run(family, "-D", "INPUT", "-m", "comment", "--comment", "jailbridge", "-j", "jailbridge")

    def unhook(self) -> bool:
        self.unhook_in(Family.IPV6)
        return True

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        with self._monkeypatch.context() as patch:
            patch.setattr(process, "SEARCH_PATH", "/nowhere")
            yield
