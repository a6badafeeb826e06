"""This moment's exemptions: the allow lists, the host's surroundings, its resolvers and who is logged in.

Each is read again when it changed: the kernel tells of addresses and routes, files show it. What cannot be read is told
once, loudly, and nobody is exempt or banned by a guess: there are no exemptions then.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from jailbridge.config.settings import PolicySettings
from jailbridge.errors import FatalError, RetryLater
from jailbridge.host import Surroundings, resolvers, sessions, surroundings
from jailbridge.host.files import sign
from jailbridge.host.netlink import ADDRESSES, LINKS, ROUTES, ChangeWatch
from jailbridge.model.network import Address, Network
from jailbridge.policy.allow import allow_lists, allowed
from jailbridge.policy.exempt import Exemptions

log = logging.getLogger("jailbridge.policy")

T = TypeVar("T")
_Entry: TypeAlias = tuple[Network, str]
_Present: TypeAlias = tuple[Address, str]
_Read: TypeAlias = tuple[Sequence[_Entry], Surroundings, Sequence[_Present], Sequence[_Present]]

# Looked for changes at most this often: who logs in may be scanning a moment later.
FRESH_S = 0.125
# The kernel's changes can come without end (containers, routing daemons), and reading takes three programs.
PAUSE_S = 1.0
# Read again so often though nothing seems to have changed.
STALE_S = 60.0


class PresentExemptions:
    """Who is exempt now; for one thread at a time.

    clock    monotonic, in seconds
    added    the networks that an operator's command allowed, with the reason; asked at every call
    problem  what cannot be read, and how to mend it

    Raises FatalError where the kernel cannot be asked for changes.
    """

    def __init__(
        self,
        rules: PolicySettings,
        clock: Callable[[], float] = time.monotonic,
        added: Callable[[], Sequence[tuple[Network, str]]] = tuple,
        *,
        resolver_files: Sequence[Path] = resolvers.FILES,
        utmp: Path = sessions.UTMP,
    ) -> None:
        self._clock = clock
        self._added = added
        lists = (*rules.allow_files, rules.hosts_allow)
        self._allowed = _Kept(lambda: allowed(rules), lambda: tuple(map(sign, lists)))
        self._around = _Kept(surroundings, _NetworkSign(), PAUSE_S)
        self._resolvers = _Kept(lambda: resolvers.resolvers(resolver_files), lambda: tuple(map(sign, resolver_files)))
        self._logind = _Kept(sessions.in_logind, lambda: sign(sessions.LOGIND))
        # Read at every look: a session's process can be gone without a word in the file.
        self._utmp = partial(sessions.in_utmp, utmp)
        self._looked_at = float("-inf")
        self._read: _Read | None = None
        self._made_of: tuple[_Read, Sequence[_Entry]] | None = None
        self._present = Exemptions()
        self.problem: str | None = None

    def __call__(self) -> Exemptions | None:
        """Return who is exempt now, the very same object until that changes; None while something cannot be read."""
        now = self._clock()
        if now - self._looked_at >= FRESH_S:
            self._looked_at = now
            self._look(now)
        if self._read is None:
            return None
        if (made_of := (self._read, tuple(self._added()))) != self._made_of:
            listed, around, servers, logged_in = self._read
            self._present = Exemptions.of([*listed, *made_of[1]], around, [*servers, *logged_in])
            self._made_of = made_of
        return self._present

    def _look(self, now: float) -> None:
        try:
            self._read = (
                self._allowed(now),
                self._around(now),
                self._resolvers(now),
                [*self._utmp(), *self._logind(now)],
            )
            problem = None
        except RetryLater as error:
            self._read = None
            problem = str(error)
        if problem != self.problem:
            if problem is not None:
                log.error("%s", problem)
            else:
                log.info("what exempts is readable again")
        self.problem = problem


class _Kept(Generic[T]):
    """What was read last; read again when its sign differs, after a pause, and now and then. A failure is not kept."""

    def __init__(self, read: Callable[[], T], sign: Callable[[], object], pause_s: float = 0.0) -> None:
        self._read = read
        self._sign = sign
        self._pause_s = pause_s
        self._last: tuple[T, object, float] | None = None

    def __call__(self, now: float) -> T:
        # Taken before the reading: what changes meanwhile shows at the next look.
        sign = self._sign()
        if self._last is not None:
            value, seen, read_at = self._last
            if now - read_at < (STALE_S if sign == seen else self._pause_s):
                return value
        self._last = None
        self._last = (self._read(), sign, now)
        return self._last[0]


class _NetworkSign:
    """Differs from look to look where the kernel told of a change between them."""

    def __init__(self) -> None:
        try:
            # A link that goes down takes its IPv4 routes with it, and only of the link the kernel tells.
            self._watch = ChangeWatch(LINKS | ADDRESSES | ROUTES)
        except OSError as error:
            raise FatalError(
                f"changes of addresses and routes cannot be watched ({error.strerror}): allow AF_NETLINK"
            ) from None
        self._changes = 0

    def __call__(self) -> int:
        self._changes += self._watch.changed()
        return self._changes


def unreadable(rules: PolicySettings) -> list[str]:
    """Return everything that holds back new bans now since it cannot be read, with the remedy, all at once."""
    problems = [one.problem for one in allow_lists(rules) if one.problem is not None]
    for read in (resolvers.resolvers, sessions.in_utmp, sessions.in_logind):
        try:
            read()
        except RetryLater as error:
            problems.append(str(error))
    return problems
