"""The token: the mark a store carries so that we can tell whether its content is our own last writing.

It is rewritten last in every apply, as part of the content itself, so a reloaded older copy brings an older token
and a flush takes it away. Form: `jb1:LEDGER:BOOT:LAYOUT:SEQUENCE`.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Self

PREFIX = "jb1"
NO_BOOT = "-"
_FORM = re.compile(
    rf"{PREFIX}:([0-9A-Za-z_.-]{{1,64}}):([0-9A-Za-z_.-]{{1,64}}):(0|[1-9][0-9]{{0,8}}):(0|[1-9][0-9]{{0,17}})"
)
# Sequence numbers from here on are times (of 2001 and later).
_TIMES = 10**12


class TokenState(StrEnum):
    """What a store's token says of its content, held against the ledger's own record."""

    CURRENT = "current"
    """Our own last writing: what differs, somebody changed since."""
    STALE = "stale"
    """An older writing of ours, or an apply that did not finish."""
    AHEAD = "ahead"
    """A writing that this ledger does not know: the ledger is new, an older backup, or another host's."""
    ABSENT = "absent"
    """No token: flushed, rebooted, or never written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """`ledger` and `boot` are short hexadecimal ids; `boot` is NO_BOOT for a store that survives a reboot."""

    ledger: str
    boot: str
    layout: int
    sequence: int

    @property
    def written(self) -> datetime | None:
        """When it was given out: a sequence number is a time, in milliseconds, or the next after such a number.

        None where it is neither: from before they were times, or a copy's.
        """
        if self.sequence < _TIMES:
            return None
        with suppress(ValueError, OverflowError, OSError):
            return datetime.fromtimestamp(self.sequence / 1000, UTC)
        return None

    def __str__(self) -> str:
        return f"{PREFIX}:{self.ledger}:{self.boot}:{self.layout}:{self.sequence}"

    @classmethod
    def parse(cls, text: str | None) -> Self | None:
        """Return the token, or None for anything else."""
        match = _FORM.fullmatch(text or "")
        if match is None:
            return None
        return cls(ledger=match[1], boot=match[2], layout=int(match[3]), sequence=int(match[4]))


def token_state(
    observed: str | None, *, recorded: Token | None, ledger: str, last_sequence: int, boot: str
) -> TokenState:
    """Judge a store's token.

    recorded       what the ledger last confirmed there
    last_sequence  the last sequence number that the ledger gave out for this store
    boot           this boot's id, or NO_BOOT for a store that survives a reboot: a ruleset saved before a reboot and
                   loaded after it brings back the very token that was recorded, but not its bans' counters and ends
    """
    token = Token.parse(observed)
    if token is None:
        return TokenState.ABSENT
    if token.ledger != ledger or token.sequence > last_sequence:
        return TokenState.AHEAD
    return TokenState.CURRENT if token == recorded and token.boot == boot else TokenState.STALE
