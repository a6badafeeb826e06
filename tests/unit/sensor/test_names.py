import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address, ip_address

import pytest

from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.event import Kind, Protocol, Report, ScanEvent
from jailbridge.model.network import Address
from jailbridge.sensor.names import MAX_CACHED, MAX_REPORTS, Named, name_of, plain_name

DEADLINE_S = 10.0


def report(source: int | str = 7, port: int = 23, newly: bool = True) -> Report:
    event = ScanEvent(
        time=datetime(2026, 11, 22, tzinfo=UTC),
        address=ip_address(source) if isinstance(source, str) else IPv4Address("198.18.0.0") + source,
        port=port,
        protocol=Protocol.TCP,
        kind=Kind.SYN,
    )
    return Report(event, newly)


class History:
    """Takes reports as the writer does: at most `room` of them, none while it is `full`."""

    def __init__(self) -> None:
        self.got: list[Report] = []
        self.room = 10**9
        self.full: Exception | None = None
        self.tried = 0
        self._news = threading.Condition()

    def report(self, batch: Sequence[Report]) -> int:
        with self._news:
            self.tried += 1
            self._news.notify_all()
            if self.full is not None:
                raise self.full
            self.got += batch[: self.room]
            return min(self.room, len(batch))

    def wait_for(self, is_so: Callable[[], bool]) -> None:
        with self._news:
            assert self._news.wait_for(is_so, DEADLINE_S)

    def names(self, count: int) -> list[tuple[int, str]]:
        """Wait for so many reports; return the port and name of each."""
        self.wait_for(lambda: len(self.got) >= count)
        return [(each.event.port, each.name) for each in self.got]


@pytest.fixture
def history() -> History:
    return History()


@pytest.fixture
def hang() -> Iterator[Callable[[Address], str]]:
    """A look-up that takes as long as the test."""
    release = threading.Event()

    def lookup(address: Address) -> str:
        release.wait(DEADLINE_S * 3)
        return "late.example"

    yield lookup
    release.set()


def test_a_report_goes_on_with_its_sources_name(history: History) -> None:
    named = Named(history.report, lambda address: f"{address}.example")
    assert named.report([report(1, 10), report(2, 20)]) == 2
    assert sorted(history.names(2)) == [(10, "198.18.0.1.example"), (20, "198.18.0.2.example")]
    named.close()


def test_a_source_is_looked_up_once_and_keeps_its_order(history: History) -> None:
    asked: list[Address] = []
    go = threading.Event()

    def lookup(address: Address) -> str:
        asked.append(address)
        assert go.wait(DEADLINE_S)
        return "a.example"

    named = Named(history.report, lookup, limit_s=DEADLINE_S)
    for port in range(1, 6):
        named.report([report(7, port)])
    go.set()
    history.names(5)
    named.report([report(7, port) for port in range(6, 10)])
    assert history.names(9) == [(port, "a.example") for port in range(1, 10)]
    assert asked == [report(7).event.address]
    named.close()


def test_a_slow_name_holds_up_no_other_source(history: History) -> None:
    go = threading.Event()

    def lookup(address: Address) -> str:
        if address == report(1).event.address:
            assert go.wait(DEADLINE_S)
        return "a.example"

    named = Named(history.report, lookup, limit_s=DEADLINE_S * 2)
    named.report([report(1, 1), report(2, 2)])
    assert history.names(1) == [(2, "a.example")]
    go.set()
    assert history.names(2) == [(2, "a.example"), (1, "a.example")]
    named.close()


def test_when_all_look_ups_hang_the_addresses_are_told_in_time(
    history: History, hang: Callable[[Address], str]
) -> None:
    named = Named(history.report, hang, limit_s=2, workers=2, max_waiting=20)
    began = time.monotonic()
    assert named.report([report(source) for source in range(1000)]) == 1000
    assert history.names(980) == [(23, "")] * 980
    assert time.monotonic() - began < 2, "report, or sources beyond max_waiting, waited for names"
    assert history.names(1000) == [(23, "")] * 1000
    assert 2 <= time.monotonic() - began < 4
    named.report([report(0)])
    assert history.names(1001)[-1] == (23, "")
    assert time.monotonic() - began < 4, "a source whose look-up hangs was held up twice"
    named.close()


def test_a_name_that_comes_too_late_is_there_the_next_time(history: History) -> None:
    go = threading.Event()

    def lookup(address: Address) -> str:
        assert go.wait(DEADLINE_S)
        return "a.example"

    named = Named(history.report, lookup, limit_s=0.05, workers=1)
    named.report([report(7, 1)])
    assert history.names(1) == [(1, "")]
    go.set()
    # The only worker takes sources in turn: once it has answered for another, it has kept the late answer.
    named.report([report(8, 2)])
    history.names(2)
    ports = iter(range(3, 10**6))
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and history.got[-1].name != "a.example":
        named.report([report(7, port := next(ports))])
        history.names(port)
    assert history.got[-1].name == "a.example"
    named.close()


@pytest.mark.parametrize("error", [socket.gaierror(1, "no name"), OSError("odd"), UnicodeError("odd")])
def test_a_look_up_that_fails_leaves_the_address(history: History, error: Exception) -> None:
    def lookup(address: Address) -> str:
        raise error

    named = Named(history.report, lookup, limit_s=DEADLINE_S)
    named.report([report(port=1)])
    named.report([report(port=2)])
    assert history.names(2) == [(1, ""), (2, "")]
    named.close()


def test_reports_that_need_no_name_are_not_looked_up(history: History) -> None:
    asked: list[Address] = []

    def lookup(address: Address) -> str:
        asked.append(address)
        return "a.example"

    named = Named(history.report, lookup, needs_name=lambda each: each.newly_triggered)
    named.report([report(1, 1, newly=False), report(2, 2)])
    assert sorted(history.names(2)) == [(1, ""), (2, "a.example")]
    assert asked == [report(2).event.address]
    named.close()


def test_what_the_history_does_not_take_is_kept_in_order_and_told_once(
    history: History, caplog: pytest.LogCaptureFixture
) -> None:
    history.full = RetryLater("history is full")
    named = Named(history.report, lambda _: "a.example")
    with caplog.at_level(logging.INFO):
        named.report([report(7, port) for port in range(1, 10)])
        history.wait_for(lambda: history.tried >= 3)
        history.full, history.room = None, 2
        assert history.names(9) == [(port, "a.example") for port in range(1, 10)]
        named.close()
    assert [record.message for record in caplog.records] == [
        "scans cannot be reported, trying again: history is full",
        "scans are reported again",
    ]


def test_held_reports_are_bounded(history: History) -> None:
    history.full = RetryLater("history is full")
    named = Named(history.report, lambda _: "")
    named.report([report()])
    history.wait_for(lambda: history.tried >= 1)
    assert named.report([report()] * (MAX_REPORTS + 5)) == MAX_REPORTS - 1
    assert named.report([]) == 0
    with pytest.raises(RetryLater, match="history is full"):
        named.report([report()])
    history.full = None
    history.names(MAX_REPORTS)
    named.close()


def test_what_stops_the_history_stops_those_who_report(history: History) -> None:
    history.full = FatalError("history is gone")
    named = Named(history.report, lambda _: "")
    named.report([report()])
    named._threads[0].join(DEADLINE_S)
    with pytest.raises(FatalError, match="history is gone"):
        named.report([])
    named.close()


def test_closing_passes_on_what_waits(history: History, hang: Callable[[Address], str]) -> None:
    named = Named(history.report, hang, limit_s=0.3)
    named.report([report(source, source + 1) for source in range(10)])
    named.close()
    assert history.names(10) == [(port, "") for port in range(1, 11)]
    with pytest.raises(RetryLater):
        named.report([report()])
    named.close()


def test_no_thread_runs_before_the_first_report(history: History) -> None:
    Named(history.report, lambda _: "").close()
    named = Named(history.report, lambda _: "", workers=3)
    assert named.report([]) == 0
    assert [thread.is_alive() for thread in named._threads] == [False] * 4
    named.report([report()])
    assert [thread.is_alive() for thread in named._threads] == [True] * 4
    named.close()
    for thread in named._threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_closing_does_not_wait_for_a_history_that_is_full(history: History, caplog: pytest.LogCaptureFixture) -> None:
    history.full = RetryLater("history is full")
    named = Named(history.report, lambda _: "", limit_s=0.1)
    named.report([report()] * 3)
    began = time.monotonic()
    named.close()
    assert time.monotonic() - began < DEADLINE_S / 2
    named._threads[0].join(DEADLINE_S)
    assert not named._threads[0].is_alive()
    assert "scans are lost, the history could not be written: reports=3" in caplog.text


def test_names_that_are_remembered_are_bounded(history: History) -> None:
    named = Named(history.report, lambda _: "a.example", limit_s=DEADLINE_S, max_waiting=MAX_REPORTS)
    named.report([report(source) for source in range(MAX_CACHED + 100)])
    history.names(MAX_CACHED + 100)
    assert len(named._cache) == MAX_CACHED
    named.close()


@pytest.mark.parametrize(
    "name", ["localhost", "a.example", "a-b_c.example.", "198-51-100-1.dsl.example", "1.2.3.4.example", "a" * 253]
)
def test_a_plain_name_is_kept(name: str) -> None:
    assert plain_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "198.51.100.1",
        "198.51.100.1.",
        "198.51.25601",
        "3325256705",
        "0xc6336401",
        "0306.063.0144.01",
        "a.0x1",
        "2001:db8::1",
        "a b.example",
        "a/198.51.100.1",
        "a]",
        "a)",
        "a\n1795329128 - 11/22/2026 06:32:08 Host: x/198.51.100.1 Port: 1 TCP Blocked",
        "a.example\n",
        "a\0b",
        "\x1b[2Ja",
        "b\u00fccher.example",
        "\u0661.example",
        "a" * 254,
    ],
)
def test_any_other_name_is_dropped(history: History, name: str) -> None:
    assert plain_name(name) == ""
    named = Named(history.report, lambda _: name)
    named.report([report(port=1)])
    assert history.names(1) == [(1, "")]
    named.close()


def test_the_resolver_knows_the_hosts_file(history: History) -> None:
    try:
        expected = socket.getnameinfo(("127.0.0.1", 0), socket.NI_NAMEREQD)[0]
    except socket.gaierror:
        pytest.skip("this host has no name for 127.0.0.1")
    named = Named(history.report, name_of, limit_s=DEADLINE_S)
    named.report([report("127.0.0.1")])
    assert history.names(1) == [(23, expected)]
    named.close()
