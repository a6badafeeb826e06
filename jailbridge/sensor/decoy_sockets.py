"""The sockets that pose as services: opening them, and what the kernel tells of who reached one. Knows no probes.

Sockets: socket(7), ip(7), ipv6(7), tcp(7), udp(7).
"""

import contextlib
import errno
import resource
import socket
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from jailbridge.errors import FatalError
from jailbridge.model.event import Protocol

Families: TypeAlias = tuple[tuple[int, socket.AddressFamily], ...]
"""IP versions and what sockets call them."""

DRAIN_BYTES, DRAINS = 1 << 16, 4
HALF_OPEN_MOST, BACKLOG_LEAST, BACKLOG_MOST = 1 << 19, 128, 4096
"""A flood of SYNs fills each port's queue before the kernel turns to SYN cookies, at about 300 bytes an entry: with
many ports each gets a shorter one. The kernel cuts it at net.core.somaxconn."""

NET, FILES = Path("/proc/thread-self/net"), Path("/proc/self/fd")
# linux/in.h, linux/in6.h, asm-generic/socket.h, linux/sock_diag.h; Python's socket module lacks them.
_IP_PKTINFO, _IP_PKTOPTIONS, _IPV6_2292PKTOPTIONS = 8, 9, 6
_ASK_ARRIVAL = {4: (socket.IPPROTO_IP, _IP_PKTINFO), 6: (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO)}
_TELL_ARRIVAL = {4: (socket.IPPROTO_IP, _IP_PKTOPTIONS), 6: (socket.IPPROTO_IPV6, _IPV6_2292PKTOPTIONS)}
_SO_MEMINFO, _SK_MEMINFO_DROPS = 55, 8
_CMSG_HEADER = struct.calcsize("Nii")
_IPV4_INFO, _IPV6_INFO = struct.Struct("=i4s4s"), struct.Struct("=16si")
SPACE = 64
"""What recvmsg is to keep free for the arrival of a packet."""


def opened(
    protocol: Protocol,
    port: int,
    version: int,
    family: socket.AddressFamily,
    listen_on: Callable[[socket.socket, int], None],
) -> socket.socket:
    """Open a decoy on the port; `listen_on` makes a TCP one listen. Raises OSError, EADDRINUSE for a port in use."""
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if protocol is Protocol.TCP:
            listen_on(sock, port)
        else:
            sock.setsockopt(*_ASK_ARRIVAL[version], 1)
            sock.bind(("", port))
    except BaseException:
        sock.close()
        raise
    return sock


def backlog_of(listeners: int) -> int:
    """Return how many connections may wait at each of so many listening sockets."""
    return max(BACKLOG_LEAST, min(BACKLOG_MOST, HALF_OPEN_MOST // max(listeners, 1)))


def arrived(ancillary: Iterable[tuple[int, int, bytes]]) -> tuple[int, int] | None:
    """Return the interface's index and the destination, from what recvmsg tells beside the data (level, type, bytes).

    None if the destination is a broadcast or multicast address: of IPv4's two addresses, the header's and the one to
    answer from, only one is ours then.
    """
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO) and len(data) >= _IPV4_INFO.size:
            index, local, destination = _IPV4_INFO.unpack_from(data)
            return (index, int.from_bytes(destination, "big")) if local == destination else None
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) and len(data) >= _IPV6_INFO.size:
            destination, index = _IPV6_INFO.unpack_from(data)
            return (index, int.from_bytes(destination, "big")) if destination[0] != 0xFF else None
    return None


def abandoned_ports(lines: Iterable[str]) -> frozenset[int]:
    """Return the local ports in /proc/net/tcp that only remains of connections use (proc_net_tcp.rst).

    A socket with inode 0 has no program any more.
    """
    users: dict[bool, set[int]] = {True: set(), False: set()}
    for line in lines:
        fields = line.split(maxsplit=10)
        if len(fields) > 9 and fields[0] != "sl":
            users[fields[9] != "0"].add(int(fields[1].rpartition(":")[2], 16))
    return frozenset(users[False] - users[True])


def read_abandoned_ports(family: socket.AddressFamily) -> frozenset[int]:
    """Return those of this host that are in the way of a socket of this family, which serves IPv6 alone."""
    # A decoy of our own over IPv4 is none of IPv6's users; an IPv6 socket may serve IPv4 too.
    paths = (NET / name for name in (("tcp6",) if family == socket.AF_INET6 else ("tcp", "tcp6")))
    return abandoned_ports(line for path in paths if path.exists() for line in path.read_text("ascii").splitlines())


def families() -> Families:
    """Return what this host can listen on."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return ((4, socket.AF_INET),)
    return (4, socket.AF_INET), (6, socket.AF_INET6)


def listen(
    sock: socket.socket, port: int, backlog: int, abandoned: Callable[[socket.AddressFamily], frozenset[int]]
) -> None:
    """Listen on the port, unless a program uses it: raises OSError (EADDRINUSE)."""
    try:
        sock.bind(("", port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        # For a minute our own last run's connections would keep the port from us. A listening service still does.
        if port in abandoned(socket.AddressFamily(sock.family)):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Else, perhaps, the last of them has just gone.
        sock.bind(("", port))
    sock.listen(backlog)
    # For the connections, which inherit it, so that the next run gets the port. A listening socket shares with nobody.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def arrival_of(connection: socket.socket, version: int) -> int:
    """Return the index of the interface by which a connection's last packet of the handshake came, 0 if unknown.

    The kernel keeps it for IP_PKTOPTIONS (net/ipv4/ip_sockglue.c) and IPV6_2292PKTOPTIONS (net/ipv6/ipv6_sockglue.c).
    The address alone would not tell: Linux answers for each of its addresses on every interface.
    """
    # Asked for here and not on the listening socket, which would keep each SYN's packet for it.
    connection.setsockopt(*_ASK_ARRIVAL[version], 1)
    answer = connection.getsockopt(*_TELL_ARRIVAL[version], SPACE)
    if len(answer) < _CMSG_HEADER:
        return 0
    _, level, kind = struct.unpack_from("Nii", answer)
    arrival = arrived([(level, kind, answer[_CMSG_HEADER:])])
    return arrival[0] if arrival else 0


def drain_and_close(connection: socket.socket) -> None:
    """Close a connection so that what it was sent arrives."""
    # Bytes left unread at close() make it a reset instead of an end (RFC 2525, 2.17).
    with contextlib.suppress(OSError):
        for _ in range(DRAINS):
            if not connection.recv(DRAIN_BYTES, socket.MSG_DONTWAIT):
                break
    connection.close()


def raise_file_limit(more: int) -> None:
    """Make room for so many more open files. Raises FatalError where the limit may not be raised."""
    needed = sum(1 for _ in FILES.iterdir()) + more
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed <= soft:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(needed, hard)))
    except (ValueError, OSError):
        raise FatalError(
            f"the decoys need {needed} open files and the limit is {hard}: raise it (LimitNOFILE={needed} in the "
            "service's unit, ulimit -Hn), or name fewer ports in sensor.tcp_ports and sensor.udp_ports"
        ) from None


def drops_of(sock: socket.socket) -> int:
    """Return how many datagrams the kernel had no room for, or found broken, modulo 2**32."""
    # 32 bits each (sock_diag(7)). SO_RXQ_OVFL would tell only with the next datagram.
    counters = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_SK_MEMINFO_DROPS + 1))
    return int(struct.unpack_from("=I", counters, 4 * _SK_MEMINFO_DROPS)[0])


def number_of(address: str) -> int:
    """Return an address, as a socket tells it, as a whole number."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return int.from_bytes(socket.inet_pton(family, address), "big")
