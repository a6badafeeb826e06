"""Which interfaces a setting means, and that one or an address changed. Nothing here needs a privilege.

An event only wakes; the truth is read elsewhere. Numbers: rtnetlink(7), linux/rtnetlink.h.
"""

import errno
import socket
from collections.abc import Sequence

from jailbridge.errors import FatalError
from jailbridge.model.network import shown

ALL, ALL_BUT_LOOPBACK = "all", "all-but-loopback"

_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x001, 0x010, 0x100
_EVENTS = 256
"""Read in one go; a flapping interface must not hold up who else waits in the same loop."""


def indexes(names: Sequence[str]) -> tuple[frozenset[int] | None, tuple[str, ...]]:
    """Return the indexes of the interfaces that `sensor.interfaces` means now, and the names that are absent now.

    None stands for all of them (`all`, and `all-but-loopback`: the packet filter leaves that one out).
    """
    if ALL in names or ALL_BUT_LOOPBACK in names:
        return None, ()
    found, absent = set(), []
    for name in dict.fromkeys(names):
        try:
            found.add(socket.if_nametoindex(name))
        except OSError:
            absent.append(name)
    return frozenset(found), tuple(absent)


def refuse_absent(names: Sequence[str]) -> None:
    """Raise FatalError for an interface that is asked for and absent."""
    if names:
        known = " ".join(name for _, name in socket.if_nameindex())
        raise FatalError(f"sensor.interfaces names {shown(names[0])}, which is not on this host: it has {known}")


class LinkWatch:
    """Tells that an interface or an address of this network namespace came, went or changed.

    Opens its socket at once; raises FatalError. Not thread-safe.
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
            )
            self._socket.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        except OSError as error:
            raise FatalError(
                f"the sensor cannot open a netlink socket ({error.strerror}): allow it AF_NETLINK"
            ) from None

    def fileno(self) -> int:
        """Return what to wait for: readable when something changed."""
        return self._socket.fileno()

    def changed(self) -> bool:
        """Tell whether something changed since the last call; never waits."""
        changed = False
        for _ in range(_EVENTS):
            try:
                # What does not fit is cut off, and not missed.
                self._socket.recv(1)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
            changed = True
        return changed

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
