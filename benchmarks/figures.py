"""What a run left behind, as numbers, and numbers as a table. Pure: text in, values or text out.

Histories are read here by a grammar of their own, the same for both sides: what the sensor under test believes it wrote
counts for nothing.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

_LINE = re.compile(r"^\d+ - \S+ \S+ Host: \S+/(\d+\.\d+\.\d+\.\d+) Port: \d+ (?:TCP|UDP) Blocked$", re.MULTILINE)
_LOST = re.compile(r"\bdropped=(\d+)")
_MATCHED = re.compile(r"^Lines: .* (\d+) matched, .*\n\[processed in ([\d.]+) sec\]$", re.MULTILINE)
_ADDRESS = re.compile(r"[0-9a-f.:]+")

Run = Mapping[str, float]
"""One run's figures by name; a name ends in its unit where it has one: `seen_%`, `cpu_s`, `peak_MiB`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A finished row of the benchmark: what was asked, and the runs of each side, ours first and theirs last."""

    name: str
    what: str
    sides: Mapping[str, Sequence[Run]]


def sources(history: str) -> list[str]:
    """Return the source of each whole line of a history in the 1.2 dialect; anything else is no line."""
    return _LINE.findall(history)


def lost(log: str) -> int:
    """Return how many packets a sensor's log says the kernel dropped."""
    return sum(int(number) for number in _LOST.findall(log))


def banned(rules: str, among: frozenset[str]) -> int:
    """Return how many of these addresses, of either family in their shortest form, a listing of a firewall names."""
    return len(among.intersection(_ADDRESS.findall(rules)))


def matched(report: str) -> tuple[int, float]:
    """Return how many lines fail2ban-regex says it matched, and in how many seconds, start-up left out.

    Raises ValueError where it does not say so.
    """
    if (found := _MATCHED.search(report)) is None:
        raise ValueError(f"not what fail2ban-regex reports: {report[-200:]!r}")
    return int(found[1]), float(found[2])


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that is not below `share` (0 to 1) of the values: the nearest rank, none invented."""
    return sorted(values)[max(math.ceil(round(len(values) * share, 6)), 1) - 1]


def ticks(stat: str) -> int:
    """Return the CPU time in /proc/PID/stat, of the process and the children that it waited for (proc(5))."""
    # The name, in brackets, may hold anything; the four times are fields 14 to 17.
    fields = stat.rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15])


def table(row: Row) -> str:
    """Return the row as a Markdown table: per figure the ratio of the first side to the last, then each side's runs."""
    names = [name for runs in row.sides.values() for name in runs[0]]
    ratio = ["first : last"] if len(row.sides) > 1 else []
    lines = [f"| {' | '.join(['', *ratio, *row.sides])} |", "|---" * (1 + len(ratio) + len(row.sides)) + "|"]
    for name in dict.fromkeys(names):
        values = [[run[name] for run in runs if name in run] for runs in row.sides.values()]
        cells = [_ratio(values[0], values[-1])] if ratio else []
        figure, _, unit = name.rpartition("_")
        lines.append(
            f"| {figure.replace('_', ' ')} | {' | '.join([*cells, *(_spread(each, unit) for each in values)])} |"
        )
    return f"**{row.name}** - {row.what}\n\n" + "\n".join(lines) + "\n"


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    if not ours or not theirs or not median(theirs):
        return "-"
    return f"{median(ours) / median(theirs):.3g}"


def _spread(values: Sequence[float], unit: str) -> str:
    """Median first, and in brackets the least and the most where they differ."""
    if not values:
        return "-"
    low, middle, high = (_number(value) for value in (min(values), median(values), max(values)))
    shown = middle if low == high else f"{middle} ({low} to {high})"
    return f"{shown} {unit}".removesuffix(" n")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"
