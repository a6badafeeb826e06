import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest

from jailbridge.config.portsentry_conf import Mode, parse
from jailbridge.errors import RetryLater
from jailbridge.model.event import Kind, Protocol, Report
from jailbridge.model.network import Address
from jailbridge.portsentry.engine import Action, Decision
from jailbridge.portsentry.respond import HostsDeny, Ran, Response
from jailbridge.portsentry.sentry import Sentry, Worker
from jailbridge.sensor.packet import Probe

ALICE = ip_address("192.0.2.7")
AT = datetime(2026, 11, 22, 6, 30, 59, 500000, tzinfo=UTC)
CONF = """
TCP_PORTS="1"
IGNORE_FILE="/i"
HISTORY_FILE="/h"
BLOCKED_FILE="/b"
BLOCK_TCP="{block}"
KILL_ROUTE="/bin/route $TARGET$"
"""
ROUTED = 'attackalert: Host 192.0.2.7 has been blocked via dropped route using command: "/bin/route 192.0.2.7"'
RECORD_1 = "1795329059 - 11/22/2026 06:30:59 Host: friend.example/192.0.2.7 Port: 11 TCP Blocked"


class Everything:
    """A sentry between an output, a history and a blocked file in memory; `told` has what each got, in order."""

    def __init__(self, mode: Mode = Mode.STCP, *, block: int = 1, verbose: bool = False) -> None:
        conf = parse(CONF.format(block=block), "portsentry.conf", mode)
        self.told: list[str] = []
        self.history_is_full = False
        self.room = 1000
        self.sentry = Sentry(
            conf,
            mode,
            response=Response(conf, mode, HostsDeny(Path("/nowhere")), lambda _: Ran(True, "")),
            blocked=self,
            history=self,
            output=self,
            verbose=verbose,
            clock=lambda: AT,
        )

    def line(self, text: str) -> None:
        self.told.append(text)

    def append(self, lines: Sequence[str]) -> int:
        if self.history_is_full:
            raise RetryLater("history is full")
        taken = lines[: self.room]
        self.told += [f"history: {line}" for line in taken]
        return len(taken)

    def start(self) -> None: ...

    def holds(self, address: Address) -> bool:
        return f"blocked: {address}" in " ".join(self.told)

    def add(self, address: Address, line: str) -> None:
        self.told.append(f"blocked: {address} {line}".rstrip())

    def take(self, action: Action, name: str = "", kind: Kind = Kind.SYN, port: int = 11) -> list[str]:
        probe = Probe(4, int(ALICE), 1, 40000, port, Protocol.TCP, kind, 2, False)
        report = self.sentry.report_of(Decision(action, probe, True))
        if report is not None:
            self.sentry.take(report._replace(name=name))
        told, self.told = self.told, []
        return told


def test_1_2_tells_responds_and_then_writes_the_same_line_twice() -> None:
    assert Everything().take(Action.BLOCK, "friend.example") == [
        "attackalert: TCP SYN/Normal scan from host: friend.example/192.0.2.7 to TCP port: 11",
        ROUTED,
        f"blocked: 192.0.2.7 {RECORD_1}",
        f"history: {RECORD_1}",
    ]


def test_1_2_with_blocking_off_writes_its_files_all_the_same() -> None:
    told = Everything(block=0).take(Action.BLOCK, "friend.example")
    assert told[1] == "attackalert: Ignoring TCP response per configuration file setting."
    assert told[2:] == [f"blocked: 192.0.2.7 {RECORD_1}", f"history: {RECORD_1}"]


@pytest.mark.parametrize("action", [Action.IGNORE, Action.COUNT])
def test_1_2_says_nothing_of_who_is_ignored_or_only_counted(action: Action) -> None:
    assert Everything().take(action) == []


def test_the_modes_that_bind_ports_tell_a_connection() -> None:
    first, second = Everything(Mode.TCP).take(Action.ALREADY, kind=Kind.CONNECT)
    assert first == "attackalert: Connect from host: 192.0.2.7/192.0.2.7 to TCP port: 11"
    assert second == "attackalert: Host: 192.0.2.7 is already blocked. Ignoring"


def scan_2(ignored: str, triggered: str, noblock: str, blocked: str) -> str:
    return (
        "Scan from: [192.0.2.7] (192.0.2.7) protocol: [TCP] port: [11] type: [TCP SYN/Normal scan] "
        f"IP opts: [not set] ignored: [{ignored}] triggered: [{triggered}] noblock: [{noblock}] blocked: [{blocked}]"
    )


# As recorded from PortSentry 2.0.7: what is told before the probe's own line, and that line's four answers.
@pytest.mark.parametrize(
    ("action", "block", "before", "answers"),
    [
        (Action.IGNORE, 1, [], ("true", "unset", "unset", "unset")),
        (Action.COUNT, 1, [], ("false", "false", "unset", "unset")),
        (Action.LOG, 0, [], ("false", "true", "true", "false")),
        (Action.BLOCK, 1, [ROUTED, "blocked: 192.0.2.7"], ("false", "true", "false", "true")),
        (
            Action.ALREADY,
            1,
            ["attackalert: Host: 192.0.2.7/192.0.2.7 is already blocked Ignoring"],
            ("false", "true", "false", "true"),
        ),
    ],
)
def test_2_x_responds_and_then_tells_and_writes_each_probe(
    action: Action, block: int, before: list[str], answers: tuple[str, str, str, str]
) -> None:
    scan = scan_2(*answers)
    told = Everything(Mode.STEALTH, block=block).take(action)
    assert told[:-1] == [*before, scan]
    assert told[-1].endswith(f" {scan}")
    assert told[-1].startswith("history: 2026-11-22T06:30:59.500+0000 Scan")


def test_2_x_tells_who_is_ignored_only_if_verbose() -> None:
    assert Everything(Mode.STEALTH, verbose=True).take(Action.IGNORE)[0] == (
        "Host: 192.0.2.7 found in ignore file /i aborting actions"
    )


def test_what_the_history_did_not_take_is_written_with_the_next_line() -> None:
    everything = Everything(block=0)
    everything.history_is_full = True
    told = [line for port in (1, 2, 3) for line in everything.take(Action.BLOCK, port=port)]
    assert [line for line in told if "history" in line] == [
        "adminalert: ERROR: Cannot open history file: history is full"
    ]
    everything.history_is_full, everything.room = False, 3
    written = [line for line in everything.take(Action.BLOCK, port=4) if line.startswith("history")]
    assert [line.split("Port: ")[1].split()[0] for line in written] == ["1", "2", "3"]
    written = [line for line in everything.take(Action.BLOCK, port=5) if line.startswith("history")]
    assert [line.split("Port: ")[1].split()[0] for line in written] == ["4", "5"]


def report(port: int) -> Report:
    probe = Probe(4, int(ALICE), 1, 40000, port, Protocol.TCP, Kind.SYN, 2, False)
    made = Everything().sentry.report_of(Decision(Action.BLOCK, probe, True))
    assert made is not None
    return made


def test_the_worker_takes_reports_in_their_order_and_no_more_than_it_has_room_for() -> None:
    may_go_on, took, done = threading.Event(), [], []

    def take(report: Report) -> None:
        may_go_on.wait(10)
        took.append(report.event.port)

    worker = Worker(take, lambda report: done.append(report.event.port), lambda: None, most=3)
    assert worker.report([report(port) for port in (1, 2, 3, 4)]) == 3
    with pytest.raises(RetryLater):
        worker.report([report(5)])
    worker.start()
    may_go_on.set()
    worker.stop(10)
    assert took == done == [1, 2, 3]


def test_a_response_that_never_ends_does_not_hold_up_the_end() -> None:
    forever, started = threading.Event(), threading.Event()

    def take(report: Report) -> None:
        started.set()
        forever.wait(60)

    worker = Worker(take, lambda _: None, lambda: None)
    worker.start()
    worker.report([report(1), report(2)])
    assert started.wait(10)
    worker.stop(0.05)
    forever.set()
    worker.stop(10)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_fails_says_so() -> None:
    failed = threading.Event()

    def take(report: Report) -> None:
        raise IndexError

    worker = Worker(take, lambda _: None, failed.set)
    worker.start()
    worker.report([report(1)])
    assert failed.wait(10)
    worker.stop(10)
    assert isinstance(worker.failure, IndexError)
