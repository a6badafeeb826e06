"""What fail2ban makes of a whole configuration folder, by its own word. Changes nothing, needs no running server.

`fail2ban-client -d` prints what it would tell a server, a Python list a line (fail2ban-client(1)): `['add', JAIL, …]`,
`['set', JAIL, KEY, VALUE…]`, `['multi-set', JAIL, KEY, [VALUE, …]]` and `['start', JAIL]`, of the enabled jails alone.
"""

import ast
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from jailbridge import process
from jailbridge.errors import FatalError

CLIENT, REGEX = "fail2ban-client", "fail2ban-regex"
TIMEOUT_S = 60.0

Jail: TypeAlias = Mapping[str, tuple[str, ...]]
"""A jail's settings by fail2ban's name for them; of actions only the names, as `addaction`."""

# What a filter may say beside its expressions.
_FILTER_KEYS = ("prefregex", "datepattern", "maxlines")


def jails(directory: Path, client: str = CLIENT) -> Mapping[str, Jail]:
    """Return the enabled jails. Raises FatalError, with fail2ban's own words, where it cannot read the folder."""
    result = process.run(
        [process.find(client, "fail2ban"), "-c", str(directory), "--loglevel", "ERROR", "-d"], timeout_s=TIMEOUT_S
    )
    if result.code != 0:
        raise FatalError(f"fail2ban refuses its configuration in {directory}: {complaint(result)}")
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for line in result.out.splitlines():
        match _command(line):
            case ["add", str(name), *_]:
                found.setdefault(name, {})
            case ["set", str(name), str(key), *values] if name in found and key != "action":
                # An action's second value is where it stands, a log's where its reading begins.
                kept = values[:1] if key in {"addaction", "addlogpath"} else values
                found[name][key] = found[name].get(key, ()) + tuple(map(str, kept))
            case ["multi-set", str(name), str(key), list(values)] if name in found:
                found[name][key] = found[name].get(key, ()) + tuple(map(str, values))
    return found


def matched(jail: Jail, lines: Sequence[bytes], regex: str = REGEX) -> int:
    """Return how many of these log lines a jail's filter matches. Raises FatalError and RetryLater."""
    expressions = jail.get("addfailregex", ())
    values = {key: jail[key][0] for key in _FILTER_KEYS if jail.get(key)}
    with tempfile.TemporaryDirectory() as name:
        log, definition = Path(name) / "log", Path(name) / "filter.conf"
        log.write_bytes(b"".join(line + b"\n" for line in lines))
        text = "".join(f"{key} = {_escaped(value)}\n" for key, value in values.items())
        text += "failregex = " + "\n ".join(map(_escaped, expressions)) + "\n"
        definition.write_text(f"[Definition]\n{text}", encoding="utf-8")
        program = process.find(regex, "fail2ban")
        argv = [program, "-e", "latin-1", "--usedns", "no", "-o", "row", str(log), str(definition)]
        result = process.run(argv, timeout_s=TIMEOUT_S)
    if result.code != 0:
        raise FatalError(f"{regex} cannot try a filter: {result.first_error}")
    return len(result.out.splitlines())


def refused(directory: Path, client: str = CLIENT) -> str | None:
    """Return why fail2ban would not start with this folder; None where it would. Raises FatalError and RetryLater."""
    result = process.run([process.find(client, "fail2ban"), "-c", str(directory), "-t"], timeout_s=TIMEOUT_S)
    return complaint(result) if result.code != 0 else None


def complaint(result: process.Result) -> str:
    """Return the first line that fail2ban logged as an error: `DATE TIME,MS LOGGER [PID]: ERROR   TEXT`."""
    lines = [line.partition("ERROR")[2].strip() for line in (result.err + result.out).splitlines() if "ERROR" in line]
    return lines[0] if lines and lines[0] else result.first_error


def overlay(directory: Path, without: Iterable[str], into: Path) -> None:
    """Make `into` a configuration folder of links to what stands in `directory`, but for the files `without` below it.

    Nothing that fail2ban reads after these, or after the jails' own files, is taken along (jail.conf(5)).
    """
    left = {path for name in without for path in (directory / name, (directory / name).with_suffix(".local"))}
    for folder in (directory, *(directory / name for name in ("action.d", "filter.d", "fail2ban.d"))):
        target = into / folder.relative_to(directory)
        target.mkdir(exist_ok=True)
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_file() and path not in left and path.name != "jail.local":
                (target / path.name).symlink_to(path.resolve())


def _command(line: str) -> object:
    try:
        return ast.literal_eval(line) if line.startswith("[") else None
    except (SyntaxError, ValueError):
        return None


def _escaped(value: str) -> str:
    return value.replace("%", "%%").replace("\n", "\n ")
