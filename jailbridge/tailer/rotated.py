"""Where a file's earlier lines went: the rotated files beside it, by identity, by content, in their order.

Knows the names that logrotate(8) gives (`.1`, `-20261122`, `.2026-11-22`), beside the path and, where that
is a symbolic link, beside its target. Compressed files are not read.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jailbridge.errors import RetryLater
from jailbridge.model.event import TailPosition
from jailbridge.tailer.opened import OpenFile, identity, open_file

_NUMBERED = re.compile(r"\.([0-9]{1,3})")
_DATED = re.compile(r"[.-][0-9]{4}[0-9T:_.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A file beside the followed one. Within a `style` the greater `rank` is newer; None: not a rotated name."""

    path: Path
    identity: tuple[int, int]
    written_ns: int
    style: str | None
    rank: tuple[int, str]

    def is_newer(self, than: "Neighbour") -> bool:
        """Tell which was written later: by name where both are named alike, else by time."""
        if self.style is not None and self.style == than.style:
            return self.rank > than.rank
        return self.written_ns > than.written_ns


def find(path: Path, position: TailPosition) -> OpenFile | None:
    """Open the rotated file in which reading goes on after `position`, None where there is none.

    First the file itself under another name, then a copy of it (copytruncate empties the original); both at
    the offset. Last the file itself emptied before it was rotated, at its start: the inode's text is all new then,
    even where the number went to another file.
    """
    neighbours = list(_neighbours(path))
    # The device is not compared: the number of a btrfs or overlay mount may change at a reboot.
    moved = [one for one in neighbours if one.identity[1] == position.inode and (one.style or position.offset)]
    copies = [one for one in neighbours if one.style and position.offset]
    copies.sort(key=lambda copy: copy.written_ns, reverse=True)
    for neighbour in (*moved, *copies):
        file = _open(neighbour, path)
        if file is not None and file.holds(position):
            file.move_to(position.offset)
            return file
    return next((file for one in moved if one.style and (file := _open(one, path)) is not None), None)


def open_after(path: Path, file: OpenFile) -> OpenFile | None:
    """Open the oldest rotated file that is newer than `file`, at its start. Raises RetryLater."""
    while (following := next_after(path, file)) is not None:
        opened = open_file(following.path, path, flags=os.O_NOFOLLOW)
        if opened is not None and opened.identity == following.identity:
            return opened
    return None


def next_after(path: Path, file: OpenFile) -> Neighbour | None:
    """Return the oldest rotated file that is newer than `file`."""
    neighbours = list(_neighbours(path))
    written_ns = file.stat().st_mtime_ns
    unknown = Neighbour(path=path, identity=file.identity, written_ns=written_ns, style=None, rank=(0, ""))
    drained = next((one for one in neighbours if one.identity == file.identity), unknown)
    newer = [one for one in neighbours if one.style is not None and one.is_newer(drained) and one is not drained]
    if len({one.style for one in newer}) == 1:
        return min(newer, key=lambda one: one.rank)
    return min(newer, key=lambda one: one.written_ns, default=None)


def _neighbours(path: Path) -> Iterator[Neighbour]:
    seen = set()
    for place in dict.fromkeys((path, Path(os.path.realpath(path)))):
        for entry, status in _files(place.parent):
            if identity(status) in seen:
                continue
            seen.add(identity(status))
            style, rank = _named(entry.name, place.name)
            yield Neighbour(
                path=Path(entry.path),
                identity=identity(status),
                written_ns=status.st_mtime_ns,
                style=style,
                rank=rank,
            )


def _files(folder: Path) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                    if entry.is_file(follow_symlinks=False):
                        yield entry, entry.stat(follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return


def _named(name: str, followed: str) -> tuple[str | None, tuple[int, str]]:
    suffix = name.removeprefix(followed) if name.startswith(followed) else ""
    if numbered := _NUMBERED.fullmatch(suffix):
        return "numbered", (-int(numbered[1]), "")
    if _DATED.fullmatch(suffix):
        return "dated", (0, suffix)
    return None, (0, "")


def _open(neighbour: Neighbour, path: Path) -> OpenFile | None:
    with contextlib.suppress(RetryLater):
        return open_file(neighbour.path, path, flags=os.O_NOFOLLOW)
    return None
