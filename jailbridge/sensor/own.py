"""Which addresses are this host's own unicast ones. Reads them (rtnetlink(7)); decides nothing.

A list of them over netlink takes 0.05 ms; the three `ip` processes of `host.surroundings` take 8.5 ms.
"""

import logging
import socket
import struct
from collections.abc import Callable
from typing import TypeAlias

from jailbridge.errors import RetryLater
from jailbridge.sensor.netlink import dump

log = logging.getLogger("jailbridge.sensor")

STALE_S = 60.0
"""They are read again after this time even if nothing said that they changed."""
PAUSE_S = 0.2
"""The least time between two readings: a container that starts changes an interface a dozen times."""

# linux/rtnetlink.h, linux/if_addr.h
_RTM_GETADDR = 22
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFADDRMSG = 8
_ATTRIBUTE = struct.Struct("=HH")

Addresses: TypeAlias = tuple[frozenset[int], frozenset[int]]
"""IPv4 and IPv6 addresses as whole numbers."""


def addresses() -> Addresses:
    """Read the addresses of all interfaces, up or down. Raises RetryLater."""
    own: dict[int, set[int]] = {socket.AF_INET: set(), socket.AF_INET6: set()}
    try:
        for body in dump(socket.NETLINK_ROUTE, _RTM_GETADDR, struct.pack("B7x", socket.AF_UNSPEC)):
            if (address := _local(body)) is not None and body[0] in own:
                own[body[0]].add(int.from_bytes(address, "big"))
    except OSError as error:
        raise RetryLater(f"own addresses cannot be read: {error.strerror}") from None
    return frozenset(own[socket.AF_INET]), frozenset(own[socket.AF_INET6])


def _local(body: bytes) -> bytes | None:
    """Return our own end: of a point-to-point link IFA_ADDRESS is the far end; most of IPv6 has no IFA_LOCAL."""
    found: dict[int, bytes] = {}
    at = _IFADDRMSG
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = body[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
    return found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)


class OwnAddresses:
    """The host's own unicast addresses, as last read. `now` is monotonic seconds.

    No packet makes it read again: the kernel tells of every change, tells when it could not (both are
    `LinkWatch.changed`), and a change during a reading is told after it.
    """

    def __init__(self, read: Callable[[], Addresses] = addresses) -> None:
        self.v4: frozenset[int] = frozenset()
        """Own IPv4 addresses as whole numbers."""
        self.v6: frozenset[int] = frozenset()
        """Own IPv6 addresses as whole numbers."""
        self._read = read
        self._read_at = 0.0
        self._changed = False
        self._failed = False

    def load(self, now: float) -> None:
        """Read the addresses for the first time. Raises RetryLater."""
        self.v4, self.v6 = self._read()
        self._read_at = now

    def refresh(self, now: float, changed: bool) -> None:
        """Read again if something `changed` (also in an earlier call, too early to be obeyed) or a minute went by.

        Call it at every wake-up, at least twice a second. A failure keeps the last known addresses and is
        logged once; the next call a pause later tries again.
        """
        self._changed |= changed
        if now - self._read_at < (PAUSE_S if self._changed else STALE_S):
            return
        self._read_at = now
        try:
            self.v4, self.v6 = self._read()
        except RetryLater as error:
            if not self._failed:
                log.warning("the last known own addresses stay: %s", error)
            self._failed = self._changed = True
            return
        if self._failed:
            log.info("own addresses are read again")
        self._failed = self._changed = False
