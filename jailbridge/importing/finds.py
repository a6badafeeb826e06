"""A ban that a place holds and no log tells of: policy decides on it as the daemon does on what it takes over. Pure."""

from collections.abc import Container, Iterable
from datetime import datetime
from typing import NamedTuple

from jailbridge.config.settings import PolicySettings
from jailbridge.model.ban import Ban
from jailbridge.model.network import Network, is_host
from jailbridge.model.plan import ObservedBan
from jailbridge.policy.decide import Past, adopted, source_of
from jailbridge.policy.exempt import Exemptions


class Find(NamedTuple):
    """Who is blocked where; since when and until when, as far as the place says so (`until` None: for ever)."""

    network: Network
    place: str
    since: datetime | None = None
    until: datetime | None = None


def source_networks(finds: Iterable[Find], rules: PolicySettings, exemptions: Exemptions) -> list[Find]:
    """Return one find for each network that would be banned, in the order in which they came.

    For an IPv6 host that is the network around it. Of several finds the first one that tells a time counts.
    """
    found: dict[Network, Find] = {}
    for find in finds:
        network = find.network
        if is_host(network) and network.version == 6:
            network = source_of(network.network_address, rules, exemptions).network
        known = found.get(network)
        if known is None or (known.since is None and find.since is not None):
            found[network] = find._replace(network=network)
    return list(found.values())


def judged(
    find: Find,
    told: Container[Network],
    before: Past,
    rules: PolicySettings,
    exemptions: Exemptions,
    now: datetime,
) -> tuple[Ban | None, str]:
    """Return the ban that becomes of a find, or none, and why.

    What the ledger knows, and what a history tells of it, goes first.
    """
    if before.standing is not None:
        return None, "banned already"
    if before.tombstone is not None and find.since is None:
        return None, f"its ban ended ({before.tombstone.why})"
    if find.network in told:
        return None, "the history tells when: its ban would be over by now"
    seen = ObservedBan(network=find.network, since=find.since, until=find.until)
    decision = adopted(seen, find.place, before, rules, exemptions, now)
    return decision.ban, decision.why
