import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest

from jailbridge.portsentry.output import MAX_BYTES, Stdout, Syslog


@pytest.fixture
def dev_log(tmp_path: Path) -> Iterator[socket.socket]:
    with listening(tmp_path / "log") as sock:
        yield sock


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[Syslog]:
    with closing(Syslog(tmp_path / "log")) as opened:
        yield opened


def listening(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind(str(path))
    return sock


def test_a_line_reads_as_glibcs_syslog_writes_it(dev_log: socket.socket, tmp_path: Path) -> None:
    with closing(Syslog(tmp_path / "log", lambda: datetime(2026, 11, 2, 6, 30, 57))) as syslog:  # noqa: DTZ001
        syslog.line("adminalert: hello")
    assert dev_log.recv(4096).decode() == f"<29>Nov  2 06:30:57 portsentry[{os.getpid()}]: adminalert: hello"


def test_a_missing_socket_is_no_matter_and_its_return_is_told(syslog: Syslog, tmp_path: Path) -> None:
    syslog.line("first")
    syslog.line("second")
    with listening(tmp_path / "log") as sock:
        syslog.line("third")
        told = [sock.recv(4096).decode().partition("]: ")[2] for _ in range(2)]
    assert told == [f"adminalert: 2 log lines were lost: {tmp_path / 'log'} did not take them", "third"]
    assert syslog.lost == 0


def test_a_syslog_daemon_that_was_restarted_is_found_again(syslog: Syslog, tmp_path: Path) -> None:
    with listening(tmp_path / "log"):
        syslog.line("first")
    (tmp_path / "log").unlink()
    with listening(tmp_path / "log") as sock:
        syslog.line("second")
        assert sock.recv(4096).endswith(b"]: second")


def test_a_full_socket_is_waited_for_once_and_then_not(dev_log: socket.socket, syslog: Syslog) -> None:
    began = time.monotonic()
    for number in range(2000):
        syslog.line(str(number))
    assert syslog.lost > 0
    assert time.monotonic() - began < 5.0
    taken = 2000 - syslog.lost
    read = [dev_log.recv(4096) for _ in range(taken)]
    assert read[-1].endswith(f"]: {taken - 1}".encode())
    syslog.line("last")
    assert re.search(rb"adminalert: \d+ log lines were lost", dev_log.recv(4096))
    assert dev_log.recv(4096).endswith(b"]: last")


def test_a_long_line_is_cut(dev_log: socket.socket, syslog: Syslog) -> None:
    syslog.line("x" * 10_000)
    assert len(dev_log.recv(20_000)) == MAX_BYTES


def test_standard_output_gets_whole_lines() -> None:
    end, begin = os.pipe()
    stdout = Stdout(begin)
    stdout.line("one")
    stdout.line("zwölf")
    os.close(begin)
    with os.fdopen(end, "rb") as pipe:
        assert pipe.read() == "one\nzwölf\n".encode()


def test_a_reader_that_stands_still_or_is_gone_is_no_matter() -> None:
    end, begin = os.pipe()
    stdout = Stdout(begin)
    began = time.monotonic()
    for _ in range(5000):
        stdout.line("x" * 100)
    assert stdout.lost > 0
    assert time.monotonic() - began < 5.0
    os.close(end)
    before = stdout.lost
    stdout.line("gone")
    assert stdout.lost == before + 1
    os.close(begin)
