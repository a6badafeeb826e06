"""Takes PortSentry's own marks of bans that have ended out of its files and rules, so that it notices the host again.

Marks are never read as truth. One goes only where the ledger knows a ban that came from a log and is over.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime

from jailbridge.errors import FatalError, RetryLater
from jailbridge.ledger import Ledger
from jailbridge.model.network import Network
from jailbridge.model.plan import Action, Change, StoreSummary
from jailbridge.stores.protocol import Traces

log = logging.getLogger("jailbridge.reconcile")


class Clearing:
    """The places of marks, held against one ledger. `is_due`: a ban has ended since the last look."""

    def __init__(self, ledger: Ledger, places: Sequence[Traces]) -> None:
        self._ledger = ledger
        self._places = places
        self._problems: dict[str, str] = {}
        self.is_due = True

    def clear(self, now: datetime) -> None:
        """Take out the marks of ended bans. A place that is out of reach is told once, and is due again."""
        self.is_due = False
        for place in self._places:
            try:
                over = self._over(place, now)
                if over:
                    place.remove(over)
                    changes = [_change(place, network) for network in over]
                    self._ledger.story.placed(place.name, changes, now)
                    log.info("store=%s marks of ended bans taken out=%d", place.name, len(over))
                self._problems.pop(place.name, None)
            except (RetryLater, FatalError) as error:
                self.is_due = True
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
                changes += [_change(place, network) for network in self._over(place, now)]
                problem = None
            except (RetryLater, FatalError) as error:
                marked, problem = 0, str(error)
            summaries[place.name] = StoreSummary(
                reachable=problem is None, enforcing=None, desired=0, observed=marked, problem=problem
            )
        return changes, summaries

    def _over(self, place: Traces, now: datetime) -> Sequence[Network]:
        if self._ledger.paused(now):
            return ()
        marked = []
        for network in place.observe():
            ban = self._ledger.covering(network)
            if ban is None or ban.is_over(now):
                marked.append(network)
        ended = self._ledger.tombstones(marked)
        return [network for network, stone in ended.items() if self._ledger.story.tells_of(stone.network)]


def _change(place: Traces, network: Network) -> Change:
    return Change(place.name, Action.REMOVE, network, "PortSentry's mark of a ban that ended")
