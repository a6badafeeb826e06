"""The firewall as a store, by nftables: one `inet` table of ours, five sets, a drop rule for each in every chain.

The table's structure is read with `nft --json`, the elements, which may be many, over netlink. Changes of hash sets go
to the kernel as one netlink message, whose cost does not depend on what is held; what empties a set first, as one
`nft -f` transaction. What stands where is nft_sets' business.

The kernel's own timeout of an element is the ban's end and GRACE more, a dead man's switch: the ledger removes.
"""

import errno
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jailbridge import process
from jailbridge.config.settings import FirewallSettings
from jailbridge.errors import FatalError, JailBridgeError, RetryLater
from jailbridge.model.network import Network, NetworkSet
from jailbridge.model.plan import Action, Capabilities, Change, Observation, Rejection
from jailbridge.model.token import Token
from jailbridge.stores import nft_netlink, nft_reading, nft_sets, nft_socket, nft_text
from jailbridge.stores.protocol import Drifted

# A transaction of 100,000 elements takes some seconds; a hung nft must not hang us.
TIMEOUT_S = 60.0
# Steps in one transaction where it need not be a single one: the kernel's hash tables grow between two, hardly within
# one, which may then take eight times as long (6.18, 100,000 elements).
SHARE = 16
_INTERVALS = {s.name for s in nft_sets.SETS.values() if s.interval}


class NftablesStore:
    """Bans in sets of our own table; of other tables nothing is used, and nothing changed. Not thread-safe."""

    name = "firewall"
    capabilities = Capabilities(overlaps=False, ends=True, volatile=True, early=True, layout=nft_sets.LAYOUT)

    def __init__(self, settings: FirewallSettings) -> None:
        self._hooks = nft_text.hooks(settings.chains)
        self._socket = nft_socket.NftSocket()
        self._sentinels: nft_sets.Sentinels | None = None
        """Where sentinels stand by what we last read or wrote; None where that is not known."""

    def observe(self, now: datetime) -> Observation:
        """Read our table. Raises FatalError (no nft on this machine) and RetryLater."""
        seen = self._read(now)
        self._socket.forget()
        return seen.observation

    def touched(self) -> bool:
        """Tell whether another changed our table since we read it last, as the kernel tells it; never raises.

        What another does while a transaction of ours goes through nft, or one of many thousands of bans to the kernel,
        passes for ours: the next reading finds it. An element that the kernel lets expire is told by nobody.
        """
        return self._socket.touched()

    def apply(
        self, changes: Sequence[Change], token: Token, now: datetime, *, expected: str | None = None
    ) -> Sequence[Rejection]:
        """Make all changes and write the token; overlaps become the larger network.

        One transaction; but a table that is not there is laid first and then filled. Refuses what would stand in a
        sentinel's place. Another token than the expected one is seen in the hash sets, and in interval sets that are
        written to. Raises FatalError, RetryLater and Drifted.
        """
        refused = {c for c in changes if c.network is not None and nft_sets.is_sentinel(c.network)}
        own = [c for c in changes if c not in refused] if refused else changes
        adds = {c.network: c.until for c in own if c.action in _PUTTING and c.network is not None}
        updates = {c.network for c in own if c.action is Action.UPDATE}
        removes = {c.network for c in own if c.action is Action.REMOVE and c.network is not None} - adds.keys()
        hooking = any(c.action is Action.HOOK for c in own)
        emptied = {*nft_sets.SETS} if hooking else nft_sets.interval_sets([*adds, *removes])
        laying = False
        if emptied:
            # A table that is not whole is laid anew, an interval set refilled, with all that it held: in one
            # transaction, so no packet passes between. (An interval set refuses what overlaps, even for a moment.)
            seen = self._seen(now, emptied, expected)
            kept = {b.network: b.until for b in seen.observation.bans if nft_sets.set_of(b.network).name in emptied}
            laying = hooking and not kept and not any(seen.sentinels.values())
            adds = _without_overlaps({**{n: until for n, until in kept.items() if n not in removes}, **adds})
            removes = {n for n in removes if nft_sets.set_of(n).name not in emptied}
        fresh = adds.keys() if hooking else adds.keys() - updates if expected is not None else ()
        claims = [*self._claims(now, emptied, expected)]
        steps = [*nft_sets.removing(removes), *nft_sets.adding(adds, now, fresh=fresh), *nft_sets.marking(token)]
        self._sentinels = None
        if laying:
            # What held nothing lets nothing more pass while it is filled, and the kernel is quicker asked by ourselves.
            self._lay_and_fill(steps)
        elif emptied:
            clearing = nft_text.layout(self._hooks) if hooking else nft_text.flushing(sorted(emptied))
            self._through_nft(nft_text.commands(claims) + clearing + nft_text.commands(steps), expected)
        else:
            self._through_netlink([*claims, *steps], expected)
        self._sentinels = {name: [place] for name, place in nft_sets.places(str(token)).items()}
        why = "its address is never a packet's source"
        return [Rejection(change=c, why=why) for c in changes if c in refused and c.action is not Action.REMOVE]

    def _seen(self, now: datetime, emptied: Collection[str], expected: str | None) -> nft_reading.Reading:
        """Return what the sets that will be emptied hold. Raises Drifted where one that is read bears another token."""
        names = {*emptied, *_INTERVALS}
        seen = self._read_sets(names, now) if names == _INTERVALS else self._read(now)
        if expected is not None and any(seen.tokens[name] != expected for name in names):
            raise _drifted()
        return seen

    def _claims(self, now: datetime, emptied: Collection[str], expected: str | None) -> Iterable[nft_sets.Step]:
        """Return the steps that take out the sentinels that stand there now, but those that go with their sets."""
        if expected is None:
            if self._sentinels is None:
                self._sentinels = self._read(now).sentinels
            return nft_sets.sweeping(self._sentinels, emptied=emptied)
        if not emptied:
            return nft_sets.claiming(expected)
        # In interval sets nft judges by itself what is there, and in its own words: these have been read.
        return [*nft_sets.claiming(expected, emptied=_INTERVALS), *nft_sets.sweeping({}, emptied=emptied)]

    def _read(self, now: datetime) -> nft_reading.Reading:
        self._sentinels = None
        seen = self._socket.undisturbed(lambda: self._glanced_at(now))
        self._sentinels = seen.sentinels
        return seen

    def _read_sets(self, names: Collection[str], now: datetime) -> nft_reading.Reading:
        return self._socket.undisturbed(lambda: nft_reading.reading(self._elements(names), now))

    def _glanced_at(self, now: datetime) -> nft_reading.Reading:
        # Of a single table nft (1.0.6) would fetch the elements even where it leaves them out.
        objects = nft_text.ours(self._listed("ruleset", "inet"))
        elements = self._elements(nft_text.fitting(objects))
        return nft_reading.reading(elements, now, enforcing=nft_text.is_enforcing(objects, self._hooks))

    def _listed(self, *what: str) -> list[Any]:
        nft = process.find("nft", "nftables")
        result = process.run([nft, "--json", "--terse", "list", *what], timeout_s=TIMEOUT_S)
        if result.code != 0:
            raise _failure(result)
        try:
            return list(json.loads(result.out)["nftables"])
        except (ValueError, KeyError, TypeError):
            raise RetryLater("nft did not answer in JSON") from None

    def _elements(self, names: Iterable[str]) -> dict[str, list[nft_netlink.Held]]:
        """Return what these sets hold, of those that are there."""
        held = {}
        for name in names:
            try:
                held[name] = self._socket.elements(nft_sets.SETS[name])
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise _refusal("listing", error) from None
        return held

    def _lay_and_fill(self, steps: Sequence[nft_sets.Step]) -> None:
        """Lay our table and make these steps, the token's last, in several transactions."""
        through_nft = [step for step in steps if step.set.interval]
        others = [step for step in steps if not step.set.interval]
        self._through_nft(nft_text.layout(self._hooks) + nft_text.commands(through_nft), None)
        with self._socket.deaf():
            for start in range(0, len(others), SHARE):
                self._through_netlink(others[start : start + SHARE], None)

    def _through_nft(self, text: str, expected: str | None) -> None:
        nft = process.find("nft", "nftables")
        with self._socket.deaf():
            result = process.run([nft, "-f", "-"], given=text, timeout_s=TIMEOUT_S)
        if result.code != 0 and expected is not None and "No such file or directory" in result.err:
            raise _drifted()
        if result.code != 0:
            raise _failure(result)

    def _through_netlink(self, steps: Sequence[nft_sets.Step], expected: str | None) -> None:
        try:
            self._socket.write(steps)
        except OSError as error:
            if error.errno == errno.ENOENT and expected is not None:
                raise _drifted() from None
            raise _refusal("transaction", error) from None


_PUTTING = {Action.ADD, Action.UPDATE}


def _without_overlaps(bans: Mapping[Network, datetime | None]) -> dict[Network, datetime | None]:
    """Leave out what an interval set cannot hold beside a larger network of the same set."""
    prefixes = [network for network in bans if nft_sets.set_of(network).interval]
    held = NetworkSet(prefixes)
    covered = {network for network in prefixes if held.covering(network, strictly=True) is not None}
    return {network: until for network, until in bans.items() if network not in covered} if covered else {**bans}


def _drifted() -> Drifted:
    return Drifted("our table is gone, or one of its sets bears another token or none")


def _not_permitted() -> FatalError:
    return FatalError("nft: not permitted: run as root, or with CAP_NET_ADMIN")


def _failure(result: process.Result) -> JailBridgeError:
    return (
        _not_permitted() if "Operation not permitted" in result.err else RetryLater(f"nft failed: {result.first_error}")
    )


def _refusal(what: str, error: OSError) -> JailBridgeError:
    if error.errno == errno.EPERM:
        return _not_permitted()
    return RetryLater(f"the kernel refused our nftables {what}: {error.strerror}")
