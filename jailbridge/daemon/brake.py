"""The brake on new bans: so many in any minute. Knows no bans."""

from collections import deque


class Brake:
    """Lets through at most `limit` in any minute. `now` is monotonic seconds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._times: deque[float] = deque()

    def is_full(self, now: float) -> bool:
        """Tell whether none may pass at `now`."""
        return self.left(now) <= 0

    def left(self, now: float) -> int:
        """Tell how many may pass at `now`."""
        while self._times and now - self._times[0] >= 60.0:
            self._times.popleft()
        return self._limit - len(self._times)

    def count(self, now: float) -> None:
        """Note that one has passed."""
        self._times.append(now)
