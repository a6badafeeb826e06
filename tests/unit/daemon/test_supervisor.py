import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from jailbridge.daemon.supervisor import Supervisor


@pytest.fixture
def listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
            monkeypatch.delenv(name, raising=False)
        yield sock


def told(sock: socket.socket) -> list[bytes]:
    found = []
    try:
        while True:
            found.append(sock.recv(4096))
    except BlockingIOError:
        return found


def test_it_is_told_once_that_we_are_ready_and_again_after_a_reload(listening: socket.socket) -> None:
    with Supervisor() as supervisor:
        supervisor.reloading()
        supervisor.ready()
        supervisor.ready()
        supervisor.reloading()
        supervisor.ready()
    assert told(listening) == [b"READY=1", b"RELOADING=1", b"READY=1", b"STOPPING=1"]


def test_how_things_stand_is_told_when_it_is_new_in_one_plain_line(listening: socket.socket) -> None:
    with Supervisor() as supervisor:
        for status in ("1 bans", "1 bans", "2 bans; b\u00fccher\nREADY=1"):
            supervisor.tell(status)
    assert told(listening) == [b"STATUS=1 bans", b"STATUS=2 bans; b?cher READY=1", b"STOPPING=1"]


def test_signs_of_life_come_as_often_as_is_asked_for(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setenv("WATCHDOG_USEC", "40000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with Supervisor() as supervisor:
        for _ in range(300):
            supervisor.alive()
            now += 0.1
    assert told(listening)[:-1] == [b"WATCHDOG=1"] * 3


@pytest.mark.parametrize(("usec", "pid"), [("", ""), ("x", ""), ("1000", "1"), (None, None)])
def test_nobody_who_does_not_ask_gets_signs_of_life(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None
) -> None:
    if usec is not None and pid is not None:
        monkeypatch.setenv("WATCHDOG_USEC", usec)
        monkeypatch.setenv("WATCHDOG_PID", pid or str(os.getpid()))
    with Supervisor() as supervisor:
        supervisor.alive()
    assert told(listening) == [b"STOPPING=1"]


@pytest.mark.parametrize("path", [None, ""])
def test_without_one_nothing_is_said_and_nothing_fails(monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    if path is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", path)
    with Supervisor() as supervisor:
        supervisor.ready()
        supervisor.tell("x")
        supervisor.alive()
