"""Builds the parts that the configuration asks for. The only place that knows every store by its class."""

from collections.abc import Iterator

from jailbridge import process
from jailbridge.config import Settings
from jailbridge.config.settings import FirewallBackend, FirewallSettings, Target
from jailbridge.reconcile.attached import Attached
from jailbridge.stores.fail2ban import Fail2banStore
from jailbridge.stores.hosts_deny import HostsDenyStore
from jailbridge.stores.ipset import IpsetStore
from jailbridge.stores.iptables import IptablesStore
from jailbridge.stores.nftables import NftablesStore
from jailbridge.stores.protocol import Store

STORES = ("hosts_deny", "firewall", "fail2ban")


def attached_stores(settings: Settings) -> Iterator[Attached]:
    """Yield the enabled stores in the order in which they are written: what cuts a source off comes first."""
    stores = settings.stores
    if stores.firewall.enabled:
        yield Attached(store=firewall(stores.firewall), external=stores.firewall.external)
    if stores.fail2ban.enabled:
        yield Attached(store=fail2ban(settings), external=stores.fail2ban.external)
    if stores.hosts_deny.enabled:
        yield Attached(store=HostsDenyStore(stores.hosts_deny), external=stores.hosts_deny.external)


def fail2ban(settings: Settings) -> Store:
    """Return fail2ban's jail."""
    own = settings.stores.fail2ban
    return Fail2banStore(
        jail=own.jail,
        socket=own.socket,
        wake=settings.control.fail2ban_wake,
        blocks=settings.stores.fail2ban_blocks,
    )


def firewall(settings: FirewallSettings) -> Store:
    """Return the firewall by its backend."""
    match backend(settings):
        case FirewallBackend.IPSET:
            return IpsetStore(settings)
        case FirewallBackend.IPTABLES:
            return IptablesStore(settings)
        case _:
            return NftablesStore(settings)


def backend(settings: FirewallSettings) -> FirewallBackend:
    """Return the backend that is meant; "auto" is nftables, but ipset for what only iptables' rules can do.

    Or where the machine has nothing else. A rule for each ban (iptables) is nobody's default.
    """
    if settings.backend is not FirewallBackend.AUTO:
        return settings.backend
    needs_rules = settings.target is not Target.DROP or settings.hook != "first"
    has_nothing_else = not process.has("nft") and process.has("ipset") and process.has("iptables")
    return FirewallBackend.IPSET if needs_rules or has_nothing_else else FirewallBackend.NFTABLES
