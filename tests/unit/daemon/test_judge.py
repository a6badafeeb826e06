"""Real lines, a real ledger, this machine's own place in the network; only the clocks are ours."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest

from jailbridge.config import Settings, parse
from jailbridge.daemon.brake import Brake
from jailbridge.daemon.exemptions import FRESH_S, PresentExemptions
from jailbridge.daemon.judge import Judge, Judged
from jailbridge.errors import RetryLater
from jailbridge.history.dialects import format_1, format_2
from jailbridge.host import surroundings
from jailbridge.ledger import Ledger
from jailbridge.ledger.story import FIRST, LAST
from jailbridge.model.ban import Ban, EndReason, Origin
from jailbridge.model.event import Evidence, Kind, LogLine, Protocol, ScanEvent, TailPosition
from jailbridge.model.network import network_text, parse_network

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)


class Clock:
    """Monotonic seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite3") as ledger:
        yield ledger


@pytest.fixture
def allow_file(tmp_path: Path) -> Path:
    path = tmp_path / "allow"
    path.touch()
    return path


def settings(allow_file: Path, *, tail: dict[str, str] | None = None, **policy: object) -> Settings:
    return Settings.model_validate(
        {
            "history": {"path": "/log"},
            "tail": [{"path": "/log"} | (tail or {})],
            "policy": {"allow_files": [allow_file], **policy},
        }
    )


def judge_of(settings: Settings, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> Judge:
    return Judge(settings, ledger, PresentExemptions(settings.policy, clock), clock)


def weigh(judge: Judge, lines: Sequence[LogLine], now: datetime) -> Judged:
    return judge.weigh(lines, judge._settings.tail[0], now)


def bans_of(judge: Judge, lines: Sequence[LogLine], now: datetime) -> Sequence[Ban]:
    return weigh(judge, lines, now).bans


@pytest.fixture
def judge(ledger: Ledger, allow_file: Path, clock: Clock) -> Judge:
    return judge_of(settings(allow_file), ledger, clock)


def event(address: str, kind: Kind = Kind.SYN, *, time: datetime = NOW) -> ScanEvent:
    return ScanEvent(
        time=time, address=ip_address(address), port=23, protocol=Protocol.TCP, kind=kind, ignored=False, triggered=True
    )


def line(text: str | bytes, offset: int = 0) -> LogLine:
    text = text if isinstance(text, bytes) else text.encode("ascii")
    return LogLine(path="/log", device=1, inode=2, offset=offset, text=text)


def scans(*addresses: str, kind: Kind = Kind.SYN, time: datetime = NOW) -> list[LogLine]:
    return [line(format_2(event(a, kind, time=time), time), n) for n, a in enumerate(addresses)]


def sources(count: int, start: int = 0) -> list[str]:
    return [str(ip_address("198.18.0.0") + n) for n in range(start, start + count)]


def names(bans: object) -> list[str]:
    return [network_text(ban.network) for ban in bans]  # type: ignore[attr-defined]


def test_lines_of_both_dialects_become_bans(judge: Judge) -> None:
    both = [line(format_1(event("198.18.0.1"), NOW)), line(format_2(event("2001:db8::7"), NOW), 80)]
    bans = bans_of(judge, both, NOW)
    assert names(bans) == ["198.18.0.1", "2001:db8::/64"]
    assert [(ban.file, ban.offset, ban.until) for ban in bans] == [("/log", 0, NOW + DAY), ("/log", 80, NOW + DAY)]
    assert judge.counts == {"accepted": 2}


def test_a_line_of_another_dialect_than_the_tails_is_refused(ledger: Ledger, allow_file: Path) -> None:
    judge = judge_of(settings(allow_file, tail={"format": "portsentry-1.2"}), ledger)
    assert bans_of(judge, scans("198.18.0.1"), NOW) == []
    assert judge.counts == {"refused": 1}


def test_a_refused_line_bans_nobody_and_stops_nothing(judge: Judge, caplog: pytest.LogCaptureFixture) -> None:
    junk = line(b"\x1b[2J 198.18.0.9 \xff\n")
    assert names(bans_of(judge, [junk, *scans("198.18.0.1"), junk], NOW)) == ["198.18.0.1"]
    assert judge.counts == {"accepted": 1, "refused": 2}
    assert caplog.messages
    assert all(message.isprintable() for message in caplog.messages)


def test_a_flood_of_refused_lines_is_told_once_a_minute(
    judge: Judge, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    bans_of(judge, [line(b"junk")] * 1000, NOW)
    assert len(caplog.messages) == 1
    clock.now += 60
    bans_of(judge, [line(b"junk")] * 1000, NOW)
    assert len(caplog.messages) == 2
    assert judge.counts["refused"] == 2000


def test_a_line_of_2_that_says_less_than_triggered_bans_nobody(judge: Judge) -> None:
    for changes in ({"triggered": None}, {"triggered": False}, {"ignored": True}, {"ignored": None}):
        scan = event("198.18.0.1")._replace(**changes)
        assert bans_of(judge, [line(format_2(scan, NOW))], NOW) == []


def test_this_hosts_own_addresses_and_gateways_are_never_banned(judge: Judge) -> None:
    around = surroundings()
    own = [str(address) for address in (*around.addresses, *around.gateways, *around.broadcasts)]
    assert own
    assert bans_of(judge, scans(*own, kind=Kind.CONNECT), NOW) == []


def test_an_allowed_source_is_not_banned(judge: Judge, allow_file: Path) -> None:
    allow_file.write_text("198.18.0.0/31\n")
    assert names(bans_of(judge, scans("198.18.0.0", "198.18.0.1", "198.18.0.2"), NOW)) == ["198.18.0.2"]


# While a list cannot be read


def test_while_an_allow_list_cannot_be_read_nobody_is_banned_and_it_recovers(
    judge: Judge, allow_file: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    allow_file.write_text("198.18.0.1\nnonsense\n")
    for _ in range(3):
        with pytest.raises(RetryLater, match=rf"allow file {allow_file}:2: .*nobody new is banned until it is mended"):
            bans_of(judge, scans("198.18.0.2"), NOW)
        assert not judge._exemptions()
        clock.now += FRESH_S
    (told,) = caplog.messages
    assert told == judge._exemptions.problem

    allow_file.write_text("198.18.0.1\n")
    assert names(bans_of(judge, scans("198.18.0.1", "198.18.0.2"), NOW)) == ["198.18.0.2"]
    assert not judge._exemptions.problem
    assert caplog.messages[-1] == "what exempts is readable again"


def test_a_list_that_disappears_is_noticed(judge: Judge, allow_file: Path, clock: Clock) -> None:
    assert len(bans_of(judge, scans("198.18.0.1"), NOW)) == 1
    allow_file.unlink()
    clock.now += FRESH_S
    with pytest.raises(RetryLater, match="is not there"):
        bans_of(judge, scans("198.18.0.2"), NOW)


def test_nobody_new_is_banned_while_the_allow_list_in_a_damaged_ledger_cannot_be_read(
    tmp_path: Path, allow_file: Path, clock: Clock
) -> None:
    path = tmp_path / "ledger.sqlite3"
    Ledger.held(path).close()
    path.write_bytes(b"garbage" * 1000)
    with Ledger.held(path) as ledger:
        judge = judge_of(settings(allow_file), ledger, clock)
        with pytest.raises(RetryLater, match=r"whom `jailbridge allow` had in the damaged ledger .* cannot be read"):
            bans_of(judge, scans("198.18.0.1"), NOW)
        assert judge.left() == 0, "nor is anybody whom fail2ban bans"
        assert str(path) in str(judge.problem)
        path.with_name("ledger.sqlite3.damaged").unlink()
        assert names(bans_of(judge, scans("198.18.0.1"), NOW)) == ["198.18.0.1"]
        assert judge.left() > 0
        assert judge.problem is None


def test_lists_are_read_again_at_most_once_a_second(judge: Judge, allow_file: Path, clock: Clock) -> None:
    judge._exemptions()
    allow_file.write_text("198.18.0.1\n")
    clock.now += FRESH_S / 2
    assert len(bans_of(judge, scans("198.18.0.1"), NOW)) == 1
    clock.now += FRESH_S / 2
    assert bans_of(judge, scans("198.18.0.1"), NOW) == []


# The past


def record(ledger: Ledger, *bans: Ban) -> None:
    ledger.record(bans, now=NOW)


def ban(network: str, *, until: datetime | None, evidence: Evidence | None = Evidence.SPOOFABLE,
        origin: Origin = Origin.SENSOR) -> Ban:  # fmt: skip
    return Ban(
        network=parse_network(network), since=NOW - DAY, until=until, origin=origin, reason="x", evidence=evidence
    )


def test_one_source_in_one_batch_is_one_ban(judge: Judge) -> None:
    assert names(bans_of(judge, scans("198.18.0.1", "198.18.0.1", "198.18.0.1"), NOW)) == ["198.18.0.1"]
    assert names(bans_of(judge, scans("2001:db8::1", "2001:db8::2"), NOW)) == ["2001:db8::/64"]


def test_proof_later_in_a_batch_makes_the_ban_longer(judge: Judge) -> None:
    (made,) = bans_of(judge, [*scans("198.18.0.1"), *scans("198.18.0.1", kind=Kind.CONNECT)], NOW)
    assert (made.until, made.evidence) == (None, Evidence.HANDSHAKE)


def test_forgeable_evidence_later_in_a_batch_does_not_shorten_a_ban(judge: Judge) -> None:
    (made,) = bans_of(judge, [*scans("198.18.0.1", kind=Kind.CONNECT), *scans("198.18.0.1")], NOW)
    assert (made.until, made.evidence) == (None, Evidence.HANDSHAKE)


def test_a_source_counts_once_against_the_brake(ledger: Ledger, allow_file: Path, clock: Clock) -> None:
    judge = judge_of(settings(allow_file, max_new_spoofable_per_minute=2), ledger, clock)
    seen = ["198.18.0.1", "198.18.0.1", "198.18.0.1", "198.18.0.2"]
    assert names(bans_of(judge, scans(*seen), NOW)) == ["198.18.0.1", "198.18.0.2"]


def test_a_source_whose_network_is_banned_is_not_banned_again(judge: Judge, ledger: Ledger) -> None:
    record(ledger, ban("198.18.0.0/16", until=None, origin=Origin.OPERATOR, evidence=None))
    assert bans_of(judge, scans("198.18.0.1", kind=Kind.CONNECT), NOW) == []


def test_a_scan_after_the_end_of_a_ban_bans_again_though_nobody_has_ended_it_yet(judge: Judge, ledger: Ledger) -> None:
    # As after a night without the daemon: bans have run out meanwhile, and PortSentry went on writing.
    record(ledger, ban("198.18.0.1", until=NOW - HOUR))
    (made,) = bans_of(judge, scans("198.18.0.1", time=NOW - HOUR + SECOND), NOW)
    assert made.until == NOW - HOUR + SECOND + 4 * DAY
    tombstone = ledger.tombstone(parse_network("198.18.0.1"))
    assert tombstone is not None
    assert (tombstone.ended, tombstone.why, tombstone.bans) == (NOW - HOUR, EndReason.EXPIRED, 1)


def test_a_scan_before_the_end_of_a_ban_that_is_over_does_not(judge: Judge, ledger: Ledger) -> None:
    record(ledger, ban("198.18.0.1", until=NOW - HOUR))
    assert bans_of(judge, scans("198.18.0.1", time=NOW - HOUR - SECOND), NOW) == []


def test_only_the_bans_of_those_who_scan_are_ended_here(judge: Judge, ledger: Ledger) -> None:
    # The others' ends are what wakes the reconciler.
    record(ledger, ban("198.18.0.1", until=NOW), ban("198.18.0.0/16", until=NOW), ban("10.0.0.1", until=NOW))
    assert names(bans_of(judge, scans("198.18.0.1", time=NOW + SECOND), NOW + SECOND)) == ["198.18.0.1"]
    assert names(ledger.bans().values()) == ["10.0.0.1"]


def test_lines_before_an_unban_are_old_and_lines_after_it_are_new(judge: Judge, ledger: Ledger) -> None:
    position = TailPosition(path="/log", device=1, inode=2, offset=500, head="")
    ledger.record([ban("198.18.0.1", until=None)], [position], now=NOW)
    ledger.end([parse_network("198.18.0.1")], EndReason.OPERATOR, now=NOW)
    text = format_2(event("198.18.0.1"), NOW)
    assert bans_of(judge, [line(text, 499)], NOW + SECOND) == []
    assert names(bans_of(judge, [line(text, 500)], NOW + SECOND)) == ["198.18.0.1"]


# What is seen again, and what is told


def recorded(ledger: Ledger, judge: Judge, lines: Sequence[LogLine], now: datetime = NOW) -> Judged:
    judged = weigh(judge, lines, now)
    ledger.record(judged.bans, now=now, merged=judged.merged, story=judged.story)
    return judged


def details(ledger: Ledger, network: str) -> list[tuple[str, str]]:
    return [(told.what, told.detail) for told in ledger.story.of(parse_network(network))]


def test_seen_again_while_banned_is_merged_and_changes_no_ban(judge: Judge, ledger: Ledger) -> None:
    recorded(ledger, judge, scans("198.18.0.1", "198.18.0.1"))
    before, change = ledger.bans()[parse_network("198.18.0.1")], ledger.last_change
    assert before.seen == (NOW, NOW, 2, ("tcp/23",))
    again = [line(format_2(event("198.18.0.1")._replace(port=port), NOW + SECOND)) for port in (80, 23)]
    assert recorded(ledger, judge, again, NOW + HOUR).bans == []
    ban = ledger.bans()[parse_network("198.18.0.1")]
    assert ban.seen == (NOW, NOW + SECOND, 4, ("tcp/23", "tcp/80"))
    assert ban._replace(seen=None) == before._replace(seen=None)
    assert ledger.last_change == change, "nothing to reconcile"
    assert details(ledger, "198.18.0.1")[-1] == ("seen", "syn scan, port tcp/23: banned already")


def test_all_that_is_seen_within_an_operators_network_is_one_tally(judge: Judge, ledger: Ledger) -> None:
    record(ledger, ban("198.18.0.0/16", until=None, origin=Origin.OPERATOR, evidence=None))
    recorded(ledger, judge, scans("198.18.0.1", "198.18.0.2", kind=Kind.CONNECT))
    (kept,) = ledger.bans().values()
    assert kept.seen is not None
    assert (kept.seen.times, kept.until, kept.evidence, kept.origin) == (2, None, None, Origin.OPERATOR)


def test_proof_after_a_ban_was_recorded_upgrades_it_once(judge: Judge, ledger: Ledger) -> None:
    recorded(ledger, judge, scans("198.18.0.1"))
    (upgraded,) = recorded(ledger, judge, scans("198.18.0.1", kind=Kind.CONNECT)).bans
    assert (upgraded.evidence, upgraded.until) == (Evidence.HANDSHAKE, None)
    assert upgraded.seen is not None
    assert upgraded.seen.times == 2
    assert recorded(ledger, judge, scans("198.18.0.1", kind=Kind.CONNECT)).bans == []
    assert [what for _, _, what, _, _ in ledger.feed()] == ["ban", "change"]


def test_proof_within_a_wider_ban_makes_one_ban_and_no_longer_one_each_time(ledger: Ledger, allow_file: Path) -> None:
    judge = judge_of(settings(allow_file, ban_for="2h"), ledger)
    record(ledger, ban("198.18.0.0/16", until=NOW + HOUR, origin=Origin.STORE))
    (inside,) = recorded(ledger, judge, scans("198.18.0.1", kind=Kind.CONNECT)).bans
    later = scans("198.18.0.1", kind=Kind.CONNECT, time=NOW + HOUR / 2)
    assert recorded(ledger, judge, later, NOW + HOUR / 2).bans == []
    assert ledger.bans()[inside.network].until == NOW + 2 * HOUR


def test_the_story_tells_what_was_made_of_every_line(ledger: Ledger, allow_file: Path, clock: Clock) -> None:
    allow_file.write_text("198.18.0.9\n")
    judge = judge_of(settings(allow_file, max_new_spoofable_per_minute=2, max_bans=5), ledger, clock)
    lines = scans("198.18.0.1", "198.18.0.1", "198.18.0.9", "2001:db8::7", "198.18.0.3")
    calm = format_2(event("198.18.0.4")._replace(triggered=False), NOW)
    recorded(ledger, judge, [*lines, line(calm, 99)])
    told = {t.network: t for n in ("198.18.0.1", "198.18.0.9", "2001:db8::/64", "198.18.0.3", "198.18.0.4")
            for t in ledger.story.of(parse_network(n)) if t.what == "seen"}  # fmt: skip
    assert {network: one.detail.partition(": ")[2] for network, one in told.items()} == {
        "198.18.0.1": "banned already",
        "198.18.0.9": f"198.18.0.9 is exempt: {allow_file}:1",
        "2001:db8::/64": "banned until 2026-11-23T12:00:00Z",
        "198.18.0.3": "braked: over policy.max_new_spoofable_per_minute",
        "198.18.0.4": "the log says not triggered, or leaves it open",
    }
    assert (told["198.18.0.4"].line, told["198.18.0.4"].offset, told["198.18.0.4"].file) == (calm, 99, "/log")


def test_of_a_source_that_fills_a_batch_the_first_and_the_last_lines_are_told(judge: Judge) -> None:
    judged = weigh(judge, [one for n in range(1000) for one in [scans("198.18.0.1")[0]._replace(offset=n)]], NOW)
    assert [sighting.line.offset for sighting in judged.story] == [*range(FIRST), *range(1000 - LAST, 1000)]
    assert judged.bans[0].seen is not None
    assert judged.bans[0].seen.times == 1000


def test_a_ban_that_there_is_no_room_for_is_told_as_given_up(ledger: Ledger, allow_file: Path) -> None:
    judge = judge_of(settings(allow_file, max_bans=1), ledger)
    record(ledger, ban("10.0.0.1", until=None))
    recorded(ledger, judge, scans("198.18.0.1"))
    assert details(ledger, "198.18.0.1") == [("seen", "syn scan, port tcp/23: given up: over policy.max_bans")]


def test_lines_of_other_programs_are_counted_and_ban_nobody(ledger: Ledger, allow_file: Path) -> None:
    judge = judge_of(settings(allow_file, tail={"format": "syslog"}), ledger)
    text = b"Nov 22 12:00:00 host sshd[1]: Connection from 198.18.0.1 port 23"
    assert bans_of(judge, [line(text)], NOW) == []
    assert judge.counts == {"other": 1}


# Tombstones


def unbanned_at(ledger: Ledger, when: datetime, *, offset: int) -> None:
    position = TailPosition(path="/log", device=1, inode=2, offset=offset, head="")
    ledger.record([ban("198.18.0.1", until=None)], [position], now=when)
    ledger.end([parse_network("198.18.0.1")], EndReason.OPERATOR, now=when)


@pytest.mark.parametrize("offset", [499, 500])
def test_whole_seconds_do_not_hide_a_scan_in_the_second_of_an_unban(judge: Judge, ledger: Ledger, offset: int) -> None:
    unbanned_at(ledger, NOW + 0.3 * SECOND, offset=500)
    later = line(format_1(event("198.18.0.1"), NOW + 0.8 * SECOND), offset)
    assert len(bans_of(judge, [later], NOW + SECOND)) == (offset == 500)


@pytest.mark.parametrize("set_back", [HOUR, 400 * DAY])
def test_a_clock_set_back_after_an_unban_does_not_hide_scans(judge: Judge, ledger: Ledger, set_back: timedelta) -> None:
    unbanned_at(ledger, NOW, offset=500)
    now = NOW - set_back
    (made,) = bans_of(judge, [line(format_1(event("198.18.0.1"), now), 500)], now)
    assert (made.since, made.until) == (now, now + DAY)
    assert bans_of(judge, [line(format_1(event("198.18.0.1"), now), 499)], now) == []


def test_a_clock_set_back_before_an_unban_does_not_bring_the_ban_back(judge: Judge, ledger: Ledger) -> None:
    recorded(ledger, judge, scans("198.18.0.1"))
    unbanned_at(ledger, NOW - HOUR, offset=500)
    before = line(format_1(event("198.18.0.1"), NOW - HOUR), 400)
    assert bans_of(judge, [before], NOW - HOUR) == []
    after = line(format_1(event("198.18.0.1"), NOW - HOUR + SECOND), 500)
    assert len(bans_of(judge, [after], NOW - HOUR + SECOND)) == 1


# The brakes


def test_forgeable_bans_are_braked_and_proven_ones_are_not(ledger: Ledger, allow_file: Path, clock: Clock) -> None:
    judge = judge_of(settings(allow_file, max_new_spoofable_per_minute=3), ledger, clock)
    assert names(bans_of(judge, scans(*sources(10)), NOW)) == sources(3)
    assert judge.counts == {"accepted": 10, "braked": 7}
    assert len(bans_of(judge, scans(*sources(10, 100), kind=Kind.CONNECT), NOW)) == 10
    clock.now += 59.9
    assert bans_of(judge, scans(*sources(1, 50)), NOW) == []
    clock.now += 0.1
    assert names(bans_of(judge, scans(*sources(10, 60)), NOW)) == sources(3, 60)


def test_the_brake_on_new_bans_is_for_all_together(ledger: Ledger, allow_file: Path, clock: Clock) -> None:
    judge = judge_of(settings(allow_file, max_new_bans_per_minute=5), ledger, clock)
    assert len(bans_of(judge, scans(*sources(3)), NOW)) == 3
    assert names(bans_of(judge, scans(*sources(9, 10), kind=Kind.CONNECT), NOW)) == sources(2, 10)
    assert bans_of(judge, scans(*sources(1, 50)), NOW) == []
    clock.now += 60
    assert len(bans_of(judge, scans(*sources(9, 20)), NOW)) == 5


def test_what_is_braked_is_told_once_a_minute_with_its_key(
    ledger: Ledger, allow_file: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    judge = judge_of(settings(allow_file, max_new_spoofable_per_minute=3), ledger, clock)
    bans_of(judge, scans(*sources(1000)), NOW)
    assert len(caplog.messages) == 1
    assert "policy.max_new_spoofable_per_minute" in caplog.messages[0]
    assert caplog.records[0].levelno == logging.ERROR


def test_a_longer_ban_of_one_that_stands_is_not_braked_but_a_new_one_inside_it_is(
    ledger: Ledger, allow_file: Path, clock: Clock
) -> None:
    judge = judge_of(settings(allow_file, max_new_bans_per_minute=1), ledger, clock)
    record(ledger, *(ban(address, until=NOW + HOUR) for address in sources(3)))
    assert names(bans_of(judge, scans(*sources(3), kind=Kind.CONNECT), NOW)) == sources(3)
    record(ledger, ban("203.0.113.0/24", until=NOW + HOUR, origin=Origin.STORE))
    assert names(bans_of(judge, scans("203.0.113.1", "203.0.113.2", kind=Kind.CONNECT), NOW)) == ["203.0.113.1"]


def test_a_brake_lets_its_limit_through_in_any_minute() -> None:
    brake = Brake(2)
    passed = []
    for now in (0.0, 1.0, 2.0, 59.9, 60.0, 60.5, 61.0, 119.9, 120.0):
        if not brake.is_full(now):
            brake.count(now)
            passed.append(now)
    assert passed == [0.0, 1.0, 60.0, 61.0, 120.0]


# The most bans


def test_above_the_most_bans_the_soonest_ending_forgeable_ones_go(ledger: Ledger, allow_file: Path) -> None:
    judge = judge_of(settings(allow_file, max_bans=5), ledger)
    record(
        ledger,
        ban("10.0.0.1", until=NOW + 2 * SECOND),
        ban("10.0.0.2", until=NOW + SECOND),
        ban("10.0.0.3", until=NOW + SECOND, origin=Origin.OPERATOR, evidence=None),
        ban("10.0.0.4", until=NOW + SECOND, evidence=Evidence.HANDSHAKE),
        ban("10.0.0.5", until=NOW + 9 * DAY),
    )
    made = bans_of(judge, scans("198.18.0.1"), NOW)
    assert names(made) == ["198.18.0.1"]
    assert sorted(names(ledger.bans().values())) == ["10.0.0.1", "10.0.0.3", "10.0.0.4", "10.0.0.5"]
    ledger.record(made, now=NOW)
    made = bans_of(judge, scans(*sources(3, 10), kind=Kind.CONNECT), NOW)
    assert names(made) == sources(3, 10)
    assert sorted(names(ledger.bans().values())) == ["10.0.0.3", "10.0.0.4"]


def test_a_new_forgeable_ban_that_would_end_soonest_is_the_one_that_goes(ledger: Ledger, allow_file: Path) -> None:
    judge = judge_of(settings(allow_file, max_bans=2), ledger)
    record(ledger, ban("10.0.0.1", until=NOW + 9 * DAY), ban("10.0.0.2", until=None))
    assert bans_of(judge, scans("198.18.0.1"), NOW) == []
    assert len(ledger.bans()) == 2


def test_bans_that_nobody_can_forge_are_not_pushed_out(
    ledger: Ledger, allow_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judge = judge_of(settings(allow_file, max_bans=2), ledger)
    record(ledger, *(ban(a, until=NOW + SECOND, evidence=Evidence.HANDSHAKE) for a in ("10.0.0.1", "10.0.0.2")))
    assert bans_of(judge, scans("198.18.0.1", kind=Kind.CONNECT), NOW) == []
    assert len(ledger.bans()) == 2
    assert any("policy.max_bans" in message for message in caplog.messages)


def test_a_flood_never_holds_more_than_the_most_bans(ledger: Ledger, allow_file: Path) -> None:
    judge = judge_of(settings(allow_file, max_bans=20, max_new_spoofable_per_minute=1000), ledger)
    for start in range(0, 200, 50):
        ledger.record(bans_of(judge, scans(*sources(50, start), time=NOW + start * SECOND), NOW + DAY / 2), now=NOW)
        assert len(ledger.bans()) <= 20
    assert len(ledger.bans()) == 20


def test_what_may_be_taken_over_from_stores_passes_the_brakes(tmp_path: Path) -> None:
    now = [0.0]
    settings = parse("[policy]\nallow_files = []\nmax_new_spoofable_per_minute = 3\nmax_bans = 4", "test")
    with Ledger(tmp_path / "ledger") as ledger:
        judge = judge_of(settings, ledger, lambda: now[0])
        assert judge.left() == 3
        judge.spend(2)
        assert judge.left() == 1
        judge.spend(5)
        assert judge.left() == 0
        now[0] = 60.0
        assert judge.left() == 3
