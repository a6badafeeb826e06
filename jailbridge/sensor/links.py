"""Which interfaces a setting means, and that one or an address changed. Nothing here needs a privilege.

An event only wakes; the truth is read elsewhere.
"""

import socket
from collections.abc import Sequence

from jailbridge.errors import FatalError
from jailbridge.host.netlink import ADDRESSES, LINKS, ChangeWatch
from jailbridge.model.network import shown

ALL, ALL_BUT_LOOPBACK = "all", "all-but-loopback"


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


class LinkWatch(ChangeWatch):
    """Tells that an interface or an address of this network namespace came, went or changed.

    Opens its socket at once; raises FatalError. Not thread-safe.
    """

    def __init__(self) -> None:
        try:
            super().__init__(LINKS | ADDRESSES)
        except OSError as error:
            raise FatalError(
                f"the sensor cannot open a netlink socket ({error.strerror}): allow it AF_NETLINK"
            ) from None
