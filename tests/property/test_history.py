"""What is written is read back; an edited line names the address of PortSentry's own field, or none."""

from datetime import UTC, datetime, timedelta, timezone
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jailbridge.errors import ParseError
from jailbridge.history.dialects import format_1, format_2, parse
from jailbridge.model.event import Dialect, Kind, Protocol, ScanEvent, TcpFlags
from jailbridge.model.network import Address, parse_address

V4 = st.builds(IPv4Address, st.integers(0, 2**32 - 1))
V6 = st.builds(IPv6Address, st.integers(0, 2**128 - 1)).filter(lambda address: address.ipv4_mapped is None)
TIMES = st.datetimes(
    min_value=datetime(2001, 9, 10),  # noqa: DTZ001 - Hypothesis takes naive bounds
    max_value=datetime(2286, 11, 20),  # noqa: DTZ001
    timezones=st.just(UTC),
)
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
# Only these types of the 2.x dialect tell the flags too; OTHER without any is a packet whose flags were not seen.
FLAGS = st.integers(1, 63).map(TcpFlags)
KINDS = st.sampled_from([kind for kind in Kind if kind not in {Kind.ACK, Kind.OTHER, Kind.UNKNOWN}]).map(
    lambda kind: (kind, None)
) | (st.none() | FLAGS).map(lambda flags: (Kind.ACK if flags == TcpFlags.ACK else Kind.OTHER, flags))
TRUTH = st.sampled_from([True, False, None])


def seen(kind: tuple[Kind, TcpFlags | None], **fields: Any) -> ScanEvent:
    return ScanEvent(kind=kind[0], flags=kind[1], **fields)


EVENTS = st.builds(
    seen,
    kind=KINDS,
    time=TIMES,
    address=V4 | V6,
    port=st.integers(1, 65535),
    protocol=st.sampled_from(Protocol),
    ignored=TRUTH,
    triggered=TRUTH,
    ip_options=TRUTH,
)
NAMES = st.binary(max_size=40) | st.sampled_from(
    [b"x/198.51.100.1", b"[198.51.100.1]", b"x) (y", b"198.51.100.1 Port: 1 TCP Blocked", b"\r\n", b"a" * 1026]
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "delete", "replace", "copy"]),
        st.integers(0, 400),
        st.sampled_from([b"/", b"[", b"]", b"(", b")", b" ", b"\r", b"\n", b"\0", b":", b".", b"%", b"0", b"\xd9\xa2"])
        | st.binary(min_size=1, max_size=3),
        st.integers(1, 60),
    ),
    max_size=4,
)


def edited(line: bytes, edits: list[tuple[str, int, bytes, int]]) -> bytes:
    for what, place, text, size in edits:
        at = min(place, len(line))
        match what:
            case "insert":
                line = line[:at] + text + line[at:]
            case "delete":
                line = line[:at] + line[at + size :]
            case "replace":
                line = line[:at] + text + line[at + len(text) :]
            case _:
                line = line[:at] + line[at : at + size] + line[at:]
    return line


def own_field(line: bytes, dialect: Dialect) -> Address:
    if dialect is Dialect.PORTSENTRY_1:
        field = line.rpartition(b"/")[2].partition(b" ")[0]
    else:
        field = line.partition(b"[")[2].partition(b"]")[0]
    return parse_address(field.decode("ascii"))


@given(event=EVENTS, zone=ZONES, name=st.text(max_size=40), noblock=TRUTH, blocked=TRUTH)
def test_a_line_of_2_reads_back(
    event: ScanEvent, zone: timezone, name: str, noblock: bool | None, blocked: bool | None
) -> None:
    line = format_2(event, event.time.astimezone(zone), name=name, noblock=noblock, blocked=blocked).encode("ascii")
    told = event._replace(time=event.time.replace(microsecond=event.time.microsecond // 1000 * 1000))
    assert parse(line) == (told, Dialect.PORTSENTRY_2)


@given(event=EVENTS, zone=ZONES, name=st.text(max_size=40))
def test_a_line_of_1_2_reads_back(event: ScanEvent, zone: timezone, name: str) -> None:
    line = format_1(event, event.time.astimezone(zone), name).encode("ascii")
    read, dialect = parse(line)
    assert dialect is Dialect.PORTSENTRY_1
    assert read.time == event.time.replace(microsecond=0)
    assert (read.address, read.port, read.protocol) == (event.address, event.port, event.protocol)
    assert (read.kind, read.ignored, read.triggered) == (Kind.UNKNOWN, None, None)


@given(event=EVENTS, edits=EDITS, dialect=st.sampled_from([Dialect.PORTSENTRY_1, Dialect.PORTSENTRY_2]))
def test_an_edited_line_names_the_address_of_its_own_field_or_is_refused(
    event: ScanEvent, edits: list[tuple[str, int, bytes, int]], dialect: Dialect
) -> None:
    line = format_1(event, event.time) if dialect is Dialect.PORTSENTRY_1 else format_2(event, event.time)
    changed = edited(line.encode("ascii"), edits)
    try:
        read, found = parse(changed)
    except ParseError:
        return
    assert read.address == own_field(changed, found)
    assert 1 <= read.port <= 65535


@given(event=EVENTS, name=NAMES, dialect=st.sampled_from([Dialect.PORTSENTRY_1, Dialect.PORTSENTRY_2]))
def test_a_name_without_blanks_changes_nothing_and_any_other_is_refused(
    event: ScanEvent, name: bytes, dialect: Dialect
) -> None:
    text = str(event.address).encode()
    if dialect is Dialect.PORTSENTRY_1:
        line = format_1(event, event.time).encode()
        named = line.replace(b"Host: " + text + b"/", b"Host: " + name + b"/")
    else:
        line = format_2(event, event.time).encode()
        named = line.replace(b"(" + text + b")", b"(" + name + b")")
    harmless = 1 <= len(name) <= 1025 and all(byte > 0x20 and byte != 0x7F for byte in name)
    try:
        read = parse(named)
    except ParseError:
        assert not harmless
        return
    assert harmless
    assert read == parse(line)


@given(line=st.binary(max_size=300))
def test_any_bytes_are_an_event_or_one_line_of_complaint(line: bytes) -> None:
    try:
        parse(line)
    except ParseError as error:
        complaint = str(error)
        assert complaint.isprintable()


ADDRESS_TEXTS = (
    st.text("0123456789abcdefABCDEF:.%/ \u0662\0", max_size=50)
    | st.text(max_size=20)
    | st.lists(st.text("0123456789", min_size=1, max_size=4), min_size=3, max_size=5).map(".".join)
    | st.lists(st.text("0123456789abcdef", max_size=5), min_size=2, max_size=9).map(":".join)
    | (V4 | V6).map(str)
    | V4.map("::ffff:{}".format)
)


@given(text=ADDRESS_TEXTS)
def test_an_address_without_a_zone_is_what_python_takes_it_for(text: str) -> None:
    try:
        expected = None if "%" in text else ip_address(text)
    except ValueError:
        expected = None
    if isinstance(expected, IPv6Address) and expected.ipv4_mapped is not None:
        expected = expected.ipv4_mapped
    try:
        read = parse_address(text)
    except ParseError:
        assert expected is None
        return
    assert "%" in text or read == expected


@given(clock=st.from_regex(rb"\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-6]\d:[0-6]\d\.\d{3}[+-][0-2]\d[0-6]\d", fullmatch=True))
def test_a_time_of_2_is_what_strptime_takes_it_for(clock: bytes) -> None:
    line = (
        clock + b" Scan from: [192.0.2.7] (x) protocol: [TCP] port: [23] type: [Connect] IP opts: [unknown] "
        b"ignored: [false] triggered: [true] noblock: [true] blocked: [false]"
    )
    try:
        expected = datetime.strptime(clock.decode(), "%Y-%m-%dT%H:%M:%S.%f%z").astimezone(UTC)
    except (ValueError, OverflowError):
        expected = None
    try:
        read = parse(line)[0].time
    except ParseError:
        assert expected is None
        return
    assert read == expected
