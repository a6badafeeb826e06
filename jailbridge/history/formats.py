"""Which grammar reads a followed file: the formats of `[[tail]] format`, told per line where it is `auto`. Pure.

A history holds nothing but scans, so each line of it that tells none is refused. A system log is full of other things:
what other programs say, and what PortSentry and the kernel say besides, is passed over without a word.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeAlias

from jailbridge.errors import ParseError
from jailbridge.history import dialects, journal, kernel, syslog
from jailbridge.model.event import Dialect, ScanEvent, TailFormat

Reader: TypeAlias = Callable[[bytes, datetime], tuple[ScanEvent, Dialect] | None]
"""Reads one line (without its newline) as of now (aware): which scan it tells, and in which dialect.

None for a line that is well and tells no scan. Raises ParseError for one that is not what such a file holds, and for
one that is damaged.
"""

_DIALECTS = {TailFormat.PORTSENTRY_1: Dialect.PORTSENTRY_1, TailFormat.PORTSENTRY_2: Dialect.PORTSENTRY_2}


def reader(form: TailFormat, prefixes: Sequence[str] = ()) -> Reader:
    """Return what reads the lines of a format; `prefixes` (ASCII) are those of the kernel's LOG rules to believe.

    Without any, nothing that the kernel says is a scan.
    `syslog` and `kernel` are read from files of a syslog daemon and from a journal's records alike.
    """
    if form in _DIALECTS:
        only = _DIALECTS[form]
        return lambda line, _: dialects.parse(line, only)
    logged = _logged(form, prefixes)
    if form is not TailFormat.AUTO:
        return logged

    def read(line: bytes, now: datetime) -> tuple[ScanEvent, Dialect] | None:
        try:
            return dialects.parse(line)
        except ParseError:
            if not line.startswith(b"{") and not syslog.is_line(line):
                raise
        return logged(line, now)

    return read


def _logged(form: TailFormat, prefixes: Sequence[str]) -> Reader:
    tellers: dict[str, tuple[Callable[[bytes, datetime], ScanEvent | None], Dialect]] = {}
    if form is not TailFormat.KERNEL:
        tellers[syslog.PORTSENTRY] = syslog.scan, Dialect.SYSLOG
    if form is not TailFormat.SYSLOG and prefixes:
        tellers[syslog.KERNEL] = kernel.scans(prefixes), Dialect.KERNEL

    def read(line: bytes, now: datetime) -> tuple[ScanEvent, Dialect] | None:
        source = journal if line.startswith(b"{") else syslog
        said = source.said(line, now, tellers)
        if said is None:
            return None
        scan, dialect = tellers[said.program]
        event = scan(said.message, said.time)
        return None if event is None else (event, dialect)

    return read
