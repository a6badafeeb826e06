from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from itertools import pairwise

from jailbridge.history.statistics import WIDTHS_S, Source, Sources, Statistics, Timeline
from jailbridge.model.event import Dialect, Kind, Protocol, ScanEvent

START = datetime(2026, 11, 22, 6, tzinfo=UTC)


def seen(address: str, port: int = 1, protocol: Protocol = Protocol.TCP, after_s: float = 0) -> ScanEvent:
    return ScanEvent(START + timedelta(seconds=after_s), ip_address(address), port, protocol, Kind.SYN)


def test_sources_are_ranked_by_their_lines_and_have_their_ports() -> None:
    sources = Sources()
    sources.add([seen("192.0.2.1"), seen("192.0.2.2", 1), seen("192.0.2.2", 1, Protocol.UDP), seen("2001:db8::1")])
    assert sources.top(2) == [
        Source(ip_address("192.0.2.2"), 2, 2, 2),
        Source(ip_address("192.0.2.1"), 1, 1, 1),
    ]
    assert len(sources) == 3


def test_an_ipv6_source_is_not_the_ipv4_source_of_the_same_number() -> None:
    sources = Sources()
    sources.add([seen("0.0.0.7"), seen("::7")])
    assert {str(one.address) for one in sources.top(9)} == {"0.0.0.7", "::7"}


def test_up_to_the_limit_counts_are_exact() -> None:
    sources = Sources(most=4)
    sources.add([seen(f"192.0.2.{n}") for n in range(4)] * 3)
    assert sources.floor == 0
    assert [(one.lines, one.at_most) for one in sources.top(9)] == [(3, 3)] * 4


def test_a_frequent_source_outlasts_a_flood_of_others() -> None:
    sources = Sources(most=100)
    for n in range(10_000):
        sources.add([seen(str(ip_address(n + 1_000_000)))])
        if n % 10 == 0:
            sources.add([seen("192.0.2.1")])
    first = sources.top(1)[0]
    assert str(first.address) == "192.0.2.1"
    assert first.lines <= 1000 <= first.at_most
    assert len(sources) <= 100


def test_ports_are_counted_up_to_a_number_of_them() -> None:
    sources = Sources(most_ports=10)
    sources.add([seen("192.0.2.1", port) for port in range(1, 101)])
    assert (sources.top(1)[0].ports, sources.has_all_ports) == (10, False)


def test_ports_of_sources_that_are_let_go_make_room_for_others() -> None:
    sources = Sources(most=2, most_ports=3)
    sources.add([seen("192.0.2.1"), seen("192.0.2.2"), seen("192.0.2.3"), seen("192.0.2.3", 2)])
    assert sources.has_all_ports


def test_widths_divide_each_other() -> None:
    assert all(wider % width == 0 for width, wider in pairwise(WIDTHS_S))


def test_a_timeline_has_the_empty_stretches_too() -> None:
    timeline = Timeline()
    timeline.add([START, START + timedelta(seconds=3)])
    assert timeline.buckets() == ([(START + timedelta(seconds=n), int(n in {0, 3})) for n in range(4)], 1)


def test_a_timeline_is_shown_in_as_many_rows_as_there_are() -> None:
    timeline = Timeline()
    timeline.add([START + timedelta(seconds=n) for n in range(100)])
    buckets, width = timeline.buckets(10)
    assert width == 15
    assert [number for _, number in buckets] == [15] * 6 + [10]


def test_times_of_any_year_stay_within_the_bound() -> None:
    timeline = Timeline(most=512)
    times = [datetime(year, 1, 1, tzinfo=UTC) for year in range(1, 10_000)]
    timeline.add(times)
    buckets, _ = timeline.buckets(512)
    assert len(buckets) <= 512
    assert sum(number for _, number in buckets) == len(times)
    assert (timeline.first, timeline.last) == (times[0], times[-1])


def test_statistics_count_ports_kinds_and_dialects() -> None:
    statistics = Statistics()
    statistics.add([])
    statistics.add([(seen("192.0.2.1", 53, Protocol.UDP), Dialect.KERNEL)] * 2 + [(seen("192.0.2.1"), Dialect.SYSLOG)])
    assert statistics.events == 3
    assert statistics.top_ports(1) == [(Protocol.UDP, 53, 2)]
    assert statistics.kinds == {Kind.SYN: 3}
    assert statistics.dialects == {Dialect.KERNEL: 2, Dialect.SYSLOG: 1}


def test_nothing_seen_has_no_times() -> None:
    assert Timeline().buckets() == ([], 1)
    assert Sources().top(10) == []
