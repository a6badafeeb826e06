import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from jailbridge.config import Settings, parse
from jailbridge.daemon.control import ControlServer, call
from jailbridge.daemon.operations import Operations
from jailbridge.errors import GiveUp
from jailbridge.ledger import Ledger
from tests.settings import settings_text


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return parse(settings_text(tmp_path), "test")


@pytest.fixture
def path(settings: Settings) -> Iterator[Path]:
    with Ledger(settings.ledger.path) as ledger:
        server = ControlServer(settings.control.socket, Operations(settings, ledger))
        server.start()
        yield settings.control.socket
        server.stop()
        assert not settings.control.socket.exists()


def ask_raw(path: Path, request: bytes) -> dict[str, str]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(10)
        peer.connect(str(path))
        peer.sendall(request)
        answer: dict[str, str] = json.loads(peer.makefile("rb").readline())
        return answer


def test_the_socket_is_its_owners_alone(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_command_is_answered(path: Path) -> None:
    banned = cast("dict[str, Any]", call(path, "ban", {"addresses": ["203.0.113.7"]}))
    assert banned["banned"] == ["203.0.113.7"]
    rows = cast("list[dict[str, Any]]", call(path, "list_bans", {}))
    assert [row["address"] for row in rows] == ["203.0.113.7"]


def test_an_error_of_the_command_reaches_the_caller_as_its_line(path: Path) -> None:
    with pytest.raises(GiveUp, match="'nonsense' is not an IP address"):
        call(path, "ban", {"addresses": ["nonsense"]})


@pytest.mark.parametrize(
    "request_line",
    [
        b"\n",
        b"not json\n",
        b"[]\n",
        b"{}\n",
        b'{"command": "settle", "arguments": {}}\n',
        b'{"command": "__init__", "arguments": {}}\n',
        b'{"command": "ban", "arguments": {"nosuch": 1}}\n',
        b'{"command": "ban", "arguments": {"addresses": 7}}\n',
        b'{"command": ["ban"], "arguments": {}}\n',
        b'{"command": "ban", "arguments": []}\n',
        b"\xff\xfe\n",
        b"[" * 100000 + b"\n",
    ],
)
def test_a_bad_request_is_refused_and_the_server_goes_on(path: Path, request_line: bytes) -> None:
    assert "error" in ask_raw(path, request_line)
    assert call(path, "list_bans", {}) == []


def test_a_dead_socket_is_taken_over(settings: Settings) -> None:
    settings.control.socket.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(settings.control.socket))
    with Ledger(settings.ledger.path) as ledger:
        server = ControlServer(settings.control.socket, Operations(settings, ledger))
        server.start()
        assert call(settings.control.socket, "list_bans", {}) == []
        server.stop()


def test_where_nothing_listens_the_caller_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        call(tmp_path / "nosuch", "plan", {})
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConnectionError):
        call(tmp_path / "fifo", "plan", {})
