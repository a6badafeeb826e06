"""The files that a pattern names: which are new, which are gone, which are only rotated ones. Reads no line.

A position under the pattern's own name says that the ledger knows it: files that it has no position of appeared
later, and are read from their start.
"""

import fnmatch
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from jailbridge.config.settings import TailSettings
from jailbridge.errors import RetryLater
from jailbridge.model.event import TailPosition
from jailbridge.model.network import shown
from jailbridge.tailer.follower import Follower, nothing
from jailbridge.tailer.opened import identity, open_file, unreadable
from jailbridge.tailer.rotated import originals, packing

# Each holds a descriptor, of which a process usually may have 1,024.
MAX_FILES = 500
_log = logging.getLogger("jailbridge.tailer")


class Pattern:
    """The followers of all regular files that match `tail.path`, links to such included."""

    def __init__(
        self,
        tail: TailSettings,
        positions: Mapping[str, TailPosition],
        *,
        is_taken: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Know what `positions` has under the pattern; `scan` takes files up. `is_taken`: another follows this path."""
        assert tail.path is not None
        self._tail = tail
        self._folder = tail.path.parent
        self._matches = matcher(tail.path.name)
        self._is_taken = is_taken
        self._clock = clock
        self.followers: dict[str, Follower] = {}
        mine = {path: place for path, place in positions.items() if self.covers(path) and not is_taken(path)}
        self._left = mine
        # Perhaps only rotated files are left of these, not all of them read.
        self._unseen = set(mine)
        self._is_new = tail.name not in positions
        self._from_end: set[str] = set()
        self._said: set[str] = set()
        self._gone: set[str] = set()
        self._refused: dict[str, int] = {}
        self._scanned: int | None = None

    @property
    def name(self) -> str:
        """The pattern as written."""
        return self._tail.name

    def covers(self, path: str) -> bool:
        """Tell whether a path is one that the pattern may name."""
        folder, name = os.path.split(path)
        return folder == str(self._folder) and path != self.name and name.isprintable() and self._matches(name)

    def has_changed(self) -> bool:
        """Tell whether a file came or went since the last scan; too close together, it cannot be told."""
        return self._written_ns() != self._scanned

    def scan(self) -> None:
        """Take up the files that are new and let go of those that are gone.

        Raises RetryLater where the folder cannot be read, or holds more files than MAX_FILES or unprintable names.
        """
        self._scanned = self._written_ns()
        entries = self._entries()
        present = self._present(entries)
        if self._is_new:
            self._from_end = present.keys() - self._left.keys()
            self._is_new = False
        self._rename(present)
        self._let_go(entries)
        rests = [path for path in self._unseen & self._left.keys() if path not in present]
        self._unseen.clear()
        for path in [path for path in (*present, *rests) if path not in self.followers]:
            if len(self.followers) < MAX_FILES:
                self._take_up(path)
        self._from_end -= {path for path in self._from_end if path not in present or self._has_begun(path)}
        if len(present) > MAX_FILES:
            raise RetryLater(
                f"{self.name} names {len(present)} files, and {MAX_FILES} of them at most are followed: "
                "narrow the pattern, or remove old files"
            )
        # The ledger keeps text, and a log line ends with its line: any user of the folder can choose such a name.
        if unnamable := [name for name in entries if not name.isprintable() and self._matches(name)]:
            raise RetryLater(
                f"{self.name} names files that are not followed, since their names are not printable text: "
                f"rename or remove {shown(min(unnamable))}"
            )

    @property
    def positions(self) -> Mapping[str, TailPosition]:
        """How far each file was read, also of those that may come back, and the pattern's own mark."""
        places = {path: follower.position for path, follower in self.followers.items()}
        known = self._left | {path: place for path, place in places.items() if place is not None}
        # Until each of the first files has an end to start from, a restart must look for it again.
        return known if self._is_new or self._from_end else {self.name: nothing(Path(self.name))} | known

    @property
    def refused(self) -> Mapping[str, int]:
        """How many lines of each file were too long."""
        now = {path: self._refused.get(path, 0) + follower.refused for path, follower in self.followers.items()}
        return self._refused | now

    def take_gone(self) -> frozenset[str]:
        """Return, once, the paths whose position nobody needs any more."""
        gone, self._gone = frozenset(self._gone), set()
        return gone

    def _entries(self) -> dict[str, os.DirEntry[str]]:
        try:
            with os.scandir(self._folder) as found:
                return {entry.name: entry for entry in found}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise unreadable(self._folder, error) from None

    def _written_ns(self) -> int | None:
        try:
            return os.stat(self._folder).st_mtime_ns  # noqa: PTH116
        except OSError:
            return None

    def _present(self, entries: Mapping[str, os.DirEntry[str]]) -> dict[str, tuple[int, int]]:
        """Return the files to follow with their identities, each once."""
        found: dict[str, tuple[int, int]] = {}
        seen: set[tuple[int, int]] = set()
        names = sorted(name for name in entries if name.isprintable() and self._matches(name) and not packing(name))
        originals_here = {*names, *(os.path.basename(path) for path in (*self.followers, *self._left))}  # noqa: PTH119
        # A link comes after the file itself.
        for name in sorted(names, key=lambda name: entries[name].is_symlink()):
            if any(one.of in originals_here for one in originals(name)):
                continue
            path = str(self._folder / name)
            try:
                status = os.stat(path)  # noqa: PTH116
            except OSError:
                continue  # gone, a loop, a link to nothing
            if not stat.S_ISREG(status.st_mode) or identity(status) in seen:
                continue
            seen.add(identity(status))
            if not self._is_taken(path):
                found[path] = identity(status)
            elif path not in self._said:
                self._said.add(path)
                _log.info("event=followed-once path=%s reason=an earlier [[tail]] has it, not %s", path, self.name)
        return found

    def _take_up(self, path: str) -> None:
        position = self._left.pop(path, None)
        self._gone.discard(path)
        self.followers[path] = Follower(
            self._tail, Path(path), position, from_end=path in self._from_end, clock=self._clock
        )

    def _has_begun(self, path: str) -> bool:
        follower = self.followers.get(path)
        return follower is not None and follower.position is not None

    def _rename(self, present: Mapping[str, tuple[int, int]]) -> None:
        """Go on under the new name where a file that is read was given another that matches too."""
        known = self._left | {path: one.position for path, one in self.followers.items() if one.position is not None}
        by_inode = {position.inode: position for position in known.values() if position.inode}
        for path, (_, inode) in present.items():
            before = by_inode.get(inode)
            if before is None or path in known or present.get(before.path, (0, 0))[1] == inode:
                continue
            if not _may_hold(path, before):
                continue
            if (follower := self.followers.pop(before.path, None)) is not None:
                self._close(follower)
            self._left.pop(before.path, None)
            self._left[path] = replace(before, path=path)
            if before.path in present:
                self._left[before.path] = nothing(Path(before.path))
            else:
                self._gone.add(before.path)

    def _let_go(self, entries: Mapping[str, os.DirEntry[str]]) -> None:
        """Close what has no name any more and is read; forget it once nothing of it is left in the folder."""
        for path, follower in list(self.followers.items()):
            if os.path.basename(path) not in entries and follower.is_over:  # noqa: PTH119
                if (position := follower.position) is not None:
                    self._left[path] = position
                self._close(self.followers.pop(path))
        if not self._left:
            return
        inodes = {entry.inode() for entry in entries.values()}
        rotated_here = {one.of for name in entries for one in originals(name)}
        for path, position in list(self._left.items()):
            name = os.path.basename(path)  # noqa: PTH119
            if name not in entries and name not in rotated_here and position.inode not in inodes:
                del self._left[path]
                self._gone.add(path)

    def _close(self, follower: Follower) -> None:
        if follower.refused:
            self._refused[follower.name] = self._refused.get(follower.name, 0) + follower.refused
        follower.close()


def _may_hold(path: str, position: TailPosition) -> bool:
    """Tell whether a file is the one of a position; where it cannot be read, its number is all that tells."""
    try:
        file = open_file(Path(path), Path(path))
    except RetryLater:
        return True
    return file is not None and file.holds(position)


def matcher(pattern: str) -> Callable[[str], bool]:
    """Return whether a name is one of those that a shell's pattern means: `*` never begins with a dot (glob(7))."""
    match = re.compile(fnmatch.translate(pattern)).match
    return lambda name: match(name) is not None and (name[0] != "." or pattern[0] == ".")
