"""A conversation with fail2ban's server over its control socket. Knows the protocol, no command and no jail.

The protocol is fail2ban's own (server/asyncserver.py, protocol.py): a request is the pickle of a list of text and an
end mark; so is the reply, the pickle of (0, value) or (1, exception). A pickle can name any function and have it
called, so a reply is read by an unpickler that knows values only, from a server that is root or ourselves.
"""

import builtins
import io
import os
import pickle
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from jailbridge.errors import FatalError, GiveUp, ParseError, RetryLater
from jailbridge.model.network import shown

END = b"<F2B_END_COMMAND>"
CLOSE = b"<F2B_CLOSE_COMMAND>"
TIMEOUT_S = 5.0
# 200,000 bans with their times are 16 MiB.
MAX_REPLY = 64 * 2**20
_PICKLE_PROTOCOL = 2
_CHUNK = 2**16
_REMOTE_ERRORS = frozenset(
    name for name, one in vars(builtins).items() if isinstance(one, type) and issubclass(one, Exception)
)


class Refused(GiveUp):
    """The server answered with an error; `kind` is the name of its exception."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"fail2ban refused: {kind} {shown(text, 200)}")
        self.kind = kind


class OtherProtocol(RetryLater):
    """Something answers, but not in the protocol that we know."""


class Fail2banSocket:
    """One connection; use it as a context. A connection that breaks is made again once per command.

    Every command sent here must be one that may run twice. `timeout_s` bounds each command, from sending it to the end
    of the reply.
    """

    def __init__(self, path: Path, *, timeout_s: float = TIMEOUT_S, max_reply: int = MAX_REPLY) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._max_reply = max_reply
        self._connection: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            with suppress(OSError):
                self._connection.sendall(CLOSE + END)
            self._drop()

    def ask(self, *words: str, timeout_s: float | None = None) -> object:
        """Send one command and return the value of its reply: None, numbers, text, and containers of them.

        Raises Refused when the server answers with an error, RetryLater when it does not answer in time, OtherProtocol
        when it answers in none that we know, FatalError when somebody else than root or ourselves serves the socket.
        """
        request = pickle.dumps(list(words), _PICKLE_PROTOCOL) + END
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        try:
            try:
                reply = self._exchange(request, deadline)
            except (ConnectionError, EOFError):
                self._drop()
                reply = self._exchange(request, deadline)
        except TimeoutError:
            self._drop()
            raise RetryLater(f"fail2ban does not answer at {self._path} in time: is it busy?") from None
        except PermissionError:
            raise RetryLater(f"{self._path} cannot be opened: run this as root") from None
        except (OSError, EOFError):
            self._drop()
            raise RetryLater(f"fail2ban does not answer at {self._path}: is it running?") from None
        try:
            return decoded(reply)
        except ParseError as error:
            self._drop()
            raise OtherProtocol(f"what answers at {self._path} is not fail2ban: {error}") from None

    def _exchange(self, request: bytes, deadline: float) -> bytes:
        if self._connection is None:
            self._connection = self._connect(deadline)
        self._connection.settimeout(_left(deadline))
        self._connection.sendall(request)
        reply = bytearray()
        while not reply.endswith(END):
            self._connection.settimeout(_left(deadline))
            part = self._connection.recv(_CHUNK)
            if not part:
                raise EOFError
            reply += part
            if len(reply) > self._max_reply:
                self._drop()
                raise RetryLater(f"fail2ban's answer at {self._path} is longer than {self._max_reply} bytes")
        return bytes(reply[: -len(END)])

    def _connect(self, deadline: float) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_left(deadline))
            connection.connect(os.fspath(self._path))
            self._check_owner(_peer_uid(connection))
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_owner(self, uid: int) -> None:
        if uid not in {0, os.geteuid()}:
            raise FatalError(f"{self._path} is served by user {uid}, not by root: that is not fail2ban's server")

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def decoded(reply: bytes) -> object:
    """Return the value that a reply (without its end mark) carries; nothing that it names is imported or called.

    Raises Refused when the reply is an error, ParseError when it is none of fail2ban's.
    """
    try:
        loaded: object = _Values(io.BytesIO(reply)).load()
    except Exception as error:  # noqa: BLE001 - a hostile pickle may raise anything; none of it is an answer
        raise ParseError(f"not fail2ban's protocol: {shown(str(error))}") from None
    match loaded:
        case (0, value):
            return value
        case (_, _RemoteError() as refusal):
            raise Refused(refusal.kind, refusal.text)
        case _:
            raise ParseError("not fail2ban's protocol: no code and value")


class _RemoteError:
    """An exception of the server, reduced to its name and text."""

    __slots__ = ("kind", "text")

    def __init__(self, kind: str, arguments: tuple[object, ...]) -> None:
        self.kind = kind
        self.text = " ".join(part for part in arguments if isinstance(part, str))

    def __setstate__(self, state: object) -> None:
        """Attributes of the server's exception say nothing more."""


class _Values(pickle.Unpickler):
    """Reads containers, numbers and text; a name in a pickle is refused or stands for a harmless function of ours."""

    def find_class(self, module: str, name: str, /) -> Callable[..., object]:
        if (module, name) == ("builtins", "str"):
            return _text
        # sqlite3: what its database says, of a full disk or a lock.
        if module.partition(".")[0] in {"fail2ban", "sqlite3"} or (module == "builtins" and name in _REMOTE_ERRORS):
            return lambda *arguments: _RemoteError(name, arguments)
        raise pickle.UnpicklingError(f"{module}.{name} is not a value")


def _text(value: object) -> str:
    """fail2ban writes an address as str(TEXT). Nothing else: str() of nested containers can outgrow any memory."""
    if not isinstance(value, str):
        raise pickle.UnpicklingError("str of something that is no text")
    return value


def _peer_uid(connection: socket.socket) -> int:
    """Who serves the socket (unix(7), SO_PEERCRED: struct ucred)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", credentials)[1]
    return uid


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
