"""Where each ban was placed: by store what was attempted there, what was seen there since, and under which token.

A placement outlives its ban: it goes when the store has been seen without it.
"""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from contextlib import AbstractContextManager
from datetime import datetime
from types import MappingProxyType

from jailbridge.ledger.rows import to_network, to_seconds, to_time
from jailbridge.model.ban import Ban
from jailbridge.model.network import Network, network_text
from jailbridge.model.plan import Placement
from jailbridge.model.token import Token

# Of a store's networks so many are named one by one; past it one statement looks through all of them.
FEW = 500
_STATES = {placement.value: placement for placement in Placement}


class Places:
    """The placements of one ledger: `reading` and `writing` are the ledger's own."""

    def __init__(
        self,
        db: sqlite3.Connection,
        ledger: str,
        bans: Callable[[], Mapping[Network, Ban]],
        reading: Callable[[], AbstractContextManager[None]],
        writing: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """`ledger` is the ledger's id, for tokens; `bans` returns the live bans."""
        self._db = db
        self._bans = bans
        self._ledger = ledger
        self._reading = reading
        self._writing = writing
        # What a copy writes is an older writing to the ledger that it was made of.
        self.is_copy = False
        self.forget()

    def forget(self) -> None:
        """Forget what is remembered of the tables: it may not be what they hold."""
        # By store, read when it is first asked for; and what is attempted there, and not confirmed.
        self._placed: dict[str, dict[Network, Placement]] = {}
        self._attempted: defaultdict[str, set[Network]] = defaultdict(set)

    def of(self, store: str) -> Mapping[Network, Placement]:
        """Return what was written to a store, and whether it was seen there, as it stands: later changes show."""
        with self._reading():
            return MappingProxyType(self._of(store))

    def unproven(self, store: str) -> Set[Network]:
        """Return what was written to a store and not seen there since, as it stands: later changes show."""
        with self._reading():
            self._of(store)
            return self._attempted[store]

    def attempt(
        self,
        store: str,
        ends: Mapping[Network, datetime | None],
        *,
        boot: str,
        layout: int,
        now: datetime,
        removed: Collection[Network] = (),
    ) -> Token:
        """Note that these bans are about to be written to a store; return the token to write last.

        Until they are seen there again nothing is proven of any of them: what is cut short is nobody's wish. Sequence
        numbers follow the time, so that an older copy of this ledger does not give out once more those that were given
        out after it was made.

        ends     until when the store itself is to hold each of them; None where it is told no end
        removed  those that are about to be taken out
        """
        with self._writing():
            placed = self._of(store)
            sequence = max(self._sequence() + 1, 0 if self.is_copy else int(now.timestamp() * 1000))
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'sequence'", (str(sequence),))
            self._db.execute("INSERT OR REPLACE INTO attempt VALUES (?, ?, ?)", (store, sequence, now.timestamp()))
            self._doubt(store, [*ends, *removed])
            told = self._told_ends(store) if len(ends) > FEW else ends
            again = [
                (to_seconds(end), store, network_text(n))
                for n, end in ends.items()
                if n in placed and (end is not None or n in told)
            ]
            self._db.executemany("UPDATE placement SET until = ? WHERE store = ? AND network = ?", again)
            new = {network: Placement.ATTEMPTED for network in ends if network not in placed}
            self._insert(store, {network: ends[network] for network in new})
            placed.update(new)
            self._attempted[store].update(new)
        return Token(ledger=self._ledger, boot=boot, layout=layout, sequence=sequence)

    def _insert(self, store: str, ends: Mapping[Network, datetime | None]) -> None:
        """Write new placements, attempted ones."""
        state = Placement.ATTEMPTED.value
        told = [(store, network_text(n), state, to_seconds(end)) for n, end in ends.items() if end is not None]
        self._db.executemany("INSERT INTO placement VALUES (?, ?, ?, ?)", told)
        # One statement for those without an end, of very many nearly all, takes a third of the time.
        untold = json.dumps([network_text(n) for n, end in ends.items() if end is None])
        rows = "SELECT ?, value, ?, NULL FROM json_each(?)"
        self._db.execute(f"INSERT INTO placement {rows}", (store, state, untold))

    def _told_ends(self, store: str) -> Mapping[Network, int]:
        """Return what a store was told an end for, with that."""
        query = "SELECT network, until FROM placement WHERE store = ? AND until IS NOT NULL"
        return {to_network(network): until for network, until in self._db.execute(query, (store,))}

    def confirm(self, store: str, present: Iterable[Network], absent: Iterable[Network], token: Token | None) -> None:
        """Note what a store was seen with and without; `token` if it carries the one that was last given out for it."""
        absent = list(absent)
        with self._writing():
            placed, attempted = self._of(store), self._attempted[store]
            seen = {network for network in present if placed.get(network) is not Placement.CONFIRMED}
            if len(attempted) > FEW and attempted <= seen:
                # Most often all that was attempted is seen, and one statement says so.
                states = (Placement.CONFIRMED.value, store, Placement.ATTEMPTED.value)
                self._db.execute("UPDATE placement SET state = ? WHERE store = ? AND state = ?", states)
                placed.update(dict.fromkeys(attempted, Placement.CONFIRMED))
                seen -= attempted
                attempted.clear()
            self._db.executemany(
                "INSERT INTO placement VALUES (?1, ?2, ?3, NULL) ON CONFLICT (store, network) DO UPDATE SET state = ?3",
                [(store, network_text(network), Placement.CONFIRMED.value) for network in seen],
            )
            placed.update(dict.fromkeys(seen, Placement.CONFIRMED))
            attempted.difference_update(seen, absent)
            self._db.executemany(
                "DELETE FROM placement WHERE store = ? AND network = ?", [(store, network_text(n)) for n in absent]
            )
            for network in absent:
                placed.pop(network, None)
            if token is not None:
                self._db.execute("INSERT OR REPLACE INTO store VALUES (?, ?)", (store, str(token)))

    def correct(self, store: str, ends: Mapping[Network, datetime | None]) -> None:
        """Note until when a store itself was seen to hold these, where the record has it otherwise."""
        with self._reading():
            told = self._told_ends(store)
        rows = [
            (seconds, store, network_text(network))
            for network, end in ends.items()
            if (seconds := to_seconds(end)) != told.get(network)
        ]
        if rows:
            with self._writing():
                self._db.executemany("UPDATE placement SET until = ? WHERE store = ? AND network = ?", rows)

    def miss(self, store: str, networks: Collection[Network]) -> None:
        """Note that a store was seen without these, which it need not hold: that they are gone later means nothing."""
        with self._writing():
            self._doubt(store, networks)

    def doubt(self, networks: Collection[Network]) -> None:
        """Hold what was confirmed of these networks' earlier bans for attempted only, in the ledger's own transaction.

        A ban that is new, or was changed, is not ended by what somebody did to an earlier one.
        """
        for store in self._stores():
            self._doubt(store, networks)

    def _doubt(self, store: str, networks: Collection[Network]) -> None:
        placed = self._of(store)
        proven = [network for network in networks if placed.get(network) is Placement.CONFIRMED]
        if len(proven) > FEW and len(proven) + len(self._attempted[store]) == len(placed):
            # Most often of very many it is all of them, and one statement says so.
            self._db.execute("UPDATE placement SET state = ? WHERE store = ?", (Placement.ATTEMPTED.value, store))
        else:
            self._db.executemany(
                "UPDATE placement SET state = ? WHERE store = ? AND network = ?",
                [(Placement.ATTEMPTED.value, store, network_text(network)) for network in proven],
            )
        placed.update(dict.fromkeys(proven, Placement.ATTEMPTED))
        self._attempted[store].update(proven)

    def own_end(self, store: str, network: Network) -> datetime | None:
        """Return until when a store was last told to hold a ban by itself; None where it was told no end."""
        with self._reading():
            row = self._db.execute(
                "SELECT until FROM placement WHERE store = ? AND network = ?", (store, network_text(network))
            ).fetchone()
        return to_time(row[0]) if row is not None and row[0] is not None else None

    def token(self, store: str) -> Token | None:
        """Return the last token that was read back from a store; None where none ever was, or it is void."""
        with self._reading():
            row = self._db.execute("SELECT token FROM store WHERE name = ?", (store,)).fetchone()
        return Token.parse(row[0]) if row else None

    def ever_written(self, store: str) -> bool:
        """Tell whether a token of ours was ever read back from a store."""
        with self._reading():
            return self._db.execute("SELECT 1 FROM store WHERE name = ?", (store,)).fetchone() is not None

    def void(self, store: str) -> None:
        """Note that a store was written since its token was read back, and what it bears now proves nothing.

        Else a copy with that token, from before, would show what was written since as taken out.
        """
        with self._writing():
            self._db.execute("UPDATE store SET token = '' WHERE name = ?", (store,))

    def last_sequence(self, store: str) -> int:
        """Return the last sequence number that was given out in a token for a store; 0 where none ever was."""
        with self._reading():
            row = self._db.execute("SELECT sequence FROM attempt WHERE store = ?", (store,)).fetchone()
            return int(row[0]) if row else 0

    def written(self, store: str) -> datetime | None:
        """Return when a store was written last, as far as that is known."""
        with self._reading():
            row = self._db.execute("SELECT time FROM attempt WHERE store = ?", (store,)).fetchone()
        return to_time(row[0]) if row is not None and row[0] is not None else None

    def _sequence(self) -> int:
        return int(self._db.execute("SELECT value FROM meta WHERE name = 'sequence'").fetchone()[0])

    def _stores(self) -> Iterable[str]:
        # One look into the index for each store, however many placements there are.
        after = ""
        while (row := self._db.execute("SELECT min(store) FROM placement WHERE store > ?", (after,)).fetchone())[0]:
            after = row[0]
            yield after

    def _of(self, store: str) -> dict[Network, Placement]:
        if store not in self._placed:
            self._placed[store] = placed = self._read(store)
            self._attempted[store] = {network for network, state in placed.items() if state is not Placement.CONFIRMED}
        return self._placed[store]

    def _read(self, store: str) -> dict[Network, Placement]:
        bans = self._bans()
        counted = "SELECT (SELECT count(*) FROM ban), (SELECT count(*) FROM placement WHERE store = ?)"
        in_table, number = self._db.execute(counted, (store,)).fetchone()
        if in_table != len(bans) or 2 * number < len(bans):
            return dict(self._named("SELECT network, state FROM placement WHERE store = ?", store))
        # Most often every ban was seen there, and nothing else: then the tables have few others to tell.
        others = (
            "SELECT network, state FROM placement WHERE store = ?1"
            " AND (state <> ?2 OR network NOT IN (SELECT network FROM ban))"
        )
        unplaced = "SELECT network, ?2 FROM ban WHERE network NOT IN (SELECT network FROM placement WHERE store = ?1)"
        proven = Placement.CONFIRMED.value
        placed = dict.fromkeys(bans, Placement.CONFIRMED)
        for network, _ in self._named(unplaced, store, proven):
            del placed[network]
        placed.update(self._named(others, store, proven))
        return placed

    def _named(self, query: str, *values: str) -> Iterator[tuple[Network, Placement]]:
        """Yield what a query tells, with the bans' own networks: of 100,000 a copy takes 11 MB."""
        bans = self._bans()
        for text, state in self._db.execute(query, values):
            network = to_network(text)
            yield bans[network].network if network in bans else network, _STATES[state]
