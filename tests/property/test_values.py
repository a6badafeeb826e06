"""Durations and port lists read back as written; any text is a value or one line of complaint."""

from datetime import timedelta
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from jailbridge.config.values import (
    MAX_DURATION,
    duration_text,
    parse_ban_duration,
    parse_duration,
    parse_ports,
    without,
)
from jailbridge.errors import ParseError

PORTS = st.sets(st.integers(1, 40) | st.integers(65500, 65535))
_SECONDS = int(MAX_DURATION.total_seconds())


def text_of(ports: set[int]) -> str:
    return ",".join(map(str, ports))


def members(text: str) -> set[int]:
    return {port for low, high in parse_ports(text) for port in range(low, high + 1)}


@given(seconds=st.integers(1, _SECONDS))
@example(seconds=_SECONDS)
def test_a_duration_reads_back_as_written(seconds: int) -> None:
    duration = timedelta(seconds=seconds)
    assert parse_duration(duration_text(duration)) == duration
    assert parse_ban_duration(duration_text(duration)) == duration


@given(text=st.text(max_size=30) | st.text("0123456789wdhms ", max_size=30))
def test_any_text_is_a_possible_duration_or_a_complaint(text: str) -> None:
    try:
        duration = parse_duration(text)
    except ParseError as error:
        complaint = str(error)
        assert complaint.isprintable()
        return
    assert timedelta() < duration <= MAX_DURATION
    assert parse_duration(duration_text(duration)) == duration


@given(ports=PORTS)
def test_a_port_list_names_its_ports_in_the_fewest_ranges(ports: set[int]) -> None:
    ranges = parse_ports(text_of(ports))
    assert {port for low, high in ranges for port in range(low, high + 1)} == ports
    assert all(high + 1 < low for (_, high), (low, _) in pairwise(ranges))
    assert parse_ports(",".join(f"{low}-{high}" for low, high in ranges)) == ranges


@given(text=st.text(max_size=40) | st.text("0123456789,- ", max_size=40))
def test_any_text_is_a_port_list_or_a_complaint(text: str) -> None:
    try:
        ranges = parse_ports(text)
    except ParseError as error:
        complaint = str(error)
        assert complaint.isprintable()
        return
    assert all(1 <= low <= high <= 65535 for low, high in ranges)


@given(ports=PORTS, excluded=PORTS)
def test_excluding_ports_is_the_difference_of_the_sets(ports: set[int], excluded: set[int]) -> None:
    left = without(parse_ports(text_of(ports)), parse_ports(text_of(excluded)))
    assert {port for low, high in left for port in range(low, high + 1)} == ports - excluded


@given(parts=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 20)), max_size=8))
def test_overlapping_ranges_are_joined(parts: list[tuple[int, int]]) -> None:
    text = ",".join(f"{low}-{low + size}" for low, size in parts)
    assert members(text) == {port for low, size in parts for port in range(low, low + size + 1)}
