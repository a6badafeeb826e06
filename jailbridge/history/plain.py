"""Whole blocks of usual history lines at once, for whoever asks only whether they are well, and their times. Pure.

The grammars are narrower than those of `dialects`: every line that one of them matches is accepted there too, in the
same dialect and with the same time (a property test holds them to it). A block with any other line is not told here.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeAlias

from jailbridge.model.event import Dialect, TailFormat

Times: TypeAlias = tuple[Dialect, list[bytes]]
"""The dialect of a block of lines, and the time of each as `time` reads it; these texts sort as their times do."""

# No slash and no parenthesis: then nothing has to be tried twice.
_NAME = rb"[^\x00-\x20\x7f/()]{1,1025}+"
_OCTET = rb"(?>25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_ADDRESS = rb"%(o)b\.%(o)b\.%(o)b\.%(o)b" % {b"o": _OCTET}
_PORT = rb"(?>[1-5]\d{4}|[1-9]\d{0,3})"
# Any day of any year but the 29th of February.
_DATE = (
    rb"[12]\d{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    rb"|02-(?:0[1-9]|1\d|2[0-8]))"
)
_LINES_1 = re.compile(
    rb"^([1-9]\d{9}) - \d\d/\d\d/\d{4} \d\d:\d\d:\d\d Host: %b/%b Port: %b (?:TCP|UDP) Blocked$"
    % (_NAME, _ADDRESS, _PORT),
    re.MULTILINE,
)
_LINES_2 = re.compile(
    rb"^(%b" % _DATE + rb"T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{3}[+-](?:0\d|1[0-4])[0-5]\d) "
    rb"Scan from: \[%b\] \(%b\) "
    % (_ADDRESS, _NAME)
    + rb"protocol: \[(?:TCP|UDP)\] port: \[%b\] " % _PORT
    + rb"type: \[(?:Connect|UDP|TCP (?:SYN/Normal|FIN|NULL|XMAS) scan)\] IP opts: \[(?:set|not set|unknown)\] "
    rb"ignored: \[(?:true|false|unset)\] triggered: \[(?:true|false|unset)\] "
    rb"noblock: \[(?:true|false|unset)\] blocked: \[(?:true|false|unset)\]$",
    re.MULTILINE,
)
_GRAMMARS = (
    (Dialect.PORTSENTRY_1, TailFormat.PORTSENTRY_1, _LINES_1),
    (Dialect.PORTSENTRY_2, TailFormat.PORTSENTRY_2, _LINES_2),
)


def times_of(form: TailFormat) -> Callable[[bytes, int], Times | None]:
    """Return what tells the times of a block of lines (joined by newlines, and how many they are), read in this form.

    It returns None where not each of them is a usual line of one dialect.
    """
    grammars = [(dialect, lines) for dialect, only, lines in _GRAMMARS if form in {TailFormat.AUTO, only}]

    def times(block: bytes, count: int) -> Times | None:
        for dialect, lines in grammars:
            # Only a block that begins so can be one; to look for matches in any other would cost as much again.
            if lines.match(block):
                found = lines.findall(block)
                # Of several zones the texts would not sort as the times do; they meet where summer time ends.
                if len(found) == count and (dialect is Dialect.PORTSENTRY_1 or _is_one_zone(found)):
                    return dialect, found
        return None

    return times


def time(text: bytes) -> datetime:
    """Return the time that such a text tells, in UTC."""
    if len(text) == 10:
        return datetime.fromtimestamp(int(text), UTC)
    return datetime.fromisoformat(text.decode()).astimezone(UTC)


def _is_one_zone(found: list[bytes]) -> bool:
    zone = found[0][-5:]
    return all(text.endswith(zone) for text in found)
