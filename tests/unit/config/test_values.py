from datetime import timedelta

import pytest

from jailbridge.config.values import (
    MAX_DURATION,
    PortRange,
    duration_text,
    parse_ban_duration,
    parse_duration,
    parse_ports,
    without,
)
from jailbridge.errors import ParseError


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("90s", timedelta(seconds=90)),
        ("10m", timedelta(minutes=10)),
        ("2h", timedelta(hours=2)),
        ("1d", timedelta(days=1)),
        ("4w", timedelta(weeks=4)),
        ("1h30m", timedelta(minutes=90)),
        ("1w2d3h4m5s", timedelta(weeks=1, days=2, hours=3, minutes=4, seconds=5)),
        (" 10m ", timedelta(minutes=10)),
        ("36500d", MAX_DURATION),
    ],
)
def test_a_duration_is_read(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration


@pytest.mark.parametrize(
    "text",
    ["", " ", "0s", "0w0d", "10", "m", "-10m", "+10m", "1.5h", "10 m", "10M", "30m1h", "1h1h", "permanent", "36501d",
     "999999w", "99999999999999s", "٣m", "1d\n2h", "forever", "9" * 5000 + "s"],
)  # fmt: skip
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ParseError, match="is not a duration: write it like 90s, 10m, 2h") as error:
        parse_duration(text)
    assert len(str(error.value)) < 200


def test_a_ban_may_also_be_permanent() -> None:
    assert parse_ban_duration("permanent") is None
    assert parse_ban_duration(" permanent\t") is None
    assert parse_ban_duration("1h30m") == timedelta(minutes=90)
    with pytest.raises(ParseError, match=r"'ever' is not a duration: .*, or permanent$"):
        parse_ban_duration("ever")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (90, "1m30s"),
        (600, "10m"),
        (7200, "2h"),
        (86400, "1d"),
        (2419200, "4w"),
        (5400, "1h30m"),
        (788645, "1w2d3h4m5s"),
    ],
)
def test_a_duration_is_written_short(seconds: int, text: str) -> None:
    assert duration_text(timedelta(seconds=seconds)) == text


def test_for_ever_is_written_as_permanent() -> None:
    assert duration_text(None) == "permanent"


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("", ()),
        (" ", ()),
        ("80", ((80, 80),)),
        ("1-1023", ((1, 1023),)),
        ("1,5-11, 79", ((1, 1), (5, 11), (79, 79))),
        ("79,1 , 5 - 11", ((1, 1), (5, 11), (79, 79))),
        ("1-5,6-9,8-20,30", ((1, 20), (30, 30))),
        ("65535,65534", ((65534, 65535),)),
        ("80,", ((80, 80),)),
    ],
)
def test_a_port_list_is_read_sorted_and_joined(text: str, ranges: tuple[PortRange, ...]) -> None:
    assert parse_ports(text) == ranges


@pytest.mark.parametrize(
    "text",
    ["0", "65536", "99999", "5-1", "-5", "5-", "1-2-3", "http", "1;2", "1 2", "0x10", "٨٠", "1-65536", "1--5", "80.0",
     "+80", "9" * 5000],
)  # fmt: skip
def test_anything_else_is_no_port_list(text: str) -> None:
    with pytest.raises(ParseError, match="is not a") as error:
        parse_ports(text)
    assert len(str(error.value)) < 200


def test_the_error_names_the_bad_part_of_a_port_list() -> None:
    with pytest.raises(ParseError, match="'7x' is not a port"):
        parse_ports("1-5,7x,9")


@pytest.mark.parametrize(
    ("ranges", "excluded", "left"),
    [
        ("1-1023", "113,139", "1-112,114-138,140-1023"),
        ("1-10", "", "1-10"),
        ("1-10", "1-10", ""),
        ("1-10", "1-100", ""),
        ("1-10,20-30", "5-25", "1-4,26-30"),
        ("5-6", "1-5,6-9", ""),
        ("80", "443", "80"),
    ],
)
def test_excluded_ports_are_taken_out(ranges: str, excluded: str, left: str) -> None:
    assert without(parse_ports(ranges), parse_ports(excluded)) == parse_ports(left)
