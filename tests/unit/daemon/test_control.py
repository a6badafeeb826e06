import grp
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from jailbridge.config import Settings, parse
from jailbridge.daemon.control import ControlServer, call
from jailbridge.daemon.operations import Operations
from jailbridge.errors import FatalError, GiveUp
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


def of_group(settings: Settings, group: str) -> Settings:
    control = settings.control.model_copy(update={"group": group})
    return settings.model_copy(update={"control": control})


def other_group() -> grp.struct_group:
    """A group that is not root's."""
    return next(group for group in grp.getgrall() if group.gr_gid not in {0, *os.getgroups()})


def serve(settings: Settings) -> Iterator[Path]:
    with Ledger(settings.ledger.path) as ledger:
        server = ControlServer(settings.control.socket, Operations(settings, ledger))
        server.start()
        yield settings.control.socket
        server.stop()


@pytest.fixture
def groups_path(open_folder: Path) -> Iterator[Path]:
    """The socket of a daemon that lets a group in."""
    if os.geteuid() != 0:
        pytest.skip("only root may give a socket to a group that is not its own")
    yield from serve(of_group(parse(settings_text(open_folder), "test"), other_group().gr_name))


# Whoever it is becomes it before it connects, as what it is started by does for a user who logged in.
ASKING = """
import os, sys
from pathlib import Path
from jailbridge.daemon.control import call
from jailbridge.errors import JailBridgeError
os.setgroups([int(gid) for gid in sys.argv[3].split(",") if gid])
os.setresgid(*[int(sys.argv[2])] * 3)
os.setresuid(65534, 65534, 65534)
try:
    print(call(Path(sys.argv[1]), "ban", {"addresses": ["203.0.113.7"]})["banned"])
except JailBridgeError as error:
    print(error)
"""


def asked_by(path: Path, gid: int, *supplementary: int) -> str:
    groups = ",".join(map(str, supplementary))
    argv = [sys.executable, "-c", ASKING, str(path), str(gid), groups]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_a_group_may_be_let_in_and_may_ban(groups_path: Path) -> None:
    gid = other_group().gr_gid
    status = groups_path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o660, 0, gid)
    assert stat.S_IMODE(groups_path.parent.stat().st_mode) == 0o755
    assert asked_by(groups_path, gid) == "['203.0.113.7']\n"
    assert asked_by(groups_path, 65534, 3001, gid, 3002) == "['203.0.113.7']\n"
    assert "is for root and the group that control.group names: run as root" in asked_by(groups_path, 65534, 3001, 3002)


def test_who_is_let_in_is_not_only_the_sockets_modes_affair(
    groups_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    groups_path.chmod(0o666)
    assert "went away" in asked_by(groups_path, 65534, 3001, 3002)
    assert "refused user=65534 group=65534" in caplog.text
    # More than can be told: nobody is let in on a guess.
    many = [*range(3000, 3300), other_group().gr_gid]
    assert "went away" in asked_by(groups_path, 65534, *many)


def test_an_unknown_group_is_told_with_its_remedy(settings: Settings) -> None:
    with pytest.raises(FatalError, match=r'^control.group: there is no group "nosuch": make it \(groupadd'):
        next(serve(of_group(settings, "nosuch")))
    assert not settings.control.socket.exists()


# As the hardened service is: root without CAP_CHOWN.
WITHOUT_CHOWN = ("setpriv", "--bounding-set=-chown", "--groups")
SERVING = """
import sys
from pathlib import Path
from jailbridge.config import load
from jailbridge.daemon.control import ControlServer
from jailbridge.daemon.operations import Operations
from jailbridge.errors import FatalError
from jailbridge.ledger import Ledger
settings = load(Path(sys.argv[1]))
with Ledger(settings.ledger.path) as ledger:
    server = ControlServer(settings.control.socket, Operations(settings, ledger))
    try:
        server.start()
    except FatalError as error:
        sys.exit(str(error))
    print(settings.control.socket.stat().st_gid)
    server.stop()
"""


def test_a_service_without_capabilities_lets_a_group_of_its_own_in_and_no_other(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root has capabilities to give up")
    group = other_group()
    config = tmp_path / "jailbridge.toml"
    config.write_text(settings_text(tmp_path) + f'group = "{group.gr_name}"\n')

    def served(groups: str) -> subprocess.CompletedProcess[str]:
        argv = [*WITHOUT_CHOWN, groups, sys.executable, "-c", SERVING, str(config)]
        return subprocess.run(argv, capture_output=True, text=True, check=False)

    assert served(f"0,{group.gr_gid}").stdout == f"{group.gr_gid}\n"
    refused = served("0")
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    assert f"cannot be given to the group {group.gr_name}: Operation not permitted" in refused.stderr
    assert f'"SupplementaryGroups={group.gr_name}"' in refused.stderr
    assert list((tmp_path / "run").iterdir()) == []
