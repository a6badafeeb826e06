"""What is wrong with a log, found line by line. Pure, and bounded whatever the lines are.

Blocks of usual lines are taken at once (`plain`), a few times as fast as line by line.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from jailbridge.errors import ParseError
from jailbridge.history import plain
from jailbridge.history.formats import Reader
from jailbridge.model.event import MAX_LINE, Dialect

# Refused lines that are kept of each reason.
EXAMPLES = 3
# Bytes of such a line that are kept.
EXAMPLE_BYTES = 200
# Reasons that are told apart: their texts may quote what an outsider wrote.
MOST_REASONS = 20
OTHER_REASONS = "other reasons"
_EARLIEST = datetime.min.replace(tzinfo=UTC)
# `'999.1.2.3' is not an IP address`: what is quoted would make a reason of each line.
_QUOTED = re.compile(r"(?:'.*'|\".*\"|\d+) is (?=not )")


@dataclass(slots=True)
class Found:
    """So many lines have something; `first` is the number of the first one, 0 for none."""

    lines: int = 0
    first: int = 0

    def add(self, number: int) -> None:
        """Count the line of this number."""
        self.lines += 1
        self.first = self.first or number


@dataclass(slots=True)
class Refused:
    """The lines refused for one reason, the first few of them as (number, beginning)."""

    lines: int = 0
    examples: list[tuple[int, bytes]] = field(default_factory=list)


class Check:
    """Counts what lines are, and keeps what tells a person why."""

    def __init__(
        self, read: Reader, now: datetime, times: Callable[[bytes, int], plain.Times | None] = lambda _, __: None
    ) -> None:
        """`read` reads a line as of `now` (aware), `times` tells blocks of usual lines (`plain.times_of`)."""
        self.lines = 0
        self.accepted: dict[Dialect, Found] = {}
        self.foreign = Found()
        """Lines of other programs."""
        self.refused: dict[str, Refused] = {}
        self.nul, self.carriage_return, self.not_utf8 = Found(), Found(), Found()
        self.backwards, self.future = Found(), Found()
        """Times before the last accepted line's, and after now."""
        self.furthest_back = timedelta()
        self.first: datetime | None = None
        self.last: datetime | None = None
        self._read, self._now, self._times = read, now, times
        self._before = _EARLIEST

    def add(self, lines: Sequence[bytes]) -> None:
        """Look at the next lines, without their newlines; more than MAX_LINE bytes are a line too long."""
        text = b"\n".join(lines)
        if (told := self._times(text, len(lines))) is not None:
            self._add_usual(*told)
            if not text.isascii():
                self._note_odd_bytes(lines)
            self.lines += len(lines)
            return
        if not text.isascii() or b"\0" in text or b"\r" in text:
            self._note_odd_bytes(lines)
        self._add_each(lines)

    def _add_usual(self, dialect: Dialect, times: list[bytes]) -> None:
        in_order = sorted(times)
        earliest, latest = plain.time(in_order[0]), plain.time(in_order[-1])
        if in_order != times or plain.time(times[0]) < self._before or latest > self._now:
            before = self._before
            for number, text in enumerate(times, self.lines + 1):
                time = plain.time(text)
                if not before <= time <= self._now:
                    self._note_odd_time(number, time, before)
                before = time
        self._before = plain.time(times[-1])
        self._span(earliest, latest)
        if dialect not in self.accepted:
            self.accepted[dialect] = Found(0, self.lines + 1)
        self.accepted[dialect].lines += len(times)

    def _add_each(self, lines: Sequence[bytes]) -> None:
        read, now, before = self._read, self._now, self._before
        dialects, times = list[Dialect](), list[datetime]()
        number = self.lines
        for line in lines:
            number += 1
            if len(line) > MAX_LINE:
                self._refuse(number, line, f"longer than {MAX_LINE} bytes")
                continue
            try:
                told = read(line, now)
            except ParseError as error:
                self._refuse(number, line, _QUOTED.sub("", str(error), count=1))
                continue
            if told is None:
                self.foreign.add(number)
                continue
            event, dialect = told
            dialects.append(dialect)
            time = event.time
            if not before <= time <= now:
                self._note_odd_time(number, time, before)
            before = time
            times.append(time)
            if dialect not in self.accepted:
                self.accepted[dialect] = Found(0, number)
        for dialect, many in Counter(dialects).items():
            self.accepted[dialect].lines += many
        if times:
            self._span(min(times), max(times))
        self._before = before
        self.lines = number

    def _span(self, earliest: datetime, latest: datetime) -> None:
        self.first = min(self.first or earliest, earliest)
        self.last = max(self.last or latest, latest)

    def _refuse(self, number: int, line: bytes, reason: str) -> None:
        if reason not in self.refused and len(self.refused) >= MOST_REASONS:
            reason = OTHER_REASONS
        refused = self.refused.setdefault(reason, Refused())
        refused.lines += 1
        if len(refused.examples) < EXAMPLES:
            refused.examples.append((number, line[:EXAMPLE_BYTES]))

    def _note_odd_time(self, number: int, time: datetime, before: datetime) -> None:
        if time < before:
            self.backwards.add(number)
            self.furthest_back = max(self.furthest_back, before - time)
        if time > self._now:
            self.future.add(number)

    def _note_odd_bytes(self, lines: Sequence[bytes]) -> None:
        for number, line in enumerate(lines, self.lines + 1):
            if b"\0" in line:
                self.nul.add(number)
            if b"\r" in line:
                self.carriage_return.add(number)
            # Of a longer one there may be a part, which ends within a character.
            if len(line) <= MAX_LINE and not _is_utf8(line):
                self.not_utf8.add(number)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
