"""Whatever is seen, in whatever order: nobody exempt is banned, and more evidence never ends a ban earlier."""

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from jailbridge.config.settings import EvidenceRule, PolicySettings, SensorMode
from jailbridge.config.values import duration_text
from jailbridge.daemon.brake import Brake
from jailbridge.model.ban import Ban, Decision, EndReason, Tombstone
from jailbridge.model.event import Dialect, Evidence, Kind, LogLine, Protocol, ScanEvent
from jailbridge.model.network import Network, host_network
from jailbridge.model.plan import ObservedBan
from jailbridge.policy.decide import Past, adopted, decide, evidence_of, source_of
from jailbridge.policy.exempt import Exemption, Exemptions

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
EVER = datetime.max.replace(tzinfo=UTC)
LINE = LogLine(path="/log", device=1, inode=2, offset=0, text=b"")
# Few addresses and networks around them, so that they meet.
ADDRESSES = st.integers(0, 15).map(lambda n: IPv4Address(0xC6120000 + n)) | st.builds(
    lambda net, host: IPv6Address((0x20010DB8 << 96) + (net << 64) + host), st.integers(0, 3), st.integers(0, 3)
)
NETWORKS: st.SearchStrategy[Network] = st.builds(
    lambda address, cut: (
        Network(4, int(address), 32).supernet(32 - cut)
        if address.version == 4
        else Network(6, int(address), 128).supernet(128 - 16 * cut)
    ),
    ADDRESSES,
    st.integers(0, 6),
)
EXEMPTIONS = st.lists(st.builds(Exemption, network=NETWORKS, why=st.just("x"), permanent=st.booleans()), max_size=4)
TIMES = st.integers(-400 * 86400, 86400).map(lambda seconds: NOW + timedelta(seconds=seconds))
EVENTS = st.builds(
    ScanEvent,
    time=TIMES,
    address=ADDRESSES,
    port=st.integers(1, 65535),
    protocol=st.sampled_from(Protocol),
    kind=st.sampled_from(Kind),
    ignored=st.sampled_from([True, False, None]),
    triggered=st.sampled_from([True, False, None]),
)
TRIGGERED = st.builds(
    ScanEvent,
    time=TIMES,
    address=ADDRESSES,
    port=st.just(23),
    protocol=st.sampled_from(Protocol),
    kind=st.sampled_from(Kind),
    ignored=st.just(False),
    triggered=st.just(True),
)
DURATIONS = st.none() | st.integers(1, 400 * 86400).map(lambda seconds: timedelta(seconds=seconds))
LASTING = DURATIONS.map(duration_text)
RULES = st.builds(
    lambda ban_for, spoofable, factor, cap, networks, prefix: PolicySettings.model_validate(
        {
            "ban_for": ban_for,
            "ban_for_spoofable": spoofable,
            "repeat_factor": factor,
            "repeat_cap": cap,
            "ipv6_prefix": prefix,
            "network": [{"network": str(network), "ban_for": lasting} for network, lasting in networks],
        }
    ),
    LASTING,
    LASTING,
    st.integers(1, 1000),
    LASTING,
    st.lists(st.tuples(NETWORKS, LASTING), max_size=3),
    st.sampled_from([48, 64, 112, 128]),
)
TOMBSTONES = st.none() | st.builds(
    Tombstone,
    network=NETWORKS,
    ended=TIMES,
    why=st.sampled_from(EndReason),
    bans=st.integers(0, 100),
)


def decision_on(
    event: ScanEvent, dialect: Dialect, evidence: Evidence, past: Past, rules: PolicySettings, exemptions: Exemptions
) -> Decision:
    return decide(event, dialect, LINE, evidence, source_of(event.address, rules, exemptions), past, rules, NOW)


def end(ban: Ban) -> datetime:
    return ban.until if ban.until is not None else EVER


@given(
    event=EVENTS,
    evidence=st.sampled_from(Evidence),
    dialect=st.sampled_from([Dialect.PORTSENTRY_1, Dialect.PORTSENTRY_2]),
    tombstone=TOMBSTONES,
    rules=RULES,
    exempt=EXEMPTIONS,
)
def test_a_ban_holds_its_source_and_nobody_exempt_and_lies_ahead(
    event: ScanEvent,
    evidence: Evidence,
    dialect: Dialect,
    tombstone: Tombstone | None,
    rules: PolicySettings,
    exempt: list[Exemption],
) -> None:
    past = Past(tombstone=tombstone)
    decision = decision_on(event, dialect, evidence, past, rules, Exemptions(exempt))
    assert decision.network.holds(host_network(event.address))
    if (ban := decision.ban) is None:
        assert decision.why
        return
    assert ban.network == decision.network
    assert not any(
        entry.network.overlaps(ban.network) for entry in exempt if entry.network.version == ban.network.version
    )
    assert ban.since <= NOW < end(ban)
    assert event.ignored is not True
    assert event.triggered is not False
    assert tombstone is None or event.time > tombstone.ended


@given(network=NETWORKS, exempt=EXEMPTIONS)
def test_an_exemption_is_found_exactly_where_one_touches(network: Network, exempt: list[Exemption]) -> None:
    found = Exemptions(exempt).find(network)
    assert Exemptions(exempt).touched([network]) == ({network} if found is not None else set())
    touching = [
        entry for entry in exempt if entry.network.version == network.version and entry.network.overlaps(network)
    ]
    assert (found is not None) == bool(touching)
    if found is not None:
        assert found in touching
        assert found.permanent == any(entry.permanent for entry in touching)


@given(seen=st.lists(st.tuples(TRIGGERED, st.sampled_from(Evidence)), max_size=8), rules=RULES)
def test_more_evidence_never_ends_a_ban_earlier(seen: list[tuple[ScanEvent, Evidence]], rules: PolicySettings) -> None:
    bans: dict[Network, Ban] = {}
    for event, evidence in seen:
        network = source_of(event.address, rules, Exemptions()).network
        before = bans.get(network)
        past = Past(standing=before)
        ban = decision_on(event, Dialect.PORTSENTRY_2, evidence, past, rules, Exemptions()).ban
        if ban is None:
            continue
        assert before is None or (end(ban) >= end(before) and ban.since == before.since)
        assert before is None or (end(ban), ban.evidence) != (end(before), before.evidence)
        bans[network] = ban


@given(event=EVENTS, rule=st.sampled_from(EvidenceRule), mode=st.none() | st.sampled_from(SensorMode))
def test_udp_proves_nothing(event: ScanEvent, rule: EvidenceRule, mode: SensorMode | None) -> None:
    proves = evidence_of(event, rule, mode)
    assert event.protocol is Protocol.TCP or proves is Evidence.SPOOFABLE
    if rule is EvidenceRule.AUTO and event.kind not in {Kind.CONNECT, Kind.UNKNOWN}:
        assert proves is Evidence.SPOOFABLE


@given(event=TRIGGERED, rules=RULES, bans=st.integers(0, 200))
def test_one_ban_more_never_makes_the_next_one_shorter(event: ScanEvent, rules: PolicySettings, bans: int) -> None:
    def ban(number: int) -> Ban | None:
        last = Tombstone(
            network=host_network(event.address), ended=NOW - timedelta(days=500), why=EndReason.EXPIRED, bans=number
        )
        rules_of = rules.model_copy(update={"repeat_memory": timedelta(days=1000)})
        past = Past(tombstone=last)
        return decision_on(event, Dialect.PORTSENTRY_2, Evidence.SPOOFABLE, past, rules_of, Exemptions()).ban

    fewer, more = ban(bans), ban(bans + 1)
    assert fewer is None or (more is not None and end(more) >= end(fewer))


@given(
    network=NETWORKS,
    since=st.none() | TIMES,
    until=st.none() | TIMES,
    tombstone=TOMBSTONES,
    rules=RULES,
    exempt=EXEMPTIONS,
)
def test_an_adopted_ban_never_outlasts_its_store_and_touches_nobody_exempt(
    network: Network,
    since: datetime | None,
    until: datetime | None,
    tombstone: Tombstone | None,
    rules: PolicySettings,
    exempt: list[Exemption],
) -> None:
    observed = ObservedBan(network=network, since=since, until=until)
    ban = adopted(observed, "fail2ban", Past(tombstone=tombstone), rules, Exemptions(exempt), NOW).ban
    if ban is None:
        return
    assert ban.network == network
    assert Exemptions(exempt).find(network) is None
    assert ban.since <= NOW < end(ban)
    assert until is None or end(ban) <= until


@given(limit=st.integers(1, 5), steps=st.lists(st.floats(0, 40), max_size=60))
def test_no_minute_sees_more_than_the_brakes_limit(limit: int, steps: list[float]) -> None:
    brake, now = Brake(limit), 0.0
    passed: list[float] = []
    for step in steps:
        now += step
        if brake.is_full(now):
            assert len([time for time in passed if now - time < 60]) >= limit
        else:
            brake.count(now)
            passed.append(now)
            assert len([time for time in passed if now - time < 60]) <= limit
