"""What was decided: bans, how they end, and what an end remembers. Times are aware and UTC."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from jailbridge.model.event import Evidence, LogLine
from jailbridge.model.network import Network


class Origin(StrEnum):
    """Who asked for a ban."""

    SENSOR = "sensor"
    STORE = "store"
    OPERATOR = "operator"


class EndReason(StrEnum):
    """Why a ban ended."""

    EXPIRED = "expired"
    OPERATOR = "operator"
    ALLOW = "allow"
    EVICTED = "evicted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ban:
    """A live ban of one network; `until` None is permanent.

    `file`, `offset` and `line` name the log line that caused it, where one did; `line` is an outsider's text.
    `forced` is an operator's ban that no exemption masks or ends.
    """

    network: Network
    since: datetime
    until: datetime | None
    origin: Origin
    reason: str
    evidence: Evidence | None = None
    port: int | None = None
    file: str | None = None
    offset: int | None = None
    line: str | None = None
    forced: bool = False

    def is_over(self, now: datetime) -> bool:
        """Tell whether the ban's time has passed."""
        return self.until is not None and self.until <= now


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadMark:
    """How far one file had been read when a ban ended (bytes)."""

    device: int
    inode: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """What stays of a network's last ban: when and why it ended, how many bans count as repeats, what had been read.

    It keeps evidence from before the end from banning again.
    """

    network: Network
    ended: datetime
    why: EndReason
    bans: int
    marks: Mapping[str, ReadMark] = field(default_factory=dict)

    def predates(self, when: datetime, line: LogLine | None = None) -> bool:
        """Tell whether evidence (seen at `when`, told by `line` if a log told it) lies before this end.

        Within the same file what lies past its mark is new. All else is judged by its time, what lies before the mark
        too: a file that was cut short (logrotate's copytruncate) or whose inode was used again begins anew there.
        """
        return when <= self.ended and not (line is not None and self._is_past_mark(line))

    def _is_past_mark(self, line: LogLine) -> bool:
        mark = self.marks.get(line.path)
        return (
            mark is not None and (mark.device, mark.inode) == (line.device, line.inode) and line.offset >= mark.offset
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What policy makes of one piece of evidence: a ban, or None with the reason."""

    network: Network
    ban: Ban | None
    why: str
