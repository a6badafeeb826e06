"""The settings tree: every key, its type and its default. Frozen; unknown keys are errors.

A key that a later release will obey is checked for its type here, and refused by `consistency.unbuilt` when it asks
for more than this release does: a setting is never silently without effect.
"""

from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from jailbridge.config.fields import (
    MOST,
    PATTERN,
    AbsolutePath,
    BanDuration,
    Banner,
    Duration,
    Flag,
    GroupName,
    Hook,
    InterfaceName,
    JailName,
    JournalName,
    Net,
    Ports,
    Prefix,
    Rule,
    Section,
    SocketPath,
    UserName,
    Whole,
    some,
)
from jailbridge.config.responding import RespondSettings
from jailbridge.model.event import TailFormat
from jailbridge.model.plan import External

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


class SensorSettings(Section):
    """[sensor]."""

    mode: SensorMode = SensorMode.STEALTH
    interfaces: Annotated[tuple[InterfaceName, ...], AfterValidator(some)] = ("all",)
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
    chains: Annotated[tuple[Chain, ...], AfterValidator(some)] = (Chain.INPUT,)
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


class ControlSettings(Section):
    """[control]."""

    socket: SocketPath = Path("/run/jailbridge/control.sock")
    group: GroupName = ""

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
