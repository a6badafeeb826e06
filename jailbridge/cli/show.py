"""How answers look: tables for people, JSON for programs. Each function returns the exit code that its answer means."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jailbridge.daemon.answers import is_agreement

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
    if answer["paused"]:
        out.print(f"paused   {_until(answer['paused_until'])}: no store holds a ban", style="yellow")
    for problem in answer["problems"]:
        out.print(f"problem  {problem}", style="red")
    out.print(stores_table(answer["stores"]))
    out.print("agreement" if code == AGREEMENT else _drift(answer), style="green" if code == AGREEMENT else "yellow")
    return code


def findings(found: Sequence[tuple[str, str]], as_json: bool) -> int:
    """Show what is the matter, as (what, text)."""
    code = DRIFT if found else AGREEMENT
    if as_json:
        return _json([{"what": what, "text": text} for what, text in found], code)
    out = console()
    for what, text in found:
        out.print(f"{what:<9} {text}", style="yellow", soft_wrap=True)
    if not found:
        out.print("all is as it should be", style="green")
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
    if not answer["enforce"]:
        out.print("policy.enforce is false: no store was changed")
    elif code != AGREEMENT:
        out.print(_drift(answer))
    elif answer["paused"]:
        out.print(f"paused: no store holds a ban; {answer['bans']} come back with `jailbridge resume`", style="yellow")
    else:
        out.print(f"{answer['bans']} bans restored")
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


def allowed(answer: Any, as_json: bool) -> int:
    """Show what was allowed, and what that ended."""
    if as_json:
        return _json(answer, AGREEMENT)
    out = console()
    for network in answer["allowed"]:
        out.print(f"allowed {network}")
    for network in answer["unbanned"]:
        out.print(f"unbanned {network}")
    for network in answer["forced"]:
        out.print(f"{network} stays banned: it was banned with --force", style="yellow")
    _say_left_over(out, answer)
    return AGREEMENT


def disallowed(answer: Any, as_json: bool) -> int:
    """Show what is allowed no more."""
    if as_json:
        return _json(answer, AGREEMENT)
    out = console()
    for network in answer["removed"]:
        out.print(f"removed {network}")
    for network in answer["not_there"]:
        out.print(f"{network} was not allowed by `allow add`: see `allow list`")
    return AGREEMENT


def allow_list(answer: Any, as_json: bool) -> int:
    """Show the allowed networks."""
    if as_json:
        return _json(answer, AGREEMENT)
    table = _table("network", "source", "reason", "since")
    for row in answer:
        table.add_row(row["network"], Text(row["source"]), Text(_escaped(row["reason"] or "")), row["since"] or "")
    console().print(table if answer else "nothing is allowed by a list")
    return AGREEMENT


def paused(answer: Any, as_json: bool) -> int:
    """Show that a pause began. Exit code 2: a store could not be emptied."""
    code = AGREEMENT if is_agreement(answer) else DRIFT
    if as_json:
        return _json(answer, code)
    out = console()
    out.print(f"paused {'until ' + answer['until'] if answer['until'] else 'until `jailbridge resume`'}")
    _say_left_over(out, answer)
    return code


def resumed(answer: Any, as_json: bool) -> int:
    """Show that a pause ended. Exit code 2: a store could not be filled again."""
    code = AGREEMENT if is_agreement(answer) else DRIFT
    if as_json:
        return _json(answer, code)
    out = console()
    out.print("resumed" if answer["was_paused"] else "there was no pause")
    _say_left_over(out, answer)
    return code


def explained(answer: Any, as_json: bool) -> int:
    """Show the story of an address."""
    if as_json:
        return _json(answer, AGREEMENT)
    out = console()
    out.print(f"address  {answer['address']}")
    ban, ended = answer["banned"], answer["ended"]
    if ban is None:
        out.print("banned   no")
    else:
        out.print(f"banned   {ban['network']} since {ban['since']}, {_until(ban['until'])}", style="red")
        out.print(f"why      {_escaped(ban['reason'])} (by {ban['origin']}{', forced' if ban['forced'] else ''})")
        if ban["evidence"]:
            out.print(f"evidence {ban['evidence']}")
        if ban["sightings"]:
            out.print(f"seen     {ban['sightings']} times, {ban['first_seen']} to {ban['last_seen']}")
            out.print(f"ports    {' '.join(ban['ports'])}")
        if ban["line"] is not None:
            out.print(f"line     {_escaped(ban['file'])} at {ban['offset']}: {_escaped(ban['line'])}")
    for exempt in answer["exempt"]:
        lasting = "" if exempt["permanent"] else " (as long as that holds)"
        out.print(f"exempt   {exempt['network']}: {_escaped(exempt['why'])}{lasting}", style="green")
    if answer["problem"]:
        out.print(f"problem  {_escaped(answer['problem'])}", style="red")
    if ended is not None:
        out.print(f"ended    {ended['network']} at {ended['time']} ({ended['why']}); bans that count: {ended['bans']}")
    out.print("stores   " + ", ".join(f"{name} {state}" for name, state in answer["stores"].items()))
    if not answer["story"]:
        out.print("nothing was ever seen of it")
    for told in answer["story"]:
        out.print(f"{told['time']}  {told['what']:<8} {told['network']}  {_escaped(told['detail'])}")
        if told["line"] is not None:
            out.print(f"    {_escaped(told['file'])} at {told['offset']}: {_escaped(told['line'])}", style="dim")
    return AGREEMENT


def bans_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the bans as a table, one row a ban, one column a store."""
    names = list(rows[0]["stores"])
    table = _table("address", "since", "until", "origin", "reason", *names)
    for row in rows:
        states = [Text(row["stores"][name], style=_COLOURS.get(row["stores"][name], "dim")) for name in names]
        table.add_row(
            row["address"],
            row["since"],
            row["until"] or "permanent",
            row["origin"],
            Text(_escaped(row["reason"])),
            *states,
        )
    return table


def changes_table(changes: Sequence[Mapping[str, Any]]) -> Table:
    """Return a plan's changes as a table."""
    table = _table("store", "action", "address", "why")
    for change in changes:
        table.add_row(change["store"], change["action"], change["address"] or "-", Text(_escaped(change["why"])))
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


def _until(until: str | None) -> str:
    return f"until {until}" if until else "permanent"


def _escaped(text: str) -> str:
    """Return an outsider's text with everything that a terminal could obey escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]


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
