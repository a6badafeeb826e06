"""Several followed files as one source of lines. Knows their turns and their troubles; waits for nothing itself.

The owner's loop: read and commit until there is nothing, then sleep until `wake` was called, POLL_S at most.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from jailbridge.config.settings import TailSettings, Watch
from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.event import TailPosition
from jailbridge.tailer.follower import Follower
from jailbridge.tailer.journal import Journal
from jailbridge.tailer.pattern import Pattern
from jailbridge.tailer.source import Batch, Source
from jailbridge.tailer.watch import watcher

# The safety poll, for what no watch tells: targets of links, removed folders, NFS, overlay mounts.
POLL_S = 1.0
_log = logging.getLogger("jailbridge.tailer")


class Tailer:
    """Reads all files in turn; one that cannot be read holds up no other. Not for several threads at once."""

    def __init__(
        self,
        tails: Sequence[TailSettings],
        positions: Mapping[str, TailPosition],
        *,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        journal_arguments: Sequence[str] = (),
    ) -> None:
        """Follow every tail from where `positions`, by name, left it; what has none there, from its present end.

        A file that came under a pattern later is read from its start. Of two tails that name a file the first has
        it. `wake` is called from other threads and must not block; `journal_arguments` tell journalctl which journal
        to read. Raises FatalError where the same is named twice.
        """
        names = [tail.name for tail in tails]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise FatalError(f"{twice} is followed twice: leave one [[tail]] of it")
        self._wake = wake
        self._clock = clock
        self._journal_arguments = journal_arguments
        self._patterns: list[Pattern] = []
        self._fixed: dict[str, Source] = {}
        kinds: dict[Watch, list[Path]] = {}
        for tail in tails:
            self._add(tail, positions)
            if tail.path is not None:
                kinds.setdefault(tail.watch, []).append(tail.path)
        self._watchers = [(watcher(kind), paths) for kind, paths in kinds.items()]
        self._troubles: dict[str, str] = {}
        self._turns: deque[str] = deque()
        self._rearm_at = clock() + POLL_S
        self._scan(is_due=True)

    def start(self) -> None:
        """Begin to watch. Whatever was written before is found by the first `read`."""
        for one, paths in self._watchers:
            one.start(paths, self._wake)

    def stop(self) -> None:
        """Watch no more and let go of every file; what is not committed will be read again."""
        for one, _ in self._watchers:
            one.stop()
        for source in self._sources().values():
            source.close()

    def read(self, limit: int) -> Batch | None:
        """Return the next batch of any file, at most `limit` lines, or None where nothing is new now.

        A batch may hold no line, only refused ones; it too must be committed. Never raises for a file's sake.
        """
        if is_due := self._clock() >= self._rearm_at:
            # Also where lines come without end: what is done once a poll is not to be done at each batch.
            self._rearm_at = self._clock() + POLL_S
            for one, _ in self._watchers:
                one.rearm()
        self._scan(is_due=is_due)
        sources = self._sources()
        for _ in range(len(self._turns)):
            name = self._turns[0]
            self._turns.rotate(-1)
            if (batch := self._try(name, partial(sources[name].read, limit))) is not None:
                return batch
        return None

    def commit(self, batch: Batch) -> None:
        """Accept a batch: its file goes on after it. Raises ValueError unless it is the last one read of its file."""
        source = self._sources().get(batch.position.path)
        if source is None:
            raise ValueError(f"{batch.position.path} is not followed any more")
        source.commit(batch)

    def positions(self) -> Mapping[str, TailPosition]:
        """Return how far each file has been committed, by name; one whose end could not be read yet is left out.

        A pattern has one of its own: it says that what has none came later.
        """
        places = {name: source.position for name, source in self._fixed.items()}
        known = {name: place for name, place in places.items() if place is not None}
        for pattern in self._patterns:
            known.update(pattern.positions)
        return known

    def take_gone(self) -> frozenset[str]:
        """Return, once, the names whose positions nobody needs any more: files of a pattern that left no trace."""
        return frozenset().union(*(pattern.take_gone() for pattern in self._patterns))

    def refused(self) -> Mapping[str, int]:
        """Return how many lines were too long since the start, by name; those without any are left out."""
        counts = {name: source.refused for name, source in self._fixed.items()}
        for pattern in self._patterns:
            counts.update(pattern.refused)
        return {name: count for name, count in counts.items() if count}

    def troubles(self) -> Mapping[str, str]:
        """Return for each file that cannot be read now the line that says why and what to do."""
        return dict(self._troubles)

    def _add(self, tail: TailSettings, positions: Mapping[str, TailPosition]) -> None:
        position = positions.get(tail.name)
        if tail.path is None:
            self._fixed[tail.name] = Journal(
                tail, position, wake=self._wake, clock=self._clock, arguments=self._journal_arguments
            )
        elif tail.is_pattern:
            fixed, earlier = frozenset(self._fixed), tuple(self._patterns)

            def is_taken(path: str) -> bool:
                return path in fixed or any(pattern.covers(path) for pattern in earlier)

            self._patterns.append(Pattern(tail, positions, is_taken=is_taken, clock=self._clock))
        elif first := next((pattern for pattern in self._patterns if pattern.covers(tail.name)), None):
            _log.info("event=followed-once path=%s reason=an earlier [[tail]] has it: %s", tail.name, first.name)
        else:
            self._fixed[tail.name] = Follower(tail, tail.path, position, from_end=True, clock=self._clock)

    def _sources(self) -> Mapping[str, Source]:
        found: dict[str, Source] = dict(self._fixed)
        for pattern in self._patterns:
            found.update(pattern.followers)
        return found

    def _scan(self, *, is_due: bool) -> None:
        """Have the patterns find what came and went; then everything that is followed has its turn."""
        for pattern in self._patterns:
            if is_due or pattern.has_changed():
                self._try(pattern.name, pattern.scan)
        sources = self._sources()
        if sources.keys() != set(self._turns):
            turns = [name for name in self._turns if name in sources]
            self._turns = deque([*turns, *(name for name in sources if name not in turns)])
            for name in self._troubles.keys() - sources.keys() - {pattern.name for pattern in self._patterns}:
                del self._troubles[name]

    def _try(self, name: str, act: Callable[[], Batch | None]) -> Batch | None:
        """Note and say once why something cannot be read, and once that it can be read again."""
        try:
            done = act()
        except RetryLater as error:
            if self._troubles.get(name) != str(error):
                self._troubles[name] = str(error)
                _log.warning("event=unreadable path=%s reason=%s", name, error)
            return None
        if self._troubles.pop(name, None) is not None:
            _log.info("event=readable-again path=%s", name)
        return done
