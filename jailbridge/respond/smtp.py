"""Hands one message for one recipient to a mail server (RFC 5321), in the clear or by TLS, with a login or without."""

import smtplib
import ssl
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias
from urllib.parse import urlsplit

from jailbridge.errors import GiveUp, ParseError, RetryLater
from jailbridge.model.network import shown
from jailbridge.respond.sending import patience, what_is_wrong

Login: TypeAlias = tuple[str, str]
"""User and password."""

# Connecting, TLS, login, the message: so many times the limit of one answer is the limit of all.
_ANSWERS = 4
# RFC 4954, 6: not this message is refused, but who sends it; that is mended in the configuration.
_LOGIN_CODES = {530, 534, 535, 538}


class Security(StrEnum):
    """How a server's connection is protected; the values are the schemes of `respond.mail.server`."""

    NONE = "smtp"
    STARTTLS = "smtp+starttls"
    TLS = "smtps"


_PORTS = {Security.NONE: 25, Security.STARTTLS: 587, Security.TLS: 465}


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where a mail server is, and how it is talked to."""

    security: Security
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_server(text: str) -> Server:
    """Return the server that `smtp://host:port` and the like name. Raises ParseError."""
    try:
        parts = urlsplit(text)
        security = Security(parts.scheme)
        port = parts.port or _PORTS[security]
    except ValueError:
        raise ParseError(f"{shown(text)} is no mail server's address") from None
    if not parts.hostname:
        raise ParseError(f"{shown(text)} names no host")
    return Server(security=security, host=parts.hostname, port=port)


def deliver(
    server: Server, message: bytes, *, sender: str, recipient: str, login: Login | None, helo: str, timeout_s: float
) -> None:
    """Hand a message over; when this returns, the server is answerable for it.

    `timeout_s` is for each answer. Raises GiveUp when the server refuses this message for ever (5xx), and RetryLater
    for everything that it, the network or an administrator may mend.
    """
    connection = (
        smtplib.SMTP_SSL(timeout=timeout_s, local_hostname=helo, context=ssl.create_default_context())
        if server.security is Security.TLS
        else smtplib.SMTP(timeout=timeout_s, local_hostname=helo)
    )
    # Its constructor sets that only where it connects as well; TLS compares the certificate with it.
    connection._host = server.host  # type: ignore[attr-defined]  # noqa: SLF001
    try:
        with patience(_ANSWERS * timeout_s, lambda: connection.sock):
            _enter(connection, server, login)
            _hand_over(connection, server, sender, recipient, message)
            # It has the message; what it says to the good-bye changes nothing.
            with suppress(smtplib.SMTPException, OSError, ValueError):
                connection.quit()
    finally:
        connection.close()


def _enter(connection: smtplib.SMTP, server: Server, login: Login | None) -> None:
    try:
        code, text = connection.connect(server.host, server.port)
        if code != 220:
            raise smtplib.SMTPConnectError(code, text)
        if server.security is Security.STARTTLS:
            connection.starttls(context=ssl.create_default_context())
        connection.ehlo_or_helo_if_needed()
        if login is not None:
            connection.login(*login)
    except smtplib.SMTPAuthenticationError as error:
        what = f"mail server {server} refuses the login: {_said(error)}: see respond.mail.credentials"
        raise RetryLater(what) from None
    except (smtplib.SMTPException, OSError, ValueError) as error:
        raise RetryLater(f"mail server {server}: {_said(error)}") from None


def _hand_over(connection: smtplib.SMTP, server: Server, sender: str, recipient: str, message: bytes) -> None:
    try:
        connection.sendmail(sender, [recipient], message)
    except smtplib.SMTPRecipientsRefused as error:
        code, text = error.recipients[recipient]
        raise _refused(server, smtplib.SMTPResponseException(code, text)) from None
    except smtplib.SMTPResponseException as error:
        raise _refused(server, error) from None
    except (smtplib.SMTPException, OSError, ValueError) as error:
        raise RetryLater(f"mail server {server}: {_said(error)}") from None


def _refused(server: Server, error: smtplib.SMTPResponseException) -> GiveUp | RetryLater:
    is_for_ever = 500 <= error.smtp_code <= 599 and error.smtp_code not in _LOGIN_CODES
    text = f"mail server {server} refuses the message: {_said(error)}"
    return GiveUp(text) if is_for_ever else RetryLater(text)


def _said(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        said = error.smtp_error
        return f"{error.smtp_code} {shown(said.decode(errors='replace') if isinstance(said, bytes) else said, 200)}"
    return what_is_wrong(error)
