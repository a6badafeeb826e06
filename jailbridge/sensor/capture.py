"""The packet socket: opens it with its filter and ring, changes the filter, counts what the kernel had to drop.

packet(7): AF_PACKET, SOCK_DGRAM, every interface; which ones count is the filter's business, so that interfaces may
come and go. Nothing is bound to any port: no service is ever in the way. Only opening needs a privilege.
"""

import ctypes
import errno
import logging
import os
import socket
import struct
from collections.abc import Iterator, Sequence

from jailbridge.errors import FatalError
from jailbridge.sensor import bpf
from jailbridge.sensor.ring import BATCH, FRAMES, SOL_PACKET, Captured, Ring

log = logging.getLogger("jailbridge.sensor")

# linux/if_packet.h, linux/if_ether.h, asm-generic/socket.h; Python's socket module lacks them.
_PACKET_STATISTICS, _PACKET_IGNORE_OUTGOING = 6, 23
_ETH_P_ALL = 3
_SO_ATTACH_FILTER = 26
_NOTHING = (bpf.Instruction(bpf.RETURN, 0),)


class Capture:
    """Packets that pass the filter. `outgoing`: this host's own are asked for too.

    Raises FatalError without CAP_NET_RAW, and where the kernel refuses filter or ring.
    """

    def __init__(self, program: Sequence[bpf.Instruction], *, outgoing: bool = False, frames: int = FRAMES) -> None:
        self.dropped = 0
        """Packets that the kernel had no room for, as far as `count_drops` has counted."""
        self._ring: Ring | None = None
        self._sock = _opened()
        try:
            # Before it is bound nothing arrives: no packet gets past the filter.
            self.refilter(program)
            self._ring = Ring(self._sock, frames=frames)
            if self._ring.frames < frames:
                log.warning("the kernel gave a smaller packet ring frames=%d wanted=%d", self._ring.frames, frames)
            if not outgoing:
                _ignore_outgoing(self._sock)
            _bind_to_all(self._sock)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """The socket's descriptor: readable when a packet is there."""
        return self._sock.fileno()

    def batches(self) -> Iterator[list[Captured]]:
        """Yield the packets that are there, some at a time, at most once around the ring."""
        if self._ring is None:
            return
        for _ in range(0, self._ring.frames, BATCH):
            if not (batch := self._ring.read()):
                return
            yield batch

    def refilter(self, program: Sequence[bpf.Instruction]) -> None:
        """Put another filter in the place of the present one, at once; packets in the ring stay. Raises FatalError."""
        try:
            try:
                self._attach(program)
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
                # Until they change places the old filter takes room too (net.core.optmem_max); this one hardly any.
                self._attach(_NOTHING)
                self._attach(program)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise FatalError(f"the kernel refuses the sensor's packet filter: {error.strerror}") from None
            raise FatalError(
                f"the sensor's ports make a filter of {len(program)} instructions, too large for "
                "net.core.optmem_max: raise that, or watch ranges rather than single ports"
            ) from None

    def _attach(self, program: Sequence[bpf.Instruction]) -> None:
        code = ctypes.create_string_buffer(bpf.packed(program))
        fprog = struct.pack("HP", len(program), ctypes.addressof(code))
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)

    def count_drops(self) -> int:
        """Return how many packets the kernel had no room for since the last call, and log them."""
        # struct tpacket_stats; reading it sets the kernel's counters to zero.
        seen, lost = struct.unpack("II", self._sock.getsockopt(SOL_PACKET, _PACKET_STATISTICS, 8))
        if lost:
            log.warning("kernel drops dropped=%d seen=%d", lost, seen)
        self.dropped += lost
        return int(lost)

    def close(self) -> None:
        """Close the socket and give the ring back."""
        if self._ring is not None:
            self._ring.close()
        self._sock.close()


def _opened() -> socket.socket:
    try:
        # Protocol 0: it receives nothing yet.
        return socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
    except PermissionError:
        raise FatalError("the sensor may not capture packets: run as root or with CAP_NET_RAW") from None
    except OSError as error:
        raise FatalError(f"the sensor cannot capture packets: {error.strerror}") from None


def _ignore_outgoing(sock: socket.socket) -> None:
    try:
        sock.setsockopt(SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    except OSError:
        log.debug("the kernel (before 4.20) shows us outgoing packets too; the filter drops them")


def _bind_to_all(sock: socket.socket) -> None:
    """Bind to every interface (index 0), which socket.bind() cannot."""
    address = struct.pack("=HHiHBB8x", socket.AF_PACKET, socket.htons(_ETH_P_ALL), 0, 0, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.bind(sock.fileno(), address, len(address)) != 0:
        raise FatalError(f"the sensor cannot watch the interfaces: {os.strerror(ctypes.get_errno())}")
