"""The control socket: one JSON object a line each way, root's (and the daemon's own user's) only.

{"command": "unban", "arguments": {"addresses": ["192.0.2.7"]}}
{"answer": …}   or   {"error": "one line for people"}
"""

import contextlib
import json
import logging
import os
import socket
import socketserver
import struct
import threading
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, validate_call

from jailbridge.daemon.answers import Answer
from jailbridge.daemon.operations import COMMANDS, Operations
from jailbridge.errors import FatalError, GiveUp, JailBridgeError, RetryLater
from jailbridge.model.network import shown

log = logging.getLogger("jailbridge.control")

# 100,000 addresses of a `ban --from` file fit; a peer that sends more or slower is cut off.
MAX_BYTES = 8 << 20
PEER_TIMEOUT_S = 10.0
# A reconcile of a large ledger may take its time.
ANSWER_TIMEOUT_S = 300.0


class ControlServer:
    """Serves Operations at a Unix socket from threads of its own, between start and stop."""

    def __init__(self, path: Path, operations: Operations) -> None:
        self._path = path
        self._operations = operations
        self._server: _Server | None = None
        self._made: os.stat_result | None = None

    def start(self) -> None:
        """Listen; a socket that is there but dead is taken away. Raises FatalError, also where somebody answers."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            if self._path.is_socket():
                self._check_dead()
                self._path.unlink()
            before = os.umask(0o177)
            try:
                self._server = _Server(str(self._path), _Handler)
            finally:
                os.umask(before)
            self._made = self._path.lstat()
        except OSError as error:
            raise FatalError(
                f"control socket {self._path} cannot be made: {error.strerror}: set control.socket"
            ) from None
        self._server.operations = self._operations
        threading.Thread(target=self._server.serve_forever, name="control", daemon=True).start()

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
            raise FatalError(f"control socket {path} is root's: run as root") from None
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


class _Handler(socketserver.StreamRequestHandler):
    timeout = PEER_TIMEOUT_S
    server: _Server

    def handle(self) -> None:
        credentials = self.request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        user = struct.unpack("3i", credentials)[1]
        if user not in {0, os.geteuid()}:
            log.warning("control: refused user=%d", user)
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


def _misunderstood(error: ValidationError) -> GiveUp:
    log.warning("control: bad request: %s", shown(str(error.errors(include_input=False, include_url=False)), 300))
    return GiveUp("the daemon does not understand the request: are daemon and command of one version?")
