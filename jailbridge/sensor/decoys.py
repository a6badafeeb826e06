"""Connect mode: sockets that only pose as services, on every port to watch. Whoever reaches one is a probe.

A TCP probe is a completed handshake; the peer gets the banner, if there is one, and the connection is closed. A UDP
probe is a datagram. It is never answered: its source may be forged, and we would send our banner to a victim.

Knows no threshold, and reads no byte that a peer sends.
"""

import contextlib
import errno
import functools
import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from jailbridge.config.values import PortRange, parse_ports
from jailbridge.errors import FatalError
from jailbridge.model.event import Kind, Protocol
from jailbridge.sensor.connections import ephemeral_ports
from jailbridge.sensor.decoy_sockets import (
    SPACE,
    Families,
    arrival_of,
    arrived,
    backlog_of,
    drain_and_close,
    drops_of,
    families,
    listen,
    number_of,
    opened,
    raise_file_limit,
    read_abandoned_ports,
)
from jailbridge.sensor.links import ALL, LinkWatch, indexes, refuse_absent
from jailbridge.sensor.own import OwnAddresses
from jailbridge.sensor.packet import Probe, is_martian

log = logging.getLogger("jailbridge.sensor")

WAKE_S = 0.4
"""How long a stop may go unnoticed."""
SOCKETS_A_ROUND, PROBES_A_TURN = 64, 32
"""So many ready sockets are served in a round, so many probes taken of each, before the others have their turn."""
PAUSE_S = 0.1
"""After a round that brought nothing but errors: with no file to spare, a listening socket stays ready."""
COMPLAIN_S = 60.0
COUNT_DROPS_S = 10.0
HOLD_S, HELD_MOST = 1.0, 128
"""How long, and how many at once, connections stay half closed so that the banner arrives."""
SPARE_FILES = HELD_MOST + 128


@dataclass(slots=True)
class _Decoy:
    sock: socket.socket
    version: int
    protocol: Protocol
    port: int
    drops: int = 0


class Decoys:
    """Decoys on these ports (sorted, joined), over IPv4 and, where the host has it, IPv6.

    A port on which anything is live, whatever its address, is left alone. With `interfaces` (names, `all`,
    `all-but-loopback`) only probes that came in by one of these count; the others see an open port all the same. With
    `skip_own` those from this host's own addresses do not.

    Entering opens the sockets. Raises FatalError: no right to use the ports, an unknown interface, a limit of open
    files that is too low and cannot be raised, or no port left.
    """

    def __init__(
        self,
        tcp: Sequence[PortRange],
        udp: Sequence[PortRange],
        *,
        banner: str = "",
        interfaces: Sequence[str] = (ALL,),
        skip_own: bool = True,
    ) -> None:
        self.ready = threading.Event()
        """Set while `run` watches."""
        self.dropped = 0
        """Datagrams that the kernel had no room for, or found broken. A TCP peer without room comes again by itself."""
        self._ports = {Protocol.TCP: tcp, Protocol.UDP: udp}
        self._banner = banner.encode()
        self._names = interfaces
        self._interfaces: frozenset[int] | None = None
        self._skip_own = skip_own
        self._own = OwnAddresses()
        self._links: LinkWatch | None = None
        self._decoys: dict[int, _Decoy] = {}
        self._held: deque[tuple[float, socket.socket]] = deque()
        self._failed = False
        self._complained_at = float("-inf")

    def __enter__(self) -> Self:
        self._epoll = select.epoll()
        try:
            self._links = LinkWatch()
            self._own.load(time.monotonic())
            self._open()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go(float("inf"))
        for decoy in self._decoys.values():
            decoy.sock.close()
        self._decoys.clear()
        if self._links is not None:
            self._links.close()
        self._epoll.close()

    def run(self, stop: threading.Event, take: Callable[[Sequence[Probe], float], None]) -> None:
        """Hand probes to `take`, with the monotonic time (seconds), until `stop` is set. Needs no privilege."""
        log.info("watching decoys=%d interfaces=%s", len(self._decoys), ",".join(self._names))
        told, told_at = 0, time.monotonic()
        self.ready.set()
        try:
            while not stop.is_set():
                # Of more ready sockets than asked for the kernel names the others next time: epoll_wait(2).
                ready = self._epoll.poll(WAKE_S, SOCKETS_A_ROUND)
                now = time.monotonic()
                self._failed = False
                if self._links is not None:
                    changed = self._links.changed()
                    self._own.refresh(now, changed)
                    if changed:
                        self._interfaces, _ = indexes(self._names)
                probes = [probe for number, _ in ready for probe in self._turn(self._decoys[number], now)]
                self._let_go(now)
                if probes:
                    take(probes, now)
                elif self._failed:
                    time.sleep(PAUSE_S)
                if self.dropped > told and now - told_at >= COUNT_DROPS_S:
                    log.warning("kernel drops dropped=%d", self.dropped - told)
                    told, told_at = self.dropped, now
        finally:
            self.ready.clear()
            self._let_go(float("inf"))

    def _open(self) -> None:
        on = families()
        tcp, udp = (sum(high + 1 - low for low, high in part) * len(on) for part in self._ports.values())
        raise_file_limit(tcp + udp + SPARE_FILES)
        # What comes in by the loopback is from this host, whose own probes never count.
        self._interfaces, absent = indexes(self._names)
        refuse_absent(absent)
        listen_on = functools.partial(listen, backlog=backlog_of(tcp), abandoned=functools.cache(read_abandoned_ports))
        for protocol, ranges in self._ports.items():
            ports = [port for low, high in ranges for port in range(low, high + 1)]
            live = [port for port in ports if not self._open_port(protocol, port, on, listen_on)]
            if live:
                log.info("ports with a live service are left alone protocol=%s ports=%s", protocol, _text(live))
        if not self._decoys:
            raise FatalError(
                "every port to watch has a live service: name others in sensor.tcp_ports and sensor.udp_ports"
            )
        self._warn_of_taken_ephemerals()

    def _open_port(
        self, protocol: Protocol, port: int, on: Families, listen_on: Callable[[socket.socket, int], None]
    ) -> bool:
        """Open the port's decoys, or none of them where something is live on it. Raises FatalError."""
        new: list[_Decoy] = []
        try:
            for version, family in on:
                new.append(_Decoy(opened(protocol, port, version, family, listen_on), version, protocol, port))
                self._epoll.register(new[-1].sock, select.EPOLLIN)
        except OSError as error:
            for decoy in new:
                decoy.sock.close()
            if error.errno == errno.EADDRINUSE:
                return False
            denied = error.errno in {errno.EACCES, errno.EPERM}
            why = "run as root or with CAP_NET_BIND_SERVICE" if denied else error.strerror
            raise FatalError(f"the sensor cannot listen on {protocol} port {port}: {why}") from None
        self._decoys.update((decoy.sock.fileno(), decoy) for decoy in new)
        return True

    def _warn_of_taken_ephemerals(self) -> None:
        outgoing = ephemeral_ports()
        for protocol in Protocol:
            taken = len({d.port for d in self._decoys.values() if d.protocol is protocol and d.port in outgoing})
            if taken > len(outgoing) / 2:
                log.warning(
                    "decoys stand on most of the ports for this host's outgoing traffic, which may run out of them "
                    "protocol=%s ports=%d of=%d", protocol, taken, len(outgoing),
                )  # fmt: skip

    def _turn(self, decoy: _Decoy, now: float) -> Iterator[Probe]:
        take_one = self._accept if decoy.protocol is Protocol.TCP else self._receive
        for _ in range(PROBES_A_TURN):
            try:
                probe = take_one(decoy, now)
            except BlockingIOError:
                break
            except OSError as error:
                # Those of one connection are over with it (accept(2)); without files or memory it waits in its queue.
                self._complain(decoy, error, now)
                continue
            if probe is not None:
                yield probe
        if decoy.protocol is Protocol.UDP:
            self._count_drops(decoy)

    def _accept(self, decoy: _Decoy, now: float) -> Probe | None:
        connection, peer = decoy.sock.accept()
        try:
            destination = connection.getsockname()[0]
            index = 0 if self._interfaces is None else arrival_of(connection, decoy.version)
        except OSError:
            connection.close()
            raise
        self._answer(connection, now)
        return self._probe(decoy, peer, number_of(destination), index)

    def _receive(self, decoy: _Decoy, _now: float) -> Probe | None:
        _, ancillary, _, peer = decoy.sock.recvmsg(0, SPACE)
        index, destination = arrived(ancillary) or (0, None)
        return None if destination is None else self._probe(decoy, peer, destination, index)

    def _probe(self, decoy: _Decoy, peer: tuple[str, int], destination: int, index: int) -> Probe | None:
        if self._interfaces is not None and index not in self._interfaces:
            return None
        version, source, protocol = decoy.version, number_of(peer[0]), decoy.protocol
        own = self._own.v4 if version == 4 else self._own.v6
        if self._skip_own if source in own else is_martian(version, source):
            return None
        kind, flags = (Kind.CONNECT, None) if protocol is Protocol.TCP else (Kind.UDP, 0)
        return Probe(version, source, destination, peer[1], decoy.port, protocol, kind, flags, None)

    def _answer(self, connection: socket.socket, now: float) -> None:
        """Send the banner without waiting, and close: at once, or a little later if a banner is on its way."""
        if not self._banner:
            connection.close()
            return
        with contextlib.suppress(OSError):
            connection.send(self._banner, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            connection.shutdown(socket.SHUT_WR)
        # What the peer sends to a closed socket is answered by a reset, which may overtake the banner.
        self._held.append((now + HOLD_S, connection))
        if len(self._held) > HELD_MOST:
            drain_and_close(self._held.popleft()[1])

    def _let_go(self, now: float) -> None:
        while self._held and self._held[0][0] <= now:
            drain_and_close(self._held.popleft()[1])

    def _count_drops(self, decoy: _Decoy) -> None:
        drops = drops_of(decoy.sock)
        self.dropped += (drops - decoy.drops) % (1 << 32)
        decoy.drops = drops

    def _complain(self, decoy: _Decoy, error: OSError, now: float) -> None:
        self._failed = True
        if now - self._complained_at >= COMPLAIN_S:
            self._complained_at = now
            log.warning("a probe is not seen yet protocol=%s port=%d error=%s", decoy.protocol, decoy.port, error)


def _text(ports: Sequence[int]) -> str:
    ranges = parse_ports(",".join(map(str, ports)))
    return ",".join(f"{low}-{high}" if high > low else str(low) for low, high in ranges)
