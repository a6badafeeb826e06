"""Webhooks: what happened as the body of a POST, as JSON or as a template makes it. Knows no queue and no limits.

It is sent to the one place that the configuration names: no redirect is followed, no proxy asked.
"""

import hashlib
import http.client
import json
import logging
import re
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import jailbridge
from jailbridge.config.responding import WebhookSettings
from jailbridge.errors import FatalError, GiveUp, RetryLater
from jailbridge.model.network import network_text, shown
from jailbridge.respond.event import Event
from jailbridge.respond.postbox import Batch
from jailbridge.respond.sending import RetryAfter, patience, secret, what_is_wrong
from jailbridge.respond.templates import Template, Values, host_name, samples, view

log = logging.getLogger("jailbridge.respond")

JSON = "application/json"
# A server that is to be spared for longer is asked again now and then.
MAX_WAIT = timedelta(hours=1)
# Connecting, TLS, the answer's head, its body: so many times the limit of one step is the limit of all.
_STEPS = 4
_MAX_SAID = 300
_TRY_AGAIN = {408, 429}
# RFC 9110, 5.6.2; and what we or the protocol say ourselves.
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OURS = {"connection", "content-length", "content-type", "host", "transfer-encoding"}


class WebhookPostbox:
    """One [[respond.webhook]]."""

    def __init__(self, settings: WebhookSettings, host: str) -> None:
        """Raises GiveUp for a template that cannot be used."""
        self._settings, self._host = settings, host
        self._url = urlsplit(settings.url)
        # Not all of its address: whoever knows that may write there.
        self.name = f"webhook {self._url.hostname} {_fingerprint(settings)}"
        self._template = _template(settings)

    def wants(self, event: Event) -> bool:
        """Tell whether this event is to be told here."""
        networks = self._settings.networks
        is_theirs = not networks or any(network.holds(event.network) for network in networks)
        return event.what in self._settings.on and is_theirs

    def compose(self, batch: Batch) -> Sequence[bytes]:
        """Make the body. Of a template that fails is told, and the general JSON is used."""
        values = view(batch, self._host)
        if self._template is not None:
            try:
                return [_body(self._template, values, self._settings.content_type)]
            except GiveUp as error:
                log.error("webhook template fails, the general JSON is sent: %s", error)
        return [json.dumps(_general(values)).encode()]

    def send(self, message: bytes) -> None:
        """Send a body. Raises RetryLater (RetryAfter), and GiveUp where the same request would be refused again."""
        timeout_s = self._settings.timeout.total_seconds()
        connection = _connection(self._url, timeout_s)
        held: socket.socket | None = None
        said = b""
        headers = {
            "Content-Type": self._settings.content_type,
            "User-Agent": f"jailbridge/{jailbridge.__version__}",
            "Connection": "close",
        }
        try:
            if self._settings.headers_file is not None:
                headers |= read_headers(self._settings.headers_file)
            # An answer that ends the connection takes its socket over.
            with patience(_STEPS * timeout_s, lambda: held or connection.sock):
                connection.connect()
                held = connection.sock
                target = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
                connection.request("POST", target, message, headers)
                with connection.getresponse() as answer, suppress(http.client.HTTPException, OSError, ValueError):
                    # Why not, in its own words; the rest is not read: it may have no end.
                    said = answer.read(_MAX_SAID) if answer.status >= 400 else b""
        except FatalError as error:
            raise RetryLater(f"respond.webhook.headers_file: {error}") from None
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise RetryLater(f"{self.name}: {what_is_wrong(error)}") from None
        finally:
            connection.close()
        self._check(answer.status, said.decode(errors="replace"), answer.headers.get("Retry-After", ""))

    def _check(self, status: int, said: str, wait: str) -> None:
        if 200 <= status <= 299:
            return
        if 300 <= status <= 399:
            # It may lead anywhere, and our headers with it.
            raise GiveUp(f"{self.name}: leads elsewhere (HTTP {status}): name that place in respond.webhook.url")
        text = f"{self.name}: HTTP {status} {shown(said)}"
        if 400 <= status <= 499 and status not in _TRY_AGAIN:
            raise GiveUp(text)
        if (after := retry_after(wait, datetime.now(UTC))) is not None:
            raise RetryAfter(text, after)
        raise RetryLater(text)


def webhook_postboxes(settings: Sequence[WebhookSettings], *, host: str) -> list[WebhookPostbox]:
    """Return a postbox for each webhook. Raises GiveUp for a template that cannot be used."""
    return [WebhookPostbox(one, host_name(host)) for one in settings]


def webhook_problems(settings: Sequence[WebhookSettings]) -> Iterator[tuple[str, str]]:
    """Yield (key, problem) for what cannot work: of the settings together, and of the files that they name."""
    fingerprints = [_fingerprint(one) for one in settings]
    for n, one in enumerate(settings):
        key = f"respond.webhook.{n}"
        if fingerprints[n] in fingerprints[:n]:
            yield f"{key}.url", "is there twice with the same on, networks and template: leave one of them"
        if problem := _problem(one.url):
            yield f"{key}.url", problem
        if one.template is None and one.content_type != JSON:
            yield f"{key}.content_type", f'without a template "{JSON}" is sent: leave it out, or name a template'
        try:
            _template(one)
        except GiveUp as error:
            yield f"{key}.template", str(error)
        if one.headers_file is not None:
            try:
                read_headers(one.headers_file)
            except FatalError as error:
                yield f"{key}.headers_file", str(error)


def read_headers(path: Path) -> dict[str, str]:
    """Return what a file says in lines `Name: value`; blank ones and comments (`#`) count for nothing.

    Raises FatalError that names the line.
    """
    headers = {}
    for n, line in enumerate(secret(path).split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        value = value.strip()
        if not (colon and _NAME.fullmatch(name) and value.isascii() and value.isprintable()):
            raise FatalError(f'{path}:{n}: should be like "Authorization: Bearer …", in ASCII letters')
        if name.lower() in _OURS:
            raise FatalError(f"{path}:{n}: {name} is not yours to say")
        headers[name] = value
    return headers


def retry_after(text: str, now: datetime) -> timedelta | None:
    """Return how long a server wants to be spared (RFC 9110, 10.2.3), an hour at most; None where it does not say."""
    text = text.strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        wait = timedelta(seconds=int(text))
    else:
        try:
            when = parsedate_to_datetime(text)
        except ValueError:
            return None
        wait = (when if when.tzinfo is not None else when.replace(tzinfo=UTC)) - now
    return min(max(wait, timedelta(0)), MAX_WAIT)


def _general(values: Values) -> Values:
    return {
        "host": values["host"],
        "events": [{name: text for name, text in event.items() if name != "whois"} for event in values["events"]],
        "counted": values["counted"],
        "rest": values["rest"],
        "total": values["total"],
    }


def _template(settings: WebhookSettings) -> Template | None:
    if settings.template is None:
        return None
    template = Template(settings.template)
    for values in samples():
        _body(template, values, settings.content_type)
    return template


def _body(template: Template, values: Values, content_type: str) -> bytes:
    text = template.render(values)
    if content_type == JSON:
        try:
            json.loads(text)
        except (ValueError, RecursionError) as error:
            raise GiveUp(f"{template.path}: does not make JSON (use the filter tojson): {error}") from None
    return text.encode(errors="replace")


def _problem(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - it is looked at only when it is asked for
    except ValueError as error:
        return f"is no address: {error}"
    if not parts.hostname:
        return "names no host"
    if parts.username is not None:
        return 'should have no login: put "Authorization: …" into headers_file'
    return "should have no fragment (#…)" if parts.fragment else None


def _connection(url: SplitResult, timeout_s: float) -> http.client.HTTPConnection:
    assert url.hostname is not None
    if url.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(url.hostname, url.port, timeout=timeout_s, context=context)
    return http.client.HTTPConnection(url.hostname, url.port, timeout=timeout_s)


def _fingerprint(settings: WebhookSettings) -> str:
    parts = [settings.url, *settings.on, *map(network_text, settings.networks), str(settings.template)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
