"""What an operator ordered besides bans: networks that are never banned, and a pause. Kept here, obeyed elsewhere."""

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

from jailbridge.ledger.rows import to_time
from jailbridge.model.network import Network, network_text, parse_network

_PAUSE = "paused"
_WITHOUT_END = "until resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """Since when a network is allowed, and what the operator said of it."""

    since: datetime
    reason: str


class Orders:
    """The orders in one ledger: `writing` begins a transaction of the ledger that is safe on the disk when it ends."""

    def __init__(self, db: sqlite3.Connection, writing: Callable[[], AbstractContextManager[None]]) -> None:
        self._db = db
        self._writing = writing
        self.load()

    def load(self) -> None:
        """Read the orders anew."""
        self._allowed = {
            parse_network(network): Allowed(since=to_time(time), reason=reason)
            for network, time, reason in self._db.execute("SELECT network, time, reason FROM allowed")
        }
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (_PAUSE,)).fetchone()
        self._is_paused = row is not None
        self._until = to_time(float(row[0])) if row and row[0] != _WITHOUT_END else None

    @property
    def allowed(self) -> Mapping[Network, Allowed]:
        """The networks that are never to be banned; later orders make a new mapping."""
        return self._allowed

    def allow(self, networks: Iterable[Network], reason: str, now: datetime) -> None:
        """Order that these networks are never banned."""
        added = {network: Allowed(since=now, reason=reason) for network in networks}
        with self._writing():
            self._db.executemany(
                "INSERT OR REPLACE INTO allowed VALUES (?, ?, ?)",
                [(network_text(network), now.timestamp(), reason) for network in added],
            )
        self._allowed = {**self._allowed, **added}

    def disallow(self, networks: Iterable[Network]) -> Sequence[Network]:
        """Take orders of exactly these networks back; return those that there were."""
        gone = [network for network in dict.fromkeys(networks) if network in self._allowed]
        with self._writing():
            self._db.executemany("DELETE FROM allowed WHERE network = ?", [(network_text(n),) for n in gone])
        self._allowed = {network: order for network, order in self._allowed.items() if network not in gone}
        return gone

    def paused(self, now: datetime) -> bool:
        """Tell whether nothing is to be held in any store now."""
        return self._is_paused and (self._until is None or now < self._until)

    @property
    def pause_ends(self) -> datetime | None:
        """When the pause ends by itself, also where that has passed; None where there is none, or one without end."""
        return self._until

    def pause(self, until: datetime | None) -> None:
        """Order a pause; None: until `resume`."""
        with self._writing():
            value = _WITHOUT_END if until is None else repr(until.timestamp())
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_PAUSE, value))
        self._is_paused, self._until = True, until

    def resume(self) -> bool:
        """End the pause; tell whether there was one."""
        was_paused = self._is_paused
        if was_paused:
            with self._writing():
                self._db.execute("DELETE FROM meta WHERE name = ?", (_PAUSE,))
            self._is_paused, self._until = False, None
        return was_paused
