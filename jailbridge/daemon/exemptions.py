"""This moment's exemptions: read from the lists and the host's surroundings, and read again when they change."""

import logging
import time
from collections.abc import Callable

from jailbridge.config.settings import PolicySettings
from jailbridge.errors import RetryLater
from jailbridge.host import surroundings
from jailbridge.policy.allow import allowed
from jailbridge.policy.exempt import Exemptions

log = logging.getLogger("jailbridge.policy")

# Addresses, routes and allow files are read again at most this often.
FRESH_S = 1.0


class PresentExemptions:
    """Who is exempt now. `clock` is monotonic, in seconds; `problem` says what cannot be read, and how to mend it."""

    def __init__(self, rules: PolicySettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._rules = rules
        self._clock = clock
        self._present: Exemptions | None = None
        self._read_at = float("-inf")
        self.problem: str | None = None

    def __call__(self) -> Exemptions | None:
        """Return who is exempt now, None while a list cannot be read."""
        now = self._clock()
        if now - self._read_at >= FRESH_S:
            self._read_at = now
            try:
                self._present = Exemptions.of(allowed(self._rules), surroundings())
                problem = None
            except RetryLater as error:
                self._present = None
                problem = str(error)
            if problem != self.problem:
                if problem is not None:
                    log.error("%s", problem)
                else:
                    log.info("allow lists are readable again")
            self.problem = problem
        return self._present
