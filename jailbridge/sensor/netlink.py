"""Lists that the kernel gives over netlink when asked; the caller knows what is in them. Needs no privilege.

Forms and numbers: netlink(7), linux/netlink.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator

ERROR, DONE, OVERRUN = 2, 3, 4
_REQUEST, _DUMP = 0x001, 0x300
_HEADER = struct.Struct("=IHHII")
_CODE = struct.Struct("=i")
# The kernel fills as much of it as it gets in one piece, 32 KiB.
_PART = 1 << 16


def dump(protocol: int, kind: int, request: bytes) -> Iterator[bytes]:
    """Yield the body of each message in the kernel's list; `kind` is what of, `request` the body of the question.

    Raises OSError, also after the first messages.
    """
    # A socket for each list: nothing of an earlier one can be left in it.
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        sock.send(_HEADER.pack(_HEADER.size + len(request), kind, _REQUEST | _DUMP, 1, 0) + request)
        while True:
            part = sock.recv(_PART)
            at = 0
            while at < len(part):
                length, kind, _, _, _ = _HEADER.unpack_from(part, at)
                start = at + _HEADER.size
                if kind in {ERROR, DONE}:
                    # Where nothing could be listed, the end carries the reason.
                    (code,) = _CODE.unpack_from(part, start)
                    if code < 0:
                        raise OSError(-code, os.strerror(-code))
                    return
                if kind == OVERRUN:
                    raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
                yield part[start : at + length]
                at += length + 3 & ~3
