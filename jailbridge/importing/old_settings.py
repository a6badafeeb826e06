"""What the PortSentry of this machine was set to: portsentry.conf and /etc/default/portsentry, as far as understood.

Unlike the loader of our drop-in this one goes on after a line that it does not understand; the line is named.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jailbridge.config.load import ConfigError
from jailbridge.config.portsentry_conf import MAX_BYTES, Mode, PortsentryConf, parse
from jailbridge.errors import FatalError, RetryLater
from jailbridge.host.files import content
from jailbridge.importing.notes import Note, Notes

DEFAULTS = Path("/etc/default/portsentry")
_KEY = re.compile(rb"([A-Z_]+)[ \t]*=")
_PROBLEM = re.compile(r"line (\d+): (.*)", re.DOTALL)
_MODE = re.compile(r"(?:export[ \t]+)?(TCP|UDP)_MODE=(?:\"([a-z]*)\"|'([a-z]*)'|([a-z]*))[ \t]*(?:#.*)?")
_MODES = {"TCP": (Mode.TCP, Mode.STCP, Mode.ATCP), "UDP": (Mode.UDP, Mode.SUDP, Mode.AUDP)}


@dataclass(frozen=True, slots=True, kw_only=True)
class OldSettings:
    """What was set, and in which line.

    lines    of portsentry.conf, by key
    found    whether there is a portsentry.conf
    modes    of 1.2, by protocol in capitals; None where no file says so, as with 2.x
    unsure   what stands in the way of knowing whom the old one never blocked
    """

    path: Path
    conf: PortsentryConf = field(default_factory=PortsentryConf)
    lines: Mapping[str, int] = field(default_factory=dict)
    found: bool = False
    modes_path: Path = DEFAULTS
    modes: Mapping[str, Mode | None] | None = None
    unsure: str | None = None

    def place(self, key: str) -> str:
        """Return where a key of portsentry.conf stands."""
        return f"{self.path}:{self.lines[key]}" if key in self.lines else str(self.path)

    @property
    def version(self) -> int:
        """1 for PortSentry 1.2, which has modes and ADVANCED_*; 2 for one that has neither."""
        is_2 = self.found and self.modes is None and not any(key.startswith("ADVANCED_") for key in self.lines)
        return 2 if is_2 else 1


def read(conf: Path, defaults: Path, notes: Notes) -> OldSettings:
    """Return what both files say; what cannot be read, or understood, is noted."""
    modes = _modes(defaults, notes)
    try:
        data = _content(conf)
        if data is None:
            return OldSettings(path=conf, modes_path=defaults, modes=modes)
        understood, lines, unsure = _understood(data, str(conf), notes)
    except RetryLater as error:
        notes.not_read.append(Note(str(conf), str(error)))
        return OldSettings(path=conf, modes_path=defaults, modes=modes, unsure=str(error))
    return OldSettings(
        path=conf, conf=understood, lines=lines, found=True, modes_path=defaults, modes=modes, unsure=unsure
    )


def _content(path: Path) -> bytes | None:
    """Return what a file holds, None where there is none. Raises RetryLater, also for a link that leads nowhere."""
    data = content(path)
    if data is None and path.is_symlink():
        raise RetryLater(f"{path} is a symbolic link that leads nowhere")
    return data


def _understood(data: bytes, where: str, notes: Notes) -> tuple[PortsentryConf, dict[str, int], str | None]:
    """Return what the lines say that are understood, where each key stands, and what leaves the ignore file open.

    Raises RetryLater where so little is understood that it is no portsentry.conf.
    """
    if len(data) > MAX_BYTES or b"\0" in data:
        raise RetryLater(f"{where} is not a portsentry.conf: it is binary, or over {MAX_BYTES >> 20} MiB")
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    unsure = None
    while True:
        try:
            conf = parse(b"\n".join(lines), where)
        except ConfigError as error:
            problems = [match for problem in error.problems if (match := _PROBLEM.fullmatch(problem))]
            if len(problems) < len(error.problems):
                raise RetryLater(
                    f"{where} is not a portsentry.conf: {error.problems[0]}, {error.problems[-1]}"
                ) from None
            for match in problems:
                number = int(match[1])
                notes.misunderstood(where, number, match[2])
                if b"IGNORE_FILE" in lines[number - 1]:
                    unsure = f"{where}:{number}: {match[2]}"
                lines[number - 1] = b""
        else:
            keys = ((number, _KEY.match(line)) for number, line in enumerate(lines, 1))
            return conf, {key[1].decode(): number for number, key in keys if key is not None}, unsure


def _modes(path: Path, notes: Notes) -> Mapping[str, Mode | None] | None:
    """Return TCP_MODE and UDP_MODE, None where there is no such file (2.x has none)."""
    try:
        data = _content(path)
    except (RetryLater, FatalError) as error:
        notes.not_read.append(Note(str(path), str(error)))
        return None
    if data is None:
        return None
    modes: dict[str, Mode | None] = {"TCP": None, "UDP": None}
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _MODE.fullmatch(text)
        word = "".join(group or "" for group in match.groups()[1:]) if match else ""
        if match is None or (word and word not in _MODES[match[1]]):
            notes.misunderstood(str(path), number, 'is not TCP_MODE="tcp|stcp|atcp" or UDP_MODE="udp|sudp|audp"')
            continue
        modes[match[1]] = Mode(word) if word else None
    return modes
