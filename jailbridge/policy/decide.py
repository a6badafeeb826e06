"""What one piece of evidence leads to. Pure: rules, exemptions, the past and `now` are arguments.

More evidence never ends a ban earlier. Doubt means no ban.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv6Network, ip_network

from jailbridge.config.settings import EvidenceRule, PolicySettings, SensorMode
from jailbridge.model.ban import Ban, Decision, Origin, Tombstone
from jailbridge.model.event import Dialect, Evidence, Kind, LogLine, Protocol, ScanEvent
from jailbridge.model.network import Network, source_network
from jailbridge.model.plan import ObservedBan
from jailbridge.policy.exempt import Exemptions

# Each address of it stands for one IPv4 host: its /64 would be all of IPv4 (RFC 6052, 2.1).
NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What the ledger knows of a source: the live ban that covers it and the tombstone of its last one."""

    standing: Ban | None = None
    tombstone: Tombstone | None = None


def evidence_of(event: ScanEvent, rule: EvidenceRule, own_mode: SensorMode | None) -> Evidence:
    """Tell what a line proves; `own_mode` is our sensor's where the file is our own history, else None."""
    if event.protocol is Protocol.UDP:
        return Evidence.SPOOFABLE
    if rule is not EvidenceRule.AUTO:
        return Evidence(rule.value)
    if event.kind is Kind.CONNECT or (event.kind is Kind.UNKNOWN and own_mode is SensorMode.CONNECT):
        return Evidence.HANDSHAKE
    return Evidence.SPOOFABLE


def banned_network(event: ScanEvent, rules: PolicySettings, exemptions: Exemptions) -> Network:
    """Return what to ban for a source: its network, or the address alone where its network holds somebody exempt."""
    network, host = source_network(event.address, rules.ipv6_prefix), ip_network(event.address)
    return host if event.address in NAT64 or exemptions.find(network) is not None else network


def ban_end(
    source: Network, evidence: Evidence, start: datetime, rules: PolicySettings, last: Tombstone | None
) -> datetime | None:
    """Return when a ban because of `source` that starts at `start` ends, None for never.

    A [[policy.network]] that holds the source (the longest prefix) has the last word and does not grow; else each ban
    within `repeat_memory` of the last one's end is `repeat_factor` times longer, up to `repeat_cap`.
    """
    around = [rule for rule in rules.network if _holds(rule.network, source)]
    if around:
        fixed = max(around, key=lambda rule: rule.network.prefixlen).ban_for
        return None if fixed is None else start + fixed
    base = rules.ban_for if evidence is Evidence.HANDSHAKE else rules.ban_for_spoofable
    if base is None:
        return None
    repeats = last.bans if last is not None and start - last.ended <= rules.repeat_memory else 0
    duration = _grown(base, rules.repeat_factor, repeats, rules.repeat_cap)
    return None if duration is None else start + duration


def decide(  # noqa: PLR0911 - one return for each reason not to ban
    event: ScanEvent,
    dialect: Dialect,
    line: LogLine,
    evidence: Evidence,
    past: Past,
    rules: PolicySettings,
    exemptions: Exemptions,
    now: datetime,
) -> Decision:
    """Decide on one line of a log. A ban runs from the line's time, clamped to now."""
    network = banned_network(event, rules, exemptions)

    def declined(why: str) -> Decision:
        return Decision(network=network, ban=None, why=why)

    # PortSentry 2 says of every packet what it made of it; whatever is not a plain yes is no scan.
    says_so = dialect is Dialect.PORTSENTRY_2
    if event.ignored or (says_so and event.ignored is None):
        return declined("the log says ignored, or leaves it open")
    if event.triggered is False or (says_so and event.triggered is None):
        return declined("the log says not triggered, or leaves it open")
    exemption = exemptions.find(network)
    if exemption is not None:
        return declined(str(exemption))
    if past.tombstone is not None and past.tombstone.predates(event.time, line):
        return declined(f"seen before its ban ended ({past.tombstone.why})")
    start = min(event.time, now)
    until = ban_end(ip_network(event.address), evidence, start, rules, past.tombstone)
    if until is not None and until <= now:
        return declined("its ban would already be over")
    standing = past.standing
    if standing is not None and not _strengthens(standing, evidence, until):
        return declined("banned already")
    port = f"{event.protocol}/{event.port}"
    ban = Ban(
        network=network,
        since=start if standing is None else standing.since,
        until=until,
        origin=Origin.SENSOR,
        reason=f"{event.scan}, port {port}",
        evidence=evidence,
        port=event.port,
        file=line.path,
        offset=line.offset,
        line=line.text.decode("ascii", "backslashreplace"),
    )
    return Decision(network=network, ban=ban, why=ban.reason)


def adopted(
    observed: ObservedBan,
    store: str,
    past: Past,
    rules: PolicySettings,
    exemptions: Exemptions,
    now: datetime,
) -> Decision:
    """Decide on a ban that a store holds and the ledger does not: like spoofable evidence, its own end if earlier."""
    network = observed.network

    def declined(why: str) -> Decision:
        return Decision(network=network, ban=None, why=why)

    exemption = exemptions.find(network)
    if exemption is not None:
        return declined(str(exemption))
    start = min(observed.since or now, now)
    if past.tombstone is not None and observed.since is not None and past.tombstone.predates(observed.since):
        return declined(f"its ban ended ({past.tombstone.why})")
    until = ban_end(network, Evidence.SPOOFABLE, start, rules, past.tombstone)
    if observed.until is not None and (until is None or observed.until < until):
        until = observed.until
    if until is not None and until <= now:
        return declined("its ban would already be over")
    ban = Ban(
        network=network,
        since=start,
        until=until,
        origin=Origin.STORE,
        reason=f"found in {store}",
        evidence=Evidence.SPOOFABLE,
    )
    return Decision(network=network, ban=ban, why=ban.reason)


def _strengthens(standing: Ban, evidence: Evidence, until: datetime | None) -> bool:
    """Tell whether evidence is worth changing a live ban: proof where there was none, and a later end."""
    if (
        standing.origin is Origin.OPERATOR
        or evidence is not Evidence.HANDSHAKE
        or standing.evidence is Evidence.HANDSHAKE
    ):
        return False
    return standing.until is not None and (until is None or until > standing.until)


def _holds(network: Network, source: Network) -> bool:
    return network.version == source.version and network.prefixlen <= source.prefixlen and network.overlaps(source)


def _grown(base: timedelta, factor: int, repeats: int, cap: timedelta | None) -> timedelta | None:
    """Return `base` times `factor` for each repeat; a cap ends the growth and never cuts `base` itself."""
    duration = base
    for _ in range(min(repeats, 64)):
        if duration > timedelta(days=36500) / factor:
            return max(base, cap) if cap is not None else None
        duration *= factor
    return duration if cap is None else max(base, min(duration, cap))
