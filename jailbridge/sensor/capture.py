"""The packet sockets: opens them, reads them in batches, counts what the kernel had to drop. Knows no probes.

packet(7): AF_PACKET, SOCK_DGRAM. Nothing is bound to any port, so no service is ever in the way.
"""

import ctypes
import errno
import logging
import os
import selectors
import socket
import struct
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from jailbridge.config.values import PortRange
from jailbridge.errors import FatalError, ParseError
from jailbridge.model.network import shown
from jailbridge.sensor import bpf

log = logging.getLogger("jailbridge.sensor")

ALL, ALL_BUT_LOOPBACK = "all", "all-but-loopback"
BUFFER_BYTES = 32 << 20
"""Holds a tenth of a second of the fastest flood; the default of 208 KiB loses a tenth of one."""
BATCH = 512
"""Packets read from one socket before the next one has its turn."""

# linux/if_packet.h, linux/if_ether.h, asm-generic/socket.h; Python's socket module lacks them.
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_IGNORE_OUTGOING = 263, 6, 23
_ETH_P_ALL = 3
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33


class Capture:
    """Packets that pass the filter for these ports, from these interfaces (names, `all`, `all-but-loopback`).

    Raises FatalError without CAP_NET_RAW, for an unknown interface, for more ranges than the kernel takes.
    """

    def __init__(
        self,
        interfaces: Sequence[str],
        tcp: Sequence[PortRange],
        udp: Sequence[PortRange],
        *,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self._selector = selectors.DefaultSelector()
        self.dropped = 0
        """Packets that the kernel had no room for, as far as `count_drops` has counted."""
        try:
            programs = {loopback: bpf.program(tcp, udp, loopback=loopback) for loopback in (True, False)}
            for name in [ALL] if ALL in interfaces else dict.fromkeys(interfaces):
                program = programs[name != ALL_BUT_LOOPBACK]
                self._selector.register(_opened(name, program, buffer_bytes), selectors.EVENT_READ, name)
        except ParseError as error:
            self.close()
            raise FatalError(str(error)) from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def packets(self, timeout_s: float | None) -> list[bytes]:
        """Wait for packets, at most `timeout_s` (None: for ever); return a batch, each from its IP header on."""
        read: list[bytes] = []
        for key, _ in self._selector.select(timeout_s):
            if isinstance(key.fileobj, socket.socket):
                read += _batch(key.fileobj, key.data)
        return read

    def count_drops(self) -> int:
        """Return how many packets the kernel had no room for since the last call, and log them."""
        drops = 0
        for sock, name in self._sockets():
            # Reading them sets both counters of the kernel to zero.
            seen, lost = struct.unpack("II", sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
            if lost:
                log.warning("kernel drops interface=%s dropped=%d seen=%d", name, lost, seen)
            drops += lost
        self.dropped += drops
        return drops

    def close(self) -> None:
        """Close the sockets."""
        for sock, _ in list(self._sockets()):
            sock.close()
        self._selector.close()

    def _sockets(self) -> Iterator[tuple[socket.socket, str]]:
        # get_map() is None once the selector is closed.
        for key in (self._selector.get_map() or {}).values():
            if isinstance(key.fileobj, socket.socket):
                yield key.fileobj, key.data


def _batch(sock: socket.socket, name: str) -> Iterator[bytes]:
    for _ in range(BATCH):
        try:
            yield sock.recv(bpf.SNAP)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENETDOWN:
                raise
            # The kernel takes the socket back into service when the interface comes up again.
            log.warning("interface is down interface=%s", name)
            return


def _opened(name: str, program: Sequence[bpf.Instruction], buffer_bytes: int) -> socket.socket:
    """Open a socket that receives nothing before its filter is in place. Raises FatalError."""
    try:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
    except PermissionError:
        raise FatalError("the sensor may not capture packets: run as root or with CAP_NET_RAW") from None
    except OSError as error:
        raise FatalError(f"the sensor cannot capture packets: {error.strerror}") from None
    try:
        _attach(sock, program)
        _set_buffer(sock, buffer_bytes)
        _ignore_outgoing(sock)
        _bind(sock, name)
    except BaseException:
        sock.close()
        raise
    return sock


def _attach(sock: socket.socket, program: Sequence[bpf.Instruction]) -> None:
    code = ctypes.create_string_buffer(bpf.packed(program))
    fprog = struct.pack("HP", len(program), ctypes.addressof(code))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise FatalError(f"the kernel refuses the sensor's packet filter: {error.strerror}") from None
        raise FatalError(
            f"the sensor's ports make a filter of {len(program)} instructions, too large for "
            "net.core.optmem_max: raise that, or watch ranges rather than single ports"
        ) from None


def _set_buffer(sock: socket.socket, wanted: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, wanted)
    except PermissionError:
        # Beyond net.core.rmem_max only with CAP_NET_ADMIN.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted)
    # The kernel doubles what is asked for, and tells the double (socket(7)).
    given = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    if given < wanted:
        log.info("small receive buffer bytes=%d wanted=%d remedy=net.core.rmem_max or CAP_NET_ADMIN", given, wanted)


def _ignore_outgoing(sock: socket.socket) -> None:
    try:
        sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    except OSError:
        log.debug("the kernel (before 4.20) shows us outgoing packets too; the filter drops them")


def _bind(sock: socket.socket, name: str) -> None:
    """Bind to an interface, or to all of them (index 0), which socket.bind() cannot."""
    index = 0
    if name not in {ALL, ALL_BUT_LOOPBACK}:
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            known = " ".join(known for _, known in socket.if_nameindex())
            raise FatalError(
                f"sensor.interfaces names {shown(name)}, which is not on this host: it has {known}"
            ) from None
    address = struct.pack("=HHiHBB8x", socket.AF_PACKET, socket.htons(_ETH_P_ALL), index, 0, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.bind(sock.fileno(), address, len(address)) != 0:
        raise FatalError(f"the sensor cannot watch {shown(name)}: {os.strerror(ctypes.get_errno())}")
