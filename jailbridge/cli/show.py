"""How answers look: tables for people, JSON for programs. Each function returns the exit code that its answer means."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jailbridge.daemon.operations import is_agreement

AGREEMENT, DRIFT = 0, 2
_COLOURS = {"present": "green", "covered": "green", "missing": "red", "unreachable": "yellow"}


def console() -> Console:
    """Return the console for people: markup off, since what we show may be an outsider's text."""
    width = None if sys.stdout.isatty() else 160
    return Console(markup=False, emoji=False, highlight=False, width=width)


def plan(answer: Any, as_json: bool) -> int:
    """Show a plan."""
    code = AGREEMENT if is_agreement(answer) else DRIFT
    if as_json:
        return _json(_fixed(answer), code)
    out = console()
    if answer["changes"]:
        out.print(changes_table(answer["changes"]))
    out.print(stores_table(answer["stores"]))
    out.print("agreement" if code == AGREEMENT else _drift(answer), style="green" if code == AGREEMENT else "yellow")
    return code


def status(answer: Any, as_json: bool) -> int:
    """Show how things stand."""
    code = AGREEMENT if is_agreement(answer) else DRIFT
    if as_json:
        return _json(answer, code)
    out = console()
    out.print(f"daemon   {'running' if answer['running'] else 'not running'}")
    out.print(
        f"bans     {answer['bans']}{'' if answer['enforce'] else ' (policy.enforce is false: shown, not placed)'}"
    )
    for problem in answer["problems"]:
        out.print(f"problem  {problem}", style="red")
    out.print(stores_table(answer["stores"]))
    out.print("agreement" if code == AGREEMENT else _drift(answer), style="green" if code == AGREEMENT else "yellow")
    return code


def restored(answer: Any, as_json: bool) -> int:
    """Show what a restore did."""
    if answer is None:
        if as_json:
            return _json({"bans": 0, "changes": [], "stores": {}}, AGREEMENT)
        console().print("no ledger yet: nothing to restore")
        return AGREEMENT
    code = AGREEMENT if is_agreement(answer) else DRIFT
    if as_json:
        return _json(answer, code)
    out = console()
    out.print(stores_table(answer["stores"]))
    out.print(f"{answer['bans']} bans restored" if code == AGREEMENT else _drift(answer))
    return code


def bans(answer: Any, as_json: bool) -> int:
    """Show the bans."""
    if as_json:
        return _json(answer, AGREEMENT)
    console().print(bans_table(answer) if answer else "no bans")
    return AGREEMENT


def banned(answer: Any, as_json: bool) -> int:
    """Show what was banned."""
    if as_json:
        return _json(answer, AGREEMENT)
    out = console()
    for address in answer["banned"]:
        out.print(f"banned {address}")
    _say_left_over(out, answer)
    return AGREEMENT


def unbanned(answer: Any, as_json: bool) -> int:
    """Show what was unbanned."""
    if as_json:
        return _json(answer, AGREEMENT)
    out = console()
    for address in answer["unbanned"]:
        out.print(f"unbanned {address}")
    for address in answer["not_banned"]:
        out.print(f"{address} is not banned")
    _say_left_over(out, answer)
    return AGREEMENT


def bans_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the bans as a table, one row a ban, one column a store."""
    names = list(rows[0]["stores"])
    table = _table("address", "since", "until", "origin", "reason", *names)
    for row in rows:
        states = [Text(row["stores"][name], style=_COLOURS.get(row["stores"][name], "dim")) for name in names]
        table.add_row(
            row["address"], row["since"], row["until"] or "permanent", row["origin"], Text(row["reason"]), *states
        )
    return table


def changes_table(changes: Sequence[Mapping[str, Any]]) -> Table:
    """Return a plan's changes as a table."""
    table = _table("store", "action", "address", "why")
    for change in changes:
        table.add_row(change["store"], change["action"], change["address"] or "-", Text(change["why"]))
    return table


def stores_table(stores: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the stores of a plan as a table."""
    table = _table("store", "reachable", "in force", "desired", "observed", "")
    for name, store in stores.items():
        table.add_row(
            name,
            Text("yes", style="green") if store["reachable"] else Text("no", style="yellow"),
            {True: "yes", False: Text("no", style="red"), None: "not known" if store["reachable"] else "-"}[
                store["enforcing"]
            ],
            str(store["desired"]),
            str(store["observed"]) if store["reachable"] else "-",
            Text(store["problem"] or ""),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _drift(answer: Mapping[str, Any]) -> str:
    parts = [f"{len(answer['changes'])} changes to make"] if answer["changes"] else []
    parts += [f"{name} is out of reach" for name, store in answer["stores"].items() if not store["reachable"]]
    parts += [f"{name} is not in force" for name, store in answer["stores"].items() if store["enforcing"] is False]
    return "; ".join(parts)


def _say_left_over(out: Console, answer: Mapping[str, Any]) -> None:
    if not is_agreement(answer):
        out.print(f"not everywhere yet: {_drift(answer)}", style="yellow")


def _fixed(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {key: answer[key] for key in ("changes", "stores")}


def _json(value: object, code: int) -> int:
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")
    return code
