"""One store of the reconciler's: how it fares, what it is believed to hold, when it is read and written again. Pure."""

from dataclasses import dataclass, field

from jailbridge.model.plan import External
from jailbridge.reconcile.shelf import Shelf
from jailbridge.stores.protocol import Store

FIRST_RETRY_S = 1.0
LAST_RETRY_S = 30.0
# A reading may take this share of the time between two of them, and comes at the latest after so long.
READING_SHARE = 50
LAST_READING_S = 600.0
# A store that is touched all the time is read no more often than this, and than so many times what that takes.
TOUCH_S = 1.0
TOUCH_SHARE = 10


@dataclass(slots=True)
class Backoff:
    """When a failing store is tried again (seconds of the monotonic clock).

    writing  whether it was writing that failed: then reading well mends nothing
    """

    not_before: float = 0.0
    delay: float = FIRST_RETRY_S
    problem: str | None = None
    writing: bool = False

    def failed(self, problem: str, now: float, *, writing: bool) -> bool:
        """Note a failure; tell whether it is a new one."""
        is_new = problem != self.problem
        self.problem, self.not_before, self.writing = problem, now + self.delay, writing
        self.delay = min(self.delay * 2, LAST_RETRY_S)
        return is_new

    def seen(self, now: float) -> None:
        """Note that somebody who only looked on found it in reach, or heard of it: then its turn is now."""
        if not self.writing:
            self.not_before = min(self.not_before, now)

    def succeeded(self, *, writing: bool) -> bool:
        """Note that reading, or writing, worked; tell whether that ends a failure."""
        if self.problem is None or (self.writing and not writing):
            return False
        self.problem, self.delay, self.not_before, self.writing = None, FIRST_RETRY_S, 0.0, False
        return True


@dataclass(slots=True, kw_only=True)
class Attached:
    """A store, what a person's change in it means, and how it fares; times are seconds of the monotonic clock.

    shelf     what it is believed to hold; None: it must be read before anything can be said of it
    read_at   when it is read again all the same
    write_at  when it may be written again
    hook_at   when our rules may be put in force again: with another who moves them we do not fight each second
    touch_at  when it may be read again because another touched it
    held      how many bans the last reading found
    """

    store: Store
    external: External
    backoff: Backoff = field(default_factory=Backoff)
    shelf: Shelf | None = None
    read_at: float = 0.0
    write_at: float = 0.0
    hook_at: float = 0.0
    touch_at: float = 0.0
    held: int | None = None

    @property
    def can_be_carried_to(self) -> bool:
        """Tell whether changes may be written without a reading before them.

        What another put in the place of our content must not get our newest token: nobody could tell any more that it
        was not a person who changed the rest. Where nothing is inferred, it does no harm.
        """
        return self.shelf is not None and (self.store.capabilities.guarded or self.external is External.REVERT)

    def was_read(self, now: float, took_s: float, interval_s: float) -> None:
        """Note a reading that took so long: the next one comes after the interval, or later where readings are long."""
        self.touch_at = now + max(TOUCH_S, took_s * TOUCH_SHARE)
        self.read_at = now + min(max(interval_s, took_s * READING_SHARE), max(interval_s, LAST_READING_S))

    def was_touched(self, now: float) -> None:
        """Have it read because another touched it: at once, but whoever goes on and on does not keep us reading."""
        self.read_at = min(self.read_at, max(now, self.touch_at))

    def is_due(self, now: float, *, patient: bool) -> bool:
        """Tell whether it must be read now; `patient`: a failing store not before its turn."""
        if self.shelf is None:
            return not patient or now >= self.backoff.not_before
        return now >= self.read_at
