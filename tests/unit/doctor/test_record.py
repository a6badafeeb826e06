"""The configuration's surroundings, the ledger, and the room for it."""

from pathlib import Path

import pytest

from jailbridge.config import parse
from jailbridge.doctor import record
from jailbridge.errors import FatalError
from jailbridge.ledger import Ledger
from tests.settings import settings_text


def test_a_ledger_that_is_sound_or_not_there_yet_is_in_order(tmp_path: Path) -> None:
    settings = parse(settings_text(tmp_path), "test")
    assert list(record.ledger(settings)) == []
    assert not settings.ledger.path.exists()
    Ledger(settings.ledger.path).close()
    before = settings.ledger.path.read_bytes(), settings.ledger.path.stat().st_mtime_ns
    assert list(record.ledger(settings)) == []
    assert (settings.ledger.path.read_bytes(), settings.ledger.path.stat().st_mtime_ns) == before


def test_damaged_ledgers_are_named_the_present_one_and_those_beside_it(tmp_path: Path) -> None:
    settings = parse(settings_text(tmp_path), "test")
    for name in ("ledger", "ledger.damaged", "ledger.damaged-wal", "ledger.damaged.2"):
        (tmp_path / name).write_bytes(b"\xa5" * 4096)
    found = record.ledger(settings)
    assert next(found).startswith(f"a damaged ledger lies at {tmp_path}/ledger.damaged: put a backup in the place")
    assert next(found).startswith(f"a damaged ledger lies at {tmp_path}/ledger.damaged.2: ")
    with pytest.raises(FatalError, match="is not a sound JailBridge ledger"):
        next(found)


@pytest.mark.parametrize(("free_mib", "is_told"), [(0, True), (127, True), (128, False)])
def test_too_little_room_is_told_with_how_much_is_needed(free_mib: int, is_told: bool) -> None:
    told = record.room(Path("/d"), free_mib << 20)
    assert told == (f"/d has {free_mib} MiB left, and needs 128: make room there" if is_told else None)


def test_what_the_configuration_names_and_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    text = settings_text(tmp_path, policy=f'allow_files = ["{tmp_path}/none"]')
    text = text.replace("[control]", '[control]\ngroup = "nosuch-group"')
    found = list(record.unusable(parse(f'{text}[[respond.command]]\nrun = ["/nowhere/x"]\n', "test")))
    for word in ("none is not there", "/nowhere/x", "nosuch-group"):
        assert any(word in line for line in found)
