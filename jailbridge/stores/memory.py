"""The in-memory twin of a store: the same promises, without a real program. For tests and for trying a policy out."""

from collections.abc import Sequence
from datetime import datetime

from jailbridge.errors import RetryLater
from jailbridge.model.network import Network, maximal, network_text
from jailbridge.model.plan import Action, Capabilities, Change, Observation, ObservedBan, Rejection
from jailbridge.model.token import Token
from jailbridge.stores.protocol import Drifted


class MemoryStore:
    """Holds bans in a dictionary, with their ends. `lose` is a reboot.

    What others do is set: `reachable`, `enforcing`, `is_touched`. A store without overlaps refuses two networks of
    which one holds the other, as a real one does.
    """

    def __init__(self, name: str = "memory", capabilities: Capabilities | None = None) -> None:
        self.name = name
        self.capabilities = capabilities or Capabilities(overlaps=True, ends=True, volatile=True, early=True)
        self.bans: dict[Network, ObservedBan] = {}
        self.token: str | None = None
        self.reachable = True
        self.enforcing = True
        self.is_touched = False

    def lose(self) -> None:
        """Forget everything, as a reboot does."""
        self.bans, self.token = {}, None

    def observe(self, now: datetime) -> Observation:
        """Return what is held; a ban whose end has passed is held no more. Raises RetryLater."""
        self._reach()
        self.bans = {n: ban for n, ban in self.bans.items() if ban.until is None or ban.until > now}
        return Observation(token=self.token, enforcing=self.enforcing, bans=tuple(self.bans.values()))

    def touched(self) -> bool:
        """Tell whether somebody has changed something since; set by whoever did."""
        touched, self.is_touched = self.is_touched, False
        return touched

    def apply(
        self, changes: Sequence[Change], token: Token, now: datetime, *, expected: str | None = None
    ) -> Sequence[Rejection]:
        """Make the changes, then write the token, all or nothing. Raises RetryLater, Drifted."""
        self._reach()
        if expected is not None and self.token != expected:
            raise Drifted(f"store {self.name} does not bear the token {expected}")
        bans = dict(self.bans)
        for change in changes:
            if change.network is None:
                continue
            if change.action is Action.REMOVE:
                bans.pop(change.network, None)
            else:
                since = bans[change.network].since if change.network in bans else now
                until = change.until if self.capabilities.ends else None
                bans[change.network] = ObservedBan(network=change.network, since=since, until=until)
        if not self.capabilities.overlaps:
            inside = set(bans) - set(maximal(bans))
            if inside:
                raise RetryLater(
                    f"store {self.name} cannot hold {network_text(min(inside, key=str))} in another network"
                )
        self.enforcing = self.enforcing or any(change.action is Action.HOOK for change in changes)
        self.bans, self.token = bans, str(token)
        return ()

    def _reach(self) -> None:
        if not self.reachable:
            raise RetryLater(f"store {self.name} is out of reach")
