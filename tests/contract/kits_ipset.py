"""The kit of the store behind iptables and ipset, for either kind of iptables."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from jailbridge import process
from jailbridge.config.settings import FirewallSettings
from jailbridge.stores.ipset import IpsetStore
from jailbridge.stores.protocol import Store
from jailbridge.stores.xtables import Kind
from tests.contract.programs import done

FOREIGN_SETS = """create jailbridge hash:net family inet
add jailbridge 192.0.2.0/24
create jailbridge44 hash:ip family inet timeout 0 comment
add jailbridge44 192.0.2.7 comment "jb1:0123456789ab:ba9876543210:1:1"
create jailbridge6-old hash:net family inet6 timeout 0
add jailbridge6-old 2001:db8::/64
"""
FOREIGN_RULES = """*filter
:jailbridge-not - [0:0]
-A INPUT -m comment --comment "not jailbridge" -j jailbridge-not
-A jailbridge-not -s {source} -j RETURN
-A FORWARD -s {source} -j DROP
-A OUTPUT -p tcp -m tcp --dport 25 -m comment --comment jailbridge -j ACCEPT
COMMIT
"""
SOURCES = {"iptables": "192.0.2.7/32", "ip6tables": "2001:db8::7/128"}
OURS = re.compile(r":jailbridge |-A jailbridge |.* -j jailbridge$")
PATIENCE_S = 5.0


class IpsetKit:
    """The sets and tables of a network namespace of the test's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
        self.kind = kind
        self.store: Store = IpsetStore(FirewallSettings(), kind=kind)
        self._monkeypatch = monkeypatch

    def tables(self, family: str, *words: str, given: str = "") -> str:
        """Run the kind's `FAMILY WORDS`, `FAMILY-save` or `FAMILY-restore`."""
        verb = f"-{words[0]}" if words[0] in {"save", "restore"} else ""
        return done(f"{family}-{self.kind}{verb}", *words[bool(verb) :], given=given)

    def prepare(self) -> None:
        done("ipset", "restore", given=FOREIGN_SETS)
        for family, source in SOURCES.items():
            self.tables(family, "restore", "--noflush", given=FOREIGN_RULES.format(source=source))

    def foreign(self) -> object:
        sets = [done("ipset", "save", name) for name in ("jailbridge", "jailbridge44", "jailbridge6-old")]
        rules = [
            [line.partition(" [")[0] for line in lines if not line.startswith("#") and not OURS.match(line)]
            for lines in (self.tables(family, "save").splitlines() for family in SOURCES)
        ]
        return sets, rules

    def lose(self) -> None:
        """Somebody clears the tables, and destroys what nothing refers to any more."""
        for family in SOURCES:
            self.tables(family, "-F", "INPUT")
            self.tables(family, "-F", "jailbridge")
            self.tables(family, "-X", "jailbridge")
        for name in ("jailbridge4", "jailbridge6"):
            destroy(name)

    def older_copy(self) -> Callable[[], None]:
        saved = done("ipset", "save", "jailbridge4") + done("ipset", "save", "jailbridge6")

        def put_back() -> None:
            done("ipset", "flush", "jailbridge4")
            done("ipset", "flush", "jailbridge6")
            done("ipset", "-exist", "restore", given=saved)

        return put_back

    def unhook(self) -> bool:
        self.tables("iptables", "-D", "INPUT", "-m", "comment", "--comment", "jailbridge", "-j", "jailbridge")
        return True

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        with self._monkeypatch.context() as patch:
            patch.setattr(process, "SEARCH_PATH", "/nowhere")
            yield


def destroy(name: str) -> None:
    """Destroy a set as soon as the kernel's worker has let go of the rules that are gone."""
    deadline = time.monotonic() + PATIENCE_S
    while (result := process.run(["ipset", "destroy", name])).code != 0:
        assert time.monotonic() < deadline, result.err
        time.sleep(0.005)
