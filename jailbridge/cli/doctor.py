"""`jailbridge doctor`: every check, and fail2ban's beside them."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from jailbridge.cli import fail2ban, show
from jailbridge.config import Settings, load
from jailbridge.doctor import CHECKS, examine
from jailbridge.doctor.detection import unread
from jailbridge.errors import FatalError


def run(config: Path | None, *, as_json: bool) -> int:
    """Show what is the matter; return the exit code. Raises FatalError."""
    if os.geteuid() != 0:
        raise FatalError("only root may look at all that matters here: run it as root")
    # The finds say it.
    logging.getLogger("jailbridge").setLevel(logging.CRITICAL)
    found = list(examine(load(config), [*CHECKS, ("fail2ban", _fail2ban), ("dialect", _dialects)]))
    return show.findings(found, as_json)


def _fail2ban(settings: Settings) -> Iterator[str]:
    if settings.stores.fail2ban.enabled:
        yield from (finding.text for finding in fail2ban.findings(settings))


def _dialects(settings: Settings) -> Iterator[str]:
    return unread(settings, fail2ban.scans)
