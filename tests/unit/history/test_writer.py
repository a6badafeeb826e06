import os
import resource
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest

from jailbridge.config.settings import HistoryDialect, HistorySettings
from jailbridge.errors import FatalError, RetryLater
from jailbridge.history.dialects import format_1, format_2, parse
from jailbridge.history.writer import HistoryWriter
from jailbridge.model.event import Dialect, Kind, Protocol, Report, ScanEvent, TcpFlags

TIME = datetime(2026, 11, 22, 6, 32, 8, 215000, tzinfo=UTC)
ADDRESSES = ["192.0.2.7", "2001:db8::7", "2001:db8:0:0:1:0:0:1", "fe80::", "::", "64:ff9b::192.0.2.7"]
LINE_1 = 80
"""Bytes of a 1.2 line of `report`, with a port of two digits."""


def report(port: int = 23, newly: bool = True, *, after_ms: int = 0, address: str = "192.0.2.7") -> Report:
    event = ScanEvent(
        time=TIME + timedelta(milliseconds=after_ms),
        address=ip_address(address),
        port=port,
        protocol=Protocol.TCP,
        kind=Kind.OTHER,
        ignored=False,
        triggered=True,
        flags=TcpFlags.SYN | TcpFlags.FIN,
        ip_options=False,
    )
    return Report(event, newly)


def ports(path: Path) -> list[int]:
    return [parse(line)[0].port for line in path.read_bytes().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "portsentry.history"


@pytest.fixture
def writer_1(path: Path) -> Iterator[HistoryWriter]:
    writer = HistoryWriter(HistorySettings(path=path))
    yield writer
    writer.close()


@pytest.fixture
def writer_2(path: Path) -> Iterator[HistoryWriter]:
    writer = HistoryWriter(HistorySettings(path=path, dialect=HistoryDialect.PORTSENTRY_2))
    yield writer
    writer.close()


def test_1_2_has_a_line_when_a_source_triggers_and_no_other(writer_1: HistoryWriter, path: Path) -> None:
    batch = [report(1, False), report(2), report(3, False)]
    assert writer_1.report(batch) == 3
    assert [writer_1.has_line(each) for each in batch] == [False, True, False]
    assert ports(path) == [2]
    assert parse(path.read_bytes().removesuffix(b"\n"))[1] is Dialect.PORTSENTRY_1


def test_2_has_a_line_for_every_event(writer_2: HistoryWriter, path: Path) -> None:
    batch = [report(1, False), report(2), report(3, False)]
    assert writer_2.report(batch) == 3
    assert all(writer_2.has_line(each) for each in batch)
    assert ports(path) == [1, 2, 3]
    assert parse(path.read_bytes().split(b"\n")[0]) == (report(1).event, Dialect.PORTSENTRY_2)


def test_each_line_shows_its_own_time_and_address(writer_1: HistoryWriter, writer_2: HistoryWriter, path: Path) -> None:
    times = [0, 1, 784, 785, 1785, 999, 3_600_000, 86_400_000 * 180]
    batch = [report(after_ms=time) for time in times] + [report(address=address) for address in ADDRESSES]
    writer_1.report(batch)
    writer_2.report(batch)
    assert path.read_text().splitlines() == [
        *(format_1(event, event.time.astimezone()) for event, _, _ in batch),
        *(format_2(event, event.time.astimezone()) for event, _, _ in batch),
    ]


def test_a_name_is_shown(writer_1: HistoryWriter, writer_2: HistoryWriter, path: Path) -> None:
    named = report()._replace(name="scanner.example")
    writer_1.report([named])
    writer_2.report([named])
    of_1, of_2 = path.read_text().splitlines()
    assert " Host: scanner.example/192.0.2.7 Port: " in of_1
    assert " Scan from: [192.0.2.7] (scanner.example) protocol: " in of_2


def test_reports_without_a_line_touch_no_file(writer_1: HistoryWriter, path: Path) -> None:
    assert writer_1.report([]) == 0
    assert writer_1.report([report(newly=False)] * 3) == 3
    assert not path.exists()


def limited(writer: HistoryWriter, batch: list[Report], size: int) -> int:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        return writer.report(batch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("room", "taken"), [(0, 1), (1, 3), (1.5, 3), (2, 4), (3, 6)])
def test_reports_are_taken_up_to_the_first_line_that_does_not_fit(
    writer_1: HistoryWriter, path: Path, room: float, taken: int
) -> None:
    batch = [report(10, False), report(11), report(12, False), report(13), report(14), report(15, False)]
    writer_1.report([report(99)])
    size = path.stat().st_size
    assert size == LINE_1

    assert limited(writer_1, batch, size + int(room * size)) == taken
    assert writer_1.report(batch[taken:]) == 6 - taken
    whole = [int(line.split(b" Port: ")[1][:2]) for line in path.read_bytes().splitlines() if line.endswith(b"Blocked")]
    assert whole == [99, 11, 13, 14]


def test_a_first_report_that_cannot_be_written_is_to_be_retried(writer_1: HistoryWriter, path: Path) -> None:
    with pytest.raises(RetryLater, match=f"history {path} cannot be written: File too large: "):
        limited(writer_1, [report()], 10)
    assert writer_1.report([report()]) == 1


def test_the_history_is_claimed_handed_over_and_checked_through_its_writer(
    writer_1: HistoryWriter, writer_2: HistoryWriter, path: Path
) -> None:
    writer_1.claim([Protocol.TCP])
    writer_1.hand_over(os.geteuid(), os.getegid())
    writer_1.check()
    with pytest.raises(FatalError, match="is written by another process"):
        writer_2.claim([Protocol.TCP])
    writer_2.claim([Protocol.UDP])
