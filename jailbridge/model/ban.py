"""What was decided: bans, what was seen of them, how they end, and what an end remembers. Times are aware and UTC."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from jailbridge.model.event import Evidence, LogLine
from jailbridge.model.network import Network

# A scanner chooses its ports: a ban names so many.
MAX_PORTS = 32
_TICK = timedelta(microseconds=1)


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
    STORE = "store"
    """A person took it out of a store where that means something."""


class Sightings(NamedTuple):
    """What the logs told of a banned network: when first and last, how often, the first MAX_PORTS ports (`tcp/23`)."""

    first: datetime
    last: datetime
    times: int
    ports: tuple[str, ...]

    def also(self, time: datetime, port: str) -> "Sightings":
        """Return these and one more."""
        first, last, times, ports = self
        if port not in ports and len(ports) < MAX_PORTS:
            ports = (*ports, port)
        return Sightings(min(time, first), max(time, last), times + 1, ports)


class Sighting(NamedTuple):
    """One line about a source, and what policy made of it. `network` is what is banned for it, as text."""

    network: str
    time: datetime
    detail: str
    line: LogLine


class Ban(NamedTuple):
    """A live ban of one network; `until` None is permanent.

    `file`, `offset` and `line` name the log line that caused it, where one did; `line` is an outsider's text.
    `forced` is an operator's ban that no exemption masks or ends. `seen` is None where no log told of it.
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
    seen: Sightings | None = None

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

    It keeps evidence from before the end from banning again. `logged`: a log had led to it, or to one before it.
    """

    network: Network
    ended: datetime
    why: EndReason
    bans: int
    marks: Mapping[str, ReadMark] = field(default_factory=dict)
    logged: bool = False

    def predates(self, when: datetime, line: LogLine | None = None) -> bool:
        """Tell whether evidence (seen at `when`, told by `line` if a log told it) lies before this end.

        Within the same file what lies past its mark is new. All else is judged by its time, what lies before the mark
        too: a file that was cut short (logrotate's copytruncate) or whose inode was used again begins anew there.
        A line of the second in which a ban ran out is new: its sensor does not tell of the same source again soon.
        """
        if line is None:
            return when <= self.ended
        ended = self.ended if self.why is not EndReason.EXPIRED else self.ended.replace(microsecond=0) - _TICK
        return when <= ended and not self._is_past_mark(line)

    def _is_past_mark(self, line: LogLine) -> bool:
        mark = self.marks.get(line.path)
        return (
            mark is not None and (mark.device, mark.inode) == (line.device, line.inode) and line.offset >= mark.offset
        )


class Decision(NamedTuple):
    """What policy makes of one piece of evidence: a new or changed ban, or None with the reason.

    `merges` tells that it is one more sighting of a ban that stands as it is.
    """

    network: Network
    ban: Ban | None
    why: str
    merges: bool = False
