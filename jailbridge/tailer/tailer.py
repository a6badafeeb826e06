"""Several followed files as one source of lines. Knows their turns and their troubles; waits for nothing itself.

The owner's loop: read and commit until there is nothing, then sleep until `wake` was called, POLL_S at most.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from jailbridge.config.settings import Watch
from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.event import TailPosition
from jailbridge.tailer.follower import Follower
from jailbridge.tailer.opened import Batch
from jailbridge.tailer.watch import watcher

# The safety poll, for what no watch tells: targets of links, removed folders, NFS, overlay mounts.
POLL_S = 1.0
_log = logging.getLogger("jailbridge.tailer")


class Tailer:
    """Reads all files in turn; one that cannot be read holds up no other. Not for several threads at once."""

    def __init__(
        self,
        followers: Iterable[Follower],
        *,
        watch: Watch | Mapping[Path, Watch],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`watch` is one setting for all or one for each path; `wake` is called from other threads, must not block.

        Raises FatalError where a path is followed twice.
        """
        self._turns = deque(followers)
        self._followers = {str(follower.path): follower for follower in self._turns}
        if len(self._followers) < len(self._turns):
            paths = [str(follower.path) for follower in self._turns]
            twice = next(path for path in paths if paths.count(path) > 1)
            raise FatalError(f"{twice} is followed twice: leave one [[tail]] of it")
        self._wake = wake
        self._clock = clock
        self._troubles: dict[str, str] = {}
        self._rearm_at = clock() + POLL_S
        kinds: dict[Watch, list[Path]] = {}
        for follower in self._turns:
            kind = watch if isinstance(watch, Watch) else watch.get(follower.path, Watch.AUTO)
            kinds.setdefault(kind, []).append(follower.path)
        self._watchers = [(watcher(kind), paths) for kind, paths in kinds.items()]

    def start(self) -> None:
        """Begin to watch. Whatever was written before is found by the first `read`."""
        for one, paths in self._watchers:
            one.start(paths, self._wake)

    def stop(self) -> None:
        """Watch no more and let go of every file; what is not committed will be read again."""
        for one, _ in self._watchers:
            one.stop()
        for follower in self._turns:
            follower.close()

    def read(self, limit: int) -> Batch | None:
        """Return the next batch of any file, at most `limit` lines, or None where nothing is new now.

        A batch may hold no line, only refused ones; it too must be committed. Never raises for a file's sake.
        """
        for _ in range(len(self._turns)):
            follower = self._turns[0]
            self._turns.rotate(-1)
            if (batch := self._read(follower, limit)) is not None:
                return batch
        if self._clock() >= self._rearm_at:
            self._rearm_at = self._clock() + POLL_S
            for one, _ in self._watchers:
                one.rearm()
        return None

    def commit(self, batch: Batch) -> None:
        """Accept a batch: its file goes on after it. Raises ValueError unless it is the last one read of its file."""
        self._followers[batch.position.path].commit(batch)

    def positions(self) -> Mapping[str, TailPosition]:
        """Return how far each file has been committed; a file whose end could not be read yet is left out."""
        places = {path: follower.position for path, follower in self._followers.items()}
        return {path: place for path, place in places.items() if place is not None}

    def troubles(self) -> Mapping[str, str]:
        """Return for each file that cannot be read now the line that says why and what to do."""
        return dict(self._troubles)

    def _read(self, follower: Follower, limit: int) -> Batch | None:
        path = str(follower.path)
        try:
            batch = follower.read(limit)
        except RetryLater as error:
            if self._troubles.get(path) != str(error):
                self._troubles[path] = str(error)
                _log.warning("event=unreadable path=%s reason=%s", path, error)
            return None
        if self._troubles.pop(path, None) is not None:
            _log.info("event=readable-again path=%s", path)
        return batch
