"""A controller over a real ledger and in-memory stores that can be made to fail."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from jailbridge.config.settings import PolicySettings
from jailbridge.errors import FatalError, RetryLater
from jailbridge.ledger import Ledger
from jailbridge.model.ban import Ban, EndReason, Origin
from jailbridge.model.network import Network, parse_network
from jailbridge.model.plan import Capabilities, Change, External, Observation, ObservedBan, Rejection
from jailbridge.model.token import Token
from jailbridge.policy.exempt import Exemption, Exemptions
from jailbridge.reconcile.attached import Attached
from jailbridge.reconcile.controller import Controller
from jailbridge.stores.memory import MemoryStore
from jailbridge.stores.protocol import Traces

NOW = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
HOUR = timedelta(hours=1)
FIREWALL = Capabilities(overlaps=False, ends=True, volatile=True, early=True)
JAIL = Capabilities(overlaps=True, ends=False, volatile=True, early=False)
FILE = Capabilities(overlaps=True, ends=False, volatile=False, early=False, limit=5)


def net(text: str) -> Network:
    return parse_network(text)


def nets(*texts: str) -> set[Network]:
    return {net(text) for text in texts}


def ban(network: str, until: datetime | None = None, *, forced: bool = False) -> Ban:
    return Ban(network=net(network), since=NOW, until=until, origin=Origin.OPERATOR, reason="test", forced=forced)


class Failing(MemoryStore):
    """A store whose writing fails while `broken`, and counts what is asked of it."""

    def __init__(self, name: str, capabilities: Capabilities) -> None:
        super().__init__(name, capabilities)
        self.broken: RetryLater | FatalError | None = None
        self.refuses: set[Network] = set()
        self.before_apply: Callable[[], None] = lambda: None
        self.observed = self.applied = 0

    def observe(self, now: datetime) -> Observation:
        self.observed += 1
        return super().observe(now)

    def apply(
        self, changes: Sequence[Change], token: Token, now: datetime, *, expected: str | None = None
    ) -> Sequence[Rejection]:
        self.applied += 1
        act, self.before_apply = self.before_apply, lambda: None
        act()
        if self.broken is not None:
            raise self.broken
        taken = [change for change in changes if change.network not in self.refuses]
        super().apply(taken, token, now, expected=expected)
        return [Rejection(change=change, why="no room") for change in changes if change.network in self.refuses]


class World:
    """A ledger, three stores, and the controller between them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger"
        self.ledger = Ledger(self.path)
        self.firewall = Failing("firewall", FIREWALL)
        self.jail = Failing("fail2ban", JAIL)
        self.file = Failing("hosts_deny", FILE)
        self.exemptions: Exemptions | None = Exemptions()
        self.seconds = 0.0
        self.boot = "b00700"
        self.controller = self.begin()

    @property
    def stores(self) -> tuple[Failing, ...]:
        return self.firewall, self.jail, self.file

    def begin(self, *traces: Traces, today: Callable[[], datetime] | None = None) -> Controller:
        attached = [
            Attached(store=self.firewall, external=External.REVERT),
            Attached(store=self.jail, external=External.ADOPT),
            Attached(store=self.file, external=External.ADOPT),
        ]
        return Controller(
            self.ledger,
            attached,
            PolicySettings(),
            lambda: self.exemptions,
            self.boot,
            lambda: self.seconds,
            traces=traces,
            today=today,
        )

    def restart(self, *, reboot: bool = False) -> None:
        self.ledger.close()
        self.ledger = Ledger(self.path)
        if reboot:
            self.boot = f"{self.boot}1"
            for store in self.stores:
                if store.capabilities.volatile:
                    store.lose()
        self.controller = self.begin()

    def ban(self, *bans: Ban) -> None:
        self.ledger.record(bans, now=NOW)

    def unban(self, *networks: str) -> None:
        self.ledger.end([net(network) for network in networks], EndReason.OPERATOR, now=NOW)

    def by_hand(self, store: MemoryStore, network: str, since: datetime | None = NOW + HOUR) -> None:
        store.bans[net(network)] = ObservedBan(network=net(network), since=since)

    def exempt(self, *networks: str, permanent: bool = False) -> None:
        self.exemptions = Exemptions(
            Exemption(network=net(network), why="test", permanent=permanent) for network in networks
        )

    def held(self) -> list[set[Network]]:
        return [set(store.bans) for store in self.stores]

    def forget_counts(self) -> None:
        for store in self.stores:
            store.observed = store.applied = 0
