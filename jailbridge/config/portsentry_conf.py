"""PortSentry's own portsentry.conf, of either version: text to one frozen value, or every problem in one error.

Sources: portsentry.conf(5) and the behaviour of PortSentry 1.2 (Debian 1.2-14); the manual and source of 2.0.x. Where
the two disagree, or read less than what stands there, the file is refused rather than half obeyed: 1.2 takes the first
of two equal keys and 2.x the last, both drop what follows the second quote, 1.2 skips a key without quotes.
"""

import difflib
import os
import re
import shlex
import stat
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from jailbridge.config.fields import MAX_BANNER
from jailbridge.config.load import ConfigError
from jailbridge.config.values import PortRange, parse_ports, without
from jailbridge.errors import ParseError
from jailbridge.model.event import Protocol
from jailbridge.model.network import Address, shown

DEFAULT_CONF = Path("/etc/portsentry/portsentry.conf")
# PortSentry's sample is 12 KiB.
MAX_BYTES = 1 << 20
# More than a person mends in one go; a file of another kind has one in every line.
MAX_PROBLEMS = 100
DEFAULT_THRESHOLD = 1024
"""ADVANCED_PORTS_*: the first port that is no longer watched (1.2: "will monitor first 1024 ports", 0 to 1023)."""
MAX_TRIGGER = 1_000_000
# What 1.2 remembers; with a larger trigger it acts at once ("invalid trigger value").
MAX_TRIGGER_1 = 50

TARGET, PORT, MODE = "$TARGET$", "$PORT$", "$MODE$"
# Outside of single quotes, only a shell gives these a meaning; double quotes cannot stand in a value at all.
_SHELL_SYNTAX = re.compile(r"[|&;<>()$`\\\"'*?\[\]#~{}\n]")
# As a command's first word, these are the shell's own (POSIX, 2.9.1 and 2.14); anything else is a program.
_SHELL_WORD = re.compile(
    r"[!.:]|alias|bg|break|case|cd|command|continue|do|done|elif|else|esac|eval|exec|exit|export|fc|fg|fi|for|getopts"
    r"|hash|if|in|jobs|local|read|readonly|return|set|shift|then|times|trap|type|ulimit|umask|unalias|unset|until|wait"
    r"|while"
)
_LINE = re.compile(rb'(?P<key>[A-Za-z0-9_]{1,64})[ \t]*=[ \t]*"(?P<value>[^"]*)"[ \t]*(?:#.*)?')


class Mode(StrEnum):
    """What PortSentry is asked to do, as its flags and `$MODE$` name it."""

    TCP = "tcp"
    UDP = "udp"
    STCP = "stcp"
    SUDP = "sudp"
    ATCP = "atcp"
    AUDP = "audp"
    STEALTH = "stealth"
    CONNECT = "connect"

    @property
    def version(self) -> int:
        """The PortSentry that has this mode: 1 (1.2, one protocol a process) or 2."""
        return 2 if self in {Mode.STEALTH, Mode.CONNECT} else 1

    @property
    def is_advanced(self) -> bool:
        """Tell whether every port below a threshold is watched, not a list."""
        return self in {Mode.ATCP, Mode.AUDP}

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """What is watched in this mode."""
        if self.version == 2:
            return (Protocol.TCP, Protocol.UDP)
        return (Protocol.TCP if self.endswith("tcp") else Protocol.UDP,)


class Blocking(StrEnum):
    """BLOCK_TCP and BLOCK_UDP: what follows a detection."""

    LOG = "0"
    BLOCK = "1"
    COMMAND = "2"
    """KILL_RUN_CMD only."""


def _tokens(address: Address, port: int, mode: Mode) -> dict[str, str]:
    """Return what may stand for each token: built from numbers and our own words, never from text."""
    if not 0 <= port <= 65535:
        raise ValueError(f"{port} is not a port")
    # Through the number: an IPv6 zone is text.
    plain = IPv4Address(int(address)) if isinstance(address, IPv4Address) else IPv6Address(int(address))
    return {TARGET: str(plain), PORT: str(int(port)), MODE: Mode(mode).value}


def _filled(text: str, tokens: Mapping[str, str]) -> str:
    for token, value in tokens.items():
        text = text.replace(token, value)
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class KillCommand:
    """KILL_ROUTE or KILL_RUN_CMD. `argv` is the text split into words, None where only a shell can read it."""

    text: str
    argv: tuple[str, ...] | None

    @property
    def shell(self) -> bool:
        """Tell whether a shell has to run it."""
        return self.argv is None

    def substituted(self, address: Address, port: int, mode: Mode) -> tuple[str, ...]:
        """Return the words to run, a shell and its script where it needs one; each token is filled in per word."""
        if self.argv is None:
            return ("/bin/sh", "-c", self.shown(address, port, mode))
        tokens = _tokens(address, port, mode)
        return tuple(_filled(word, tokens) for word in self.argv)

    def shown(self, address: Address, port: int, mode: Mode) -> str:
        """Return the command as PortSentry logs it."""
        return _filled(self.text, _tokens(address, port, mode))


@dataclass(frozen=True, slots=True, kw_only=True)
class DenyRule:
    """KILL_HOSTS_DENY: a line for hosts.deny with `$TARGET$` in it."""

    text: str

    def line(self, address: Address, port: int, mode: Mode) -> str:
        """Return the line without newline; an IPv6 address stands in brackets, as hosts_access(5) wants it."""
        tokens = _tokens(address, port, mode)
        if isinstance(address, IPv6Address):
            tokens[TARGET] = f"[{tokens[TARGET]}]"
        return _filled(self.text.replace(f"[{TARGET}]", TARGET), tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortsentryConf:
    """What a portsentry.conf says; an option that it leaves out has the value that PortSentry then assumes.

    A file that is None is not kept. `advanced_*` is the first port that is not watched in 1.2's advanced modes.
    """

    tcp_ports: tuple[PortRange, ...] = ()
    udp_ports: tuple[PortRange, ...] = ()
    advanced_tcp: int = DEFAULT_THRESHOLD
    advanced_udp: int = DEFAULT_THRESHOLD
    exclude_tcp: tuple[PortRange, ...] = ()
    exclude_udp: tuple[PortRange, ...] = ()
    ignore_file: Path | None = None
    history_file: Path | None = None
    blocked_file: Path | None = None
    resolve_host: bool = False
    block_tcp: Blocking = Blocking.LOG
    block_udp: Blocking = Blocking.LOG
    kill_route: KillCommand | None = None
    kill_hosts_deny: DenyRule | None = None
    kill_run_cmd: KillCommand | None = None
    kill_run_cmd_first: bool = False
    scan_trigger: int = 0
    port_banner: str = ""

    def watched(self, protocol: Protocol, mode: Mode) -> tuple[PortRange, ...]:
        """Return the ports to watch in this mode, ports with a live service included."""
        is_tcp = protocol is Protocol.TCP
        if protocol not in mode.protocols:
            return ()
        if not mode.is_advanced:
            return self.tcp_ports if is_tcp else self.udp_ports
        last = (self.advanced_tcp if is_tcp else self.advanced_udp) - 1
        return without(((1, last),) if last else (), self.exclude_tcp if is_tcp else self.exclude_udp)

    def blocking(self, protocol: Protocol) -> Blocking:
        """Return what follows a detection in this protocol."""
        return self.block_tcp if protocol is Protocol.TCP else self.block_udp

    def blocked_path(self, mode: Mode) -> Path | None:
        """Return the blocked file of this mode: 1.2 has one for each."""
        if self.blocked_file is None or mode.version == 2:
            return self.blocked_file
        return self.blocked_file.with_name(f"{self.blocked_file.name}.{mode}")


def load(path: Path, mode: Mode | None = None) -> PortsentryConf:
    """Return what the file at `path` says. Raises ConfigError with every problem and its line."""
    try:
        # A pipe would be waited for.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(str(path), ["is not a regular file"])
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(str(path), ["no such file: create it, or name another one"]) from None
    except (OSError, ValueError) as error:
        raise ConfigError(str(path), [f"cannot be read: {getattr(error, 'strerror', error)}"]) from None
    if len(data) > MAX_BYTES:
        raise ConfigError(str(path), [f"is over {MAX_BYTES >> 20} MiB: not a portsentry.conf"])
    return parse(data, str(path), mode)


def parse(text: bytes | str, where: str, mode: Mode | None = None) -> PortsentryConf:
    """Return what a portsentry.conf says; `where` stands in errors.

    With a `mode`, what PortSentry needs in it has to be there too. Raises ConfigError with every problem and its line.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    problems: list[str] = []
    # Not splitlines(), which also ends a line where no editor shows an end.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip() or line.lstrip().startswith(b"#"):
            continue
        try:
            key, value = _setting(line, lines)
            lines[key] = number
            values[OPTIONS[key][0]] = _converted(key, value)
        except ParseError as error:
            problems.append(f"line {number}: {error}")
    conf = PortsentryConf(**values)
    if mode is not None:
        # What a refused value would have said is not known.
        refused = {key for key in lines if OPTIONS[key][0] not in values}
        problems += [
            f"line {lines[keys[0]]}: {keys[0]}: {problem}" if keys[0] in lines else f"{' or '.join(keys)}: {problem}"
            for keys, problem in _unfit(conf, mode, lines)
            if refused.isdisjoint(keys)
        ]
    if problems:
        left = len(problems) - MAX_PROBLEMS
        raise ConfigError(where, problems[:MAX_PROBLEMS] + ([f"and {left} more"] if left > 0 else []))
    return conf


def _setting(line: bytes, lines: Mapping[str, int]) -> tuple[str, bytes]:
    match = _LINE.fullmatch(line.rstrip())
    if match is None:
        raise ParseError(_malformed(line.rstrip()))
    key = match["key"].decode("ascii")
    if key not in OPTIONS:
        near = difflib.get_close_matches(key.upper(), OPTIONS, n=1)
        raise ParseError(f"{key}: unknown option" + (f", did you mean {near[0]}?" if near else ""))
    if key in lines:
        raise ParseError(f"{key}: stands in line {lines[key]} already; 1.2 obeys the first, 2.x the last: keep one")
    return key, match["value"]


def _converted(key: str, value: bytes) -> object:
    try:
        return OPTIONS[key][1](_text(value))
    except ParseError as error:
        raise ParseError(f"{key}: {error}") from None


def _text(value: bytes) -> str:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise ParseError("is not UTF-8 text") from None
    if not text.isprintable():
        raise ParseError("should have no control characters: 1.2 stops reading there")
    return text


def _malformed(line: bytes) -> str:
    key, equals, value = line.partition(b"=")
    name = shown(key.decode("utf-8", "replace").strip(), 40)
    if line[:1].isspace():
        return f"{name}: blanks before a key: 1.2 does not see such a line and 2.x refuses it"
    if not equals or not re.fullmatch(rb"[A-Za-z0-9_]{1,64}[ \t]*", key):
        return f'{shown(line.decode("utf-8", "replace"), 40)} is not a setting: write KEY="value"'
    value = value.lstrip(b" \t")
    if not value.startswith(b'"'):
        return f'{name}: its value should stand in double quotes: KEY="value"'
    if value.count(b'"') == 1:
        return f"{name}: its closing quote is missing"
    return f"{name}: text after the closing quote, which PortSentry drops: use single quotes inside of a value"


def _unfit(conf: PortsentryConf, mode: Mode, given: Container[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (keys, problem) for what PortSentry refuses in this mode, though each setting is possible by itself."""
    kinds = [str(protocol).upper() for protocol in mode.protocols]
    port_keys = tuple(f"ADVANCED_PORTS_{kind}" if mode.is_advanced else f"{kind}_PORTS" for kind in kinds)
    if not any(conf.watched(protocol, mode) for protocol in mode.protocols):
        yield port_keys, f"no port is left to watch in mode {mode}: name some"
    if mode.version == 1:
        for key in ("IGNORE_FILE", "HISTORY_FILE", "BLOCKED_FILE"):
            if getattr(conf, key.lower()) is None:
                yield (key,), "should name a file: PortSentry 1.2 does not start without"
        if conf.scan_trigger > MAX_TRIGGER_1:
            yield ("SCAN_TRIGGER",), f"should be at most {MAX_TRIGGER_1}: above, PortSentry 1.2 acts at once"
        return
    for key in OPTIONS:
        if key.startswith("ADVANCED_") and key in given:
            remedy = "start one of its modes (-atcp), or put the ports into TCP_PORTS and UDP_PORTS"
            yield (key,), f"is PortSentry 1.2's alone: {remedy}"
    for key, blocking in (("BLOCK_TCP", conf.block_tcp), ("BLOCK_UDP", conf.block_udp)):
        if blocking is Blocking.COMMAND and conf.kill_run_cmd is None:
            yield (key, "KILL_RUN_CMD"), "2 runs KILL_RUN_CMD, which is not set"
        if blocking is Blocking.BLOCK and conf.kill_route is None and conf.kill_hosts_deny is None:
            yield (key, "KILL_ROUTE", "KILL_HOSTS_DENY"), "1 needs KILL_ROUTE or KILL_HOSTS_DENY, and neither is set"


def _path(value: str) -> Path | None:
    if not value:
        return None
    if not value.startswith("/") or len(value.encode()) > 4000 or not Path(value).name:
        raise ParseError(f"should be a file's absolute path, not {shown(value)}")
    return Path(value)


def _flag(value: str) -> bool:
    if value not in {"0", "1"}:
        raise ParseError(f"should be 0 or 1, not {shown(value)}")
    return value == "1"


def _blocking(value: str) -> Blocking:
    if value not in set(Blocking):
        raise ParseError(f"should be 0 (log), 1 (block) or 2 (KILL_RUN_CMD only), not {shown(value)}")
    return Blocking(value)


def _whole(value: str, lowest: int, highest: int) -> int:
    if not re.fullmatch(r"\d{1,7}", value, re.ASCII) or not lowest <= int(value) <= highest:
        raise ParseError(f"should be a whole number from {lowest} to {highest}, not {shown(value)}")
    return int(value)


def _banner(value: str) -> str:
    if len(value.encode()) > MAX_BANNER:
        raise ParseError(f"should be at most {MAX_BANNER} bytes long")
    return value


def _command(value: str) -> KillCommand | None:
    if not value.strip():
        return None
    bare = value
    for token in (TARGET, PORT, MODE):
        bare = bare.replace(token, "x")
    argv = None
    if not _SHELL_SYNTAX.search(re.sub(r"'[^']*'", "x", bare)):
        words = tuple(shlex.split(value))
        if words[0] and "=" not in words[0] and not _SHELL_WORD.fullmatch(words[0]):
            argv = words
    return KillCommand(text=value, argv=argv)


def _route(value: str) -> KillCommand | None:
    command = _command(value)
    if command is not None and TARGET not in value:
        raise ParseError(f"should have {TARGET} in it: PortSentry does not run it without")
    return command


def _deny_rule(value: str) -> DenyRule | None:
    if not value.strip():
        return None
    # A final backslash would join the next line to the rule (hosts_access(5)).
    daemons, target, _ = value.partition(TARGET)
    if not target or ":" not in daemons or daemons.lstrip().startswith("#") or value.rstrip().endswith("\\"):
        raise ParseError(f'should be one line of hosts.deny with {TARGET} in it, like "ALL: {TARGET}"')
    return DenyRule(text=value)


_THRESHOLD = partial(_whole, lowest=1, highest=65536)
OPTIONS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "TCP_PORTS": ("tcp_ports", parse_ports),
    "UDP_PORTS": ("udp_ports", parse_ports),
    "ADVANCED_PORTS_TCP": ("advanced_tcp", _THRESHOLD),
    "ADVANCED_PORTS_UDP": ("advanced_udp", _THRESHOLD),
    "ADVANCED_EXCLUDE_TCP": ("exclude_tcp", parse_ports),
    "ADVANCED_EXCLUDE_UDP": ("exclude_udp", parse_ports),
    "IGNORE_FILE": ("ignore_file", _path),
    "HISTORY_FILE": ("history_file", _path),
    "BLOCKED_FILE": ("blocked_file", _path),
    "RESOLVE_HOST": ("resolve_host", _flag),
    "BLOCK_TCP": ("block_tcp", _blocking),
    "BLOCK_UDP": ("block_udp", _blocking),
    "KILL_ROUTE": ("kill_route", _route),
    "KILL_HOSTS_DENY": ("kill_hosts_deny", _deny_rule),
    "KILL_RUN_CMD": ("kill_run_cmd", _command),
    "KILL_RUN_CMD_FIRST": ("kill_run_cmd_first", _flag),
    "SCAN_TRIGGER": ("scan_trigger", partial(_whole, lowest=0, highest=MAX_TRIGGER)),
    "PORT_BANNER": ("port_banner", _banner),
}
"""Every option of either version, with its field in PortsentryConf."""
