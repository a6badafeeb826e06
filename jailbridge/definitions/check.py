"""Whether fail2ban has our definitions and takes them as they are meant. Changes nothing."""

import configparser
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from jailbridge.definitions.effective import CLIENT, Jail, jails, matched, overlay, refused
from jailbridge.definitions.files import write
from jailbridge.errors import FatalError
from jailbridge.model.network import shown
from jailbridge.owned_files import content, is_as_written, is_ours, outdated

AGAIN = "run `jailbridge fail2ban install`"
JAIL_FILE, FILTER_LOCAL = "jail.d/jailbridge.conf", "filter.d/jailbridge-portsentry.local"


class What(StrEnum):
    """What is the matter.

    missing   a file of ours is not there
    foreign   somebody else's file stands in its place
    edited    it is not as we wrote it
    stale     it was written for another configuration, or by another version
    refused   fail2ban does not take its configuration
    disabled  our jail is in no file, or switched off
    changed   another file says something else of our jail, and wins
    unread    a jail reads PortSentry's log and understands none of it
    server    the running server does not have it, or there is none
    """

    MISSING = "missing"
    FOREIGN = "foreign"
    EDITED = "edited"
    STALE = "stale"
    REFUSED = "refused"
    DISABLED = "disabled"
    CHANGED = "changed"
    UNREAD = "unread"
    SERVER = "server"


class Finding(NamedTuple):
    """Something that is the matter, and what to do about it, in one line."""

    what: What
    text: str


def check(
    definitions: Mapping[str, str],
    directory: Path,
    jail: str,
    logs: Collection[Path],
    scans: Callable[[Path], Sequence[bytes]],
    client: str = CLIENT,
) -> Iterator[Finding]:
    """Yield what is the matter with our definitions below `directory`, and with jails that read PortSentry's logs.

    `logs` are ours; `scans` returns some lines of a log that should ban, none of a log that is not PortSentry's.
    Raises FatalError: no fail2ban on this machine, a file cannot be read; and RetryLater.
    """
    yield from _files(definitions, directory)
    if (refusal := refused(directory, client)) is not None:
        yield Finding(What.REFUSED, f"fail2ban refuses its configuration in {directory}: {refusal}")
    try:
        enabled = jails(directory, client)
    except FatalError:
        return
    if content(directory / JAIL_FILE) is not None:
        yield from _jail(definitions, directory, jail, enabled.get(jail), client)
    for name, settings in enabled.items():
        followed = [path for path in map(Path, settings.get("addlogpath", ())) if "portsentry" in name or path in logs]
        yield from _unread(name, settings, followed, scans)


def _files(definitions: Mapping[str, str], directory: Path) -> Iterator[Finding]:
    for name in outdated(definitions, directory):
        path, there = directory / name, content(directory / name)
        if there is None:
            yield Finding(What.MISSING, f"{path} is not there: {AGAIN}")
        elif path.is_symlink() or not is_ours(there):
            yield Finding(What.FOREIGN, f"{path} was not written by jailbridge: move it away, then {AGAIN}")
        elif is_as_written(there):
            yield Finding(What.STALE, f"{path} is of another configuration or version: {AGAIN}")
        else:
            local = f"put the change into {path.with_suffix('.local').name}, then " if path.suffix == ".conf" else ""
            yield Finding(What.EDITED, f"{path} was edited: {local}{AGAIN} with --force")


def _jail(
    definitions: Mapping[str, str], directory: Path, jail: str, found: Jail | None, client: str
) -> Iterator[Finding]:
    if found is None:
        others = ", ".join(map(str, _others(directory, jail, "enabled")))
        where = f"see {others}" if others else f"{directory / JAIL_FILE} is for another jail: {AGAIN}"
        yield Finding(What.DISABLED, f"the jail {jail} is not enabled: {where}")
        return
    with tempfile.TemporaryDirectory() as folder:
        overlay(directory, definitions, Path(folder))
        write(definitions, Path(folder))
        meant = jails(Path(folder), client)[jail]
    keys = {key for key in meant.keys() | found.keys() if not key.startswith("bantime.") or _grows(found)}
    for key in sorted(keys):
        is_value, should_be = found.get(key, ()), meant.get(key, ())
        if is_value == should_be or (key == "addaction" and _holds_our_action(is_value, should_be)):
            continue
        option = key.removeprefix("add")
        others = ", ".join(map(str, _others(directory, jail, option)))
        what = f"{option} is {_shown(is_value)}, in our files {_shown(should_be)}"
        yield Finding(What.CHANGED, f"jail {jail}: {what}: see {others or directory}")


def _holds_our_action(found: Sequence[str], meant: Sequence[str]) -> bool:
    """Which banaction stops packets is the user's to choose."""
    return len(found) >= len(meant) and ("jailbridge" in found or "jailbridge" not in meant)


def _grows(jail: Jail) -> bool:
    """Tell whether the other keys of bantime.increment mean anything."""
    return jail.get("bantime.increment", ("False",)) != ("False",)


def _others(directory: Path, jail: str, option: str) -> Iterator[Path]:
    """Yield the users' files that say something of a jail, or of this option in general, in the order in which fail2ban
    reads them (jail.conf(5)).
    """
    folder = directory / "jail.d"
    for path in (*sorted(folder.glob("*.conf")), directory / "jail.local", *sorted(folder.glob("*.local"))):
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read_string((content(path) or b"").decode("latin-1"))
        except (configparser.Error, FatalError):
            continue
        if path != directory / JAIL_FILE and (parser.has_section(jail) or option in parser.defaults()):
            yield path
    if (path := directory / FILTER_LOCAL).exists():
        yield path


def _unread(
    name: str, settings: Jail, logs: Collection[Path], scans: Callable[[Path], Sequence[bytes]]
) -> Iterator[Finding]:
    for path in logs:
        lines = scans(path)
        if lines and not matched(settings, lines):
            why = f"jail {name} reads {path} and understands none of its last {len(lines)} scans"
            remedy = f"its filter is for the other dialect of PortSentry's: {AGAIN}, and disable this jail"
            yield Finding(What.UNREAD, f"{why}; {remedy}")


def _shown(values: Sequence[str]) -> str:
    return shown(" ".join(values), 80) if values else "not set"
