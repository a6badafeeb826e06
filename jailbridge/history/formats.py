"""Which grammar reads a followed file: the formats of `[[tail]] format`, told per line where it is `auto`. Pure."""

from collections.abc import Callable
from datetime import datetime
from typing import TypeAlias

from jailbridge.config.settings import TailFormat
from jailbridge.history import dialects
from jailbridge.model.event import Dialect, ScanEvent

Reader: TypeAlias = Callable[[bytes, datetime], tuple[ScanEvent, Dialect]]
"""Reads one line (without its newline) as of now (aware): what it tells, and in which dialect. Raises ParseError."""

_DIALECTS = {TailFormat.PORTSENTRY_1: Dialect.PORTSENTRY_1, TailFormat.PORTSENTRY_2: Dialect.PORTSENTRY_2}


def reader(form: TailFormat) -> Reader:
    """Return what reads the lines of a format."""
    only = _DIALECTS.get(form)
    return lambda line, _: dialects.parse(line, only)
