"""What we ship for fail2ban, as text: a filter, a jail and an action, rendered from the settings.

The form of the files is fail2ban's (jail.conf(5)): ini with `%` interpolation, `<tag>` substitution, ` ;` comments, and
globs in logpath. Knows nothing of folders in /etc, of a running server, or of what PortSentry writes elsewhere.
"""

import glob
from collections.abc import Iterable, Mapping
from datetime import timedelta
from importlib.resources.abc import Traversable
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from jailbridge.config.settings import EvidenceRule, SensorMode, Settings, TailSettings
from jailbridge.errors import FatalError
from jailbridge.model.event import TailFormat
from jailbridge.model.network import Network, network_text, shown
from jailbridge.owned_files import MARK, sealed, shipped

PERMANENT_S = -1
# Bans of which the daemon would hear anyway need no long look back; without it a night's outage must not lose any.
FINDTIME = timedelta(minutes=10)
FINDTIME_STANDALONE = timedelta(days=1)
# Never a scanner's own unicast address on the internet: loopback, unspecified, link-local, multicast, broadcast.
NEVER_BANNED = (
    "127.0.0.0/8",
    "::1",
    "0.0.0.0/8",
    "169.254.0.0/16",
    "fe80::/10",
    "224.0.0.0/4",
    "ff00::/8",
    "255.255.255.255",
)

_DIALECTS = {
    TailFormat.AUTO: frozenset({"1.2", "2", "syslog"}),
    TailFormat.PORTSENTRY_1: frozenset({"1.2"}),
    TailFormat.PORTSENTRY_2: frozenset({"2"}),
    TailFormat.SYSLOG: frozenset({"syslog"}),
}


def render(settings: Settings, *, standalone: bool = False, allowed: Iterable[Network] = ()) -> Mapping[str, str]:
    """Return the definitions: path below fail2ban's folder -> text.

    `allowed` are the networks that are never banned, beside those of `policy.allow`.
    `standalone` is for fail2ban without our daemon: it bans and unbans by itself, through its own firewall action.
    Raises FatalError when no followed file is PortSentry's, or a path cannot be written in an ini file.
    """
    tails = [tail for tail in settings.tail if tail.path is not None and tail.format in _DIALECTS]
    if not tails:
        raise FatalError(
            "no [[tail]] is a file in a format that fail2ban can read: "
            'use "auto", "portsentry-1.2", "portsentry-2" or "syslog"'
        )
    bantime = _standalone_bantime(settings, tails) if standalone else None
    findtime = FINDTIME_STANDALONE if standalone else FINDTIME
    values = {
        "mark": MARK,
        "standalone": standalone,
        "blocks": standalone or settings.stores.fail2ban_blocks,
        "dialects": frozenset().union(*(_DIALECTS[tail.format] for tail in tails)),
        "jail": settings.stores.fail2ban.jail,
        "paths": list(dict.fromkeys(map(logpath, tails))),
        "findtime_s": int(findtime.total_seconds()),
        "bantime_s": PERMANENT_S if bantime is None else int(bantime.total_seconds()),
        "wake": wake(settings.control.fail2ban_wake),
        "ignored": list(dict.fromkeys([*NEVER_BANNED, *map(network_text, [*settings.policy.allow, *allowed])])),
    }
    templates = shipped()
    rendered = {
        "filter.d/jailbridge-portsentry.conf": _filled(templates / "filters" / "jailbridge-portsentry.conf.j2", values),
        "jail.d/jailbridge.conf": _filled(templates / "jails" / "jailbridge.conf.j2", values),
    }
    if not standalone:
        action = templates / "jails" / "action" / "jailbridge.py"
        rendered["action.d/jailbridge.py"] = action.read_text(encoding="utf-8")
    return {name: sealed(text) for name, text in rendered.items()}


def logpath(tail: TailSettings) -> str:
    """Return the path as a value of logpath: `%` escaped, and glob characters that are none of a pattern.

    Raises FatalError for what no escape saves: a newline would begin another key, ` ;` a comment, `<` a tag.
    """
    text = str(tail.path)
    if not text.isprintable() or any(character in text for character in ";#<>"):
        raise FatalError(f"fail2ban cannot follow {shown(text)}: use a path without line breaks and any of ; # < >")
    return (text if tail.is_pattern else glob.escape(text)).replace("%", "%%")


def wake(path: Path) -> str:
    """Return the path as a value of our action's. Raises FatalError for what no escape saves there."""
    text = str(path)
    if not text.isprintable() or any(character in text for character in ";#<>[]\"',"):
        raise FatalError(f"fail2ban's action cannot be given {shown(text)}: set control.socket to a plain path")
    return text.replace("%", "%%")


def _standalone_bantime(settings: Settings, tails: list[TailSettings]) -> timedelta | None:
    """One jail has one bantime: the long one only if every line proves a handshake."""
    proven = all(_proves_handshake(settings, tail) for tail in tails)
    return settings.policy.ban_for if proven else settings.policy.ban_for_spoofable


def _proves_handshake(settings: Settings, tail: TailSettings) -> bool:
    if tail.evidence is EvidenceRule.AUTO:
        return tail.path == settings.history.path and settings.sensor.mode is SensorMode.CONNECT
    return tail.evidence is EvidenceRule.HANDSHAKE


def _filled(template: Traversable, values: Mapping[str, object]) -> str:
    # No autoescape: these are ini files; what comes from outside the templates is checked above.
    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)
