"""Lines taken in bulk are the same as one by one; what is counted is true and bounded; what is converted is kept."""

import io
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from jailbridge.history import plain
from jailbridge.history.checking import Check
from jailbridge.history.convert import LeftOut, converted
from jailbridge.history.dialects import format_1, format_2, parse
from jailbridge.history.formats import reader
from jailbridge.history.lines import CHUNK, LogFile
from jailbridge.history.statistics import Sources, Timeline
from jailbridge.model.event import MAX_LINE, Dialect, Kind, Protocol, ScanEvent, TailFormat, TcpFlags

V1, V2 = Dialect.PORTSENTRY_1, Dialect.PORTSENTRY_2
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
ADDRESSES = st.builds(IPv4Address, st.integers(0, 2**32 - 1)) | st.builds(
    IPv6Address, st.integers(0, 2**128 - 1)
).filter(lambda address: address.ipv4_mapped is None)
TIMES = st.datetimes(
    min_value=datetime(2001, 9, 10),  # noqa: DTZ001 - Hypothesis takes naive bounds
    max_value=datetime(2286, 11, 19),  # noqa: DTZ001
    timezones=st.just(UTC),
)
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
TRUTH = st.sampled_from([True, False, None])
EVENTS = st.builds(
    ScanEvent,
    time=TIMES,
    address=ADDRESSES,
    port=st.integers(1, 65535),
    protocol=st.sampled_from(Protocol),
    kind=st.sampled_from(Kind),
    ignored=TRUTH,
    triggered=TRUTH,
    flags=st.none() | st.integers(0, 63).map(TcpFlags),
    ip_options=TRUTH,
)
# Few digits, separators and words: what looks like a line, and is none, is met often.
EDITS = st.lists(
    st.tuples(
        st.integers(0, 200), st.sampled_from([b"", b"0", b"9", b"6", b"/", b".", b" ", b"-", b"\r", b"\xff", b"%"])
    ),
    max_size=3,
)


def written(event: ScanEvent, dialect: Dialect, zone: timezone) -> bytes:
    local = event.time.astimezone(zone)
    return (format_1(event, local) if dialect is V1 else format_2(event, local)).encode()


def edited(line: bytes, edits: list[tuple[int, bytes]]) -> bytes:
    for at, text in edits:
        line = line[:at] + text + line[at + 1 :]
    return line


LINES = st.builds(
    lambda event, dialect, zone, edits: edited(written(event, dialect, zone), edits),
    EVENTS,
    st.sampled_from([V1, V2]),
    ZONES,
    st.just([]) | EDITS,
)


@given(lines=st.lists(LINES, min_size=1, max_size=6))
def test_a_block_that_is_told_at_once_is_told_the_same_line_by_line(lines: list[bytes]) -> None:
    told = plain.times_of(TailFormat.AUTO)(b"\n".join(lines), len(lines))
    if told is not None:
        assert [(event.time, dialect) for event, dialect in map(parse, lines)] == [
            (plain.time(text), told[0]) for text in told[1]
        ]


@given(event=EVENTS.filter(lambda event: event.kind not in {Kind.ACK, Kind.OTHER, Kind.UNKNOWN}), zone=ZONES)
def test_usual_lines_are_told_at_once(event: ScanEvent, zone: timezone) -> None:
    local = event.time.astimezone(zone)
    usual = event.address.version == 4 and event.port < 60000 and (local.month, local.day) != (2, 29)
    for dialect in (V1, V2):
        told = plain.times_of(TailFormat.AUTO)(written(event, dialect, zone), 1)
        assert (told is not None) or not usual


def findings(check: Check) -> dict[str, object]:
    return {name: value for name, value in vars(check).items() if not name.startswith("_")}


@given(
    lines=st.lists(LINES | st.binary(max_size=20).filter(lambda text: b"\n" not in text), max_size=8), data=st.data()
)
def test_a_check_finds_the_same_in_bulk_and_by_line_however_the_lines_come(
    lines: list[bytes], data: st.DataObject
) -> None:
    read = reader(TailFormat.AUTO)
    by_line, bulk = Check(read, NOW), Check(read, NOW, plain.times_of(TailFormat.AUTO))
    for line in lines:
        by_line.add([line])
    while lines:
        size = data.draw(st.integers(1, len(lines)))
        bulk.add(lines[:size])
        lines = lines[size:]
    assert findings(bulk) == findings(by_line)


@given(picked=st.lists(st.integers(0, 12), max_size=300), most=st.integers(1, 8))
def test_a_source_has_at_least_and_at_most_what_is_said(picked: list[int], most: int) -> None:
    sources = Sources(most=most)
    for number in picked:
        sources.add([ScanEvent(NOW, IPv4Address(number), 1, Protocol.TCP, Kind.SYN)])
    true = Counter(picked)
    held = {int(one.address): one for one in sources.top(99)}
    assert len(held) <= most
    assert sources.floor <= len(picked) / max(most / 2, 1)
    for number, lines in true.items():
        if number in held:
            assert held[number].lines <= lines <= held[number].at_most
        else:
            assert lines <= sources.floor


@given(times=st.lists(st.datetimes(timezones=st.just(UTC)), min_size=1, max_size=60), most=st.integers(101, 110))
def test_a_timeline_loses_nothing_and_stays_within_its_bound(times: list[datetime], most: int) -> None:
    timeline = Timeline(most)
    for time in times:
        timeline.add([time])
    buckets, width_s = timeline.buckets(most)
    assert len(buckets) <= most
    assert sum(number for _, number in buckets) == len(times)
    assert buckets[0][0] <= min(times)
    assert max(times) - buckets[-1][0] < timedelta(seconds=width_s) + timedelta(days=36600) * (buckets[-1][0].year == 1)


@given(event=EVENTS, zone=ZONES)
def test_a_line_of_2_written_anew_tells_the_same(event: ScanEvent, zone: timezone) -> None:
    first, _ = parse(written(event, V2, zone))
    line, changes = converted(first, V2, V2, zone)
    assert changes == []
    assert parse(line.encode()) == (first, V2)


@given(event=EVENTS, zone=ZONES)
def test_a_line_of_1_2_comes_back_from_2_the_same(event: ScanEvent, zone: timezone) -> None:
    first, _ = parse(written(event, V1, zone))
    there, _ = converted(first, V1, V2, zone)
    back, _ = converted(*parse(there.encode()), V1, zone)
    assert parse(back.encode()) == (first, V1)


@given(event=EVENTS, dialect=st.sampled_from(Dialect), to=st.sampled_from([V1, V2]))
def test_what_is_written_bans_only_for_what_triggered_and_is_not_ignored(
    event: ScanEvent, dialect: Dialect, to: Dialect
) -> None:
    acts = dialect is V1 or (event.ignored, event.triggered) == (False, True)
    try:
        line, _ = converted(event, dialect, to, UTC)
    except LeftOut:
        assert not acts
        return
    assert acts or (to is V2 and "ignored: [false] triggered: [true]" not in line)


@given(
    lines=st.lists(st.integers(0, 3).map(lambda size: b"x" * size * MAX_LINE), max_size=5),
    end=st.booleans(),
    sizes=st.lists(st.sampled_from([1, 2, MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, CHUNK]), min_size=1, max_size=9),
)
def test_any_way_of_cutting_bytes_gives_the_same_lines(lines: list[bytes], end: bool, sizes: list[int]) -> None:
    data = b"\n".join(lines) + b"\n" * end
    whole = data.split(b"\n") if data else []
    if whole and not whole[-1]:
        whole.pop()
    with TemporaryDirectory() as folder:
        path = Path(folder, "log")
        path.write_bytes(data)
        with LogFile(path) as log:
            stream, left = io.BytesIO(data), iter(sizes)
            log._read = lambda _: stream.read(next(left, CHUNK))
            got = [line for batch in log.batches() for line in batch]
            assert [line[: MAX_LINE + 1] for line in got] == [line[: MAX_LINE + 1] for line in whole]
            assert log.has_half_line is (data != b"" and not data.endswith(b"\n"))
