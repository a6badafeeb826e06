"""Where a file's earlier lines went: its rotated files, by identity, by content, in their order.

Knows the names that logrotate(8) gives (`.1`, `-20261122`, `.1.gz`, with `extension` `name.1.log`), beside the path
and, where that is a symbolic link, beside its target; and in a folder right below (`olddir`), where a file counts
only once one of them has shown itself to be ours: other hosts' logs of the same name may be there.
"""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from jailbridge.errors import ParseError
from jailbridge.model.event import TailPosition
from jailbridge.tailer.opened import (
    OpenFile,
    fingerprint,
    head_length,
    identity,
    mark,
    open_file,
    told,
    unreadable,
)
from jailbridge.tailer.unpacked import READABLE, UNREADABLE, begins_with, open_text

MAX_FOLDERS = 200
# Tools that compress keep the time of the original, some of them only to the second.
_SAME_TIME_NS = 2_000_000_000
_NUMBERED = re.compile(r"\.([0-9]{1,5})")
_DATED = re.compile(r"[._-][0-9]{4}[0-9T:_.-]*")
# Where the text of a name is the order of time: the year first, or seconds since the epoch (dateformat -%s).
_ORDERED = re.compile(r"[._-](?:(?:19|20)[0-9]{2}[_.-]?(?:0[1-9]|1[0-2])[0-9T:_.-]*|[0-9]{10})")
_log = logging.getLogger("jailbridge.tailer")


class RotatedName(NamedTuple):
    """A name as a rotation gives it to the file `of`. Within a `style` the greater `rank` is newer."""

    of: str
    style: str
    rank: tuple[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A file near the followed one. `style` None: not a rotated name; "": names that tell no order."""

    path: Path
    identity: tuple[int, int]
    written_ns: int
    size: int
    style: str | None
    rank: tuple[int, str]

    @property
    def packing(self) -> str:
        """The suffix of what it is compressed with, "" for a plain file."""
        return packing(self.path.name)

    def is_newer(self, than: "Neighbour") -> bool:
        """Tell which was written later: by name where both are named alike, else by time."""
        if self.style and self.style == than.style and self.path.parent == than.path.parent:
            return self.rank > than.rank
        return self.written_ns > than.written_ns


def packing(name: str) -> str:
    """Return the suffix that says how a file is compressed, "" for none that is known."""
    suffix = os.path.splitext(name)[1]  # noqa: PTH122 - asked for each of very many names
    return suffix if suffix in READABLE or suffix in UNREADABLE else ""


@lru_cache(maxsize=20_000)
def originals(name: str) -> tuple[RotatedName, ...]:
    """Return every way in which `name` may be that of a rotated file: of what, and how."""
    stem = name.removesuffix(packing(name))
    ends = [at for at, letter in enumerate(stem) if letter == "."] + [len(stem)]
    return tuple(
        one
        for at, letter in enumerate(stem)
        if at and letter in "._-"
        for end in ends
        if end > at and (one := _original(stem, at, end)) is not None
    )


def _original(stem: str, at: int, end: int) -> RotatedName | None:
    mark, kept = stem[at:end], stem[end:]
    if numbered := _NUMBERED.fullmatch(mark):
        return RotatedName(stem[:at] + kept, f"numbered{kept}", (-int(numbered[1]), ""))
    if not _DATED.fullmatch(mark):
        return None
    return RotatedName(stem[:at] + kept, f"dated{kept}" if _ORDERED.fullmatch(mark) else "", (0, mark))


class Rotated:
    """The rotated files of one path. What is damaged among them is said once and left out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._damaged: set[tuple[int, int]] = set()

    def find(self, position: TailPosition) -> OpenFile | None:
        """Open the rotated file in which reading goes on after `position`, None where there is none.

        First the file itself under another name, then a copy of it (copytruncate empties the original; a compressed
        one); both at the offset. Where there is neither, or the position is at a start, the oldest of those that are
        all new: the file itself, emptied before it was rotated, and what was written to after what was read last.
        Raises RetryLater.
        """
        beside, below = self._neighbours(), self._below()
        begins, after_ns = told(position.head)
        if position.offset:
            # The device is not compared: the number of a btrfs or overlay mount may change at a reboot.
            moved = [one for one in (*beside, *below) if one.identity[1] == position.inode]
            copies = [one for one in (*beside, *below) if one.style is not None]
            copies.sort(key=lambda copy: copy.written_ns, reverse=True)
            for one in (*moved, *copies):
                if self._has(one, begins) and (file := self._open(one)) is not None and file.holds(position):
                    file.move_to(position.offset)
                    return file
        rotated = [one for one in (*beside, *below) if one.style is not None]
        # A packed file is never the one that was open: its number was given again.
        unread = [one for one in rotated if one.identity[1] == position.inode and not one.packing]
        if after_ns is not None:
            ours = {one.path.parent for one in below if self._has(one, begins)}
            unread += [
                one
                for one in rotated
                if one.written_ns > after_ns
                and one.size
                and one not in unread
                and (one in beside or one.path.parent in ours)
                and not self._has(one, begins)
            ]
        return next((file for one in _in_order(unread) if (file := self._open(one)) is not None), None)

    def open_after(self, file: OpenFile) -> OpenFile | None:
        """Open the oldest rotated file that is newer than `file`, at its start. Raises RetryLater."""
        while (following := self.next_after(file)) is not None:
            opened = self._open(following)
            if opened is not None and opened.identity == following.identity:
                return opened
        return None

    def next_after(self, file: OpenFile) -> Neighbour | None:
        """Return the oldest rotated file that is newer than `file`. Raises RetryLater."""
        _, newer = self._around(file)
        return next(iter(_in_order(newer)), None)

    def last_written_ns(self, file: OpenFile) -> int:
        """Return when anything up to `file` was last written to, also before a clock was set back."""
        older, _ = self._around(file)
        return max([file.written_ns, *(one.written_ns for one in older)])

    def all_read(self) -> str:
        """Return the head of a position to which every rotated file that is there now is old."""
        return mark(fingerprint(b""), max((o.written_ns for o in self._neighbours() if o.style is not None), default=0))

    def _around(self, file: OpenFile) -> tuple[list[Neighbour], list[Neighbour]]:
        """Return the rotated files that are older and those that are newer than `file`."""
        near = self._neighbours()
        drained = next((one for one in near if one.identity == file.identity), None)
        if drained is None and (drained := next((o for o in self._below() if self._is(o, file)), None)) is not None:
            near += [one for one in self._below() if one.path.parent == drained.path.parent]
        if drained is None:
            drained = next((one for one in near if self._is(one, file)), None)
        if drained is None:
            drained = Neighbour(
                path=self._path,
                identity=file.identity,
                written_ns=file.written_ns,
                size=file.size,
                style=None,
                rank=(0, ""),
            )
        rotated = [one for one in near if one.style is not None and one is not drained]
        newer = [one for one in rotated if one.is_newer(drained)]
        return [one for one in rotated if one not in newer], newer

    def unreadable_ones(self) -> list[str]:
        """Return the names of rotated files whose compression cannot be read here."""
        near = [*self._neighbours(readable=False), *self._below(readable=False)]
        return sorted(one.path.name for one in near if one.style is not None and one.packing in UNREADABLE)

    def _is(self, one: Neighbour, file: OpenFile) -> bool:
        """Tell whether a neighbour is this very file, or a copy that was made of it as it is."""
        if one.identity == file.identity:
            return True
        if one.style is None or not file.position.offset or one.written_ns < file.written_ns - _SAME_TIME_NS:
            return False
        copy = self._open(one) if self._has(one, told(file.position.head)[0]) else None
        return copy is not None and file.position.offset <= copy.size <= file.size

    def _has(self, one: Neighbour, begins: str) -> bool:
        """Tell whether a file's text begins as a fingerprint says; one of nothing fits none."""
        length = head_length(begins)
        try:
            return length > 0 and fingerprint(begins_with(one.path, length)) == begins
        except ParseError as error:
            self._leave_out(one, str(error))
        except OSError:
            pass  # gone, or not for us to read: a stranger as far as can be told
        return False

    def _open(self, one: Neighbour) -> OpenFile | None:
        try:
            return (open_text if one.packing else _open_plain)(one.path, self._path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(one.path, error) from None
        except ParseError as error:
            self._leave_out(one, str(error))
            return None

    def _leave_out(self, one: Neighbour, reason: str) -> None:
        self._damaged.add(one.identity)
        _log.warning("event=lines-maybe-lost path=%s reason=%s, and the rotated file is left out", self._path, reason)

    def _neighbours(self, *, readable: bool = True) -> list[Neighbour]:
        """Return the files beside the path, or beside the target of its link."""
        places = [(place.parent, place.name) for place in self._places()]
        return self._listed(places, _entries, readable=readable)

    def _below(self, *, readable: bool = True) -> list[Neighbour]:
        """Return the files with rotated names in the folders right below."""
        folders = [
            (Path(entry.path), place.name)
            for place in self._places()
            for entry in _entries(place.parent)
            if entry.is_dir(follow_symlinks=False)
        ]
        found = self._listed(folders[:MAX_FOLDERS], _entries_if_allowed, readable=readable)
        return [one for one in found if one.style is not None]

    def _places(self) -> Iterator[Path]:
        yield from dict.fromkeys((self._path, Path(os.path.realpath(self._path))))

    def _listed(
        self,
        folders: list[tuple[Path, str]],
        listing: Callable[[Path], list[os.DirEntry[str]]],
        *,
        readable: bool,
    ) -> list[Neighbour]:
        found: dict[tuple[int, int], Neighbour] = {}
        for folder, followed in folders:
            entries = {entry.name: entry for entry in listing(folder)}
            for name, entry in entries.items():
                kind = packing(name)
                # A file that is just being compressed is not whole, and still there.
                if (kind and name.removesuffix(kind) in entries) or (readable and kind in UNREADABLE):
                    continue
                with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                    if not entry.is_file(follow_symlinks=False):
                        continue
                    status = entry.stat(follow_symlinks=False)
                    if readable and identity(status) in self._damaged:
                        continue
                    rotated = next((one for one in originals(name) if one.of == followed), None)
                    found.setdefault(
                        identity(status),
                        Neighbour(
                            path=Path(entry.path),
                            identity=identity(status),
                            written_ns=status.st_mtime_ns,
                            size=status.st_size,
                            style=None if rotated is None else rotated.style,
                            rank=(0, "") if rotated is None else rotated.rank,
                        ),
                    )
        return list(found.values())


def _in_order(files: list[Neighbour]) -> list[Neighbour]:
    """Return rotated files from the oldest to the newest."""
    styles = {(one.style, one.path.parent) for one in files}
    if len(styles) == 1 and files[0].style:
        return sorted(files, key=lambda one: one.rank)
    return sorted(files, key=lambda one: one.written_ns)


def _open_plain(path: Path, reported_as: Path) -> OpenFile | None:
    return open_file(path, reported_as, flags=os.O_NOFOLLOW)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder has as of one moment: a rename while it is read may hide a file, so it is read again."""
    found: list[os.DirEntry[str]] = []
    before = None
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for _ in range(5):
            changed = os.stat(folder).st_mtime_ns  # noqa: PTH116
            if changed == before:
                break
            before = changed
            with os.scandir(folder) as entries:
                found = list(entries)
    return found


def _entries_if_allowed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return _entries(folder)
    except OSError:
        return []
