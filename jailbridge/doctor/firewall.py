"""Whether this machine has what the stores need: netfilter's parts, one kind of iptables, TCP wrappers.

The firewall as configured is made, whole, in a network namespace that is gone at once: no rule here is touched. (The
kernel may load a module for it, as it would for the daemon.)
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from jailbridge import process
from jailbridge.config import Settings
from jailbridge.config.settings import FirewallBackend, FirewallSettings
from jailbridge.daemon import wiring
from jailbridge.errors import JailBridgeError
from jailbridge.host.boot import boot_id
from jailbridge.host.wrappers import Wrappers
from jailbridge.model.plan import Action, Change
from jailbridge.model.token import Token
from jailbridge.stores.xtables import Xtables
from jailbridge.stores.xtables_rules import Family

# linux/sched.h
CLONE_NEWNET = 0x40000000
TIMEOUT_S = 30.0
LIBWRAP = "libwrap.so.0"
# Only there once the tables of the legacy kind are in use; whoever asks for them by name has them made.
_LEGACY = {
    Family.IPV4: Path("/proc/thread-self/net/ip_tables_names"),
    Family.IPV6: Path("/proc/thread-self/net/ip6_tables_names"),
}


def backend(settings: Settings) -> Iterator[str]:
    """Yield what this machine lacks for the firewall that is configured: a program, a part of the kernel, a target."""
    own = settings.stores.firewall
    if own.enabled and (problem := elsewhere(lambda: _lacks(own))) is not None:
        yield problem


def hook(settings: Settings) -> Iterator[str]:
    """Yield where among others' rules of iptables ours are not reached, and why."""
    own = settings.stores.firewall
    if _is_by_iptables(own):
        for held in Xtables(own).read().values():
            # Where there are none, there is nothing to be reached.
            yield from (str(place) for place in held.unhooked if held.rules is not None)


def kinds(settings: Settings) -> Iterator[str]:
    """Yield that others' rules stand in the one kind of iptables, and some in the other."""
    if not _is_by_iptables(settings.stores.firewall):
        return
    for family, tables in _LEGACY.items():
        if tables.exists() and tables.read_bytes().strip() and all(_rules(family, kind) for kind in ("legacy", "nft")):
            yield (
                f"{family} has rules of both kinds, legacy and nft, and stores.firewall.hook knows the place among one "
                f"of them only: carry the others over ({family}-legacy-save, {family}-nft-restore --noflush), and "
                "flush them"
            )


def wrappers(settings: Settings) -> Iterator[str]:
    """Yield that nobody obeys hosts.deny, where that is certain, or nothing else cuts anybody off."""
    own, in_use = settings.stores.hosts_deny, Wrappers().in_use()
    if not own.enabled or in_use:
        return
    if not _loads(LIBWRAP):
        yield f"nothing here obeys {own.path}: there is no {LIBWRAP}; set stores.hosts_deny.enabled = false"
    elif not settings.stores.firewall.enabled:
        yield f"nothing that listens is known to obey {own.path} (tcpd, libwrap): set stores.firewall.enabled = true"


def elsewhere(ask: Callable[[], str | None]) -> str | None:
    """Return what `ask` returns in a network namespace of its own; None where we may not make one."""
    libc = ctypes.CDLL(None, use_errno=True)

    def asked() -> str | None:
        return ask() if libc.unshare(CLONE_NEWNET) == 0 else None

    # A thread has a network of its own, and takes it along when it ends.
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asked).result()


def _lacks(settings: FirewallSettings) -> str | None:
    now = datetime.now(UTC)
    try:
        store = wiring.firewall(settings)
        token = Token(ledger="0" * 12, boot=boot_id(), layout=store.capabilities.layout, sequence=1)
        # Where it stands among others' rules does not matter: there are none.
        store.apply([Change(store=store.name, action=Action.HOOK, network=None, why="")], token, now)
    except JailBridgeError as error:
        return str(error)
    return None


def _is_by_iptables(settings: FirewallSettings) -> bool:
    return settings.enabled and wiring.backend(settings) is not FirewallBackend.NFTABLES


def _rules(family: Family, kind: str) -> bool:
    name = f"{family}-{kind}-save"
    if not process.has(name):
        return False
    saved = process.run([process.find(name, "iptables")], timeout_s=TIMEOUT_S).out
    return any(line.startswith("-A ") for line in saved.splitlines())


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library, mode=os.RTLD_LAZY)
    except OSError:
        return False
    return True
