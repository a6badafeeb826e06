"""What the stores hold and what must change there. A plan is a value: printing it is the dry run.

Bans and changes are named tuples: a storm makes hundreds of thousands of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

from jailbridge.model.network import Network


class Action(StrEnum):
    """What a change does to its store, or (adopt, unban) to the ledger because of its store."""

    ADD = "add"
    REMOVE = "remove"
    UPDATE = "update"
    ADOPT = "adopt"
    UNBAN = "unban"
    HOOK = "hook"


class External(StrEnum):
    """What a change that a person made in a store means: take it over, or put ours back."""

    ADOPT = "adopt"
    REVERT = "revert"


class Placement(StrEnum):
    """What the ledger knows of a ban in a store: written there, or also read back."""

    ATTEMPTED = "attempted"
    CONFIRMED = "confirmed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a store can hold.

    overlaps  a network and a host inside it at once
    ends      each ban's end (others hold a ban until it is taken out)
    volatile  loses everything at a reboot
    early     can be written before the network and any service is up: `restore` fills it
    layout    version of the form in which it holds things
    limit     how many bans it takes, None for no limit
    turn      how many changes it takes at once without holding up the others, None for any number
    pause_s   the least time between two writings, in seconds
    tells     says that another touched it as news, once, also while it cannot be read
    guarded   writing sees whether the token is the one that it must find; without, only a flush is seen
    """

    overlaps: bool
    ends: bool
    volatile: bool
    early: bool
    layout: int = 1
    limit: int | None = None
    turn: int | None = None
    pause_s: float = 0.0
    tells: bool = False
    guarded: bool = True
    longest: timedelta | None = None


class ObservedBan(NamedTuple):
    """A ban as a store holds it; `since` and `until` None where the store keeps none (or, `until`, for ever)."""

    network: Network
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One reading of a store's own part of it.

    enforcing  None where the store cannot tell
    foreign    how many entries that are not ours stand beside them
    problem    what is wrong there and what to do about it, though it can be read and written
    """

    token: str | None
    enforcing: bool | None
    bans: tuple[ObservedBan, ...]
    foreign: int = 0
    problem: str | None = None

    @cached_property
    def held(self) -> Mapping[Network, ObservedBan]:
        """The bans by their networks."""
        return {ban.network: ban for ban in self.bans}


class Change(NamedTuple):
    """One step of a plan; `network` is None for a hook, `until` None for a permanent ban or where it means nothing."""

    store: str
    action: Action
    network: Network | None
    why: str
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A change that a store refuses for good, and why."""

    change: Change
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSummary:
    """A store's line of a plan: `desired` and `observed` count bans, `problem` says why it is out of reach or not
    as it should be.
    """

    reachable: bool
    enforcing: bool | None
    desired: int
    observed: int
    foreign: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What must change so that the stores agree with the ledger."""

    changes: tuple[Change, ...]
    stores: Mapping[str, StoreSummary]

    @property
    def agrees(self) -> bool:
        """Tell whether there is nothing to do and every store can be read and is in force."""
        reached = all(store.reachable and store.enforcing is not False for store in self.stores.values())
        return reached and not self.changes
