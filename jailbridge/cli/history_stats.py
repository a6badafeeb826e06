"""How the numbers of `history stats` look: tables and a chart for people, JSON for programs."""

import sys
from typing import Any

from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from jailbridge.cli.times import time_text
from jailbridge.history.statistics import MOST_SOURCES, Statistics

# Lines of a time line on a screen.
ROWS = 24
_UNITS = (86400, "d"), (3600, "h"), (60, "m"), (1, "s")


def answer(statistics: Statistics, top: int, rows: int) -> dict[str, Any]:
    """Return what JSON shows: `top` sources and ports, and a time line of at most `rows` stretches, empty ones too."""
    sources, timeline = statistics.sources, statistics.timeline
    buckets, width_s = timeline.buckets(rows)
    return {
        "events": statistics.events,
        "first": None if timeline.first is None else time_text(timeline.first),
        "last": None if timeline.last is None else time_text(timeline.last),
        "sources": {
            "held": len(sources),
            "exact": sources.floor == 0,
            "floor": sources.floor,
            "ports_exact": sources.has_all_ports and sources.floor == 0,
            "top": [
                {"address": str(one.address), "lines": one.lines, "at_most": one.at_most, "ports": one.ports}
                for one in sources.top(top)
            ],
        },
        "ports": [
            {"protocol": protocol.value, "port": port, "lines": lines}
            for protocol, port, lines in statistics.top_ports(top)
        ],
        "kinds": {kind.value: lines for kind, lines in statistics.kinds.most_common()},
        "dialects": {dialect.value: lines for dialect, lines in statistics.dialects.most_common()},
        "timeline": {
            "bucket_s": width_s,
            "buckets": [{"from": time_text(begin), "lines": lines} for begin, lines in buckets],
        },
    }


def show(told: dict[str, Any]) -> None:
    """Print the numbers, as `answer` tells them, beside those of the lines."""
    out = Console(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else 100)
    counts = f"{told['events']} events, {told['foreign']} none of ours, {told['refused']} refused"
    said = [f"{told['file']}: {told['lines']} lines: {counts}"]
    if told["events"]:
        said += [
            f"from {told['first']} to {told['last']}",
            "kinds     " + ", ".join(f"{lines} {kind}" for kind, lines in told["kinds"].items()),
            "dialects  " + ", ".join(f"{lines} {dialect}" for dialect, lines in told["dialects"].items()),
            _sources_said(told["sources"]),
        ]
    out.print("\n".join(said), soft_wrap=True)
    if not told["events"]:
        return
    out.print(_sources(told["sources"]))
    out.print(_ports(told["ports"]))
    out.print(f"{_width(told['timeline']['bucket_s'])} a row, UTC")
    out.print(_timeline(told["timeline"]["buckets"]))


def _sources_said(sources: dict[str, Any]) -> str:
    if sources["exact"]:
        return f"sources   {sources['held']}"
    return (
        f"sources   more than {MOST_SOURCES}: the numbers below are the least and the most that a source can have; "
        f"one that is missing has at most {sources['floor']} lines"
    )


def _sources(sources: dict[str, Any]) -> Table:
    table = Table("source", box=None, pad_edge=False)
    for title in ("lines", "ports"):
        table.add_column(title, justify="right")
    for one in sources["top"]:
        lines = str(one["lines"]) if one["lines"] == one["at_most"] else f"{one['lines']}..{one['at_most']}"
        table.add_row(one["address"], lines, f"{one['ports']}{'' if sources['ports_exact'] else '+'}")
    return table


def _ports(ports: list[dict[str, Any]]) -> Table:
    table = Table("port", box=None, pad_edge=False)
    table.add_column("lines", justify="right")
    for one in ports:
        table.add_row(f"{one['protocol']}/{one['port']}", str(one["lines"]))
    return table


def _timeline(buckets: list[dict[str, Any]]) -> Table:
    most = max(one["lines"] for one in buckets)
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(ratio=1)
    for one in buckets:
        table.add_row(one["from"].removesuffix("Z"), str(one["lines"]), Bar(most, 0, one["lines"]))
    return table


def _width(seconds: int) -> str:
    return next(f"{seconds // unit}{name}" for unit, name in _UNITS if seconds % unit == 0)
