"""Which ports have a live service: a listening TCP socket, any bound UDP socket.

As with PortSentry a port counts as in use whatever address the service is bound to. A UDP socket is not
listening or connected in a way that tells a service from a question of the host's own, so both count while open.

The kernel is asked for the sockets over sock_diag(7), listening TCP ones picked out by itself. With 20,000
established TCP connections and 2,000 UDP sockets that takes 3 to 5 ms (0.1 of it for TCP), on a quiet host 0.2;
reading /proc/net/tcp, tcp6, udp and udp6 takes 25 to 33 ms (the second goes over all connections in vain).
/proc serves where the kernel has no sock_diag for TCP or UDP. Its form: Documentation/networking/proc_net_tcp.rst.
"""

import errno
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
LINGER_S = 60.0
"""A port counts as live for so long after its service was last there: who comes while it is restarted, and the peers of
its last connections, are no scanners."""
_LISTEN = "0A"

# linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h; idiag_states is a bit for each state, sockid stays empty.
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
_REQUEST = struct.Struct("=BBBxI48x")
_STATES = {Protocol.TCP: 1 << 10, Protocol.UDP: 0xFFFF_FFFF}
_NUMBERS = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP}
_FOR_NOW = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
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
        """Ports with a listening TCP socket, now or LINGER_S before."""
        self.udp: frozenset[int] = frozenset()
        """Ports with a UDP socket, now or LINGER_S before."""
        self._live: dict[Protocol, frozenset[int]] = dict.fromkeys(Protocol, frozenset())
        self._gone: dict[Protocol, dict[int, float]] = {protocol: {} for protocol in Protocol}
        self._folder = folder
        self._ask = ask
        self._read_at: float | None = None
        self._has_sock_diag = True
        self._failed = False

    def refresh(self, now: float, age_s: float = REFRESH_S) -> bool:
        """Read the ports again if the last reading is `age_s` old; tell whether it was.

        Call it before the packets of a batch are looked at. Raises FatalError where neither sock_diag nor /proc
        tells at the first reading; a later failure keeps the last known ports and is logged once.
        """
        if self._read_at is not None and now - self._read_at < age_s:
            return False
        try:
            self.tcp, self.udp = (self._lately(protocol, self._ports(protocol), now) for protocol in Protocol)
        except FatalError as error:
            if self._read_at is None:
                raise
            if not self._failed:
                log.warning("the last known live ports stay: %s", error)
            self._failed = True
        else:
            if self._failed:
                log.info("live ports are read again")
            self._failed = False
        self._read_at = now
        return True

    def _lately(self, protocol: Protocol, live: frozenset[int], now: float) -> frozenset[int]:
        gone = {port: at for port, at in self._gone[protocol].items() if now - at < LINGER_S and port not in live}
        # What was there at the last reading, however long ago that is, may have been there until just now.
        gone |= dict.fromkeys(self._live[protocol] - live, now)
        self._live[protocol], self._gone[protocol] = live, gone
        return live.union(gone)

    def _ports(self, protocol: Protocol) -> frozenset[int]:
        if self._has_sock_diag:
            try:
                return self._ask(protocol)
            except OSError as error:
                # ENOENT: the kernel's module tcp_diag or udp_diag is missing. It will not come by itself.
                if error.errno not in _FOR_NOW:
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
