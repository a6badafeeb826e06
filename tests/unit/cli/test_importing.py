"""How an import's plan looks: everything in it is printable, whoever wrote it."""

import json

from jailbridge.cli.importing import answer, text
from jailbridge.config import Settings
from jailbridge.importing.migration import Configuration, ImportPlan
from jailbridge.importing.notes import Note, Notes


def test_an_outsiders_text_is_escaped_and_long_lists_are_cut() -> None:
    notes = Notes(by_hand=[Note("f:1", "\x1b[2Jred")], left_alone=[Note("f", str(n)) for n in range(30)])
    chosen = Configuration(path=Settings().ledger.path, action="keep", text="", settings=Settings())
    plan = ImportPlan(configuration=chosen, notes=notes, stopped="a list\n")
    told = json.loads(json.dumps(answer(plan, applied=False)))
    shown = text(told)
    assert "\x1b" not in shown
    assert "f:1: \\x1b[2Jred" in shown
    assert "… and 10 more" in shown
    assert "bans: none" in shown
    assert len(told["left_alone"]) == 30
    assert not plan.is_whole
