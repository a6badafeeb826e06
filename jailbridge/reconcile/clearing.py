"""Takes PortSentry's own marks of bans that have ended out of its files and rules, so that it notices the host again.

Marks are never read as truth. One goes only when a ban that came from a log has ended: at the first look all that the
ledger knows of, later those that have ended since. A mark that PortSentry makes meanwhile is of something new.
"""

import logging
from collections.abc import Mapping, Sequence, Set
from datetime import datetime

from jailbridge.errors import FatalError, RetryLater
from jailbridge.ledger import Ledger
from jailbridge.model.network import Network, NetworkSet
from jailbridge.model.plan import Action, Change, StoreSummary
from jailbridge.stores.protocol import Traces

log = logging.getLogger("jailbridge.reconcile")


class Clearing:
    """The places of marks, held against one ledger."""

    def __init__(self, ledger: Ledger, places: Sequence[Traces]) -> None:
        self._ledger = ledger
        self._places = places
        self._problems: dict[str, str] = {}
        # What has ended since everything was cleared, up to a change of the ledger; None: nothing was yet.
        self._ended: set[Network] | None = None
        self._heard = 0

    @property
    def is_due(self) -> bool:
        """Whether something has ended whose marks may still be there."""
        if not self._places or self._ended is None:
            return bool(self._places)
        while news := self._ledger.feed(self._heard):
            self._heard = news[-1][0]
            self._ended.update(network for _, _, what, network, _ in news if what == "unban")
        return bool(self._ended)

    def clear(self, now: datetime) -> None:
        """Take out the marks of ended bans. A place that is out of reach is told once, and is due again."""
        if not self.is_due or self._ledger.paused(now):
            return
        if self._ended is None:
            self._heard = self._ledger.last_change
        before, self._ended = self._ended, set()
        for place in self._places:
            try:
                over = self._over(place, before, now)
                if over:
                    place.remove(over)
                    changes = [_change(place, network) for network in over]
                    self._ledger.story.placed(place.name, changes, now)
                    log.info("store=%s marks of ended bans taken out=%d", place.name, len(over))
                self._problems.pop(place.name, None)
            except (RetryLater, FatalError) as error:
                self._ended = before
                if self._problems.get(place.name) != str(error):
                    log.warning("store=%s unreachable: %s", place.name, error)
                self._problems[place.name] = str(error)

    def plan(self, now: datetime) -> tuple[Sequence[Change], Mapping[str, StoreSummary]]:
        """Return what `clear` would take out, and each place's line of a plan."""
        changes: list[Change] = []
        summaries: dict[str, StoreSummary] = {}
        for place in self._places:
            try:
                marked = len(place.observe())
                if self.is_due and not self._ledger.paused(now):
                    changes += [_change(place, network) for network in self._over(place, self._ended, now)]
                problem = None
            except (RetryLater, FatalError) as error:
                marked, problem = 0, str(error)
            summaries[place.name] = StoreSummary(
                reachable=problem is None, enforcing=None, desired=0, observed=marked, problem=problem
            )
        return changes, summaries

    def _over(self, place: Traces, ended: Set[Network] | None, now: datetime) -> Sequence[Network]:
        """Return whose marks may go from a place; `ended`: the bans to look for, None for all that are known."""
        if ended is not None and not ended:
            return ()
        index, marked = NetworkSet(ended or ()), []
        for network in place.observe():
            ban = self._ledger.covering(network)
            is_meant = ended is None or index.covering(network) is not None
            if is_meant and (ban is None or ban.is_over(now)):
                marked.append(network)
        return [network for network, stone in self._ledger.tombstones(marked).items() if stone.logged]


def _change(place: Traces, network: Network) -> Change:
    return Change(place.name, Action.REMOVE, network, "PortSentry's mark of a ban that ended")
