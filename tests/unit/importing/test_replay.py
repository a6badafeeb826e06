"""Old lines lead to the bans that the daemon would hold by now."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from jailbridge.config.settings import EvidenceRule, PolicySettings, SensorMode
from jailbridge.host import Surroundings
from jailbridge.importing.replay import Replay, kept
from jailbridge.model.ban import Ban
from jailbridge.model.event import Dialect, Kind, LogLine, Protocol, ScanEvent
from jailbridge.model.network import network_text, parse_network
from jailbridge.policy.exempt import Exemptions

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def feed(replay: Replay, *lines: tuple[str, float], mode: SensorMode = SensorMode.STEALTH, **said: bool) -> None:
    """Add lines of a source, so many hours ago."""
    for source, ago in lines:
        event = ScanEvent(
            NOW - timedelta(hours=ago),
            ip_address(source),
            23,
            Protocol.TCP,
            Kind.UNKNOWN,
            **said,  # type: ignore[arg-type]
        )
        replay.add(LogLine("h", 0, 0, 0, b"x"), event, Dialect.PORTSENTRY_1, EvidenceRule.AUTO, mode)


def ends(replay: Replay) -> dict[str, float | None]:
    """Return in how many hours each ban ends."""
    return {
        network_text(ban.network): None if ban.until is None else (ban.until - NOW) / timedelta(hours=1)
        for ban in replay.bans()
    }


def rules(**more: object) -> PolicySettings:
    return PolicySettings.model_validate({"allow_files": [], **more})


def test_a_ban_runs_from_its_line_and_one_that_is_over_is_not_made() -> None:
    replay = Replay(rules(), Exemptions(), NOW)
    feed(replay, ("203.0.113.1", 30), ("203.0.113.2", 20), ("2001:db8::7", 1))
    assert ends(replay) == {"203.0.113.2": 4, "2001:db8::/64": 23}
    assert replay.counts["over"] == 1


def test_who_came_again_is_banned_for_longer() -> None:
    replay = Replay(rules(), Exemptions(), NOW)
    feed(replay, ("203.0.113.1", 50), ("203.0.113.1", 20))
    assert ends(replay) == {"203.0.113.1": 4 * 24 - 20}


def test_a_network_has_its_own_length_and_a_handshake_proves() -> None:
    replay = Replay(rules(network=[{"network": "10.0.0.0/8", "ban_for": "10m"}]), Exemptions(), NOW)
    feed(replay, ("10.0.0.7", 0.1), ("10.0.0.8", 1), ("203.0.113.1", 9000), mode=SensorMode.CONNECT)
    assert set(ends(replay)) == {"10.0.0.7", "203.0.113.1"}
    assert ends(replay)["203.0.113.1"] is None


def test_a_line_from_before_the_end_of_a_ban_does_not_ban_again() -> None:
    replay = Replay(rules(repeat_factor=1), Exemptions(), NOW)
    feed(replay, ("203.0.113.1", 100), ("203.0.113.1", 60), ("203.0.113.1", 90), ("203.0.113.1", 60))
    assert ends(replay) == {}
    assert replay.counts["over"] == 2


def test_the_exempt_and_what_is_no_scan_are_not_banned() -> None:
    replay = Replay(rules(), Exemptions.of([(parse_network("203.0.113.0/24"), "mine")], _nowhere()), NOW)
    feed(replay, ("203.0.113.1", 1))
    feed(replay, ("198.51.100.1", 1), ignored=True)
    assert ends(replay) == {}
    assert list(replay.exempt) == [parse_network("203.0.113.1")]


def test_of_marked_networks_it_is_known_whether_a_line_told_of_them() -> None:
    marked = {parse_network("203.0.113.1"), parse_network("203.0.113.2")}
    replay = Replay(rules(), Exemptions(), NOW, marked)
    feed(replay, ("203.0.113.1", 999))
    assert replay.told == {parse_network("203.0.113.1")}


def test_whatever_the_histories_hold_memory_is_bounded() -> None:
    replay = Replay(rules(max_bans=50, ban_for_spoofable="permanent"), Exemptions(), NOW)
    replay._most = 100
    feed(replay, *((f"11.0.{n // 250}.{n % 250 + 1}", 2000 - n) for n in range(1000)))
    assert len(replay._cases) <= 100
    assert replay.counts["too many"] >= 900


def test_of_too_many_bans_the_soonest_ending_forgeable_ones_go() -> None:
    replay = Replay(rules(), Exemptions(), NOW)
    feed(replay, ("203.0.113.1", 20), ("203.0.113.2", 2), ("203.0.113.3", 10))
    feed(replay, ("203.0.113.4", 23), mode=SensorMode.CONNECT)
    bans: list[Ban] = list(replay.bans())
    assert {network_text(ban.network) for ban in kept(bans, 2)} == {"203.0.113.2", "203.0.113.4"}
    assert kept(bans, 0) == []


def _nowhere() -> Surroundings:
    return Surroundings(addresses=frozenset(), broadcasts=frozenset(), gateways=frozenset())
