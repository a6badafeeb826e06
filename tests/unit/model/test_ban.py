from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from jailbridge.model.ban import Ban, EndReason, Origin, ReadMark, Tombstone
from jailbridge.model.event import LogLine
from jailbridge.model.network import parse_network

ENDED = datetime(2026, 11, 22, 12, 0, 0, 500000, tzinfo=UTC)
SECOND = timedelta(seconds=1)
NETWORK = parse_network("192.0.2.7")


def tombstone(*, offset: int | None = 1000) -> Tombstone:
    marks = {} if offset is None else {"/log": ReadMark(device=1, inode=2, offset=offset)}
    return Tombstone(network=NETWORK, ended=ENDED, why=EndReason.OPERATOR, bans=1, marks=marks)


def line(offset: int, *, path: str = "/log", inode: int = 2, device: int = 1) -> LogLine:
    return LogLine(path=path, device=device, inode=inode, offset=offset, text=b"")


def test_a_ban_is_over_at_its_end_and_a_permanent_one_never() -> None:
    ban = Ban(network=NETWORK, since=ENDED - SECOND, until=ENDED, origin=Origin.SENSOR, reason="scan")
    assert not ban.is_over(ENDED - timedelta(microseconds=1))
    assert ban.is_over(ENDED)
    permanent = Ban(network=NETWORK, since=ENDED, until=None, origin=Origin.SENSOR, reason="scan")
    assert not permanent.is_over(datetime.max.replace(tzinfo=UTC))


@pytest.mark.parametrize("offset", [0, 999])
def test_a_line_that_had_been_read_when_the_ban_ended_predates_it(offset: int) -> None:
    assert tombstone().predates(ENDED - SECOND, line(offset))


@pytest.mark.parametrize("offset", [1000, 5000])
@pytest.mark.parametrize("age", [-SECOND, SECOND])
def test_a_line_past_what_had_been_read_is_new_whatever_its_time(offset: int, age: timedelta) -> None:
    assert not tombstone().predates(ENDED - age, line(offset))


def test_a_file_that_was_cut_short_and_written_anew_is_judged_by_time() -> None:
    # logrotate's copytruncate keeps the inode: a scan at offset 0 after the unban is no old one.
    assert not tombstone().predates(ENDED + SECOND, line(0))


@pytest.mark.parametrize("other", [line(0, inode=3), line(0, device=7), line(0, path="/log.1"), None])
def test_any_other_source_is_judged_by_time(other: LogLine | None) -> None:
    assert tombstone().predates(ENDED - SECOND, other)
    assert tombstone().predates(ENDED, other)
    assert not tombstone().predates(ENDED + SECOND, other)


def test_a_line_of_whole_seconds_in_the_second_of_the_end_predates_it() -> None:
    assert tombstone(offset=None).predates(ENDED.replace(microsecond=0), line(5000))
    assert not tombstone(offset=None).predates(ENDED.replace(microsecond=0) + SECOND, line(0))


@pytest.mark.parametrize("ended", [ENDED, ENDED.replace(microsecond=0)])
def test_a_line_in_the_second_in_which_a_ban_ran_out_is_new(ended: datetime) -> None:
    """Whoever scans on is told of once; if that were passed over nobody would notice him again."""
    over = replace(tombstone(offset=None), ended=ended, why=EndReason.EXPIRED)
    assert not over.predates(ended.replace(microsecond=0), line(0))
    assert over.predates(ended.replace(microsecond=0) - SECOND, line(5000))
