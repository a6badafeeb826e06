"""[respond]: what is done when a ban is made or ends - commands, system log, mail, webhooks."""

import re
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from jailbridge.config.fields import AbsolutePath, Duration, Flag, Net, Section, Whole, some
from jailbridge.model.network import shown

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"


def _mailbox(address: str) -> str:
    # RFC 5321, 4.1.2: a dot-string, in ASCII, for not every server takes more; a name alone is local.
    name, _, _ = address.partition("@")
    if len(name) > 64 or not re.fullmatch(rf"{_ATOM}(\.{_ATOM})*(@[A-Za-z0-9.\[\]:-]{{1,253}})?", address):
        raise ValueError(f'should be a mail address like "root" or "admin@example.org", not {shown(address)}')
    return address


def _tag(tag: str) -> str:
    # RFC 3164, 4.1.3: alphanumeric, at most 32; real ones have these too.
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,32}", tag):
        raise ValueError(f"should be a system log's tag of letters, digits, '.', '_' and '-', not {shown(tag)}")
    return tag


def _url(url: str) -> str:
    if not re.fullmatch(r"https?://[!-~]{1,2000}", url):
        raise ValueError(f'should be an address like "https://example.org/hook", not {shown(url)}')
    return url


def _server(server: str) -> str:
    if not re.fullmatch(r"smtps?(\+starttls)?://[A-Za-z0-9.\[\]:-]{1,260}", server) or server.startswith("smtps+"):
        raise ValueError(
            'should be like "smtp://localhost:25", "smtp+starttls://mail.example.org:587" or '
            f'"smtps://mail.example.org", not {shown(server)}'
        )
    return server


Mailbox = Annotated[str, AfterValidator(_mailbox)]
Url = Annotated[str, AfterValidator(_url)]


class On(StrEnum):
    """What is answered: a new ban, or the end of one."""

    BAN = "ban"
    UNBAN = "unban"


Ons = Annotated[tuple[On, ...], AfterValidator(some)]


class Facility(StrEnum):
    """Facilities of the system log that a daemon may use (syslog(3))."""

    DAEMON = "daemon"
    AUTH = "auth"
    AUTHPRIV = "authpriv"
    USER = "user"
    LOCAL0 = "local0"
    LOCAL1 = "local1"
    LOCAL2 = "local2"
    LOCAL3 = "local3"
    LOCAL4 = "local4"
    LOCAL5 = "local5"
    LOCAL6 = "local6"
    LOCAL7 = "local7"


class CommandSettings(Section):
    """[[respond.command]]: an argument list, never a shell. `first`: it does not wait until the source is cut off."""

    run: Annotated[tuple[str, ...], AfterValidator(some)]
    on: Ons = (On.BAN,)
    networks: tuple[Net, ...] = ()
    first: Flag = False
    timeout: Duration = timedelta(seconds=10)


class SyslogSettings(Section):
    """[respond.syslog]: a line for each ban made and ended, in PortSentry's name."""

    enabled: Flag = False
    facility: Facility = Facility.DAEMON
    tag: Annotated[str, AfterValidator(_tag)] = "portsentry"


class LimitSettings(Section):
    """[respond.limits]: when mail and webhooks are sent; each of them counts for itself.

    The first event goes at once; then one message each `every`, or sooner when `count` events wait; at most `per_hour`
    messages in any hour. A source that was told within `quiet_for` waits for the next message, and of one network (/24,
    /48) at most `per_network` sources are listed, the others counted.
    """

    every: Duration = timedelta(minutes=15)
    count: Whole = Field(default=1000, ge=1, le=100_000)
    per_hour: Whole = Field(default=12, ge=1, le=3600)
    quiet_for: Duration = timedelta(hours=1)
    per_network: Whole = Field(default=20, ge=1, le=100_000)


class RecipientSettings(Section):
    """[[respond.mail.network]]: who is told besides, of the sources in a network (its own user, for instance)."""

    network: Net
    to: Annotated[tuple[Mailbox, ...], AfterValidator(some)]


class MailSettings(Section):
    """[respond.mail]: by an SMTP server, or by a program that takes what sendmail takes."""

    to: tuple[Mailbox, ...] = ()
    network: tuple[RecipientSettings, ...] = ()
    on: Ons = (On.BAN,)
    sender: Mailbox = "jailbridge"
    server: Annotated[str, AfterValidator(_server)] | None = None
    credentials: AbsolutePath | None = None
    sendmail: AbsolutePath = Path("/usr/sbin/sendmail")
    timeout: Duration = timedelta(seconds=30)
    templates: AbsolutePath | None = None


class WebhookSettings(Section):
    """[[respond.webhook]]: a request with what happened, as JSON or as a template makes it."""

    url: Url
    on: Ons = (On.BAN,)
    networks: tuple[Net, ...] = ()
    template: AbsolutePath | None = None
    content_type: Annotated[str, Field(pattern=r"^[a-z0-9.+-]+/[a-z0-9.+-]+$")] = "application/json"
    headers_file: AbsolutePath | None = None
    timeout: Duration = timedelta(seconds=10)


class WhoisSettings(Section):
    """[respond.whois]: whose a source is, asked by RDAP (RFC 9082) for the messages that show it."""

    enabled: Flag = True
    server: Url = "https://rdap.org"
    timeout: Duration = timedelta(seconds=5)
    per_minute: Whole = Field(default=10, ge=1, le=600)
    keep: Duration = timedelta(days=7)


class RespondSettings(Section):
    """[respond]. `parallel`: so many commands run at once."""

    queue: AbsolutePath = Path("/var/lib/jailbridge/respond.sqlite3")
    parallel: Whole = Field(default=4, ge=1, le=64)
    command: tuple[CommandSettings, ...] = ()
    syslog: SyslogSettings = SyslogSettings()
    limits: LimitSettings = LimitSettings()
    mail: MailSettings = MailSettings()
    webhook: tuple[WebhookSettings, ...] = ()
    whois: WhoisSettings = WhoisSettings()

    @property
    def is_asked_for(self) -> bool:
        """Whether anything is to be done."""
        return bool(self.command or self.syslog.enabled or self.mail.to or self.mail.network or self.webhook)
