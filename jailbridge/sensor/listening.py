"""Which ports have a live service: a listening TCP socket, any bound UDP socket.

As with PortSentry a port counts as in use whatever address the service is bound to. A UDP socket is not
listening or connected in a way that tells a service from a question of the host's own, so both count while open.

The kernel is asked for the sockets over sock_diag(7), listening TCP ones picked out by itself. With 20,000
established TCP connections and 2,000 UDP sockets that takes 3 to 5 ms (0.1 of it for TCP), on a quiet host 0.2;
reading /proc/net/tcp, tcp6, udp and udp6 takes 25 to 33 ms (the second goes over all connections in vain).
/proc serves where the kernel has no sock_diag for TCP or UDP. Its form: Documentation/networking/proc_net_tcp.rst.
"""

import logging
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from jailbridge.errors import FatalError
from jailbridge.model.event import Protocol
from jailbridge.sensor.netlink import dump

log = logging.getLogger("jailbridge.sensor")

PROC_NET = Path("/proc/net")
REFRESH_S = 1.0
_LISTEN = "0A"

# linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h; idiag_states is a bit for each state, sockid stays empty.
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
_REQUEST = struct.Struct("=BBBxI48x")
_STATES = {Protocol.TCP: 1 << 10, Protocol.UDP: 0xFFFF_FFFF}
_NUMBERS = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP}
_PORT = struct.Struct("!4xH")


def sockets(protocol: Protocol) -> frozenset[int]:
    """Ask the kernel for the ports of listening TCP or of all UDP sockets, both IP versions. Raises OSError."""
    return frozenset(
        _PORT.unpack_from(body)[0]
        for family in (socket.AF_INET, socket.AF_INET6)
        for body in dump(
            NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, _REQUEST.pack(family, _NUMBERS[protocol], 0, _STATES[protocol])
        )
    )


def listening_ports(lines: Iterable[str]) -> Iterator[int]:
    """Yield the ports of /proc/net/tcp's listening sockets; they stand first, the rest is not read."""
    for local, state in _fields(lines):
        if state != _LISTEN:
            return
        yield local


def bound_ports(lines: Iterable[str]) -> Iterator[int]:
    """Yield the local ports of /proc/net/udp's sockets."""
    return (local for local, _ in _fields(lines))


class Listening:
    """The live ports, as last read. `now` is monotonic seconds."""

    def __init__(self, folder: Path = PROC_NET, ask: Callable[[Protocol], frozenset[int]] = sockets) -> None:
        self.tcp: frozenset[int] = frozenset()
        """Ports with a listening TCP socket."""
        self.udp: frozenset[int] = frozenset()
        """Ports with a UDP socket."""
        self._folder = folder
        self._ask = ask
        self._read_at: float | None = None
        self._has_sock_diag = True

    def refresh(self, now: float, age_s: float = REFRESH_S) -> None:
        """Read the ports again if the last reading is `age_s` old.

        Call it before the packets of a batch are looked at. Raises FatalError where neither sock_diag nor /proc
        tells.
        """
        if self._read_at is not None and now - self._read_at < age_s:
            return
        self.tcp, self.udp = self._ports(Protocol.TCP), self._ports(Protocol.UDP)
        self._read_at = now

    def _ports(self, protocol: Protocol) -> frozenset[int]:
        if self._has_sock_diag:
            try:
                return self._ask(protocol)
            except OSError as error:
                # ENOENT: the kernel's module tcp_diag or udp_diag is missing. It will not come by itself.
                self._has_sock_diag = False
                log.info("no sock_diag for %s (%s), live ports are read from /proc", protocol, error.strerror)
        return self._from_proc(protocol)

    def _from_proc(self, protocol: Protocol) -> frozenset[int]:
        ports: set[int] = set()
        ports_of = listening_ports if protocol is Protocol.TCP else bound_ports
        for path in (self._folder / protocol, self._folder / f"{protocol}6"):
            try:
                # Not as ASCII: the codec is loaded at first use, and who gave up root may not read Python's files.
                with path.open(encoding="utf-8") as lines:
                    ports.update(ports_of(lines))
            except FileNotFoundError:
                # A kernel without IPv6 has no second file; without the first nobody knows what is live.
                if not path.name.endswith("6"):
                    raise FatalError(f"{path} is not there: mount /proc, it tells which ports are live") from None
            except OSError as error:
                raise FatalError(f"{path} cannot be read ({error.strerror}): it tells which ports are live") from None
        return frozenset(ports)


def _fields(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    for line in lines:
        fields = line.split(maxsplit=4)
        if len(fields) > 3 and fields[0] != "sl":
            yield int(fields[1].rpartition(":")[2], 16), fields[3]
