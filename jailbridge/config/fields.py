"""The values that settings are made of: each checks a text of the TOML file, and says what it should be."""

import re
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer, Strict

from jailbridge.config.values import PortRange, parse_ban_duration, parse_duration, parse_ports
from jailbridge.errors import ParseError
from jailbridge.model.network import Network, network_text, parse_network, shown

T = TypeVar("T")

# Far beyond what a kernel set or a ledger should hold; it only keeps sizes within what a machine can count.
MOST = 10_000_000
# NF_LOG_PREFIXLEN has 128 bytes, the last of them NUL: nft takes so much, iptables' --log-prefix 29 letters.
MAX_PREFIX = 127
# sockaddr_un.sun_path has 108 bytes, the last of them NUL (unix(7)).
MAX_SOCKET_PATH = 107
MAX_BANNER = 500
# What a hook may stand behind, and the longest comment of a rule (XT_MAX_COMMENT_LEN with its NUL: 256).
AFTER = "after:"
MAX_COMMENT = 255
# What makes a path name several files (glob(7)).
PATTERN = frozenset("*?[")


def _text(parse: Any, value: object, *, into: tuple[type, ...]) -> object:
    if isinstance(value, into):
        return value
    if not isinstance(value, str):
        raise ValueError("should be text in quotes")  # noqa: TRY004 - pydantic reports ValueError as a problem
    try:
        return parse(value)
    except ParseError as error:
        raise ValueError(str(error)) from None


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"should be an absolute path, not {shown(str(path))}")
    return path


def _socket(path: Path) -> Path:
    if len(bytes(path)) > MAX_SOCKET_PATH:
        raise ValueError(f"should be at most {MAX_SOCKET_PATH} bytes long, as a socket's path")
    return path


def _rule(rule: str) -> str:
    # A final backslash would join the next line to the rule (hosts_access(5)).
    is_line = rule.isprintable() and not rule.lstrip().startswith("#") and not rule.rstrip().endswith("\\")
    if rule.count("{address}") != 1 or not is_line or ":" not in rule.partition("{address}")[0]:
        raise ValueError('should be one line of hosts.deny with {address} once, like "ALL: {address}"')
    return rule


def _jail(name: str) -> str:
    # These two mean something else to fail2ban's files.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name) or name in {"DEFAULT", "INCLUDES"}:
        raise ValueError(f"should be a jail's name of letters, digits, '.', '_' and '-', not {shown(name)}")
    return name


def _interface(name: str) -> str:
    # IFNAMSIZ is 16 bytes, the last of them NUL (netdevice(7)).
    if name != "all-but-loopback" and not (re.fullmatch(r"[^\s/]{1,15}", name) and name.isprintable()):
        raise ValueError(f'should be an interface\'s name, "all" or "all-but-loopback", not {shown(name)}')
    return name


def _banner(banner: str) -> str:
    # One segment of the smallest link, so that it never waits for the other side.
    if len(banner.encode()) > MAX_BANNER:
        raise ValueError(f"should be at most {MAX_BANNER} bytes long")
    return banner


def _user(name: str) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", name):
        raise ValueError(f'should be an account\'s name, or "auto", not {shown(name)}')
    return name


def _group(name: str) -> str:
    if name and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", name):
        raise ValueError(f"should be a group's name, or empty for root alone, not {shown(name)}")
    return name


def _prefix(prefix: str) -> str:
    if not (prefix.isascii() and prefix.isprintable() and 1 <= len(prefix) <= MAX_PREFIX):
        raise ValueError(f"should be a LOG rule's prefix of 1 to {MAX_PREFIX} printable ASCII letters")
    return prefix


def _journal(name: str) -> str:
    # An argument of journalctl; real identifiers look so (RFC 5424's APP-NAME, at most 48 bytes).
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@/-]{0,47}", name):
        raise ValueError(f'should be what the journal has as SYSLOG_IDENTIFIER, or "kernel", not {shown(name)}')
    return name


def _hook(hook: str) -> str:
    named = hook.removeprefix(AFTER)
    is_named = hook.startswith(AFTER) and named.strip() == named and 0 < len(named.encode()) <= MAX_COMMENT
    if hook != "first" and not is_named:
        raise ValueError(f'should be "first", or "{AFTER}" and a chain\'s name or a rule\'s comment, not {shown(hook)}')
    if named == "jailbridge":
        raise ValueError("should name another's chain or rule: that one is our own")
    return hook


def some(values: tuple[T, ...]) -> tuple[T, ...]:
    """Refuse an empty list."""
    if not values:
        raise ValueError("should name at least one")
    return values


Duration = Annotated[timedelta, BeforeValidator(partial(_text, parse_duration, into=(timedelta,)))]
BanDuration = Annotated[
    timedelta | None, BeforeValidator(partial(_text, parse_ban_duration, into=(timedelta, type(None))))
]
Ports = Annotated[tuple[PortRange, ...], BeforeValidator(partial(_text, parse_ports, into=(tuple,)))]
Net = Annotated[
    Network, BeforeValidator(partial(_text, parse_network, into=())), PlainSerializer(network_text, return_type=str)
]
AbsolutePath = Annotated[Path, BeforeValidator(partial(_text, Path, into=(Path,))), AfterValidator(_absolute)]
SocketPath = Annotated[AbsolutePath, AfterValidator(_socket)]
Whole = Annotated[int, Strict()]
Flag = Annotated[bool, Strict()]
Rule = Annotated[str, AfterValidator(_rule)]
JailName = Annotated[str, AfterValidator(_jail)]
Banner = Annotated[str, AfterValidator(_banner)]
UserName = Annotated[str, AfterValidator(_user)]
GroupName = Annotated[str, AfterValidator(_group)]
JournalName = Annotated[str, AfterValidator(_journal)]
Prefix = Annotated[str, AfterValidator(_prefix)]
Hook = Annotated[str, AfterValidator(_hook)]
InterfaceName = Annotated[str, AfterValidator(_interface)]


class Section(BaseModel):
    """A table of the TOML file."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
