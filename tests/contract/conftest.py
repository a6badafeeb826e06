"""A kit for each store: the store itself, and what its surroundings may do to it behind our back."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TypeAlias

import pytest

from jailbridge.config.settings import HostsDenyForm
from jailbridge.model.plan import Capabilities
from jailbridge.stores.memory import MemoryStore
from tests.contract.kits_deny import HostsDenyKit
from tests.contract.kits_fail2ban import INSTALLED, NEEDS_NEWER, NEWER, Fail2ban, Fail2banKit
from tests.contract.kits_ipset import IpsetKit
from tests.contract.kits_memory import MemoryKit
from tests.contract.kits_nftables import NftablesKit
from tests.contract.kits_xtables import XtablesKit

Kit: TypeAlias = MemoryKit | HostsDenyKit | NftablesKit | IpsetKit | XtablesKit | Fail2banKit
NARROW = Capabilities(overlaps=False, ends=False, volatile=True, early=True)
IN_A_NETWORK = ("nftables", "ipset-nft", "ipset-legacy", "iptables-nft", "iptables-legacy")


@pytest.fixture(scope="session")
def fail2ban(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Fail2ban], Fail2banKit]]:
    """A server of either fail2ban, running from when it is first asked for."""
    with ExitStack() as stack:

        @cache
        def running(fail2ban: Fail2ban) -> Fail2banKit:
            kit = Fail2banKit(tmp_path_factory.mktemp("fail2ban"), fail2ban)
            stack.callback(kit.stop)
            kit.start()
            return kit

        yield running


@pytest.fixture(
    params=[
        *("memory", "memory-narrow", "hosts_deny", "hosts_deny-file"),
        *(pytest.param(name, marks=pytest.mark.e2e) for name in (*IN_A_NETWORK, "fail2ban")),
        pytest.param("fail2ban-1.1", marks=[pytest.mark.e2e, NEEDS_NEWER]),
    ]
)
def kit(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kit:
    """A store that holds nothing of ours, beside entries of others."""
    name, _, kind = request.param.partition("-")
    if request.param in IN_A_NETWORK:
        request.getfixturevalue("own_network")
    made: Kit
    match name:
        case "memory":
            made = MemoryKit(MemoryStore(capabilities=NARROW if kind else None))
        case "hosts_deny":
            made = HostsDenyKit(tmp_path / "hosts.deny", HostsDenyForm(kind or "lines"))
        case "nftables":
            made = NftablesKit(monkeypatch)
        case "ipset":
            made = IpsetKit(monkeypatch, kind)
        case "iptables":
            made = XtablesKit(kind, monkeypatch)
        case _:
            made = request.getfixturevalue("fail2ban")(NEWER if kind else INSTALLED)
    made.prepare()
    return made
