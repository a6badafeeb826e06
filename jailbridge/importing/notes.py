"""What a person is told of an import beside its bans: each with the place, `FILE` or `FILE:LINE`. Pure."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

# Of lines that are not understood so many are kept; every one is told as it is met.
MOST_KEPT = 10_000


class Note(NamedTuple):
    """One thing to know, and where it stands."""

    place: str
    text: str


@dataclass(slots=True)
class Notes:
    """What was met on the way.

    configured      which setting came of what
    by_hand         what only a person can carry over, with the reason
    left_alone      what stays as it is, with the reason
    not_understood  lines that say nothing to us, as many as are kept; `misread` counts them by file
    not_read        what could not be read
    tell            hears of each line that is not understood
    """

    configured: list[Note] = field(default_factory=list)
    by_hand: list[Note] = field(default_factory=list)
    left_alone: list[Note] = field(default_factory=list)
    not_understood: list[Note] = field(default_factory=list)
    misread: Counter[str] = field(default_factory=Counter)
    not_read: list[Note] = field(default_factory=list)
    tell: Callable[[Note], None] = lambda _: None

    def misunderstood(self, file: str, line: int, text: str) -> None:
        """Note a line that says nothing to us."""
        note = Note(f"{file}:{line}", text)
        self.misread[file] += 1
        if len(self.not_understood) < MOST_KEPT:
            self.not_understood.append(note)
        self.tell(note)
