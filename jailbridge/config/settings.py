"""The settings tree: every key, its type and its default. Frozen; unknown keys are errors.

A key that a later release will obey is checked for its type here, and refused by `consistency.unbuilt` when it asks
for more than this release does: a setting is never silently without effect.
"""

import re
from datetime import timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    model_validator,
)

from jailbridge.config.values import PortRange, parse_ban_duration, parse_duration, parse_ports
from jailbridge.errors import ParseError
from jailbridge.model.event import TailFormat
from jailbridge.model.network import Network, network_text, parse_network, shown
from jailbridge.model.plan import External

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


def _some(values: tuple[T, ...]) -> tuple[T, ...]:
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
JournalName = Annotated[str, AfterValidator(_journal)]
Prefix = Annotated[str, AfterValidator(_prefix)]
Hook = Annotated[str, AfterValidator(_hook)]
InterfaceName = Annotated[str, AfterValidator(_interface)]
DEFAULT_HISTORY = Path("/var/lib/portsentry/portsentry.history")
DEFAULT_ALLOW_FILES = (
    Path("/etc/portsentry/portsentry.ignore.static"),
    Path("/etc/portsentry/portsentry.ignore"),
)
DEFAULT_HOSTS_ALLOW = Path("/etc/hosts.allow")
DEFAULT_PORTSENTRY_CONF = Path("/etc/portsentry/portsentry.conf")


class SensorMode(StrEnum):
    """How the sensor sees probes."""

    OFF = "off"
    CONNECT = "connect"
    STEALTH = "stealth"
    KERNEL = "kernel"


class HistoryDialect(StrEnum):
    """The dialect in which our sensor writes its history."""

    PORTSENTRY_1 = "1.2"
    PORTSENTRY_2 = "2"


class Watch(StrEnum):
    """What wakes the tailer; a poll every second is always on."""

    AUTO = "auto"
    WATCHDOG = "watchdog"
    PYINOTIFY = "pyinotify"
    POLL = "poll"


class EvidenceRule(StrEnum):
    """What a followed file's lines prove of a source's address."""

    AUTO = "auto"
    HANDSHAKE = "handshake"
    SPOOFABLE = "spoofable"


class FirewallBackend(StrEnum):
    """Which part of netfilter holds the bans."""

    AUTO = "auto"
    NFTABLES = "nftables"
    IPSET = "ipset"
    IPTABLES = "iptables"


class Chain(StrEnum):
    """Where packets of banned sources are met, in iptables' names."""

    INPUT = "INPUT"
    FORWARD = "FORWARD"
    DOCKER_USER = "DOCKER-USER"


class Target(StrEnum):
    """What a banned source's packets get. `REJECT` alone says that the port is unreachable."""

    DROP = "DROP"
    REJECT = "REJECT"
    REJECT_PORT = "REJECT:port-unreachable"
    REJECT_HOST = "REJECT:host-unreachable"
    REJECT_NET = "REJECT:net-unreachable"
    REJECT_ADMIN = "REJECT:admin-prohibited"
    REJECT_RESET = "REJECT:tcp-reset"
    TARPIT = "TARPIT"
    CHAOS = "CHAOS"
    DELUDE = "DELUDE"


class Section(BaseModel):
    """A table of the TOML file."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class SensorSettings(Section):
    """[sensor]."""

    mode: SensorMode = SensorMode.STEALTH
    interfaces: Annotated[tuple[InterfaceName, ...], AfterValidator(_some)] = ("all",)
    tcp_ports: Ports = Field(default="1-1023", validate_default=True)
    udp_ports: Ports = Field(default="1-1023", validate_default=True)
    exclude_tcp_ports: Ports = Field(default="113,139", validate_default=True)
    exclude_udp_ports: Ports = Field(default="67,137,138,520", validate_default=True)
    trigger_ports: Whole = Field(default=3, ge=1, le=1024)
    trigger_window: Duration = timedelta(seconds=60)
    ack_scans: Flag = False
    resolve_names: Flag = False
    banner: Banner = ""
    user: UserName = "auto"


class HistorySettings(Section):
    """[history]."""

    path: AbsolutePath = DEFAULT_HISTORY
    dialect: HistoryDialect = HistoryDialect.PORTSENTRY_1


class TailSettings(Section):
    """[[tail]]: a file, the files that a pattern in the last part of `path` names, or what the journal has."""

    path: AbsolutePath | None = None
    journal: JournalName | None = None
    format: TailFormat = TailFormat.AUTO
    prefixes: tuple[Prefix, ...] = ()
    watch: Watch = Watch.AUTO
    evidence: EvidenceRule = EvidenceRule.AUTO

    @property
    def name(self) -> str:
        """What its logs and its position are known under: the path as written, or `journal:IDENTIFIER`."""
        return f"journal:{self.journal}" if self.path is None else str(self.path)

    @property
    def is_pattern(self) -> bool:
        """Whether it names as many files as match (glob(7))."""
        return self.path is not None and not PATTERN.isdisjoint(self.path.name)


class NetworkPolicy(Section):
    """[[policy.network]]."""

    network: Net
    ban_for: BanDuration


class PolicySettings(Section):
    """[policy]."""

    enforce: Flag = True
    ban_for: BanDuration = None
    ban_for_spoofable: BanDuration = timedelta(days=1)
    repeat_factor: Whole = Field(default=4, ge=1, le=1000)
    repeat_cap: BanDuration = None
    repeat_memory: Duration = timedelta(days=90)
    allow: tuple[Net, ...] = ()
    allow_files: tuple[AbsolutePath, ...] = DEFAULT_ALLOW_FILES
    hosts_allow: AbsolutePath = DEFAULT_HOSTS_ALLOW
    ipv6_prefix: Whole = Field(default=64, ge=32, le=128)
    max_new_bans_per_minute: Whole = Field(default=50000, ge=1, le=MOST)
    max_new_spoofable_per_minute: Whole = Field(default=600, ge=1, le=MOST)
    max_bans: Whole = Field(default=200000, ge=1, le=MOST)
    network: tuple[NetworkPolicy, ...] = ()


class LedgerSettings(Section):
    """[ledger]."""

    path: AbsolutePath = Path("/var/lib/jailbridge/ledger.sqlite3")


class HostsDenyForm(StrEnum):
    """Whether the addresses stand in hosts.deny itself or in a file that one line there names."""

    LINES = "lines"
    FILE = "file"


class HostsDenySettings(Section):
    """[stores.hosts_deny]."""

    enabled: Flag = True
    path: AbsolutePath = Path("/etc/hosts.deny")
    form: HostsDenyForm = HostsDenyForm.LINES
    rule: Rule = "ALL: {address}"
    max: Whole = Field(default=10000, ge=1, le=MOST)
    external: External = External.ADOPT

    @property
    def list_path(self) -> Path:
        """The file that holds the addresses if `form` is "file": beside `path`."""
        return Path(f"{self.path}.jailbridge")


class FirewallSettings(Section):
    """[stores.firewall]."""

    enabled: Flag = True
    backend: FirewallBackend = FirewallBackend.AUTO
    target: Target = Target.DROP
    hook: Hook = "first"
    chains: Annotated[tuple[Chain, ...], AfterValidator(_some)] = (Chain.INPUT,)
    external: External = External.REVERT


class Banaction(StrEnum):
    """Whether fail2ban's own banaction stops packets too, beside our firewall; `auto`: where ours is off."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Fail2banSettings(Section):
    """[stores.fail2ban]."""

    enabled: Flag = True
    jail: JailName = "portsentry"
    socket: SocketPath = Path("/run/fail2ban/fail2ban.sock")
    banaction: Banaction = Banaction.AUTO
    external: External = External.ADOPT


class BlockedFilesSettings(Section):
    """[stores.blocked_files]."""

    enabled: Flag = True
    paths: tuple[AbsolutePath, ...] = (
        Path("/var/lib/portsentry/portsentry.blocked.*"),
        Path("/etc/portsentry/portsentry.blocked.*"),
    )


class PortsentrySettings(Section):
    """[portsentry]: the real one on this host, whose own lines and rules go when a ban ends."""

    conf: AbsolutePath = DEFAULT_PORTSENTRY_CONF


class StoresSettings(Section):
    """[stores]."""

    hosts_deny: HostsDenySettings = HostsDenySettings()
    firewall: FirewallSettings = FirewallSettings()
    fail2ban: Fail2banSettings = Fail2banSettings()
    blocked_files: BlockedFilesSettings = BlockedFilesSettings()

    @property
    def fail2ban_blocks(self) -> bool:
        """Whether fail2ban's own banaction stops packets: beside our firewall, or in its place."""
        chosen = self.fail2ban.banaction
        return not self.firewall.enabled if chosen is Banaction.AUTO else chosen is Banaction.ALWAYS


class ReconcileSettings(Section):
    """[reconcile]."""

    interval: Duration = timedelta(seconds=30)


class CommandSettings(Section):
    """[[respond.command]]."""

    run: Annotated[tuple[str, ...], AfterValidator(_some)]
    on: tuple[str, ...] = ("ban",)
    networks: tuple[Net, ...] = ()
    timeout: Duration = timedelta(seconds=10)


class MailSettings(Section):
    """[respond.mail]."""

    to: tuple[str, ...] = ()


class RespondSettings(Section):
    """[respond]."""

    command: tuple[CommandSettings, ...] = ()
    mail: MailSettings = MailSettings()


class ControlSettings(Section):
    """[control]."""

    socket: SocketPath = Path("/run/jailbridge/control.sock")

    @property
    def fail2ban_wake(self) -> Path:
        """The socket beside it that our action in fail2ban tells what is done in the jail."""
        return self.socket.with_name("fail2ban.wake")


class MetricsSettings(Section):
    """[metrics]."""

    listen: str = ""


class Settings(Section):
    """The whole configuration."""

    sensor: SensorSettings = SensorSettings()
    history: HistorySettings = HistorySettings()
    tail: tuple[TailSettings, ...] = ()
    policy: PolicySettings = PolicySettings()
    ledger: LedgerSettings = LedgerSettings()
    stores: StoresSettings = StoresSettings()
    portsentry: PortsentrySettings = PortsentrySettings()
    reconcile: ReconcileSettings = ReconcileSettings()
    respond: RespondSettings = RespondSettings()
    control: ControlSettings = ControlSettings()
    metrics: MetricsSettings = MetricsSettings()

    @model_validator(mode="before")
    @classmethod
    def _tail_the_history_by_default(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("tail", []) not in ([], ()):
            return data
        history = data.get("history")
        path = history.get("path") if isinstance(history, dict) else getattr(history, "path", None)
        # A path that cannot be followed is told once, as the history's.
        if not isinstance(path, str | Path) or not Path(path).is_absolute():
            path = DEFAULT_HISTORY
        return {**data, "tail": [{"path": path}]}
