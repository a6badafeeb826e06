"""A packet socket's receive ring in shared memory (TPACKET_V2): the kernel fills frames with packets, we empty them.

No system call a packet, and room for a storm: while we look away the kernel fills the next frames.
Layouts: linux/if_packet.h (struct tpacket_req, tpacket2_hdr, sockaddr_ll) and
Documentation/networking/packet_mmap.rst.
"""

import mmap
import socket
import struct
from typing import TypeAlias

from jailbridge.errors import FatalError

FRAME_BYTES = 256
"""Holds the kernel's header, 80 bytes, and what the filter hands on of a packet."""
FRAMES = 1 << 17
"""32 MiB: over a second of 100,000 packets a second, six of 20,000."""
FEWEST_FRAMES = 1 << 12
BATCH = 512
"""Packets looked at together: enough to share the cost of what is done once for all of them."""

# linux/if_packet.h; Python's socket module lacks them.
SOL_PACKET = 263
_PACKET_RX_RING, _PACKET_VERSION, _TPACKET_V2 = 5, 10, 1
_BLOCK_BYTES = 1 << 16
_STATUS_USER = 1
_TO_KERNEL = bytes(4)  # in one piece: the kernel may look between two

_REQUEST = struct.Struct("=4I")  # block size, blocks, frame size, frames
# tp_status, tp_snaplen, tp_mac; of the sockaddr_ll that follows the header of 32 bytes sll_ifindex, sll_pkttype.
_FRAME = struct.Struct("=I4xIH22xi2xB")

Captured: TypeAlias = tuple[int, int, bytes]
"""Whose packet it is (linux/if_packet.h: PACKET_HOST, PACKET_OUTGOING), its interface's index, its bytes from the IP
header on."""


class Ring:
    """The ring of a socket that is not bound yet. Raises FatalError where the kernel gives no memory for it."""

    def __init__(self, sock: socket.socket, *, frames: int = FRAMES) -> None:
        try:
            sock.setsockopt(SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
            self.frames = _allocated(sock, frames)
            self._memory = mmap.mmap(sock.fileno(), self.frames * FRAME_BYTES)
        except OSError as error:
            raise FatalError(f"the kernel gives the sensor no packet ring: {error.strerror}") from None
        self._at = 0

    def read(self) -> list[Captured]:
        """Return the next packets, at most BATCH, and give their frames back to the kernel."""
        memory, at, end = self._memory, self._at, self.frames * FRAME_BYTES
        packets: list[Captured] = []
        while len(packets) < BATCH:
            status, length, offset, interface, kind = _FRAME.unpack_from(memory, at)
            if not status & _STATUS_USER:
                break
            begin = at + offset
            packets.append((kind, interface, memory[begin : begin + length]))
            memory[at : at + 4] = _TO_KERNEL
            at += FRAME_BYTES
            if at == end:
                at = 0
        self._at = at
        return packets

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()


def _allocated(sock: socket.socket, frames: int) -> int:
    while True:
        size = frames * FRAME_BYTES
        try:
            sock.setsockopt(
                SOL_PACKET, _PACKET_RX_RING, _REQUEST.pack(_BLOCK_BYTES, size // _BLOCK_BYTES, FRAME_BYTES, frames)
            )
        except OSError as error:
            if frames // 2 < FEWEST_FRAMES:
                raise FatalError(
                    f"the kernel gives the sensor no packet ring of {size >> 10} KiB: {error.strerror}"
                ) from None
            frames //= 2
        else:
            return frames
