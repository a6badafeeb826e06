"""All checks, one after the other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from jailbridge.config import Settings
from jailbridge.doctor import detection, firewall, host, record, running, services
from jailbridge.errors import JailBridgeError

Check: TypeAlias = Callable[[Settings], Iterable[str]]
"""Yields lines for people. Raises JailBridgeError and OSError."""

CHECKS: Sequence[tuple[str, Check]] = (
    ("config", record.unusable),
    ("ledger", record.ledger),
    ("disk", record.disk),
    ("daemon", running.daemon),
    ("stores", running.stores),
    ("respond", running.responder),
    ("services", services.units),
    ("firewall", firewall.backend),
    ("hook", firewall.hook),
    ("iptables", firewall.kinds),
    ("wrappers", firewall.wrappers),
    ("detection", detection.rivals),
    ("history", detection.history),
    ("ipv6", detection.ipv6),
    ("clock", host.clock),
    ("cron", host.cron),
)
"""What each is about, in one word, and the check."""


class Finding(NamedTuple):
    """Something that is the matter, and what to do about it, in one line."""

    about: str
    text: str


def examine(settings: Settings, checks: Iterable[tuple[str, Check]] = CHECKS) -> Iterator[Finding]:
    """Yield what the checks find; what two of them find is told once."""
    told: set[str] = set()
    for about, check in checks:
        for text in _found(settings, check):
            line = "; ".join(text.splitlines())
            if line not in told:
                told.add(line)
                yield Finding(about, line)


def _found(settings: Settings, check: Check) -> Iterator[str]:
    try:
        yield from check(settings)
    except JailBridgeError as error:
        yield str(error)
    except OSError as error:
        yield f"{error.filename or 'this'} cannot be looked at: {error.strerror or error}"
