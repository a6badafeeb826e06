"""Which addresses are this host's own unicast ones, kept fresh at a bounded rate. Decides nothing else."""

import logging
from collections.abc import Callable

from jailbridge import host
from jailbridge.errors import RetryLater
from jailbridge.model.network import Address

log = logging.getLogger("jailbridge.sensor")

STALE_S = 60.0
"""Own addresses are read again after this time."""
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 30.0
"""Between readings for unknown destinations; it doubles while they bring nothing new: a router sees many."""


def _read() -> frozenset[Address]:
    return host.surroundings().addresses


class OwnAddresses:
    """The host's own unicast addresses. `now` is monotonic seconds."""

    def __init__(self, read: Callable[[], frozenset[Address]] = _read) -> None:
        self._read = read
        self._addresses: frozenset[Address] = frozenset()
        self._read_at = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._failed = False

    def load(self, now: float) -> None:
        """Read the addresses for the first time. Raises RetryLater and FatalError."""
        self._addresses = self._read()
        self._read_at = now

    def holds(self, address: Address) -> bool:
        """Tell whether the address is ours, as last read."""
        return address in self._addresses

    def is_destination(self, address: Address, now: float) -> bool:
        """Tell whether a packet to this address is to us, reading again if it may have come since."""
        known = address in self._addresses
        if now - self._read_at < (STALE_S if known else self._pause_s):
            return known
        if address.is_multicast:
            return False
        self._refresh(now)
        return address in self._addresses

    def _refresh(self, now: float) -> None:
        before, self._read_at = self._addresses, now
        try:
            self._addresses = self._read()
        except RetryLater as error:
            if not self._failed:
                log.warning("own addresses not read, the last known ones stay: %s", error)
            self._failed = True
            return
        self._failed = False
        changed = self._addresses != before
        self._pause_s = FIRST_PAUSE_S if changed else min(self._pause_s * 2, LAST_PAUSE_S)
