"""Templates for messages: an administrator's own, tried out before they are used, and ours, which always work.

Jinja2 in its sandbox: a template is to show what happened, and to reach nothing else. Knows nothing of mail or HTTP.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from traceback import walk_tb
from typing import Any, Protocol, TypeAlias

from jinja2 import StrictUndefined, TemplateError, TemplateNotFound, TemplateSyntaxError, nodes
from jinja2.loaders import FunctionLoader
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jailbridge.config.responding import On
from jailbridge.errors import GiveUp
from jailbridge.model.ban import Origin
from jailbridge.model.event import Evidence
from jailbridge.model.network import Network, parse_network, shown
from jailbridge.respond.event import Event
from jailbridge.respond.postbox import Batch

Values: TypeAlias = Mapping[str, Any]
"""What a template may name."""

# A thousand lines of a thousand letters; what is longer nobody reads, and mail servers refuse it.
MAX_CHARACTERS = 1_000_000
# Of one text of an outsider's or an operator's: a reason, a name in whois.
MAX_TEXT = 400
_MAX_SOURCE = 1 << 20


class WhoisAnswer(Protocol):
    """Whose a network is; an outsider's texts, "" where it is not known."""

    @property
    def name(self) -> str:
        """Its holder's name."""

    @property
    def country(self) -> str:
        """Two letters (ISO 3166-1)."""

    @property
    def network(self) -> str:
        """What was given to the holder, as text."""

    @property
    def abuse(self) -> str:
        """Whom to write to about it."""


@dataclass(frozen=True, slots=True)
class _Whois:
    name: str
    country: str
    network: str
    abuse: str


_SAMPLE_WHOIS = _Whois("EXAMPLE-NET", "DE", "203.0.113.0/24", "abuse@example.net")


class Template:
    """One file, with what it includes from its folder; rendered again and again."""

    def __init__(self, path: Path, *, html: bool = False) -> None:
        """Read the file, and try it out with samples. Raises GiveUp that names file and line."""
        self.path = path
        self._environment = ImmutableSandboxedEnvironment(
            loader=FunctionLoader(self._included),
            undefined=StrictUndefined,
            autoescape=html,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        try:
            parsed = self._environment.parse(_source(path), filename=str(path))
            self._template = self._environment.get_template(path.name)
        except (TemplateError, RecursionError) as error:
            raise self._wrong(error) from None
        for values in samples():
            self.render(values)
            # Not every branch is taken in them: a name is looked at where it stands, too.
            self._check_names(parsed, values)

    def render(self, values: Values) -> str:
        """Return the text. Raises GiveUp, which names file and line, also for a text that is too long."""
        parts, size = [], 0
        try:
            for part in self._template.generate(values):
                parts.append(part)
                size += len(part)
                if size > MAX_CHARACTERS:
                    break
        except GiveUp:
            raise
        except Exception as error:  # noqa: BLE001 - its author may have let it do anything
            raise self._wrong(error) from None
        if size > MAX_CHARACTERS:
            raise GiveUp(f"{self.path}: makes a text of over {MAX_CHARACTERS} characters: let it show fewer events")
        return "".join(parts)

    def _check_names(self, parsed: nodes.Template, values: Values) -> None:
        # One that is set in a branch counts as looked up in the other.
        ours = {name.name for name in parsed.find_all(nodes.Name) if name.ctx != "load"}
        unknown = find_undeclared_variables(parsed) - values.keys() - ours
        for name in parsed.find_all(nodes.Name):
            if name.name in unknown:
                raise GiveUp(
                    f"{self.path}:{name.lineno}: {shown(name.name)} is not known here: there are {', '.join(values)}"
                )

    def _included(self, name: str) -> tuple[str, str, None] | None:
        path = self.path.parent / name
        return (_source(path), str(path), None) if path.parent == self.path.parent and path.exists() else None

    def _wrong(self, error: Exception) -> GiveUp:
        path, line, what = str(self.path), 0, printable(str(error) or type(error).__name__)
        if isinstance(error, TemplateSyntaxError):
            path, line = error.filename or path, error.lineno
        elif isinstance(error, TemplateNotFound):
            what = f"there is no {shown(str(error.name))} in its folder to include"
        for frame, number in walk_tb(error.__traceback__):
            # Jinja puts the template's own lines into the traceback.
            if Path(frame.f_code.co_filename).parent == self.path.parent and frame.f_code.co_filename.endswith(".j2"):
                path, line = frame.f_code.co_filename, number
        return GiveUp(f"{path}:{line}: {what}" if line else f"{path}: {what}")


def samples() -> list[Values]:
    """Return what every kind of message may tell of: one source, several, more than are listed, ends of bans."""
    time = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
    scan = Event(
        sequence=1,
        time=time,
        what=On.BAN,
        network=parse_network("203.0.113.7"),
        until=time + timedelta(minutes=10),
        reason="scan: tcp/23",
        origin=Origin.SENSOR,
        evidence=Evidence.SPOOFABLE,
        ports=("tcp/23", "tcp/80"),
    )
    manual = replace(
        scan,
        sequence=2,
        network=parse_network("2001:db8::/64"),
        until=None,
        origin=Origin.OPERATOR,
        evidence=None,
        ports=(),
    )
    ended = replace(manual, sequence=3, what=On.UNBAN)
    known = {scan.network: _SAMPLE_WHOIS}
    digest = Batch(listed=(scan, manual, ended), counted={"203.0.113.0/24": 8}, total=12)
    return [
        view(Batch(listed=(scan,), counted={}, total=1), "host.example.org", known),
        view(Batch(listed=(manual,), counted={}, total=1), "host.example.org"),
        view(Batch(listed=(ended,), counted={}, total=1), "host.example.org"),
        view(digest, "host.example.org", known),
    ]


def view(batch: Batch, host: str, whois: Mapping[Network, WhoisAnswer] | None = None) -> dict[str, Any]:
    """Return what templates may name of a batch: plain texts without control characters, cut to size."""
    answers = whois or {}
    events = [
        {
            **{name: printable(value) for name, value in event.values.items()},
            "whois": _whois(answers[event.network]) if event.network in answers else None,
        }
        for event in batch.listed
    ]
    return {
        "host": host,
        "events": events,
        "banned": sum(event.what is On.BAN for event in batch.listed),
        "unbanned": sum(event.what is On.UNBAN for event in batch.listed),
        "counted": dict(batch.counted),
        "rest": batch.total - len(events) - sum(batch.counted.values()),
        "total": batch.total,
    }


def printable(text: str, limit: int = MAX_TEXT) -> str:
    """Return a text as one line: what is no letter, digit, sign or blank becomes a blank; cut to `limit` characters."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return " ".join("".join(letter if letter.isprintable() else " " for letter in cut).split())


def host_name(text: str) -> str:
    """Return a host's name as headers may have it: what a network may have told us to be called is no exception."""
    return re.sub(r"[^A-Za-z0-9.-]", "", text)[:253] or "localhost"


def _whois(answer: WhoisAnswer) -> dict[str, str]:
    return {
        "name": printable(answer.name),
        "country": printable(answer.country),
        "network": printable(answer.network),
        "abuse": printable(answer.abuse),
    }


def _source(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise GiveUp(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > _MAX_SOURCE:
        raise GiveUp(f"{path} is over {_MAX_SOURCE >> 20} MiB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise GiveUp(f"{path}:{line}: not UTF-8 text") from None
