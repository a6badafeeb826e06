"""PortSentry's histories on the disk: the files of each, rotated and packed ones too, and their lines."""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from jailbridge.errors import GiveUp, ParseError, RetryLater
from jailbridge.history.formats import reader
from jailbridge.history.lines import LogFile
from jailbridge.importing.notes import Note, Notes
from jailbridge.model.event import MAX_LINE, Dialect, LogLine, ScanEvent, TailFormat, TailPosition
from jailbridge.model.network import shown
from jailbridge.tailer.opened import open_file
from jailbridge.tailer.rotated import originals, packing
from jailbridge.tailer.unpacked import UNREADABLE

_Take = Callable[[LogLine, ScanEvent, Dialect], None]


def files(path: Path, notes: Notes) -> list[Path]:
    """Return the files of a history, the oldest first, the present one last; what cannot be read is noted."""
    found: list[tuple[tuple[object, ...], Path]] = []
    try:
        with os.scandir(path.parent) as entries:
            names = {entry.name: entry for entry in entries}
    except FileNotFoundError:
        return []
    except OSError as error:
        notes.not_read.append(Note(str(path.parent), error.strerror or "cannot be read"))
        return []
    for name, entry in names.items():
        kind = packing(name)
        rotated = next((one for one in originals(name) if one.of == path.name), None)
        # One that is just being packed is not whole, and still there.
        if rotated is None or (kind and name.removesuffix(kind) in names):
            continue
        if kind in UNREADABLE:
            notes.not_read.append(Note(entry.path, f"{kind} cannot be unpacked here: unpack it first"))
        elif not entry.is_file(follow_symlinks=False):
            notes.not_read.append(Note(entry.path, "is not a regular file"))
        else:
            # Numbers are older than the file itself and tell their order; of dates the time does.
            is_numbered = rotated.style.startswith("numbered")
            order = rotated.rank if is_numbered else (entry.stat().st_mtime_ns, "")
            found.append(((not is_numbered, *order), Path(entry.path)))
    return [*(one for _, one in sorted(found)), *([path] if path.name in names else [])]


def size(paths: Sequence[Path]) -> int:
    """Return how many bytes there are to read."""
    return sum(path.stat().st_size for path in paths if path.is_file())


def replay(
    path: Path, take: _Take, now: datetime, notes: Notes, progress: Callable[[int], None] = lambda _: None
) -> tuple[int, TailPosition | None]:
    """Hand every scan of a file over; return how many lines there were, and the place after the last whole one.

    What is none of PortSentry's lines, and what cannot be read, is noted. `progress` hears how many bytes were read.
    """
    name, read, number, offset, half, before = str(path), reader(TailFormat.AUTO), 0, 0, 0, 0
    try:
        status = path.stat()
        # A pipe would be waited for.
        if not stat.S_ISREG(status.st_mode):
            notes.not_read.append(Note(name, "is not a regular file"))
            return 0, None
        with LogFile(path) as log:
            for lines in log.batches():
                for text in lines:
                    number += 1
                    half = len(text)
                    try:
                        if len(text) > MAX_LINE:
                            raise ParseError(f"longer than {MAX_LINE} bytes")  # noqa: TRY301 - told like every other line
                        told = read(text, now)
                    except ParseError as error:
                        notes.misunderstood(name, number, f"{error}: {shown(text.decode('latin-1'))}")
                    else:
                        if told is not None:
                            take(LogLine(name, 0, 0, offset, text), *told)
                    offset += half + 1
                progress(log.place - before)
                before = log.place
            # A line that is too long is not told whole: the disk has the last word.
            ends = log.place - (half if log.has_half_line else 0)
    except (OSError, GiveUp) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).removeprefix(f"{name} cannot be read: ")
        notes.not_read.append(Note(name, f"{reason or error}{f' (after line {number})' if number else ''}"))
        return number, None
    return number, None if packing(path.name) else _position(path, status, ends)


def _position(path: Path, status: os.stat_result, offset: int) -> TailPosition | None:
    """Return where the daemon goes on; None where that is not known: the file is another one meanwhile."""
    try:
        file = open_file(path, path)
    except (OSError, RetryLater):
        return None
    if file is None:
        return None
    try:
        if file.identity != (status.st_dev, status.st_ino) or file.size < offset:
            return None
        file.move_to(offset)
        return file.position
    finally:
        file.close()


def scans(text: bytes, where: str, now: datetime, notes: Notes) -> Iterator[ScanEvent]:
    """Yield what the lines of a text list tell (1.2's blocked file)."""
    read = reader(TailFormat.AUTO)
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            told = read(line[: MAX_LINE + 1], now)
        except ParseError as error:
            notes.misunderstood(where, number, f"{error}: {shown(line.decode('latin-1'))}")
        else:
            if told is not None:
                yield told[0]
