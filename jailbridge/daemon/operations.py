"""What can be asked of JailBridge: each method that COMMANDS names takes and returns values that JSON can carry.

The running daemon answers with them over its control socket; without a daemon the command line calls them itself.
"""

import gc
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from jailbridge.config import Settings
from jailbridge.config.values import parse_ban_duration, parse_reason
from jailbridge.daemon.answers import (
    Answer,
    banned_answer,
    ended_answer,
    exempt_answer,
    listed_answer,
    plan_answer,
    time_text,
    told_answer,
)
from jailbridge.daemon.exemptions import PresentExemptions
from jailbridge.daemon.judge import Judge
from jailbridge.daemon.wiring import STORES, attached_stores
from jailbridge.errors import GiveUp, RetryLater
from jailbridge.host import boot_id
from jailbridge.host.boot import clock_doubt
from jailbridge.ledger import Ledger
from jailbridge.model.ban import Ban, EndReason, Origin
from jailbridge.model.network import Network, is_host, network_text, parse_network, shown
from jailbridge.model.plan import Plan
from jailbridge.policy.allow import allowed
from jailbridge.policy.exempt import Exemption, Exemptions
from jailbridge.reconcile.controller import Controller
from jailbridge.reconcile.diff import Presence
from jailbridge.stores.traces import portsentry_traces

# The source of what `allow add` says.
ALLOW = "jailbridge allow"

# What may be asked over the control socket.
COMMANDS = (
    *("plan", "reconcile", "status", "list_bans", "explain", "ban", "unban"),
    *("allow_add", "allow_remove", "allow_list", "pause", "resume"),
)


# Objects made between two looks for garbage in cycles (gc.set_threshold).
GARBAGE = 50_000


def look_for_garbage_seldom() -> None:
    """Do so for the whole process: what we keep has no cycles, and looking for some costs a third of the time."""
    gc.set_threshold(GARBAGE, 20, 50)


def utc_now() -> datetime:
    """Return the time, aware and UTC."""
    return datetime.now(UTC)


class Operations:
    """The ledger, the policy and the stores of one configuration, behind one lock: one thing happens at a time."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        clock: Callable[[], datetime] = utc_now,
        clock_doubt: Callable[[], timedelta] = clock_doubt,
    ) -> None:
        """`clock_doubt` returns for how long yet the clock may be wrong: until then no ban ends."""
        self.settings = settings
        self.ledger = ledger
        self.exemptions = PresentExemptions(settings.policy, added=self._allowed)
        self.judge = Judge(settings, ledger, self.exemptions)
        self.controller = Controller(
            ledger,
            list(attached_stores(settings)),
            settings.policy,
            self.exemptions,
            boot_id(),
            brake=self.judge,
            interval_s=settings.reconcile.interval.total_seconds(),
            traces=portsentry_traces(settings),
            today=clock,
        )
        self.lock = threading.RLock()
        self.clock = clock
        self._clock_doubt = clock_doubt
        self._obeyed: Exemptions | None = None
        self.running = False
        self.settled = -1
        """The newest change of the ledger that the stores were brought in line with."""
        self.troubles: Callable[[], Mapping[str, str]] = dict
        self.too_long: Callable[[], Mapping[str, int]] = dict
        self.changed: Callable[[], None] = lambda: None

    def _allowed(self) -> list[tuple[Network, str]]:
        return [(network, f"{ALLOW} ({order.reason})") for network, order in self.ledger.orders.allowed.items()]

    def ended_by(self) -> datetime:
        """Return up to when what ends has ended: now, but while the clock may be wrong a time at which no ban has.

        That one runs on too, and reaches the first end when the doubt is over: so long, and no longer, is what stores
        are told to hold it by themselves.
        """
        now, doubt, end = self.clock(), self._clock_doubt(), self.ledger.next_end
        return min(now, end - doubt) if doubt and end is not None else now

    # Commands

    def plan(self, store: str | None = None, force: bool = False) -> Answer:
        """Show what `reconcile` would change. Raises GiveUp for no store of ours."""
        self._refuse_unknown(store)
        with self.lock:
            return plan_answer(self.controller.plan(self.ended_by(), only=store, forced=force))

    def reconcile(self, store: str | None = None, force: bool = False) -> Answer:
        """Bring the stores, or one of them, in line; show what is left over. Raises GiveUp for no store of ours.

        force  past the brake: adopt every ban that is found, and end each that was taken out where that means something
        """
        self._refuse_unknown(store)
        return plan_answer(self.settle_at_once(thorough=True, only=store, forced=force))

    def status(self) -> Answer:
        """Show how things stand."""
        with self.lock:
            now = self.clock()
            plan = self.controller.plan(self.ended_by())
            return {
                "running": self.running,
                "agreement": plan.agrees,
                "enforce": self.settings.policy.enforce,
                "paused": self.ledger.paused(now),
                "paused_until": time_text(self.ledger.orders.pause_ends) if self.ledger.paused(now) else None,
                "bans": len(self.ledger.bans()),
                "lines": {**self.judge.counts, "too_long": sum(self.too_long().values())},
                "problems": [*filter(None, [self.judge.problem]), *self.troubles().values()],
                **plan_answer(plan),
            }

    def list_bans(self) -> Answer:
        """Show every live ban and how each store stands to it."""
        with self.lock:
            now = self.ended_by()
            bans = self.ledger.bans()
            presences = self.controller.presences(now)
            return [
                listed_answer(bans[network], _standing(stores))
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
            lasting, reason = parse_ban_duration(duration), parse_reason(reason)
            if not force:
                self._refuse_exempt(networks, session)
            self.ledger.record(
                [_operators(network, now, lasting, reason, force) for network in networks], now=now, durable=True
            )
            left = self.settle_at_once()
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
            left = self.settle_at_once()
            self.changed()
            return {
                "unbanned": [network_text(n) for n in ended],
                "not_banned": [network_text(n) for n, group in found.items() if not group and not everything],
                **plan_answer(left),
            }

    def explain(self, address: str) -> Answer:
        """Tell all that is known of an address or network, and what happened to it. Raises ParseError."""
        with self.lock:
            now, network = self.ended_by(), parse_network(address)
            ban = self.ledger.covering(network)
            ban = None if ban is not None and ban.is_over(now) else ban
            exemptions = self.exemptions()
            ended = self.ledger.tombstone(network)
            return {
                "address": address,
                "network": network_text(ban.network if ban is not None else network),
                "banned": banned_answer(ban) if ban is not None else None,
                "exempt": [exempt_answer(found) for found in exemptions.touching(network)] if exemptions else [],
                "problem": self.judge.problem,
                "ended": ended_answer(ended) if ended is not None else None,
                "stores": self._stands(network, ban, now),
                "story": [told_answer(told) for told in self.ledger.story.of(network)],
            }

    def allow_add(self, networks: Sequence[str], reason: str = "by hand") -> Answer:
        """Never ban these networks from now on, and end what touches them. Raises ParseError."""
        with self.lock:
            now, added = self.clock(), [parse_network(network) for network in networks]
            self.ledger.orders.allow(added, parse_reason(reason), now)
            exempt = Exemptions(Exemption(network=network, why=ALLOW, permanent=True) for network in added)
            touched = [ban for ban in self.ledger.bans().values() if exempt.find(ban.network) is not None]
            ending = [ban.network for ban in touched if not ban.forced]
            ended = self.ledger.end(ending, EndReason.ALLOW, now=now, durable=True)
            left = self.settle_at_once()
            self.changed()
            return {
                "allowed": [network_text(n) for n in added],
                "unbanned": [network_text(n) for n in ended],
                "forced": [network_text(ban.network) for ban in touched if ban.forced],
                **plan_answer(left),
            }

    def allow_remove(self, networks: Sequence[str]) -> Answer:
        """Take back what `allow_add` said of exactly these networks. Raises ParseError."""
        with self.lock:
            asked = [parse_network(network) for network in networks]
            removed = self.ledger.orders.disallow(asked)
            self.changed()
            return {
                "removed": [network_text(n) for n in removed],
                "not_there": [network_text(n) for n in asked if n not in removed],
            }

    def allow_list(self) -> Answer:
        """Show every allowed network and who says so. Raises RetryLater where a list cannot be read."""
        with self.lock:
            ordered = [
                {"network": network_text(n), "source": ALLOW, "reason": order.reason, "since": time_text(order.since)}
                for n, order in self.ledger.orders.allowed.items()
            ]
            configured = [
                {"network": network_text(n), "source": where, "reason": None, "since": None}
                for n, where in allowed(self.settings.policy)
            ]
            return ordered + configured

    def pause(self, duration: str = "permanent") -> Answer:
        """Take every ban out of every store, for a time or until `resume`; the ledger keeps them. Raises ParseError."""
        with self.lock:
            lasting = parse_ban_duration(duration)
            until = self.clock() + lasting if lasting is not None else None
            self.ledger.orders.pause(until)
            return {"until": time_text(until), **self._settled()}

    def resume(self) -> Answer:
        """End a pause: every ban goes back into the stores."""
        with self.lock:
            return {"was_paused": self.ledger.orders.resume(), **self._settled()}

    def _settled(self) -> dict[str, Any]:
        left = self.settle_at_once(thorough=True)
        self.changed()
        return plan_answer(left)

    def _stands(self, network: Network, ban: Ban | None, now: datetime) -> dict[str, str]:
        """Tell how each store stands to a network, banned or not."""
        if ban is not None:
            return _standing(self.controller.presences(now)[ban.network])
        plan = self.controller.plan(now)
        going = {c.store for c in plan.changes if c.network is not None and c.network.overlaps(network)}

        def stands(name: str) -> str:
            if name not in plan.stores:
                return Presence.DISABLED.value
            if not plan.stores[name].reachable:
                return Presence.UNREACHABLE.value
            return Presence.PRESENT.value if name in going else "absent"

        return {name: stands(name) for name in STORES}

    # What the daemon does by itself

    def settle(
        self, *, patient: bool, thorough: bool = False, only: str | None = None, forced: bool = False
    ) -> Plan | None:
        """End what has ended, then bring the stores in line.

        Returns what is left over; None where no store was read, so that this is not known. `patient`: leave
        failing stores alone until they are due; `thorough`: read every store, due or not; `only`, `forced`: as in
        `reconcile`.
        """
        with self.lock:
            # What goes back in after a pause is no change of a ban: every store is to be looked at.
            thorough = self._end_pause() or thorough
            self._end_what_has_ended()
            now, plan = self.ended_by(), None
            if not self.settings.policy.enforce:
                plan = None if patient else self.controller.plan(now)
            elif thorough or not self.controller.carry(now, patient=patient):
                plan = self.controller.reconcile(now, patient=patient, believing=not thorough, only=only, forced=forced)
            if only is None:
                self.settled = self.ledger.last_change
            return plan

    def settle_at_once(self, *, thorough: bool = False, only: str | None = None, forced: bool = False) -> Plan:
        """Bring the stores in line without waiting for anybody's turn; return what is left over, as far as is known."""
        with self.lock:
            plan = self.settle(patient=False, thorough=thorough, only=only, forced=forced)
            left = plan or self.controller.left(self.ended_by())
            # Where no daemon goes on with it, a store that takes its changes in turns gets all of them now.
            while not self.running and only is None and self.controller.next_turn is not None:
                before, left = left, self.settle(patient=False) or self.controller.left(self.ended_by())
                if len(left.changes) >= len(before.changes):
                    break
            return left

    def _end_pause(self) -> bool:
        """End a pause whose time has passed; tell whether there was one. In doubt of the clock bans are in force."""
        ends = self.ledger.orders.pause_ends
        return ends is not None and ends <= self.clock() and self.ledger.orders.resume()

    def _end_what_has_ended(self) -> None:
        now = self.clock()
        self.ledger.end(self.ledger.over(self.ended_by()), EndReason.EXPIRED, now=now)
        exemptions = self.exemptions()
        if exemptions is not None and exemptions != self._obeyed:
            bans = self.ledger.bans()
            touched = (network for network in exemptions.touched(bans) if not bans[network].forced)
            allowed = [network for network in sorted(touched) if _is_allowed(network, exemptions)]
            self.ledger.end(allowed, EndReason.ALLOW, now=now)
            self._obeyed = exemptions

    def forget(self) -> None:
        """Forget what policy asks for no more; nothing while the clock may be wrong."""
        with self.lock:
            if not self._clock_doubt():
                self.ledger.prune(now=self.clock(), memory=self.settings.policy.repeat_memory)

    def restore(self) -> Plan:
        """Put every live ban back where that can be done before the network is up."""
        with self.lock:
            self._end_pause()
            now = self.ended_by()
            return self.controller.restore(now) if self.settings.policy.enforce else self.controller.plan(now)

    def _refuse_unknown(self, store: str | None) -> None:
        if store is not None and store not in self.controller.stores:
            enabled = ", ".join(self.controller.stores) or "none is enabled"
            raise GiveUp(f"there is no store {shown(store)}: name one of these: {enabled}")

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
        # Lists of addresses are long, and so are ledgers: only a real network is worth a look at each ban.
        within = [network] if network in bans else []
        if not is_host(network):
            within = [n for n in bans if network.holds(n)]
        covering = self.ledger.covering(network)
        if covering is None or covering.network in within:
            return within
        if covering.origin is Origin.OPERATOR:
            around = network_text(covering.network)
            raise GiveUp(f"{network_text(network)} lies in {around}, which an operator banned: unban {around}")
        return [*within, covering.network]


def _standing(presences: Mapping[str, Presence]) -> dict[str, str]:
    return {name: presences.get(name, Presence.DISABLED).value for name in STORES}


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
