"""Whose turn it is: of an address's commands one after another, in order; of many addresses the oldest first. Pure.

A command that is not `first` waits until it is known whether the source is cut off, or has waited long enough.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from jailbridge.config.responding import On
from jailbridge.model.network import Network
from jailbridge.respond.queue import Task

# How long a command waits for the stores.
PATIENCE_S = 30.0


class Standing(Enum):
    """How a network stands in the store that cuts it off."""

    HELD = auto()
    """It is cut off."""
    COMING = auto()
    """It is banned, and not seen there yet."""
    GOING = auto()
    """It is not banned any more, and may be there still."""
    FREE = auto()
    """It is not banned, and not there."""


@dataclass(slots=True)
class Waiting:
    """A command in its line. `blocked` is None until it is known, or waited for long enough."""

    task: Task
    since_s: float
    blocked: bool | None = None
    runs: bool = False


class Turns:
    """Commands that wait or run, some of all that there are: `add` them in their order. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._lines: dict[Network, deque[Waiting]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, task: Task, now_s: float) -> None:
        """Put a command at the end of its address's line."""
        self._lines.setdefault(task.command.event.network, deque()).append(Waiting(task, now_s))
        self._count += 1

    def end(self, waiting: Waiting) -> None:
        """Take a command that ran out of the line."""
        network = waiting.task.command.event.network
        line = self._lines[network]
        line.popleft()
        self._count -= 1
        if not line:
            del self._lines[network]

    def unknown(self) -> list[Waiting]:
        """Return those whose turn it is and of which it is not known whether the source is cut off."""
        return [line[0] for line in self._lines.values() if line[0].blocked is None]

    def learn(self, standings: Mapping[Network, Standing], now_s: float) -> None:
        """Take over how networks stand, for those whose turn it is."""
        for waiting in self.unknown():
            event = waiting.task.command.event
            standing = standings.get(event.network, Standing.FREE)
            # A ban that is over already is not waited for, nor the end of one that was made again.
            waits_for = Standing.COMING if event.what is On.BAN else Standing.GOING
            has_waited = waiting.task.command.first or now_s - waiting.since_s >= PATIENCE_S
            if standing is not waits_for or has_waited:
                waiting.blocked = standing in {Standing.HELD, Standing.GOING}

    def ready(self) -> Iterator[Waiting]:
        """Yield those that may be started, in their order."""
        return (line[0] for line in self._lines.values() if line[0].blocked is not None and not line[0].runs)
