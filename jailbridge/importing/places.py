"""The places where PortSentry holds whom it blocked: hosts.deny, its rules or routes, its blocked files.

Only what is its own to the letter is taken for that; the rest is counted and left alone.
"""

import glob
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from jailbridge.errors import FatalError, RetryLater
from jailbridge.importing.finds import Find
from jailbridge.importing.histories import scans
from jailbridge.importing.notes import Note, Notes
from jailbridge.importing.old_settings import OldSettings
from jailbridge.model.network import host_network
from jailbridge.stores import blocked_records
from jailbridge.stores.deny_file import split
from jailbridge.stores.kill_commands import DenyLine, undoable
from jailbridge.stores.replaced_file import ReplacedFile
from jailbridge.stores.traces import RouteRules


def finds(old: OldSettings, hosts_deny: Path, blocked: Sequence[Path], now: datetime, notes: Notes) -> Iterator[Find]:
    """Yield whom PortSentry blocked, place by place; what cannot be read is noted."""
    for place, reading in (
        (str(hosts_deny), _denied(old, hosts_deny, notes)),
        ("KILL_ROUTE", _routed(old)),
        ("blocked files", _blocked(old, blocked, now, notes)),
    ):
        try:
            yield from reading
        except (RetryLater, FatalError) as error:
            notes.not_read.append(Note(place, str(error)))


def _denied(old: OldSettings, path: Path, notes: Notes) -> Iterator[Find]:
    content = ReplacedFile(path, "name another with --hosts-deny").content()
    before, _, after = split(content, str(path))
    rule = old.conf.kill_hosts_deny
    line = DenyLine(rule) if rule is not None else None
    others = 0
    for part in (before, after):
        hosts = line.hosts(part) if line is not None else set()
        yield from (Find(host, str(path)) for host in sorted(hosts))
        left = line.without(part, hosts) if line is not None else part
        others += sum(1 for one in left.split(b"\n") if one.strip() and not one.startswith(b"#"))
    if others:
        what = (
            "are not KILL_HOSTS_DENY to the letter"
            if rule is not None
            else "are there, and no KILL_HOSTS_DENY says which"
        )
        notes.left_alone.append(Note(str(path), f"{others} lines {what}: they stay as they are"))


def _routed(old: OldSettings) -> Iterator[Find]:
    command = old.conf.kill_route
    if command is None or (undone := undoable(command)) is None:
        return
    yield from (Find(host, "KILL_ROUTE") for host in sorted(RouteRules(undone).observe()))


def _blocked(old: OldSettings, patterns: Sequence[Path], now: datetime, notes: Notes) -> Iterator[Find]:
    own = old.conf.blocked_file
    named = [str(own), f"{glob.escape(str(own))}.*"] if own is not None else []
    names = {name for pattern in (*map(str, patterns), *named) for name in glob.glob(pattern)}  # noqa: PTH207 - any part
    for name in sorted(names):
        try:
            content = ReplacedFile(Path(name), "move it away").content()
        except (RetryLater, FatalError) as error:
            notes.not_read.append(Note(name, str(error)))
            continue
        packed, understood = blocked_records.sources(content)
        if packed:
            yield from (Find(host, name) for host in sorted(blocked_records.hosts(content)))
            if understood < len(content):
                notes.not_read.append(Note(name, f"its last {len(content) - understood} bytes are no record"))
            continue
        for event in scans(content, name, now, notes):
            yield Find(host_network(event.address), name, since=min(event.time, now))
