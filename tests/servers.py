"""A mail server and a web server for tests, real ones on the loopback, and an authority for their certificates."""

import asyncio
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

LOOPBACK = "127.0.0.1"


def wait(what: str, holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """Signs what the loopback's servers show; `file` is to be trusted (SSL_CERT_FILE)."""

    file: Path
    certificate: Path

    def context(self) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(self.certificate)
        return made


def make_authority(folder: Path, name: str = f"IP:{LOOPBACK}") -> Authority:
    """`name`: whom the servers' certificate is for."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(*new, "-x509", "-subj", "/CN=Tests", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2")
    openssl(*new, "-subj", "/CN=server", "-keyout", "key.pem", "-out", "request.pem")
    (folder / "extensions").write_text(f"subjectAltName = {name}\n")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "extensions")
    openssl("x509", "-req", "-in", "request.pem", *signed, "-out", "cert.pem")
    (folder / "both.pem").write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return Authority(file=folder / "ca.pem", certificate=folder / "both.pem")


def listening(port: int = 0) -> socket.socket:
    made = socket.create_server((LOOPBACK, port), reuse_port=False)
    made.settimeout(None)
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """A message that a server has taken."""

    sender: str
    recipients: list[str]
    raw: bytes
    user: str | None

    @property
    def message(self) -> EmailMessage:
        made = message_from_bytes(self.raw, policy=policy.SMTP)
        assert isinstance(made, EmailMessage)
        return made

    def text(self, kind: str = "plain") -> str:
        part = self.message.get_body((kind,))
        assert part is not None
        return str(part.get_content())


class MailServer:
    """`with MailServer() as server:` - one that can be down for a while, and refuse what it is told to."""

    def __init__(
        self,
        *,
        starttls: ssl.SSLContext | None = None,
        tls: ssl.SSLContext | None = None,
        login: tuple[str, str] | None = None,
    ) -> None:
        self.mails: list[Mail] = []
        self.answers: list[str] = []
        """What it says to the next messages' ends, before it takes one."""
        self.recipient_answers: list[str] = []
        self._starttls, self._tls, self._login = starttls, tls, login
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._server: asyncio.Server | None = None
        self._transports: list[SMTP] = []
        with listening() as free:
            self.port = free.getsockname()[1]

    def __enter__(self) -> Self:
        self._thread.start()
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        scheme = "smtps" if self._tls else "smtp+starttls" if self._starttls else "smtp"
        return f"{scheme}://{LOOPBACK}:{self.port}"

    def up(self) -> None:
        self._server = self._on_loop(self._listen())

    def down(self) -> None:
        if self._server is not None:
            self._on_loop(self._end(self._server))
        self._server = None

    def _on_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> asyncio.Server:
        return await self._loop.create_server(self._talk, sock=listening(self.port), ssl=self._tls)

    async def _end(self, server: asyncio.Server) -> None:
        server.close()
        for one in self._transports:
            if one.transport is not None:
                one.transport.close()
        self._transports.clear()
        for _ in range(3):
            await asyncio.sleep(0)

    def _talk(self) -> SMTP:
        made = SMTP(
            self,
            hostname="mail.test",
            loop=self._loop,
            tls_context=self._starttls,
            require_starttls=self._starttls is not None,
            auth_require_tls=self._starttls is not None,
            authenticator=self._authenticate,
        )
        self._transports.append(made)
        return made

    def _authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        given = (data.login.decode(), data.password.decode()) if isinstance(data, LoginPassword) else None
        return AuthResult(success=given == self._login, handled=False, auth_data=given[0] if given else None)

    async def handle_MAIL(  # noqa: N802 - aiosmtpd calls it so
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self._login is not None and not session.authenticated:
            return "530 5.7.0 Authentication required"
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.recipient_answers:
            return self.recipient_answers.pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.answers:
            return self.answers.pop(0)
        assert isinstance(envelope.content, bytes)
        self.mails.append(
            Mail(
                sender=envelope.mail_from or "",
                recipients=list(envelope.rcpt_tos),
                raw=envelope.content,
                user=session.auth_data,
            )
        )
        return "250 OK"


@contextmanager
def stubborn(say: bytes = b"", every_s: float = 0.0) -> Iterator[int]:
    """Yield the port of a server that never comes to an end: silent, or saying the same again and again."""
    done = threading.Event()
    with listening() as server:

        def talk(peer: socket.socket) -> None:
            with peer:
                while not done.wait(every_s or 0.05):
                    try:
                        peer.sendall(say)
                    except OSError:
                        return

        def accept() -> None:
            peers = []
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    break
                peers.append(threading.Thread(target=talk, args=(peer,)))
                peers[-1].start()
            for one in peers:
                one.join()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            done.set()
            # A closed socket would leave accept() waiting.
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a web server was sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class WebServer:
    """`with WebServer() as server:` - `answers`: status and headers of the next answers, before it takes one.

    body    what it says
    wait_s  how long it thinks before
    """

    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    body: bytes = b"what it\r\nsays"
    wait_s: float = 0.0
    _server: ThreadingHTTPServer | None = None
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                outer.requests.append(
                    Request(method=self.command, path=self.path, headers=dict(self.headers.items()), body=body)
                )
                time.sleep(outer.wait_s)
                status, headers = outer.answers.pop(0) if outer.answers else (200, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(outer.body)

            do_GET = do_POST  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = False

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # whoever distrusts a certificate hangs up

        self._server = Server((LOOPBACK, 0), Handler)
        if self.tls is not None:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http{'s' if self.tls else ''}://{LOOPBACK}:{self._server.server_address[1]}/hook?a=b"
