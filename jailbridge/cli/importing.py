"""`jailbridge import`: the plan as people and as programs read it, and its carrying out."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any

from jailbridge.config import Settings
from jailbridge.daemon.answers import time_text
from jailbridge.daemon.operations import look_for_garbage_seldom
from jailbridge.importing.migration import Asked, ImportPlan, apply, planned
from jailbridge.importing.notes import Note, Notes
from jailbridge.ledger import Ledger
from jailbridge.model.network import network_text

DONE, NOT_WHOLE = 0, 2
# Bans and notes that are shown to people; JSON has all of them.
SHOWN = 20


def run(asked: Asked, *, applies: bool, as_json: bool) -> int:
    """Show the plan and, where `applies`, carry it out; return the exit code. Raises FatalError and others."""
    look_for_garbage_seldom()
    now = datetime.now(UTC)
    with ExitStack() as stack:
        opened: list[Ledger] = []

        def look(settings: Settings) -> Ledger | None:
            # Where there is none, a plan makes none.
            return make(settings, create=False) if settings.ledger.path.exists() else None

        def make(settings: Settings, *, create: bool = True) -> Ledger:
            if not opened:
                opened.append(stack.enter_context(Ledger(settings.ledger.path, create=create)))
                if applies:
                    opened[0].hold()
            return opened[0]

        with _progress() as progress:
            plan = planned(asked, now, look, Notes(tell=_tell), progress)
        if applies:
            apply(plan, make, now)
    told = answer(plan, applied=applies)
    sys.stdout.write(json.dumps(told, indent=2) + "\n" if as_json else text(told))
    return DONE if plan.is_whole else NOT_WHOLE


def answer(plan: ImportPlan, *, applied: bool) -> dict[str, Any]:
    """Return the plan as JSON shows it."""
    chosen, notes = plan.configuration, plan.notes
    return {
        "applied": applied,
        "configuration": {"path": str(chosen.path), "action": chosen.action, "text": chosen.text},
        "settings": _notes(notes.configured),
        "sources": {place: {"read": one.read, "bans": one.bans} for place, one in plan.sources.items()},
        "bans": [
            {
                "address": network_text(ban.network),
                "since": time_text(ban.since),
                "until": time_text(ban.until),
                "source": place,
                "reason": ban.reason,
                "evidence": ban.evidence.value if ban.evidence is not None else None,
            }
            for ban, place in plan.bans
        ],
        "not_banned": [
            {"why": why, "number": number, "some": plan.examples.get(why, [])}
            for why, number in plan.declined.most_common()
        ],
        "stopped": plan.stopped,
        "by_hand": _notes(notes.by_hand),
        "left_alone": _notes(notes.left_alone),
        "not_understood": {"lines": dict(notes.misread), "notes": _notes(notes.not_understood)},
        "not_read": _notes(notes.not_read),
    }


def text(told: dict[str, Any]) -> str:
    """Return the plan, as `answer` tells it, for people; every line is printable."""
    said = [*_configuration(told), *_bans(told)]
    for title, notes in (
        ("yours to do", told["by_hand"]),
        ("left alone", told["left_alone"]),
        ("not understood", told["not_understood"]["notes"]),
        ("not read", told["not_read"]),
    ):
        said += _titled(title, [f"{note['place']}: {note['text']}" for note in notes])
    if told["applied"]:
        said += ["", "next: jailbridge check-config; jailbridge plan; then start the services (docs/services.md)"]
    else:
        said += ["", "nothing was changed: --apply does it"]
    return "".join(f"{_printable(line)}\n" for line in said)


def _configuration(told: dict[str, Any]) -> Iterator[str]:
    chosen, applied = told["configuration"], told["applied"]
    match chosen["action"]:
        case "keep":
            yield f"configuration {chosen['path']}: kept as it is"
        case "none":
            yield "configuration: none is written, the defaults count"
        case action:
            done = {"write": "written", "replace": "replaced (the one before: .before-import)"}[action]
            yield f"configuration {chosen['path']}: {done if applied else f'would be {done}'}"
            yield from (f"    {line}" for line in chosen["text"].splitlines())
            yield from _titled("of which came", [f"{note['place']}: {note['text']}" for note in told["settings"]])


def _bans(told: dict[str, Any]) -> Iterator[str]:
    if told["stopped"] is not None:
        yield f"bans: none, for whom never to ban is not known: {told['stopped']} (--force bans all the same)"
        return
    yield f"bans: {len(told['bans'])} {'made' if told['applied'] else 'would be made'}"
    for place, one in told["sources"].items():
        yield f"{one['bans']:>9} of {one['read']} in {place}"
    for ban in told["bans"][:SHOWN]:
        until = f"until {ban['until']}" if ban["until"] else "for ever"
        yield f"    {ban['address']} since {ban['since']} {until}: {ban['reason']} ({ban['source']})"
    yield from _more(told["bans"])
    for one in told["not_banned"]:
        some = f" ({', '.join(one['some'])}{', …' if one['number'] > len(one['some']) else ''})" if one["some"] else ""
        yield f"{one['number']:>9} not banned: {one['why']}{some}"


def _titled(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        yield from (f"    {line}" for line in lines[:SHOWN])
        yield from _more(lines)


def _more(lines: Sequence[object]) -> Iterator[str]:
    if len(lines) > SHOWN:
        yield f"    … and {len(lines) - SHOWN} more: --json has them all"


def _notes(notes: Sequence[Note]) -> list[dict[str, str]]:
    return [{"place": note.place, "text": note.text} for note in notes]


def _tell(note: Note) -> None:
    sys.stderr.write(f"{_printable(note.place)}: not understood: {_printable(note.text)}\n")


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Yield what hears how many bytes of the histories were read; at a terminal a bar on stderr shows it."""
    if not sys.stderr.isatty():
        yield lambda _done, _all: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("histories", total=None)
        yield lambda done, whole: bar.update(task, completed=done, total=whole)
