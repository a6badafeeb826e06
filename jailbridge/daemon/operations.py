"""What can be asked of JailBridge: each public method is one command, taking and returning values that JSON can carry.

The running daemon answers with them over its control socket; without a daemon the command line calls them itself.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from jailbridge.config import Settings
from jailbridge.config.values import parse_ban_duration
from jailbridge.daemon.exemptions import PresentExemptions
from jailbridge.daemon.judge import Judge
from jailbridge.daemon.wiring import STORES, attached_stores
from jailbridge.errors import GiveUp, RetryLater
from jailbridge.host import boot_id
from jailbridge.ledger import Ledger
from jailbridge.model.ban import Ban, EndReason, Origin
from jailbridge.model.network import Network, network_text, parse_network
from jailbridge.model.plan import Plan
from jailbridge.policy.exempt import Exemptions
from jailbridge.reconcile.controller import Controller
from jailbridge.reconcile.diff import Presence

Answer = dict[str, Any] | list[Any]

# What may be asked over the control socket.
COMMANDS = ("plan", "reconcile", "status", "list_bans", "ban", "unban")


def utc_now() -> datetime:
    """Return the time, aware and UTC."""
    return datetime.now(UTC)


class Operations:
    """The ledger, the policy and the stores of one configuration, behind one lock: one thing happens at a time."""

    def __init__(self, settings: Settings, ledger: Ledger, clock: Callable[[], datetime] = utc_now) -> None:
        self.settings = settings
        self.ledger = ledger
        self.exemptions = PresentExemptions(settings.policy)
        self.judge = Judge(settings, ledger, self.exemptions)
        self.controller = Controller(
            ledger, list(attached_stores(settings)), settings.policy, self.exemptions, boot_id(), brake=self.judge
        )
        self.lock = threading.RLock()
        self.clock = clock
        self.running = False
        self.settled = -1
        """The newest change of the ledger that the stores were brought in line with."""
        self.troubles: Callable[[], Mapping[str, str]] = dict
        self.changed: Callable[[], None] = lambda: None

    # Commands

    def plan(self) -> Answer:
        """Show what would change."""
        with self.lock:
            return plan_answer(self.controller.plan(self.clock()))

    def reconcile(self) -> Answer:
        """Bring the stores in line; show what is left over."""
        return plan_answer(self.settle(patient=False))

    def status(self) -> Answer:
        """Show how things stand."""
        with self.lock:
            plan = self.controller.plan(self.clock())
            return {
                "running": self.running,
                "agreement": plan.agrees,
                "enforce": self.settings.policy.enforce,
                "bans": len(self.ledger.bans()),
                "lines": dict(self.judge.counts),
                "problems": [*filter(None, [self.exemptions.problem]), *self.troubles().values()],
                **plan_answer(plan),
            }

    def list_bans(self) -> Answer:
        """Show every live ban and how each store stands to it."""
        with self.lock:
            now = self.clock()
            bans = self.ledger.bans()
            presences = self.controller.presences(now)
            return [
                ban_answer(bans[network], stores)
                for network, stores in sorted(presences.items(), key=lambda item: (item[0].version, item[0]))
                if not bans[network].is_over(now)
            ]

    def ban(
        self,
        addresses: Sequence[str],
        duration: str = "permanent",
        reason: str = "by hand",
        force: bool = False,
        session: str | None = None,
    ) -> Answer:
        """Ban networks for a time, all or none. Raises ParseError, and GiveUp for an exempt one."""
        with self.lock:
            now = self.clock()
            networks = [parse_network(address) for address in addresses]
            lasting = parse_ban_duration(duration)
            if not force:
                self._refuse_exempt(networks, session)
            self.ledger.record(
                [_operators(network, now, lasting, reason, force) for network in networks], now=now, durable=True
            )
            left = self.settle(patient=False)
            self.changed()
            return {"banned": [network_text(n) for n in networks], **plan_answer(left)}

    def unban(self, addresses: Sequence[str], everything: bool = False) -> Answer:
        """End the bans of networks and of all within them, or of the automatic network around them.

        Raises ParseError, and GiveUp for what lies in an operator's network.
        """
        with self.lock:
            bans = self.ledger.bans()
            asked = [parse_network(address) for address in addresses]
            found = {network: self._bans_of(network, bans) for network in asked}
            ending = list(bans) if everything else list(dict.fromkeys(n for group in found.values() for n in group))
            ended = self.ledger.end(ending, EndReason.OPERATOR, now=self.clock(), durable=True)
            left = self.settle(patient=False)
            self.changed()
            return {
                "unbanned": [network_text(n) for n in ended],
                "not_banned": [network_text(n) for n, group in found.items() if not group and not everything],
                **plan_answer(left),
            }

    # What the daemon does by itself

    def settle(self, *, patient: bool) -> Plan:
        """End what has ended, then bring the stores in line; return what is left over."""
        with self.lock:
            now = self.clock()
            exemptions = self.exemptions()
            bans = self.ledger.bans()
            self.ledger.end([n for n, ban in bans.items() if ban.is_over(now)], EndReason.EXPIRED, now=now)
            if exemptions is not None:
                allowed = [n for n, ban in bans.items() if not ban.forced and _is_allowed(n, exemptions)]
                self.ledger.end(allowed, EndReason.ALLOW, now=now)
            enforce = self.settings.policy.enforce
            plan = self.controller.reconcile(now, patient=patient) if enforce else self.controller.plan(now)
            self.settled = self.ledger.last_change
            return plan

    def restore(self) -> Plan:
        """Put every live ban back where that can be done before the network is up."""
        with self.lock:
            now = self.clock()
            return self.controller.restore(now) if self.settings.policy.enforce else self.controller.plan(now)

    def _refuse_exempt(self, networks: Sequence[Network], session: str | None) -> None:
        exemptions = self.exemptions()
        if exemptions is None:
            raise RetryLater(f"{self.exemptions.problem}; --force bans all the same")
        for network in networks:
            exemption = exemptions.find(network)
            if exemption is not None:
                raise GiveUp(f"{network_text(network)} would not be banned: {exemption}; --force bans it all the same")
            if session is not None and parse_network(session).overlaps(network):
                raise GiveUp(
                    f"{network_text(network)} holds the address of your own session; --force bans it all the same"
                )

    def _bans_of(self, network: Network, bans: Mapping[Network, Ban]) -> list[Network]:
        within = [n for n in bans if n.version == network.version and n.subnet_of(network)]  # type: ignore[arg-type]
        covering = self.ledger.covering(network)
        if covering is None or covering.network in within:
            return within
        if covering.origin is Origin.OPERATOR:
            around = network_text(covering.network)
            raise GiveUp(f"{network_text(network)} lies in {around}, which an operator banned: unban {around}")
        return [*within, covering.network]


def plan_answer(plan: Plan) -> dict[str, Any]:
    """Return a plan as the JSON of `plan` shows it."""
    return {
        "changes": [
            {
                "store": change.store,
                "action": change.action.value,
                "address": network_text(change.network) if change.network is not None else None,
                "why": change.why,
            }
            for change in plan.changes
        ],
        "stores": {
            name: {
                "reachable": store.reachable,
                "enforcing": store.enforcing,
                "desired": store.desired,
                "observed": store.observed,
                "foreign": store.foreign,
                "problem": store.problem,
            }
            for name, store in plan.stores.items()
        },
    }


def is_agreement(answer: Mapping[str, Any]) -> bool:
    """Tell of a plan's answer whether there is nothing to do and every store is in reach and in force."""
    stores = answer["stores"].values()
    return not answer["changes"] and all(s["reachable"] and s["enforcing"] is not False for s in stores)


def ban_answer(ban: Ban, stores: Mapping[str, Presence]) -> dict[str, Any]:
    """Return a ban as the JSON of `list` shows it."""
    return {
        "address": network_text(ban.network),
        "since": time_text(ban.since),
        "until": time_text(ban.until) if ban.until is not None else None,
        "reason": ban.reason,
        "origin": ban.origin.value,
        "stores": {name: stores.get(name, Presence.DISABLED).value for name in STORES},
    }


def time_text(time: datetime) -> str:
    """Return an aware time as RFC 3339 in UTC, to the second."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _operators(network: Network, now: datetime, lasting: timedelta | None, reason: str, force: bool) -> Ban:
    return Ban(
        network=network,
        since=now,
        until=now + lasting if lasting is not None else None,
        origin=Origin.OPERATOR,
        reason=reason,
        forced=force,
    )


def _is_allowed(network: Network, exemptions: Exemptions) -> bool:
    exemption = exemptions.find(network)
    return exemption is not None and exemption.permanent
