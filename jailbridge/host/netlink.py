"""Tells that this network namespace's interfaces, addresses or routes changed, over netlink; not what did.

An event only wakes; the truth is read elsewhere. Needs no privilege. Numbers: rtnetlink(7), linux/rtnetlink.h.
"""

import errno
import socket
import weakref

LINKS = 0x001
ADDRESSES = 0x010 | 0x100
ROUTES = 0x040 | 0x400
_EVENTS = 256
"""Read in one go; a flapping interface must not hold up who else waits in the same loop."""


class ChangeWatch:
    """Tells that something of `groups` came, went or changed. Opens its socket at once; raises OSError.

    Not thread-safe. It sees the namespace of the thread that made it.
    """

    def __init__(self, groups: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        # Who forgets to close it holds no socket either.
        self._finalizer = weakref.finalize(self, self._socket.close)
        self._socket.bind((0, groups))

    def fileno(self) -> int:
        """Return what to wait for: readable when something changed."""
        return self._socket.fileno()

    def changed(self) -> bool:
        """Tell whether something changed since the last call; never waits. The first of a flood's calls may be enough.

        Raises OSError.
        """
        changed = False
        for _ in range(_EVENTS):
            try:
                # What does not fit is cut off, and not missed.
                self._socket.recv(1)
            except BlockingIOError:
                break
            except OSError as error:
                # The kernel could not tell of everything: so something changed.
                if error.errno != errno.ENOBUFS:
                    raise
            changed = True
        return changed

    def close(self) -> None:
        """Close the socket."""
        self._finalizer()
