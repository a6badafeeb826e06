import threading
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from jailbridge.config.portsentry_conf import Mode, parse
from jailbridge.errors import RetryLater
from jailbridge.model.event import Kind, Protocol, Report
from jailbridge.portsentry import run
from jailbridge.portsentry.flags import Invocation
from jailbridge.sensor.packet import Probe

CONF = """
TCP_PORTS="1-20"
IGNORE_FILE="{folder}/ignore"
HISTORY_FILE="{folder}/history"
BLOCKED_FILE="{folder}/blocked"
BLOCK_TCP="0"
"""
ALICE, FRIEND = ip_address("192.0.2.7"), ip_address("192.0.2.8")


class Daemon:
    """A daemon that watches nothing: it gets its probes here, and passes its reports on to here."""

    def __init__(self, folder: Path) -> None:
        conf = parse(CONF.format(folder=folder), "portsentry.conf", Mode.STCP)
        self.lines: list[str] = []
        self.reports: list[Report] = []
        self.is_full = False
        self.daemon = run._Daemon(Invocation(mode=Mode.STCP), conf, self, threading.Event())
        self.daemon._report = self.report

    def line(self, text: str) -> None:
        self.lines.append(text)

    def report(self, batch: Sequence[Report]) -> int:
        if self.is_full:
            raise RetryLater("the responses do not keep up with the scans")
        self.reports += batch
        return len(batch)

    def take(self, *ports: int, source: int = int(ALICE), now: float = 0.0) -> list[int]:
        probes = [Probe(4, source, 1, 40000, port, Protocol.TCP, Kind.SYN, 2, False) for port in ports]
        self.daemon._take(probes, now)
        taken, self.reports = self.reports, []
        return [report.event.port for report in taken]


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    (tmp_path / "ignore").write_text(f"{FRIEND}\n")
    return Daemon(tmp_path)


def test_a_full_queue_is_loud_and_the_source_is_tried_again_with_its_next_probe(daemon: Daemon) -> None:
    daemon.is_full = True
    assert daemon.take(11, 12) == []
    assert daemon.take(11, now=1.0) == []
    assert daemon.lines == [
        "adminalert: ERROR: scans wait for their next packet: the responses do not keep up with the scans"
    ]
    daemon.is_full = False
    assert daemon.take(11, now=2.0) == [11]
    daemon.is_full = True
    daemon.take(13, now=run.COMPLAIN_S)
    assert len(daemon.lines) == 2


def test_an_ignore_file_that_cannot_be_read_is_told_once_and_nobody_is_acted_on(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "ignore").rename(tmp_path / "elsewhere")
    assert daemon.take(11, 12, 13) == []
    assert len(daemon.lines) == 1
    assert daemon.lines[0].startswith("adminalert: ERROR: ignore file ")
    (tmp_path / "elsewhere").rename(tmp_path / "ignore")
    assert daemon.take(11, now=5.0) == [11]
    assert daemon.take(11, source=int(FRIEND), now=5.0) == []


@pytest.mark.parametrize("argv", [["--nosuch"], ["--stealth", "-c", "/no/such/portsentry.conf"]])
def test_what_cannot_be_done_is_one_line_on_stderr_and_exit_code_1(
    argv: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run.main(argv) == 1
    error = capfd.readouterr().err
    assert error.startswith("jailbridge portsentry: ")
    assert error.count("\n") == 1


def test_help_and_version_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["-h"]) == run.main(["-V"]) == 0
    shown = capsys.readouterr().out
    assert "Usage: jailbridge portsentry" in shown
    assert "\nPortsentry 2.0.7 (jailbridge " in shown
