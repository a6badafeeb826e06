"""What the tailer reads from, whatever it is: lines in batches, each accepted by itself. Values only."""

from dataclasses import dataclass
from typing import Protocol

from jailbridge.config.settings import TailSettings
from jailbridge.model.event import LogLine, TailPosition


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one reading gave: `position` is the place after these lines, to be kept with what they caused.

    `tail` is the setting that they came under. `refused` counts the lines among them that were too long; a batch
    of nothing else has no lines.
    """

    tail: TailSettings
    lines: tuple[LogLine, ...]
    position: TailPosition
    refused: int


class Source(Protocol):
    """One file through all its rotations, or one name in the journal. Not for several threads at once."""

    @property
    def name(self) -> str:
        """What its position is kept under, and what it is called in logs."""
        ...

    @property
    def position(self) -> TailPosition | None:
        """What has been committed; None while the end to start from could not be read yet."""
        ...

    @property
    def refused(self) -> int:
        """How many lines were too long, since it was made."""
        ...

    def read(self, limit: int) -> Batch | None:
        """Return the next lines, at most `limit`, or None where nothing is new now; the same until a commit.

        Raises RetryLater, naming the thing and the remedy, where it cannot be read.
        """
        ...

    def commit(self, batch: Batch) -> None:
        """Accept the batch that `read` returned last. Raises ValueError for any other."""
        ...

    def close(self) -> None:
        """Let go of what is open; a later `read` finds it again."""
        ...
