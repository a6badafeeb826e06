"""The firewall as a store, by nftables: one `inet` table of ours, five sets, a drop rule for each in every chain.

Reads with `nft --json list table`, writes one `nft -f` transaction. The text of both is nft_text's business.

The kernel's own timeout of an element is the ban's end and GRACE more, a dead man's switch: the ledger removes.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jailbridge import process
from jailbridge.config.settings import FirewallSettings
from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.network import Network, NetworkSet
from jailbridge.model.plan import Action, Capabilities, Change, Observation, Rejection
from jailbridge.model.token import Token
from jailbridge.stores import nft_text
from jailbridge.stores.protocol import Drifted

# A transaction of 100,000 elements takes some seconds; a hung nft must not hang us.
TIMEOUT_S = 60.0


class NftablesStore:
    """Bans in sets of our own table; other tables are never looked at."""

    name = "firewall"
    capabilities = Capabilities(
        overlaps=False, ends=True, volatile=True, early=True, layout=nft_text.LAYOUT, guarded=False
    )

    def __init__(self, settings: FirewallSettings) -> None:
        self._hooks = nft_text.hooks(settings.chains)

    def observe(self, now: datetime) -> Observation:
        """Read our table. Raises FatalError (no nft on this machine) and RetryLater."""
        return nft_text.observation(self._table(), self._hooks, now)

    def apply(
        self, changes: Sequence[Change], token: Token, now: datetime, *, expected: str | None = None
    ) -> Sequence[Rejection]:
        """Make all changes and write the token in one transaction; overlaps become the larger network.

        Refuses what would stand in a sentinel's place. Where a token is expected, any will do: what is seen is that
        one is gone. Raises FatalError, RetryLater and Drifted.
        """
        refused = [c for c in changes if c.network is not None and nft_text.is_sentinel(c.network)]
        own = [c for c in changes if c.network is None or not nft_text.is_sentinel(c.network)]
        adds = {c.network: c.until for c in own if c.action in {Action.ADD, Action.UPDATE} and c.network}
        updates = {c.network for c in own if c.action is Action.UPDATE}
        removes = {c.network for c in own if c.action is Action.REMOVE and c.network} - adds.keys()
        hooking = any(change.action is Action.HOOK for change in own)
        intervals = nft_text.interval_sets({*adds, *removes})
        text = ""
        if hooking or intervals:
            # A table that is not whole is laid anew, an interval set refilled, with all that it held: in one
            # transaction, so no packet passes between. (An interval set refuses what overlaps, even for a moment.)
            kept = {ban.network: ban.until for ban in self.observe(now).bans if ban.network not in removes}
            anew = {n: until for n, until in kept.items() if hooking or nft_text.set_of(n).name in intervals}
            adds = _without_overlaps({**anew, **adds})
            removes = {n for n in removes if not hooking and nft_text.set_of(n).name not in intervals}
            text = nft_text.layout(self._hooks) if hooking else nft_text.flushing(intervals)
        fresh = set(adds) - updates if expected is not None else set()
        text += nft_text.removing(removes) + nft_text.adding(adds, now, fresh=fresh)
        emptied = nft_text.SETS if hooking else intervals
        text += nft_text.sentinels(token, emptied, sure=expected is not None)
        self._nft("-f", "-", given=text, believed=expected is not None)
        why = "its address is never a packet's source"
        return [Rejection(change=change, why=why) for change in refused if change.action is not Action.REMOVE]

    def _table(self) -> list[dict[str, Any]]:
        result = process.run(
            [process.find("nft", "nftables"), "--json", "list", "table", "inet", nft_text.TABLE],
            timeout_s=TIMEOUT_S,
        )
        if result.code != 0:
            if "No such file or directory" in result.err:
                return []
            raise _failure(result)
        try:
            objects = json.loads(result.out)["nftables"]
        except (ValueError, KeyError, TypeError):
            raise RetryLater("nft did not answer in JSON") from None
        return [item for item in objects if isinstance(item, dict)]

    def _nft(self, *arguments: str, given: str, believed: bool) -> None:
        result = process.run([process.find("nft", "nftables"), *arguments], given=given, timeout_s=TIMEOUT_S)
        if result.code != 0 and believed and "No such file or directory" in result.err:
            raise Drifted("our table, or the token in one of its sets, is gone")
        if result.code != 0:
            raise _failure(result)


def _without_overlaps(bans: Mapping[Network, datetime | None]) -> dict[Network, datetime | None]:
    """Leave out what an interval set cannot hold beside a larger network of the same set."""
    intervals = NetworkSet(network for network in bans if nft_text.set_of(network).interval)
    return {
        network: until
        for network, until in bans.items()
        if not nft_text.set_of(network).interval or intervals.covering(network, strictly=True) is None
    }


def _failure(result: process.Result) -> RetryLater | FatalError:
    if "Operation not permitted" in result.err:
        return FatalError("nft: not permitted: run as root, or with CAP_NET_ADMIN")
    return RetryLater(f"nft failed: {result.first_error}")
