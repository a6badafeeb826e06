"""Runs the rows that are asked for, the sides of a row in turn, and prints each as it is done."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import figures
from figures import Row, Run

from jailbridge.errors import JailBridgeError

Rows: TypeAlias = Mapping[str, tuple[str, Mapping[str, Callable[[], Run]]]]
"""By the name of each row: what it asks, and how each side is run once, ours first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much of everything; `share` below 1 is for trying the benchmark itself."""

    share: float

    def of(self, number: int) -> int:
        """Return this share of a number, at least 1."""
        return max(1, round(number * self.share))


def machine() -> dict[str, str]:
    """Return what the figures depend on, in general words."""
    release = platform.freedesktop_os_release()
    return {
        "cores": str(os.cpu_count()),
        "kernel": platform.release().partition("-")[0],
        "system": release.get("PRETTY_NAME", ""),
        "python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def main(what: str, rows: Callable[[Sizes], Rows]) -> None:
    """Do what the command line asks: `[ROW...] [--runs N] [--scale SHARE] [--json FILE]`; what fails is one line."""
    parser = argparse.ArgumentParser(description=f"{what} Rows: see benchmarks/README.md")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="which rows (all)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (3)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of every size; below 1 no figure counts (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every run there")
    asked = parser.parse_args()
    known = rows(Sizes(share=asked.scale))
    if unknown := set(asked.rows) - set(known):
        parser.error(f"no such row: {' '.join(sorted(unknown))}; there are {' '.join(known)}")
    try:
        _run({name: known[name] for name in asked.rows or known}, asked.runs, asked.json)
    except JailBridgeError as error:
        sys.exit(f"benchmark: {error}")


def _run(rows: Rows, number: int, file: Path | None) -> None:
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()), end="\n\n", flush=True)
    done = []
    for name, (what, sides) in rows.items():
        runs: dict[str, list[Run]] = {side: [] for side in sides}
        for _ in range(number):
            for side, run in sides.items():
                runs[side].append(run())
        done.append(Row(name=name, what=what, sides=runs))
        print(figures.table(done[-1]), flush=True)
        if file:
            file.write_text(json.dumps({"machine": about, "rows": [asdict(row) for row in done]}, indent=1))
