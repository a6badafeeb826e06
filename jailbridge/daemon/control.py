"""The control socket: one JSON object a line each way, for root, the daemon's own user and, if one is named, a group.

{"command": "unban", "arguments": {"addresses": ["192.0.2.7"]}}
{"answer": …}   or   {"error": "one line for people"}

Who may ask may ask everything, to ban and to unban. The socket's mode keeps others out, and what the kernel says of who
is at the other end does so again.
"""

import contextlib
import grp
import json
import logging
import os
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, validate_call

from jailbridge.config.settings import ControlSettings
from jailbridge.daemon.answers import Answer
from jailbridge.daemon.operations import COMMANDS, Operations
from jailbridge.errors import FatalError, GiveUp, JailBridgeError, RetryLater
from jailbridge.model.network import shown

log = logging.getLogger("jailbridge.control")

# 100,000 addresses of a `ban --from` file fit; a peer that sends more or slower is cut off.
MAX_BYTES = 8 << 20
PEER_TIMEOUT_S = 10.0
# asm-generic/socket.h; Python reads at most 1,024 bytes of it, 256 groups.
_SO_PEERGROUPS, _MOST_BYTES = 59, 1024
# A reconcile of a large ledger may take its time.
ANSWER_TIMEOUT_S = 300.0


class ControlServer:
    """Serves Operations at a Unix socket from threads of its own, between start and stop."""

    def __init__(self, path: Path, operations: Operations) -> None:
        self._path = path
        self._operations = operations
        self._group = operations.settings.control.group
        self._server: _Server | None = None
        self._made: os.stat_result | None = None

    def start(self) -> None:
        """Listen; a socket that is there but dead is taken away. Raises FatalError, also where somebody answers."""
        gid = group_id(self._group) if self._group else None
        try:
            with _umask(0o022):
                self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.is_socket():
                self._check_dead()
                self._path.unlink()
            with _umask(0o177):
                server = _Server(str(self._path), _Handler)
            self._made = self._path.lstat()
        except OSError as error:
            raise FatalError(
                f"control socket {self._path} cannot be made: {error.strerror}: set control.socket"
            ) from None
        server.operations, server.gid = self._operations, gid
        if gid is not None:
            self._hand_over(server, gid)
        self._server = server
        threading.Thread(target=server.serve_forever, name="control", daemon=True).start()

    def _hand_over(self, server: "_Server", gid: int) -> None:
        """Let the group in. A process may give its files to a group of its own without a capability (chown(2))."""
        try:
            os.chown(self._path, -1, gid, follow_symlinks=False)
            self._path.chmod(0o660)
        except OSError as error:
            server.server_close()
            self._path.unlink(missing_ok=True)
            raise FatalError(
                f"control socket {self._path} cannot be given to the group {self._group}: {error.strerror}: a service "
                f'needs "SupplementaryGroups={self._group}" and "SystemCallFilter=@chown" in a drop-in '
                "(systemctl edit jailbridge.service), or set control.group to none"
            ) from None

    def stop(self) -> None:
        """Stop listening and take the socket away."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            with contextlib.suppress(OSError):
                if self._made is not None and os.path.samestat(self._path.lstat(), self._made):
                    self._path.unlink()

    def _check_dead(self) -> None:
        """Two ledgers may be given one socket by mistake: the second daemon must not take it from the first."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            # Where its backlog is full somebody lives there too; only a refusal tells that nobody does (unix(7)).
            peer.setblocking(False)
            try:
                peer.connect(str(self._path))
            except (ConnectionRefusedError, FileNotFoundError):
                return
            except BlockingIOError:
                pass
        raise FatalError(f"control socket {self._path} is served by another daemon: stop it, or set control.socket")


def group_id(name: str) -> int:
    """Return the number of the group that `control.group` names. Raises FatalError."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise FatalError(
            f'control.group: there is no group "{name}": make it (groupadd --system {name}), or name another'
        ) from None


def unusable(settings: ControlSettings) -> Iterator[str]:
    """Yield what is wrong with the group on this host, if anything is."""
    try:
        if settings.group:
            group_id(settings.group)
    except FatalError as error:
        yield str(error)


def call(path: Path, command: str, arguments: dict[str, Any]) -> Answer:
    """Ask the daemon at `path`. Raises ConnectionError where none listens, JailBridgeError with what it answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        # A timeout of Python's own would have connect() fail at once where many others wait to be served (unix(7)).
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(ANSWER_TIMEOUT_S), 0))
        try:
            peer.connect(str(path))
        except BlockingIOError:
            raise RetryLater(f"the daemon at {path} is too busy to answer: look at its log, then try again") from None
        except PermissionError:
            raise FatalError(
                f"control socket {path} is for root and the group that control.group names: run as root"
            ) from None
        except OSError as error:
            raise ConnectionError(error.strerror) from None
        peer.settimeout(ANSWER_TIMEOUT_S)
        try:
            peer.sendall(json.dumps({"command": command, "arguments": arguments}).encode() + b"\n")
            with peer.makefile("rb") as stream:
                reply = json.loads(stream.readline())
        except (OSError, ValueError):
            raise RetryLater(
                f"the daemon at {path} went away while answering: look at its log, then try again"
            ) from None
    if "error" in reply:
        raise GiveUp(reply["error"])
    answer: Answer = reply["answer"]
    return answer


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 128
    operations: Operations
    gid: int | None


class _Handler(socketserver.StreamRequestHandler):
    timeout = PEER_TIMEOUT_S
    server: _Server

    def handle(self) -> None:
        if not self._is_let_in():
            return
        try:
            line = self.rfile.readline(MAX_BYTES + 1)
            reply: dict[str, Any] = {"answer": self._answer(line)}
        except JailBridgeError as error:
            reply = {"error": str(error)}
        except OSError:
            return
        with contextlib.suppress(OSError):
            self.wfile.write(json.dumps(reply).encode() + b"\n")

    def _is_let_in(self) -> bool:
        """Ask the kernel who connected, and of which groups that was then (unix(7))."""
        credentials = self.request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
        _, user, group = struct.unpack("iII", credentials)
        if user in {0, os.geteuid()} or (self.server.gid is not None and self.server.gid in {group, *self._groups()}):
            return True
        log.warning("control: refused user=%d group=%d", user, group)
        return False

    def _groups(self) -> tuple[int, ...]:
        """Return the peer's supplementary groups; none where they are too many to be told."""
        try:
            numbers = self.request.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_BYTES)
        except OSError:
            return ()
        return struct.unpack(f"{len(numbers) // 4}I", numbers)

    def _answer(self, line: bytes) -> Answer:
        if len(line) > MAX_BYTES:
            raise GiveUp(f"a request is at most {MAX_BYTES} bytes")
        try:
            request = _Request.model_validate_json(line)
        except ValidationError as error:
            raise _misunderstood(error) from None
        if request.command not in COMMANDS:
            raise GiveUp(f"the daemon has no command {shown(request.command)}: are daemon and command of one version?")
        operation = validate_call(getattr(self.server.operations, request.command))
        try:
            answer: Answer = operation(**request.arguments)
        except ValidationError as error:
            raise _misunderstood(error) from None
        return answer


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    command: str
    arguments: dict[str, Any]


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _misunderstood(error: ValidationError) -> GiveUp:
    log.warning("control: bad request: %s", shown(str(error.errors(include_input=False, include_url=False)), 300))
    return GiveUp("the daemon does not understand the request: are daemon and command of one version?")
