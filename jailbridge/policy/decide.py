"""What one piece of evidence leads to. Pure: rules, exemptions, the past and `now` are arguments.

More evidence never ends a ban earlier. Doubt means no ban.
"""

from datetime import datetime, timedelta
from typing import NamedTuple

from jailbridge.config.settings import EvidenceRule, NetworkPolicy, PolicySettings, SensorMode
from jailbridge.model.ban import Ban, Decision, Origin, Sightings, Tombstone
from jailbridge.model.event import Dialect, Evidence, Kind, LogLine, Protocol, ScanEvent
from jailbridge.model.network import Address, Network, host_network, parse_network, source_network
from jailbridge.model.plan import ObservedBan
from jailbridge.policy.exempt import Exemption, Exemptions

# Each address of it stands for one IPv4 host: its /64 would be all of IPv4 (RFC 6052, 2.1).
NAT64 = parse_network("64:ff9b::/96")


class Source(NamedTuple):
    """What rules and exemptions make of an address: the network that is banned for it, and who forbids that.

    fixed  the [[policy.network]] that rules how long
    """

    network: Network
    exemption: Exemption | None
    fixed: NetworkPolicy | None


class Past(NamedTuple):
    """What the ledger knows of a source: the live ban that covers it and the tombstone of its last one."""

    standing: Ban | None = None
    tombstone: Tombstone | None = None


NO_PAST = Past()


def evidence_of(event: ScanEvent, rule: EvidenceRule, own_mode: SensorMode | None) -> Evidence:
    """Tell what a line proves; `own_mode` is our sensor's where the file is our own history, else None."""
    if event.protocol is Protocol.UDP:
        return Evidence.SPOOFABLE
    if rule is not EvidenceRule.AUTO:
        return Evidence(rule.value)
    if event.kind is Kind.CONNECT or (event.kind is Kind.UNKNOWN and own_mode is SensorMode.CONNECT):
        return Evidence.HANDSHAKE
    return Evidence.SPOOFABLE


def source_of(address: Address, rules: PolicySettings, exemptions: Exemptions) -> Source:
    """Tell what a source's evidence leads to: a ban of its network, or of it alone where that holds somebody exempt."""
    network, host = source_network(address, rules.ipv6_prefix), None
    exemption = exemptions.find(network)
    if network.prefixlen < network.max_prefixlen and (exemption is not None or NAT64.holds(host_network(address))):
        network = host = host_network(address)
        exemption = exemptions.find(network)
    fixed = _fixed(host or host_network(address), rules) if rules.network else None
    return Source(network, exemption, fixed)


def ban_end(
    source: Network, evidence: Evidence, start: datetime, rules: PolicySettings, last: Tombstone | None
) -> datetime | None:
    """Return when a ban because of `source` that starts at `start` ends, None for never.

    A [[policy.network]] that holds the source (the longest prefix) has the last word and does not grow; else each ban
    within `repeat_memory` of the last one's end is `repeat_factor` times longer, up to `repeat_cap`.
    """
    return _end(_fixed(source, rules), evidence, start, rules, last)


def decide(  # noqa: PLR0911 - one return for each reason not to ban
    event: ScanEvent,
    dialect: Dialect,
    line: LogLine,
    evidence: Evidence,
    source: Source,
    past: Past,
    rules: PolicySettings,
    now: datetime,
) -> Decision:
    """Decide on one line of a log. A ban runs from the line's second, clamped to now.

    Lines of one second are in no order: whichever of them comes first, the ban ends when the last of them says.
    """
    network, exemption, fixed = source
    # PortSentry 2 says of every packet what it made of it, in syslog too; whatever is not a plain yes is no scan.
    says_so = dialect is Dialect.PORTSENTRY_2 or (event.ignored, event.triggered) != (None, None)
    if event.ignored or (says_so and event.ignored is None):
        return Decision(network, None, "the log says ignored, or leaves it open")
    if event.triggered is False or (says_so and event.triggered is None):
        return Decision(network, None, "the log says not triggered, or leaves it open")
    if exemption is not None:
        return Decision(network, None, str(exemption))
    standing, tombstone = past
    if tombstone is not None and tombstone.predates(event.time, line):
        return Decision(network, None, f"seen before its ban ended ({tombstone.why})")
    start = min(event.time, now)
    if start.microsecond:
        start = start.replace(microsecond=0)
    if standing is not None and not _may_change(standing, evidence, start):
        return Decision(network, None, "banned already", merges=True)
    until = _end(fixed, evidence, start, rules, tombstone)
    if until is not None and until <= now:
        return Decision(network, None, "its ban would already be over", merges=standing is not None)
    reason, port = words(event)
    ban = Ban(
        network=network,
        since=start,
        until=until,
        origin=Origin.SENSOR,
        reason=reason,
        evidence=evidence,
        port=event.port,
        file=line.path,
        offset=line.offset,
        line=line.text.decode("ascii", "backslashreplace"),
        seen=Sightings(event.time, event.time, 1, (port,)),
    )
    if standing is not None:
        changed = _changed(standing, ban, is_fixed=fixed is not None)
        if changed is None:
            return Decision(network, None, "banned already", merges=True)
        ban = changed
    return Decision(network, ban, ban.reason)


def words(event: ScanEvent) -> tuple[str, str]:
    """Return what a probe is called (`syn scan, port tcp/23`), and its port alone (`tcp/23`)."""
    port = f"{event.protocol}/{event.port}"
    # The usual ones are put together here: every line asks.
    is_odd = event.kind is Kind.OTHER or event.kind is Kind.UNKNOWN
    return f"{event.scan if is_odd else event.kind + ' scan'}, port {port}", port


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


def _may_change(standing: Ban, evidence: Evidence, start: datetime) -> bool:
    """Tell whether evidence can be worth changing a live ban: proof where there was none, or as old as the ban."""
    if standing.origin is Origin.OPERATOR:
        return False
    proves = evidence is Evidence.HANDSHAKE and standing.evidence is not Evidence.HANDSHAKE
    return proves or (standing.origin is Origin.SENSOR and start <= standing.since)


def _changed(standing: Ban, ban: Ban, *, is_fixed: bool) -> Ban | None:
    """Return what becomes of a live ban because of evidence that alone leads to `ban`; None where nothing does.

    Proof counts whenever it comes, but makes no ban longer whose length is fixed. Evidence as old as the ban might as
    well have made it, so there the later end holds.
    """
    proves = ban.evidence is Evidence.HANDSHAKE and standing.evidence is not Evidence.HANDSHAKE
    is_first = standing.origin is Origin.SENSOR and ban.since <= standing.since
    is_longer = ends_later(ban.until, standing.until) and (is_first or (proves and not is_fixed))
    until = ban.until if is_longer else standing.until
    if ban.network != standing.network:
        # A ban inside of another one is worth having only if it outlasts that.
        return ban._replace(since=standing.since) if is_longer else None
    seen = standing.seen.also(ban.seen.first, ban.seen.ports[0]) if standing.seen and ban.seen else ban.seen
    if proves:
        return ban._replace(since=standing.since, until=until, seen=seen)
    return standing._replace(until=until, seen=seen) if is_longer else None


def ends_later(one: datetime | None, other: datetime | None) -> bool:
    """Tell of two ends of bans (None is never) whether the first is the later one."""
    return other is not None and (one is None or one > other)


def _end(
    fixed: NetworkPolicy | None, evidence: Evidence, start: datetime, rules: PolicySettings, last: Tombstone | None
) -> datetime | None:
    if fixed is not None:
        return None if fixed.ban_for is None else start + fixed.ban_for
    base = rules.ban_for if evidence is Evidence.HANDSHAKE else rules.ban_for_spoofable
    if base is None:
        return None
    repeats = last.bans if last is not None and start - last.ended <= rules.repeat_memory else 0
    duration = _grown(base, rules.repeat_factor, repeats, rules.repeat_cap) if repeats else base
    return None if duration is None else start + duration


def _fixed(source: Network, rules: PolicySettings) -> NetworkPolicy | None:
    around = [rule for rule in rules.network if rule.network.holds(source)]
    return max(around, key=lambda rule: rule.network.prefixlen) if around else None


def _grown(base: timedelta, factor: int, repeats: int, cap: timedelta | None) -> timedelta | None:
    """Return `base` times `factor` for each repeat; a cap ends the growth and never cuts `base` itself."""
    duration = base
    for _ in range(min(repeats, 64)):
        if duration > timedelta(days=36500) / factor:
            return max(base, cap) if cap is not None else None
        duration *= factor
    return duration if cap is None else max(base, min(duration, cap))
