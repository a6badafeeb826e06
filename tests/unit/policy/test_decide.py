from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from itertools import permutations

import pytest

from jailbridge.config.settings import EvidenceRule, PolicySettings, SensorMode
from jailbridge.model.ban import Ban, Decision, EndReason, Origin, ReadMark, Sightings, Tombstone
from jailbridge.model.event import Dialect, Evidence, Kind, LogLine, Protocol, ScanEvent
from jailbridge.model.network import network_text, parse_network
from jailbridge.model.plan import ObservedBan
from jailbridge.policy.decide import Past, adopted, ban_end, decide, evidence_of, source_of
from jailbridge.policy.exempt import Exemption, Exemptions

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
LINE = LogLine(path="/log", device=1, inode=2, offset=1000, text=b"the line \xff")
NOBODY = Exemptions()
SPOOFABLE, HANDSHAKE = Evidence.SPOOFABLE, Evidence.HANDSHAKE


def rules(**policy: object) -> PolicySettings:
    return PolicySettings.model_validate(policy)


def event(address: str = "192.0.2.7", **changes: object) -> ScanEvent:
    fields: Mapping[str, object] = {
        "time": NOW,
        "address": ip_address(address),
        "port": 23,
        "protocol": Protocol.TCP,
        "kind": Kind.SYN,
        "ignored": False,
        "triggered": True,
    }
    return ScanEvent(**{**fields, **changes})  # type: ignore[arg-type]


def decision(
    seen: ScanEvent,
    *,
    dialect: Dialect = Dialect.PORTSENTRY_2,
    evidence: Evidence = SPOOFABLE,
    past: Past | None = None,
    policy: PolicySettings | None = None,
    exemptions: Exemptions = NOBODY,
) -> Decision:
    policy = policy or rules()
    source = source_of(seen.address, policy, exemptions)
    return decide(seen, dialect, LINE, evidence, source, past or Past(), policy, NOW)


def made(given: Decision) -> Ban:
    assert given.ban is not None, given.why
    return given.ban


def standing(network: str = "192.0.2.7", *, until: datetime | None, evidence: Evidence | None = SPOOFABLE,
             origin: Origin = Origin.SENSOR) -> Ban:  # fmt: skip
    return Ban(
        network=parse_network(network), since=NOW - HOUR, until=until, origin=origin, reason="scan", evidence=evidence
    )


def tombstone(
    network: str = "192.0.2.7", *, ended: datetime, bans: int = 1, marks: Mapping[str, ReadMark] | None = None
) -> Tombstone:
    return Tombstone(network=parse_network(network), ended=ended, why=EndReason.EXPIRED, bans=bans, marks=marks or {})


def exempt(network: str, *, permanent: bool = True) -> Exemptions:
    return Exemptions([Exemption(network=parse_network(network), why="x", permanent=permanent)])


# What a line proves


@pytest.mark.parametrize("rule", list(EvidenceRule))
@pytest.mark.parametrize("mode", [None, *SensorMode])
@pytest.mark.parametrize("kind", [Kind.UDP, Kind.CONNECT, Kind.UNKNOWN])
def test_udp_is_always_spoofable(rule: EvidenceRule, mode: SensorMode | None, kind: Kind) -> None:
    assert evidence_of(event(protocol=Protocol.UDP, kind=kind), rule, mode) is SPOOFABLE


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.CONNECT])
def test_only_a_connection_proves_its_source(kind: Kind) -> None:
    assert evidence_of(event(kind=kind), EvidenceRule.AUTO, None) is SPOOFABLE
    assert evidence_of(event(kind=Kind.CONNECT), EvidenceRule.AUTO, None) is HANDSHAKE


@pytest.mark.parametrize("mode", list(SensorMode))
def test_a_line_that_does_not_say_is_what_our_own_sensor_sees(mode: SensorMode) -> None:
    proves = HANDSHAKE if mode is SensorMode.CONNECT else SPOOFABLE
    assert evidence_of(event(kind=Kind.UNKNOWN), EvidenceRule.AUTO, mode) is proves
    assert evidence_of(event(kind=Kind.UNKNOWN), EvidenceRule.AUTO, None) is SPOOFABLE


def test_the_configuration_has_the_last_word_on_tcp() -> None:
    assert evidence_of(event(kind=Kind.UNKNOWN), EvidenceRule.HANDSHAKE, None) is HANDSHAKE
    assert evidence_of(event(kind=Kind.CONNECT), EvidenceRule.SPOOFABLE, SensorMode.CONNECT) is SPOOFABLE


# What is banned


@pytest.mark.parametrize(
    ("address", "around", "network"),
    [
        ("192.0.2.7", None, "192.0.2.7"),
        ("2001:db8::7", None, "2001:db8::/64"),
        ("2001:db8::7", "2001:db8:0:0:ffff::1", "2001:db8::7"),
        ("2001:db8::7", "2001:db8:0:1::1", "2001:db8::/64"),
        ("2001:db8::7", "2001:db8::7", "2001:db8::7"),
        ("64:ff9b::c000:207", None, "64:ff9b::c000:207"),
    ],
)
def test_a_source_is_banned_with_its_network_unless_somebody_exempt_is_in_it(
    address: str, around: str | None, network: str
) -> None:
    exemptions = NOBODY if around is None else exempt(around, permanent=False)
    assert network_text(source_of(event(address).address, rules(), exemptions).network) == network


def test_the_size_of_an_ipv6_network_is_a_setting() -> None:
    assert str(source_of(event("2001:db8:1:2::7").address, rules(ipv6_prefix=48), NOBODY).network) == "2001:db8:1::/48"
    assert str(source_of(event("2001:db8:1:2::7").address, rules(ipv6_prefix=128), NOBODY).network) == "2001:db8:1:2::7"


# How long


@pytest.mark.parametrize(("evidence", "lasting"), [(SPOOFABLE, DAY), (HANDSHAKE, None)])
def test_a_forgeable_scan_is_banned_for_a_day_and_a_proven_one_for_ever(
    evidence: Evidence, lasting: timedelta | None
) -> None:
    until = made(decision(event(), evidence=evidence)).until
    assert until == (None if lasting is None else NOW + lasting)


NETWORKS = [
    {"network": "10.0.0.0/8", "ban_for": "10m"},
    {"network": "10.1.0.0/16", "ban_for": "permanent"},
    {"network": "10.1.2.3", "ban_for": "20m"},
    {"network": "2001:db8::/32", "ban_for": "30m"},
    {"network": "2001:db8::dead", "ban_for": "40m"},
]


@pytest.mark.parametrize(
    ("address", "lasting"),
    [
        ("10.9.9.9", 10 * MINUTE),
        ("10.1.9.9", None),
        ("10.1.2.3", 20 * MINUTE),
        ("192.0.2.7", DAY),
        ("2001:db8::7", 30 * MINUTE),
        ("2001:db8::dead", 40 * MINUTE),
        ("2001:db9::7", DAY),
    ],
)
def test_the_longest_prefix_around_a_source_has_the_last_word(address: str, lasting: timedelta | None) -> None:
    past = Past(tombstone=tombstone(ended=NOW - HOUR, bans=9))
    until = made(decision(event(address), policy=rules(network=NETWORKS, repeat_factor=1), past=past)).until
    assert until == (None if lasting is None else NOW + lasting)


@pytest.mark.parametrize("evidence", list(Evidence))
def test_a_network_of_its_own_duration_does_not_grow(evidence: Evidence) -> None:
    past = Past(tombstone=tombstone("10.9.9.9", ended=NOW - HOUR, bans=5))
    assert made(decision(event("10.9.9.9"), evidence=evidence, policy=rules(network=NETWORKS), past=past)).until == (
        NOW + 10 * MINUTE
    )


@pytest.mark.parametrize(("bans", "lasting"), [(0, DAY), (1, 4 * DAY), (2, 16 * DAY), (3, 64 * DAY)])
def test_each_ban_that_follows_another_lasts_longer(bans: int, lasting: timedelta) -> None:
    past = Past(tombstone=tombstone(ended=NOW - HOUR, bans=bans))
    assert made(decision(event(), past=past)).until == NOW + lasting


def test_a_source_that_was_quiet_for_long_begins_anew() -> None:
    for age, lasting in ((90 * DAY, 4 * DAY), (90 * DAY + SECOND, DAY)):
        assert made(decision(event(), past=Past(tombstone=tombstone(ended=NOW - age)))).until == NOW + lasting


@pytest.mark.parametrize("bans", [3, 50, 10**9])
def test_growth_ends_at_the_cap(bans: int) -> None:
    past = Past(tombstone=tombstone(ended=NOW - HOUR, bans=bans))
    assert made(decision(event(), past=past, policy=rules(repeat_cap="30d"))).until == NOW + 30 * DAY


@pytest.mark.parametrize("bans", [10, 10**9])
def test_growth_without_a_cap_ends_in_a_permanent_ban(bans: int) -> None:
    assert made(decision(event(), past=Past(tombstone=tombstone(ended=NOW - HOUR, bans=bans)))).until is None


def test_a_factor_of_one_does_not_grow() -> None:
    past = Past(tombstone=tombstone(ended=NOW - HOUR, bans=10**9))
    assert made(decision(event(), past=past, policy=rules(repeat_factor=1))).until == NOW + DAY


@pytest.mark.parametrize("bans", [0, 1, 100])
def test_a_cap_below_the_duration_does_not_shorten_it(bans: int) -> None:
    past = Past(tombstone=tombstone(ended=NOW - HOUR, bans=bans))
    assert made(decision(event(), past=past, policy=rules(repeat_cap="1h"))).until == NOW + DAY


def test_the_longest_durations_are_no_overflow() -> None:
    policy = rules(ban_for_spoofable="36500d", repeat_cap="36500d", repeat_factor=1000)
    last = tombstone(ended=NOW - HOUR, bans=99)
    assert ban_end(parse_network("192.0.2.7"), SPOOFABLE, NOW, policy, last) == NOW + 36500 * DAY


# Whether


def test_a_ban_keeps_what_it_was_made_for() -> None:
    assert made(decision(event())) == Ban(
        network=parse_network("192.0.2.7"),
        since=NOW,
        until=NOW + DAY,
        origin=Origin.SENSOR,
        reason="syn scan, port tcp/23",
        evidence=SPOOFABLE,
        port=23,
        file="/log",
        offset=1000,
        line="the line \\xff",
        seen=Sightings(NOW, NOW, 1, ("tcp/23",)),
    )
    assert made(decision(event(kind=Kind.UNKNOWN))).reason == "scan, port tcp/23"


@pytest.mark.parametrize("ignored", [True, False, None])
@pytest.mark.parametrize("triggered", [True, False, None])
def test_a_line_of_2_bans_only_if_it_says_triggered_and_not_ignored(
    ignored: bool | None, triggered: bool | None
) -> None:
    given = decision(event(ignored=ignored, triggered=triggered))
    assert (given.ban is not None) is (ignored is False and triggered is True)


def test_a_line_of_1_2_says_neither_and_bans() -> None:
    unsaid = event(ignored=None, triggered=None, kind=Kind.UNKNOWN)
    assert decision(unsaid, dialect=Dialect.PORTSENTRY_1).ban is not None


@pytest.mark.parametrize("evidence", list(Evidence))
@pytest.mark.parametrize("address", ["192.0.2.7", "127.0.0.1", "2001:db8::7", "fe80::1"])
def test_an_exempt_source_is_never_banned(address: str, evidence: Evidence) -> None:
    exemptions = Exemptions(
        [Exemption(network=parse_network(text), why="x", permanent=True) for text in ("192.0.2.0/24", "2001:db8::7")]
    )
    given = decision(event(address), evidence=evidence, exemptions=exemptions)
    assert given.ban is None
    assert "is exempt: " in given.why


def test_a_neighbour_of_an_exempt_address_is_banned_alone() -> None:
    assert network_text(made(decision(event("2001:db8::8"), exemptions=exempt("2001:db8::7"))).network) == "2001:db8::8"


def test_a_time_in_the_future_counts_as_now() -> None:
    ban = made(decision(event(time=NOW + 365 * DAY)))
    assert (ban.since, ban.until) == (NOW, NOW + DAY)


def test_a_ban_runs_from_the_time_of_its_line() -> None:
    ban = made(decision(event(time=NOW - HOUR)))
    assert (ban.since, ban.until) == (NOW - HOUR, NOW + DAY - HOUR)


def test_a_ban_that_would_be_over_already_is_not_made() -> None:
    assert decision(event(time=NOW - DAY)).why == "its ban would already be over"
    assert made(decision(event(time=NOW - DAY + SECOND))).until == NOW + SECOND
    assert decision(event(time=NOW - 1000 * DAY), evidence=HANDSHAKE).ban is not None


def test_what_was_seen_before_a_ban_ended_bans_no_more() -> None:
    past = Past(tombstone=tombstone(ended=NOW))
    assert decision(event(time=NOW - SECOND), past=past).why == "seen before its ban ended (expired)"
    assert decision(event(time=NOW), past=past).ban is not None, "whoever scans on in that second is told of once"
    assert decision(event(time=NOW - MINUTE), past=past, evidence=HANDSHAKE).ban is None
    assert decision(event(), past=Past(tombstone=tombstone(ended=NOW - SECOND))).ban is not None


@pytest.mark.parametrize(("mark", "banned"), [(1001, False), (1000, True), (0, True)])
def test_in_the_same_file_the_place_tells_old_from_new(mark: int, banned: bool) -> None:
    marks = {"/log": ReadMark(device=1, inode=2, offset=mark)}
    past = Past(tombstone=tombstone(ended=NOW, marks=marks))
    assert (decision(event(time=NOW - SECOND), past=past).ban is not None) is banned


# A ban that stands


@pytest.mark.parametrize("until", [NOW + MINUTE, NOW + 100 * DAY, None])
@pytest.mark.parametrize("evidence", [SPOOFABLE, HANDSHAKE, None])
def test_forgeable_evidence_changes_no_standing_ban(until: datetime | None, evidence: Evidence | None) -> None:
    assert decision(event(), past=Past(standing=standing(until=until, evidence=evidence))).why == "banned already"


def test_proof_makes_a_forgeable_ban_longer_and_keeps_its_beginning() -> None:
    ban = made(decision(event(), evidence=HANDSHAKE, past=Past(standing=standing(until=NOW + MINUTE))))
    assert (ban.since, ban.until, ban.evidence) == (NOW - HOUR, None, HANDSHAKE)


@pytest.mark.parametrize("until", [NOW + HOUR, NOW + 2 * HOUR, None])
def test_proof_never_ends_a_ban_earlier(until: datetime | None) -> None:
    past = Past(standing=standing(until=until))
    assert made(decision(event(), evidence=HANDSHAKE, past=past, policy=rules(ban_for="1h"))).until == until


def test_proof_whose_own_ban_would_be_over_proves_nothing_whichever_line_comes_first() -> None:
    """Else the same second's lines left a spoofable ban or a proven one, by their order."""
    policy = rules(ban_for="1s", ban_for_spoofable="1m")
    second = NOW - timedelta(seconds=1)
    assert decision(event(time=second), evidence=HANDSHAKE, policy=policy).ban is None
    again = decision(
        event(time=second), evidence=HANDSHAKE, policy=policy, past=Past(standing=standing(until=NOW + MINUTE))
    )
    assert (again.ban, again.merges) == (None, True)


def test_an_operators_ban_is_left_as_it_is() -> None:
    past = Past(standing=standing(until=NOW + MINUTE, evidence=None, origin=Origin.OPERATOR))
    assert decision(event(), evidence=HANDSHAKE, past=past).ban is None
    assert decision(event(time=NOW - DAY / 2), past=past).ban is None


def test_proof_never_makes_a_ban_longer_whose_length_a_network_fixes() -> None:
    policy = rules(network=[{"network": "192.0.2.0/24", "ban_for": "10m"}])
    past = Past(standing=standing(until=NOW + MINUTE))
    ban = made(decision(event(), evidence=HANDSHAKE, past=past, policy=policy))
    assert (ban.until, ban.evidence) == (NOW + MINUTE, HANDSHAKE)


@pytest.mark.parametrize("until", [NOW + 9 * DAY, None])
def test_proof_is_kept_though_it_makes_a_ban_no_longer(until: datetime | None) -> None:
    ban = made(
        decision(event(), evidence=HANDSHAKE, past=Past(standing=standing(until=until)), policy=rules(ban_for="1h"))
    )
    assert (ban.until, ban.since, ban.evidence, ban.reason) == (until, NOW - HOUR, HANDSHAKE, "syn scan, port tcp/23")


def test_a_longer_ban_inside_a_wider_one_is_a_ban_of_its_own_but_no_other_is() -> None:
    wider = standing(until=NOW + HOUR, origin=Origin.STORE)._replace(network=parse_network("192.0.2.0/24"))
    proven = decision(event(), evidence=HANDSHAKE, past=Past(standing=wider))
    assert network_text(made(proven).network) == "192.0.2.7"
    short = decision(event(), evidence=HANDSHAKE, past=Past(standing=wider), policy=rules(ban_for="1m"))
    assert (short.ban, short.merges) == (None, True)


# Lines of one second are in no order


@pytest.mark.parametrize("ban_for", ["1h", "permanent"])
def test_what_comes_first_in_a_second_does_not_change_the_end(ban_for: str) -> None:
    policy = rules(ban_for=ban_for)
    ends = set()
    for order in permutations([(SPOOFABLE, 100), (HANDSHAKE, 200), (SPOOFABLE, 900)]):
        ban = None
        for evidence, ms in order:
            seen = event(time=NOW - HOUR / 2 + timedelta(milliseconds=ms))
            ban = decision(seen, evidence=evidence, past=Past(standing=ban), policy=policy).ban or ban
        assert ban is not None
        ends.add((ban.since, ban.until, ban.evidence))
    lasting = None if ban_for == "permanent" else NOW - HOUR / 2 + DAY
    assert ends == {(NOW - HOUR / 2, lasting, HANDSHAKE)}


def test_forgeable_evidence_of_a_later_second_does_not_lengthen_a_proven_ban() -> None:
    past = Past(standing=made(decision(event(), evidence=HANDSHAKE, policy=rules(ban_for="1h"))))
    later = decide(event(time=NOW + SECOND), Dialect.PORTSENTRY_2, LINE, SPOOFABLE,
                   source_of(event().address, rules(), NOBODY), past, rules(), NOW + SECOND)  # fmt: skip
    assert (later.ban, later.merges) == (None, True)


# What a store holds


def adoption(
    since: datetime | None = None,
    until: datetime | None = None,
    *,
    network: str = "192.0.2.7",
    past: Past | None = None,
    exemptions: Exemptions = NOBODY,
    policy: PolicySettings | None = None,
) -> Decision:
    observed = ObservedBan(network=parse_network(network), since=since, until=until)
    return adopted(observed, "fail2ban", past or Past(), policy or rules(), exemptions, NOW)


def test_what_a_store_holds_is_adopted_like_forgeable_evidence() -> None:
    assert made(adoption()) == Ban(
        network=parse_network("192.0.2.7"),
        since=NOW,
        until=NOW + DAY,
        origin=Origin.STORE,
        reason="found in fail2ban",
        evidence=SPOOFABLE,
    )


@pytest.mark.parametrize(("until", "kept"), [(NOW + HOUR, NOW + HOUR), (NOW + 9 * DAY, NOW + DAY), (None, NOW + DAY)])
def test_a_stores_own_end_counts_if_it_is_earlier(until: datetime | None, kept: datetime) -> None:
    assert made(adoption(until=until)).until == kept


def test_a_stores_own_end_counts_against_a_permanent_ban() -> None:
    assert made(adoption(until=NOW + HOUR, policy=rules(ban_for_spoofable="permanent"))).until == NOW + HOUR


def test_a_stores_time_is_the_beginning_and_a_future_one_is_now() -> None:
    assert made(adoption(since=NOW - HOUR)).until == NOW + DAY - HOUR
    assert made(adoption(since=NOW + HOUR)).since == NOW


def test_a_store_brings_no_ban_back_that_ended_or_would_have() -> None:
    assert adoption(since=NOW - DAY).why == "its ban would already be over"
    assert adoption(until=NOW).why == "its ban would already be over"
    past = Past(tombstone=tombstone(ended=NOW - MINUTE))
    assert adoption(since=NOW - MINUTE, past=past).why == "its ban ended (expired)"
    assert adoption(since=NOW - SECOND, past=past).ban is not None


@pytest.mark.parametrize("network", ["192.0.2.7", "192.0.0.0/16", "0.0.0.0/0"])
def test_a_store_bans_nobody_exempt(network: str) -> None:
    assert "is exempt" in adoption(network=network, exemptions=exempt("192.0.2.7")).why


def test_a_rule_inside_an_adopted_network_does_not_rule_all_of_it() -> None:
    assert made(adoption(network="10.0.0.0/7", policy=rules(network=NETWORKS))).until == NOW + DAY
    assert made(adoption(network="10.1.0.0/17", policy=rules(network=NETWORKS))).until is None
