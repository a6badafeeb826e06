"""Builds the parts that the configuration asks for. The only place that knows every store by its class."""

from collections.abc import Iterator

from jailbridge.config import Settings
from jailbridge.reconcile.attached import Attached
from jailbridge.stores.fail2ban import Fail2banStore
from jailbridge.stores.hosts_deny import HostsDenyStore
from jailbridge.stores.nftables import NftablesStore

STORES = ("hosts_deny", "firewall", "fail2ban")


def attached_stores(settings: Settings) -> Iterator[Attached]:
    """Yield the enabled stores in the order in which they are written: what cuts a source off comes first."""
    stores = settings.stores
    if stores.firewall.enabled:
        yield Attached(store=NftablesStore(stores.firewall), external=stores.firewall.external)
    if stores.fail2ban.enabled:
        store = Fail2banStore(jail=stores.fail2ban.jail, socket=stores.fail2ban.socket)
        yield Attached(store=store, external=stores.fail2ban.external)
    if stores.hosts_deny.enabled:
        yield Attached(store=HostsDenyStore(stores.hosts_deny), external=stores.hosts_deny.external)
