"""Mail to one recipient: what it says, and the way it goes. Knows no queue and no limits.

Everybody who is told has a postbox: what one's server refuses, or takes later, holds up nobody else's.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage
from pathlib import Path
from typing import TypeAlias

from jailbridge import process
from jailbridge.config.responding import MailSettings, On
from jailbridge.errors import FatalError, GiveUp, ParseError, RetryLater
from jailbridge.model.network import Network, network_text
from jailbridge.respond.event import Event
from jailbridge.respond.postbox import Batch
from jailbridge.respond.sending import is_loopback, secret
from jailbridge.respond.smtp import Login, Security, deliver, parse_server
from jailbridge.respond.templates import Template, Values, WhoisAnswer, host_name, printable, view

log = logging.getLogger("jailbridge.respond")

Whois: TypeAlias = Callable[[Network], WhoisAnswer | None]
"""Tells whose a network is; None where nobody knows, or has no time to tell."""

BUILT_IN = Path(__file__).parent / "mail_templates"
SUBJECT, TEXT, HTML = "subject.txt.j2", "text.j2", "html.j2"
# All questions for one message together.
WHOIS_LIMIT_S = 20.0
# RFC 5322, 2.1.1: a line of a header has 998 letters at most; who reads lists sees far fewer.
MAX_SUBJECT = 200
# Plain ASCII, whatever the text is: no server and no sendmail has to be asked what it can take.
_POLICY = policy.SMTP.clone(cte_type="7bit")
_SENDMAIL_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
# sysexits(3): used wrongly, bad data, no such user. A server that cannot be reached is none of them.
_FOR_EVER = {64, 65, 67}


@dataclass(frozen=True, slots=True)
class _Part:
    """One of a message's texts: by the administrator's template where there is one and it works, else by ours."""

    built_in: Template
    own: Template | None

    def render(self, values: Values) -> str:
        if self.own is not None:
            try:
                return self.own.render(values)
            except GiveUp as error:
                log.error("mail template fails, the built-in one is used: %s", error)
        return self.built_in.render(values)


@dataclass(frozen=True, slots=True)
class _Parts:
    subject: _Part
    text: _Part
    html: _Part


class MailPostbox:
    """Mail to one recipient."""

    def __init__(
        self,
        recipient: str,
        networks: Sequence[Network] | None,
        settings: MailSettings,
        parts: _Parts,
        host: str,
        whois: Whois | None,
    ) -> None:
        """`networks`: whose sources the recipient is told of; None for all."""
        self.name = f"mail {recipient}"
        self._recipient, self._networks = recipient, networks
        self._settings, self._parts, self._host, self._whois = settings, parts, host, whois
        # A name alone is completed by this machine's mail system; a server elsewhere would think that it is one of its.
        is_complete = "@" in settings.sender or settings.server is None
        self._sender = settings.sender if is_complete else f"{settings.sender}@{host}"

    def wants(self, event: Event) -> bool:
        """Tell whether this event is to be told here."""
        is_theirs = self._networks is None or any(network.holds(event.network) for network in self._networks)
        return event.what in self._settings.on and is_theirs

    def compose(self, batch: Batch) -> Sequence[bytes]:
        """Make the message. A template that fails is told of and ours is used."""
        values = view(batch, self._host, self._answers(batch))
        message = EmailMessage(policy=_POLICY)
        message["From"] = self._sender
        message["To"] = self._recipient
        message["Subject"] = self._subject(values)
        message["Date"] = datetime.now(UTC)
        message["Message-ID"] = f"<{self._fingerprint(batch)}@{self._host}>"
        # RFC 3834: nobody's holiday notice is to answer it.
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(self._parts.text.render(values))
        if html := self._parts.html.render(values).strip():
            message.add_alternative(html, subtype="html")
        return [message.as_bytes()]

    def send(self, message: bytes) -> None:
        """Send a message. Raises RetryLater, and GiveUp where the server will never take it."""
        settings = self._settings
        timeout_s = settings.timeout.total_seconds()
        if settings.server is None:
            return self._to_sendmail(message, timeout_s)
        try:
            login = credentials(settings.credentials) if settings.credentials is not None else None
        except FatalError as error:
            raise RetryLater(f"respond.mail.credentials: {error}") from None
        return deliver(
            parse_server(settings.server),
            message,
            sender=self._sender,
            recipient=self._recipient,
            login=login,
            helo=self._host,
            timeout_s=timeout_s,
        )

    def _to_sendmail(self, message: bytes, timeout_s: float) -> None:
        program = str(self._settings.sendmail)
        # It wants this machine's line ends.
        given = message.decode("ascii").replace("\r\n", "\n")
        try:
            done = process.run([program, "-t", "-oi"], given=given, timeout_s=timeout_s, env=_SENDMAIL_ENV)
        except RetryLater as error:
            raise RetryLater(f"{error}: install a mail system, or set respond.mail.server") from None
        if done.code != 0:
            text = f"{program} refuses the message: code={done.code} {printable(done.first_error)}"
            raise GiveUp(text) if done.code in _FOR_EVER else RetryLater(text)

    def _subject(self, values: Values) -> str:
        # Whatever a template makes of it is one line.
        own = printable(self._parts.subject.render(values), MAX_SUBJECT)
        return own or printable(self._parts.subject.built_in.render(values), MAX_SUBJECT)

    def _answers(self, batch: Batch) -> dict[Network, WhoisAnswer]:
        answers: dict[Network, WhoisAnswer] = {}
        until = time.monotonic() + WHOIS_LIMIT_S
        for network in dict.fromkeys(event.network for event in batch.listed if event.what is On.BAN):
            if self._whois is None or time.monotonic() > until:
                break
            if (answer := self._whois(network)) is not None:
                answers[network] = answer
        return answers

    def _fingerprint(self, batch: Batch) -> str:
        """Return what is the same for a batch that is composed again after a crash."""
        events = [f"{event.sequence} {event.time} {network_text(event.network)}" for event in batch.listed]
        text = "\n".join([self._recipient, str(batch.total), *events])
        return f"jailbridge.{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def mail_postboxes(settings: MailSettings, *, host: str, whois: Whois | None) -> list[MailPostbox]:
    """Return a postbox for everybody who is told. Raises GiveUp for a template that cannot be used."""
    host = host_name(host)
    theirs: dict[str, list[Network]] = {}
    for row in settings.network:
        for recipient in row.to:
            theirs.setdefault(recipient, []).append(row.network)
    recipients = dict.fromkeys([*settings.to, *theirs])
    parts = _parts(settings.templates) if recipients else None
    return [
        MailPostbox(one, None if one in settings.to else theirs[one], settings, parts, host, whois)
        for one in recipients
        if parts is not None
    ]


def mail_problems(settings: MailSettings) -> Iterator[tuple[str, str]]:
    """Yield (key, problem) for what cannot work: of the settings together, and of the files that they name."""
    if settings.server is None:
        if settings.credentials is not None:
            yield "respond.mail.credentials", "only a server asks for them: name it in respond.mail.server"
    else:
        try:
            server = parse_server(settings.server)
        except ParseError as error:
            yield "respond.mail.server", str(error)
        else:
            if settings.credentials is not None and server.security is Security.NONE and not is_loopback(server.host):
                yield (
                    "respond.mail.credentials",
                    "would be sent for all to read: use smtp+starttls:// or smtps:// in respond.mail.server",
                )
    if settings.credentials is not None:
        try:
            credentials(settings.credentials)
        except FatalError as error:
            yield "respond.mail.credentials", str(error)
    if settings.templates is not None:
        for name in (SUBJECT, TEXT, HTML):
            try:
                _own(settings.templates, name)
            except GiveUp as error:
                yield "respond.mail.templates", str(error)
        if not any((settings.templates / name).exists() for name in (SUBJECT, TEXT, HTML)):
            yield "respond.mail.templates", f"{settings.templates} has none of {SUBJECT}, {TEXT}, {HTML}"


def credentials(path: Path) -> Login:
    """Return what a file says in two lines, user and password, or in one as `user:password`. Raises FatalError."""
    lines = [line for line in secret(path).splitlines() if line]
    user, password = lines if len(lines) == 2 else lines[0].partition(":")[::2] if len(lines) == 1 else ("", "")
    if not (user and password):
        raise FatalError(f'{path} should have two lines, user and password, or one like "user:password"')
    if not (user + password).isascii():
        raise FatalError(f"{path} should have ASCII letters only: mail servers take no others")
    return user, password


def _parts(folder: Path | None) -> _Parts:
    return _Parts(*(_Part(_template(BUILT_IN, name), _own(folder, name)) for name in (SUBJECT, TEXT, HTML)))


def _own(folder: Path | None, name: str) -> Template | None:
    return _template(folder, name) if folder is not None and (folder / name).exists() else None


def _template(folder: Path, name: str) -> Template:
    return Template(folder / name, html=name == HTML)
