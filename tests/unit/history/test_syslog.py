"""Who said what in a line of a syslog file, and when; which scans PortSentry's messages tell."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest

from jailbridge.errors import ParseError
from jailbridge.history.syslog import AHEAD, KERNEL, PORTSENTRY, Said, is_line, said, scan
from jailbridge.model.event import Kind, Protocol, ScanEvent, TcpFlags
from jailbridge.portsentry import lines

NOW = datetime(2026, 11, 22, 18, tzinfo=UTC)
BOTH = (PORTSENTRY, KERNEL)
SCAN = b"attackalert: TCP SYN/Normal scan from host: x/192.0.2.7 to TCP port: 11"


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Set this process's zone; the one before is back after the test."""

    def put(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    put("UTC")
    yield put
    monkeypatch.undo()
    time.tzset()


def told(line: bytes, now: datetime = NOW) -> Said:
    found = said(line, now, BOTH)
    assert found is not None
    return found


def when(stamp: str, now: datetime = NOW) -> datetime:
    return told(f"{stamp} host portsentry[1]: x".encode(), now).time


def event(**fields: object) -> ScanEvent:
    base = ScanEvent(NOW, ip_address("192.0.2.7"), 11, Protocol.TCP, Kind.SYN)
    return base._replace(**fields)  # type: ignore[arg-type]


# when


def test_a_classic_time_is_one_of_this_systems_zone(zone: Callable[[str], None]) -> None:
    zone("Europe/Berlin")
    assert when("Nov 22 06:31:13") == datetime(2026, 11, 22, 5, 31, 13, tzinfo=UTC)
    assert when("Jul  1 06:31:13") == datetime(2026, 7, 1, 4, 31, 13, tzinfo=UTC)
    assert when("Jul  1 06:31:13").tzinfo is UTC


def test_a_time_with_a_zone_is_the_same_everywhere(zone: Callable[[str], None]) -> None:
    zone("Asia/Kolkata")
    for stamp in ("2026-11-22T06:31:13Z", "2026-11-22T08:31:13+02:00", "2026-11-22T01:01:13-0530"):
        assert when(stamp) == datetime(2026, 11, 22, 6, 31, 13, tzinfo=UTC)


def test_the_year_is_the_latest_that_is_not_over_a_day_ahead(zone: Callable[[str], None]) -> None:
    zone("UTC")
    new_year = datetime(2027, 1, 1, 0, 0, 5, tzinfo=UTC)
    assert when("Dec 31 23:59:59", new_year).year == 2026
    assert when("Jan  1 00:00:04", new_year).year == 2027
    assert when("Jan  2 00:00:05", new_year) == new_year + AHEAD
    assert when("Jan  2 00:00:06", new_year).year == 2026
    assert when("Jan  1 00:00:04", new_year - timedelta(seconds=10)).year == 2027
    assert when("Nov 22 18:00:01").year == 2026


@pytest.mark.parametrize("zone_name", ["Pacific/Kiritimati", "Etc/GMT+12"])
def test_the_year_is_told_by_local_time(zone: Callable[[str], None], zone_name: str) -> None:
    zone(zone_name)
    for hour in range(-30, 31, 6):
        now = datetime(2027, 1, 1, tzinfo=UTC) + timedelta(hours=hour)
        stamp = now.astimezone().strftime("%b %d %H:%M:%S")
        assert when(stamp, now) == now


def test_february_29th_is_of_the_last_leap_year(zone: Callable[[str], None]) -> None:
    zone("UTC")
    assert when("Feb 29 12:00:00") == datetime(2024, 2, 29, 12, tzinfo=UTC)
    assert when("Feb 29 12:00:00", datetime(2028, 2, 28, 12, tzinfo=UTC)).year == 2028
    assert when("Feb 29 12:00:00", datetime(2104, 2, 1, tzinfo=UTC)).year == 2096


def test_the_hour_that_comes_twice_is_the_second_one_once_that_has_come(zone: Callable[[str], None]) -> None:
    zone("Europe/Berlin")
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert when("Oct 25 02:30:00", first + timedelta(seconds=1)) == first
    assert when("Oct 25 02:30:00", first + timedelta(minutes=59)) == first
    assert when("Oct 25 02:30:00", first + timedelta(hours=1)) == first + timedelta(hours=1)
    assert when("Oct 25 02:30:00", NOW) == first + timedelta(hours=1)


def test_the_hour_that_never_comes_is_next_to_it(zone: Callable[[str], None]) -> None:
    zone("Europe/Berlin")
    change = datetime(2026, 3, 29, 1, tzinfo=UTC)
    assert abs(when("Mar 29 02:30:00") - change) <= timedelta(hours=1)


@pytest.mark.parametrize(
    "stamp",
    ["Feb 30 12:00:00", "Nov 31 12:00:00", "Nov  0 12:00:00", "Nov 22 24:00:00", "Nov 22 12:60:00", "Nov 22 12:00:61",
     "2026-02-29T12:00:00Z", "2026-11-22T24:00:00Z", "2026-11-22T12:00:60Z", "2026-11-22T12:00:00+24:00",
     "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "0000-01-01T00:00:00Z"],
)  # fmt: skip
def test_an_impossible_time_of_ours_is_refused_and_of_others_not_looked_at(stamp: str) -> None:
    with pytest.raises(ParseError, match="not a time"):
        when(stamp)
    assert said(f"{stamp} host sshd[1]: x".encode(), NOW, BOTH) is None


def test_a_clock_that_has_lost_the_time_is_no_trouble(zone: Callable[[str], None]) -> None:
    zone("UTC")
    with pytest.raises(ParseError, match="not a time"):
        when("Nov 22 06:31:13", datetime(1, 1, 2, tzinfo=UTC))
    assert when("Jan  1 06:31:13", datetime(1970, 1, 1, tzinfo=UTC)).year == 1970


def test_the_kernels_own_log_has_a_year(zone: Callable[[str], None]) -> None:
    zone("Europe/Berlin")
    found = told(b"[Sun Nov 22 06:31:13 2020] text")
    assert found == Said(KERNEL, b"text", datetime(2020, 11, 22, 5, 31, 13, tzinfo=UTC))
    found = told(b"2026-11-22T06:31:13,041054+00:00 text")
    assert found == Said(KERNEL, b"text", datetime(2026, 11, 22, 6, 31, 13, 41054, tzinfo=UTC))
    assert said(b"[Sun Nov 22 06:31:13 2020] text", NOW, (PORTSENTRY,)) is None


# who


@pytest.mark.parametrize("program", BOTH)
@pytest.mark.parametrize(
    "form",
    ["Nov 22 06:31:13 host {}[54]: {}", "Nov 22 06:31:13 host {}: {}", "<29>Nov 22 06:31:13 {}[54]: {}",
     "2026-11-22T06:31:13Z fe80::1 {}[54]: {}", "<29>1 2026-11-22T06:31:13Z host {} 54 - - {}",
     '1 2026-11-22T06:31:13Z - {} - ID [a b="]"][c@1 d="\\"\\]"] {}'.replace('b="]"', 'b="\\]"')],
)  # fmt: skip
def test_the_tag_says_whose_a_line_is(form: str, program: str) -> None:
    line = form.format(program, "some text").encode()
    assert (told(line).program, told(line).message) == (program, b"some text")
    (other,) = set(BOTH) - {program}
    assert said(line, NOW, (other,)) is None
    assert said(line.replace(program.encode(), b"sshd"), NOW, BOTH) is None
    assert is_line(line)


def test_anothers_tag_is_never_taken_for_a_host() -> None:
    for tag in ("sshd[5]:", "sshd:", "a]:", "[a"):
        assert said(f"Nov 22 06:31:13 {tag} portsentry[1]: ".encode() + SCAN, NOW, BOTH) is None
        assert said(f"2026-11-22T06:31:13Z {tag} portsentry 1 - - ".encode() + SCAN, NOW, BOTH) is None


def test_structured_data_that_does_not_end_hides_the_message() -> None:
    line = b'1 2026-11-22T06:31:13Z host portsentry 1 - [a b="c"'
    assert said(line + b" " + SCAN, NOW, BOTH) is None
    assert told(line + b"] " + SCAN).message == SCAN


@pytest.mark.parametrize(
    "line",
    [b"", b" ", b"\0", SCAN, b"portsentry[1]: " + SCAN, b" Nov 22 06:31:13 host portsentry[1]: " + SCAN,
     b"[12345.678901] text", b"Nov 22 06:31:13", b"2026-11-22T06:32:08.215+0000 Scan from: [192.0.2.7] (a b)"],
)  # fmt: skip
def test_what_no_daemon_writes_is_refused_and_known_for_that(line: bytes) -> None:
    assert not is_line(line)
    with pytest.raises(ParseError, match="not a line of syslog"):
        said(line, NOW, BOTH)


# what


@pytest.mark.parametrize("kind", [Kind.SYN, Kind.FIN, Kind.NULL, Kind.XMAS, Kind.CONNECT])
def test_what_our_stand_in_for_1_2_says_is_read(kind: Kind) -> None:
    seen = event(kind=kind)
    (line,) = lines.attack_1(seen, "scanner.example.net")
    assert scan(line.encode(), NOW) == seen


def test_what_our_stand_in_for_1_2_says_of_udp_and_of_odd_flags_is_read() -> None:
    for seen in (
        event(kind=Kind.UDP, protocol=Protocol.UDP),
        event(kind=Kind.CONNECT, protocol=Protocol.UDP),
        event(kind=Kind.OTHER, flags=TcpFlags.SYN | TcpFlags.FIN),
        event(kind=Kind.ACK, flags=TcpFlags.ACK),
        event(kind=Kind.OTHER),
        event(address=ip_address("2001:db8::7")),
    ):
        (line,) = lines.attack_1(seen)
        assert scan(line.encode(), NOW) == seen


def test_of_a_packet_with_options_one_line_tells_the_scan_and_the_other_none() -> None:
    first, second = lines.attack_1(event(ip_options=True))
    assert scan(first.encode(), NOW) == event()
    assert scan(second.encode(), NOW) is None


@pytest.mark.parametrize("triggered", [True, False, None])
@pytest.mark.parametrize("ignored", [True, False])
def test_what_our_stand_in_for_2_says_is_read(ignored: bool, triggered: bool | None) -> None:
    seen = event(ignored=ignored, triggered=triggered, ip_options=False)
    line, _ = lines.scan_2(seen, NOW, noblock=False, blocked=True)
    assert scan(line.encode(), NOW) == seen
    assert scan(b"attackalert: " + line.encode(), NOW) == seen


@pytest.mark.parametrize(
    "text",
    [
        lines.STARTING_1, lines.ACTIVE_1, *lines.STOPPING_1, lines.ACTIVE_2, *lines.STOPPING_2,
        lines.already_blocked_1(event(kind=Kind.CONNECT)), lines.already_blocked_2(event()),
        lines.not_blocking_1(Protocol.TCP), lines.ignored_2(ip_address("192.0.2.7"), "/etc/ignore"),
        lines.wrapped(ip_address("192.0.2.7"), "ALL: 192.0.2.7"), lines.routed(ip_address("192.0.2.7"), "true"),
        lines.commanded(ip_address("192.0.2.7"), "true"), lines.route_failed(ip_address("192.0.2.7"), "no"),
        *lines.listening_1([1], [1], Protocol.TCP, stealth=True), *lines.listening_2([1], Protocol.TCP),
        # As the programs of Debian's package have them.
        "attackalert: ERROR: Could not block host 192.0.2.7/192.0.2.7!!",
        "attackalert: ERROR: cannot open ignore file. Blocking host anyway.",
        "attackalert: Illegal IP header length detected in TCP packet: 4 from (possible) host: 192.0.2.7",
        "attackalert: Possible stealth scan from unknown host to TCP port: 7 (accept failed)",
        "securityalert: Blocking host anyway because of invalid trigger value",
        "debug: Source address 192.0.2.7 same as destination address 192.0.2.7, skipping",
        "", "x",
    ],
)  # fmt: skip
def test_what_portsentry_says_besides_tells_no_scan(text: str) -> None:
    assert scan(text.encode(), NOW) is None


@pytest.mark.parametrize(
    "message",
    [SCAN[:-3], SCAN + b"\n" + SCAN, SCAN + b" ", b"attackalert: ", b"attackalert: a new kind of alert",
     SCAN.replace(b"TCP port", b"UDP port"), SCAN.replace(b"11", b"65536"), b"Scan from: [192.0.2.7]", b"Scan from: "],
)  # fmt: skip
def test_what_begins_like_a_scan_and_is_none_is_refused(message: bytes) -> None:
    with pytest.raises(ParseError):
        scan(message, NOW)
