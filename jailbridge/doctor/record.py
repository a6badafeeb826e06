"""The configuration's surroundings, the ledger, and the room that is left for it."""

import shutil
from collections.abc import Iterator
from glob import escape
from pathlib import Path

from jailbridge.config import Settings
from jailbridge.daemon import control, exemptions, responding
from jailbridge.ledger.backup import check
from jailbridge.ledger.damaged import SUFFIX

# A storm of 100,000 bans takes half of it until SQLite has tidied up.
LEAST_BYTES = 128 << 20


def unusable(settings: Settings) -> Iterator[str]:
    """Yield what the configuration names and is not there or cannot be read, as `check-config` does."""
    yield from exemptions.unreadable(settings.policy)
    yield from responding.unanswerable(settings.respond)
    yield from control.unusable(settings.control)


def ledger(settings: Settings) -> Iterator[str]:
    """Yield damaged ledgers beside ours. Raises FatalError where ours is one; that there is none yet is in order."""
    path = settings.ledger.path
    for file in sorted(path.parent.glob(f"{escape(path.name)}{SUFFIX}*")):
        if not file.name.endswith(("-wal", "-shm")):
            yield f"a damaged ledger lies at {file}: put a backup in the place of {path}, or move that file away"
    if path.exists():
        check(path)


def disk(settings: Settings) -> Iterator[str]:
    """Yield the places where we write, and hardly anything fits any more."""
    for path in (settings.ledger.path, settings.history.path, settings.respond.queue):
        folder = next(folder for folder in path.parents if folder.exists())
        if (problem := room(folder, shutil.disk_usage(folder).free)) is not None:
            yield problem


def room(folder: Path, free_bytes: int) -> str | None:
    """Tell that a folder has too little room, None where it has enough."""
    if free_bytes >= LEAST_BYTES:
        return None
    return f"{folder} has {free_bytes >> 20} MiB left, and needs {LEAST_BYTES >> 20}: make room there"
