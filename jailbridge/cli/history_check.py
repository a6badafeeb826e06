"""How the findings of `history check` look."""

from typing import Any

from jailbridge.cli.times import time_text
from jailbridge.history.checking import Check, Found
from jailbridge.history.lines import LogFile
from jailbridge.model.event import Dialect
from jailbridge.model.network import shown

# Characters of a refused line that are quoted.
QUOTED = 160
_NOTES = {
    "nul": "hold a NUL byte: the machine went down while the file was written, or somebody plays with the log",
    "carriage_return": "hold a carriage return; those at a line's end are no part of it",
    "not_utf8": "are not UTF-8; a source's name may hold any byte",
    "backwards": "are earlier than the line before",
    "future": "are of a time that is yet to come: this clock or the one that wrote them is wrong",
}


def answer(found: Check, log: LogFile) -> dict[str, Any]:
    """Return the findings as JSON shows them; of each note, how many lines and the number of the first."""
    return {
        "file": log.name,
        "lines": found.lines,
        "accepted": {dialect.value: _found(lines) for dialect, lines in found.accepted.items()},
        "foreign": _found(found.foreign),
        "refused": [
            {
                "reason": reason,
                "lines": refused.lines,
                "examples": [
                    {"line": number, "text": shown(text.decode("latin-1"), QUOTED)} for number, text in refused.examples
                ],
            }
            for reason, refused in sorted(found.refused.items(), key=lambda item: -item[1].lines)
        ],
        "first": None if found.first is None else time_text(found.first),
        "last": None if found.last is None else time_text(found.last),
        "half_line": log.has_half_line,
        "mixed": {Dialect.PORTSENTRY_1, Dialect.PORTSENTRY_2} <= set(found.accepted),
        "furthest_back_s": found.furthest_back.total_seconds(),
        **{name: _found(getattr(found, name)) for name in _NOTES},
    }


def text(told: dict[str, Any]) -> str:
    """Return the findings, as `answer` tells them, for people; every line is printable."""
    accepted = sum(one["lines"] for one in told["accepted"].values())
    refused = sum(one["lines"] for one in told["refused"])
    by = ", ".join(f"{one['lines']} {dialect}" for dialect, one in told["accepted"].items())
    said = [f"{told['file']}: {told['lines']} lines", f"{accepted:>9} accepted" + (f": {by}" if by else "")]
    if told["first"] is not None:
        said.append(f"{'':>10}from {told['first']} to {told['last']}")
    said.append(f"{told['foreign']['lines']:>9} none of ours")
    said.append(f"{refused:>9} refused")
    for reason in told["refused"]:
        said.append(f"{reason['lines']:>9}   {reason['reason']}")
        said += [f"{'':>13}line {one['line']}: {one['text']}" for one in reason["examples"]]
    notes = [
        f"{told[name]['lines']} lines {words}, the first is line {told[name]['first']}"
        for name, words in _NOTES.items()
        if told[name]["lines"]
    ]
    if told["backwards"]["lines"]:
        notes.append(f"the furthest step back is {told['furthest_back_s']:.3f} s")
    if told["mixed"]:
        firsts = ", ".join(f"{dialect} from line {one['first']}" for dialect, one in told["accepted"].items())
        notes.append(f"two dialects in one file: {firsts}")
    if told["half_line"]:
        notes.append("the last line has no end: it is read here, but the tailer waits for the rest of it")
    return "\n".join(said + [f"note: {note}" for note in notes]) + "\n"


def _found(found: Found) -> dict[str, int]:
    return {"lines": found.lines, "first": found.first}
