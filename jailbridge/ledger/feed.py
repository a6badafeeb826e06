"""The ledger's feed as another process reads it: what changed, since when, and what stands. Reads no bans into memory.

Never writes, and never waits for who does. The file may be taken away and another put in its place: what is told is
always of the one that stands at the path now.
"""

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import quote

from jailbridge.errors import ParseError, RetryLater
from jailbridge.ledger.rows import to_network, to_time
from jailbridge.ledger.schema import APPLICATION_ID, MIGRATIONS
from jailbridge.model.ban import Origin
from jailbridge.model.event import Evidence
from jailbridge.model.network import Network, network_text
from jailbridge.model.plan import Placement


class FeedEnd(NamedTuple):
    """A ledger's id, and the number of its newest change; 0 where there is none."""

    ledger: str
    sequence: int


class FeedChange(NamedTuple):
    """One change: `what` is ban, change, unban. Of an unban `origin`, `evidence` and `ports` are those of the ban."""

    sequence: int
    time: datetime
    what: str
    network: Network
    why: str
    until: datetime | None
    origin: Origin
    evidence: Evidence | None
    ports: tuple[str, ...]


class Placed(NamedTuple):
    """How a network stands: banned or not; seen in a store, or in one that holds what is around it; noted for one."""

    banned: bool
    seen: bool
    noted: bool


class FeedReader:
    """Reads the feed of the ledger at `path`. Every method raises RetryLater where there is none, or none to be read.

    For one thread at a time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, until it is asked again."""
        if self._db is not None:
            self._db.close()
        self._db = self._file = None

    def end(self) -> FeedEnd:
        """Return where the feed ends."""
        with self._reading() as db:
            query = "SELECT (SELECT value FROM meta WHERE name = 'id'), (SELECT coalesce(max(sequence), 0) FROM feed)"
            return FeedEnd(*db.execute(query).fetchone())

    def after(self, sequence: int, limit: int) -> list[FeedChange]:
        """Return up to `limit` changes past a sequence number, in order; those before the first may be forgotten."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT sequence, time, what, network, why, until, origin, evidence, ports FROM feed"
                " WHERE sequence > ? ORDER BY sequence LIMIT ?",
                (sequence, limit),
            ).fetchall()
            return [
                FeedChange(
                    number,
                    to_time(time),
                    what,
                    to_network(network),
                    why,
                    to_time(until) if until is not None else None,
                    # What an older release wrote does not tell.
                    Origin(origin) if origin is not None else Origin.SENSOR,
                    Evidence(evidence) if evidence is not None else None,
                    tuple(ports.split()) if ports else (),
                )
                for number, time, what, network, why, until, origin, evidence, ports in rows
            ]

    def placed(self, networks: Collection[Network], stores: Collection[str]) -> Mapping[Network, Placed]:
        """Return how each of the networks stands in these stores."""
        texts = {network_text(network): network for network in networks}
        around = {
            network: [network_text(network.supernet(length)) for length in range(network.prefixlen + 1)]
            for network in networks
        }
        with self._reading() as db:
            found = "SELECT network FROM json_each(?) CROSS JOIN ban ON network = value"
            live = {text for (text,) in db.execute(found, (json.dumps(list(texts)),))}
            asked = json.dumps(sorted({text for wider in around.values() for text in wider}))
            states: dict[str, set[str]] = {}
            for store in stores:
                rows = db.execute(
                    "SELECT network, state FROM json_each(?1) CROSS JOIN placement ON store = ?2 AND network = value",
                    (asked, store),
                )
                for text, state in rows:
                    states.setdefault(text, set()).add(state)
        proven = Placement.CONFIRMED.value
        return {
            network: Placed(
                banned=text in live,
                seen=any(proven in states.get(wider, ()) for wider in around[network]),
                noted=text in states,
            )
            for text, network in texts.items()
        }

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._open()
        except (sqlite3.Error, ParseError, ValueError, TypeError) as error:
            self.close()
            raise RetryLater(f"ledger {self.path} cannot be read: {error}") from None

    def _open(self) -> sqlite3.Connection:
        try:
            status = self.path.stat()
        except OSError as error:
            self.close()
            raise RetryLater(f"ledger {self.path} cannot be read: {error.strerror}") from None
        file = (status.st_dev, status.st_ino)
        if self._db is None or file != self._file:
            self.close()
            self._file = file
            # Not `immutable`: it is written all the while.
            self._db = sqlite3.connect(
                f"file:{quote(str(self.path))}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
            )
            form = self._db.execute("PRAGMA user_version").fetchone()[0]
            if self._db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID or form != len(MIGRATIONS):
                self.close()
                raise RetryLater(f"ledger {self.path} is not of this release's form: restart jailbridge, or this")
        return self._db
