"""What a store is to the reconciler: something that can be read and changed. Nothing here knows a real store."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from jailbridge.errors import RetryLater
from jailbridge.model.network import Network
from jailbridge.model.plan import Capabilities, Change, Observation, Rejection
from jailbridge.model.token import Token


class Drifted(RetryLater):
    """A store does not hold what was believed: it must be read before it is written."""


class Store(Protocol):
    """One place that holds bans. `now` is aware and UTC; a store without ends ignores it."""

    @property
    def name(self) -> str:
        """The store's key in the configuration and in every output."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What this store can hold."""
        ...

    def observe(self, now: datetime) -> Observation:
        """Read what the store holds of ours. Raises RetryLater (out of reach), FatalError (a person must mend it)."""
        ...

    def touched(self) -> bool:
        """Tell whether another may have changed our part since we read or wrote it last; never raises.

        Asked each second, so it costs next to nothing, however much is held. True means: read it.
        """
        ...

    def apply(
        self, changes: Sequence[Change], token: Token, now: datetime, *, expected: str | None = None
    ) -> Sequence[Rejection]:
        """Make the changes, then write the token, last; return the changes refused for good.

        `expected` is the token that it must still bear, where the changes were made without reading it: if another
        is found, nothing is written and Drifted is raised (a store that is not `guarded` may see a flush only).

        An ADD of what is there and a REMOVE of what is not are no errors. A HOOK puts our own rules back in force
        and keeps every ban. Raises RetryLater or FatalError; then what was done is unknown.
        """
        ...


class Traces(Protocol):
    """One place where PortSentry leaves marks of its own: never read as truth, only cleared of bans that ended."""

    @property
    def name(self) -> str:
        """The place's name in every output."""
        ...

    def observe(self) -> Collection[Network]:
        """Return the hosts that have a mark there now. Raises RetryLater and FatalError."""
        ...

    def remove(self, networks: Collection[Network]) -> None:
        """Take out just these hosts' marks; one that is gone already is no error. Raises RetryLater, FatalError."""
        ...
