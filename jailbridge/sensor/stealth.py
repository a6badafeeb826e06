"""Sees probes in the packets that reach this host; nothing listens. Knows no windows, no bans.

A packet counts when it came to one of our own unicast addresses, to a watched port that no service uses, and belongs to
nothing that this host began. PortSentry's advanced mode is this with wide port lists.
"""

import logging
import selectors
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from jailbridge.config.values import PortRange, without
from jailbridge.errors import FatalError, ParseError
from jailbridge.model.event import Kind, Protocol
from jailbridge.sensor import bpf
from jailbridge.sensor.capture import Capture
from jailbridge.sensor.connections import Connections, ephemeral_ports
from jailbridge.sensor.links import ALL, ALL_BUT_LOOPBACK, LinkWatch, indexes, refuse_absent
from jailbridge.sensor.listening import REFRESH_S, Listening
from jailbridge.sensor.own import OwnAddresses
from jailbridge.sensor.packet import ACK, Probe, accepted, is_martian, parse
from jailbridge.sensor.ring import BATCH, Captured
from jailbridge.sensor.solicited import Solicited

log = logging.getLogger("jailbridge.sensor")

WAKE_S = 0.4
"""How long a stop may go unnoticed."""
GATHER_S = 0.003
"""After packets were there, more may gather: the first of a scan is taken at once, and a storm in batches."""
COUNT_DROPS_S = 10.0
LIVE_SHARE = 20
"""The list of live ports is read again after so many times the time that reading took, some 3 ms, 0.1 s on a very busy
host: a new service is no decoy, and a storm does not make us do nothing else."""
FIRST_UNPRIVILEGED = 1024
"""Ports below are services' that stay. Above there are those that listen for one connection only (FTP's passive mode):
they are gone before we look."""
MAX_NOTED_RANGES = 64
"""Of the ports whose own packets are noted: beyond, one range stands for all."""
MAX_EARLY = 1 << 16
"""SYNs that wait for a reading of the live ports, some 15 MB: with more it is made at once."""
LIVE_FILTER_S = 1.0
"""With ack_scans: how old the list of live ports in the kernel's filter may be."""


class Stealth:
    """A watcher of packets: open it with privileges (`with`), run it without.

    interfaces    names, `all`, `all-but-loopback`
    ack_scans     ACK, window and Maimon scans too: an ACK where no connection exists, outside the ephemeral ports
    skip_own      packets whose source is this host do not count
    skip_live     ports with a live service do not count
    """

    def __init__(
        self,
        tcp: Sequence[PortRange],
        udp: Sequence[PortRange],
        *,
        interfaces: Sequence[str] = (ALL,),
        ack_scans: bool = False,
        skip_own: bool = True,
        skip_live: bool = True,
    ) -> None:
        self.ready = threading.Event()
        """Set while `run` watches."""
        self._interfaces = interfaces
        self._skip_own = skip_own
        self._skip_live = skip_live
        self._tcp, self._udp = tcp, udp
        self._watched = {Protocol.TCP: _bitmap(tcp), Protocol.UDP: _bitmap(udp)}
        ephemeral = ephemeral_ports()
        outgoing = ((ephemeral.start, ephemeral.stop - 1),)
        self._ack = without(tcp, outgoing) if ack_scans else ()
        self._ack_watched = _bitmap(self._ack)
        # From these ports our own packets may draw answers when the socket is closed again, from the ephemeral ones and
        # from those that a resolver picks itself (dnsmasq, unbound). Those below do so too rarely to look at all that a
        # name server, say, sends from its port.
        self._sent = _few(without(udp, ((1, FIRST_UNPRIVILEGED - 1),)))
        accepting = without(tcp, ((1, FIRST_UNPRIVILEGED - 1),))
        # Where a live service's port counts too, its answer excuses nobody.
        self._accepting = _few(accepting) if skip_live else ()
        self._may_accept = _bitmap(accepting if skip_live else ())
        self._own = OwnAddresses()
        self._listening = Listening()
        self._live_s = 0.0
        self._connections: Connections | None = None
        self._solicited = Solicited()
        # By the same rule: to whom a port of ours has answered with a SYN-ACK, is no prober of it.
        self._accepted = Solicited()
        # SYNs that came before the answer to them, or nobody answers: those since the last reading of the live ports,
        # and those before it, which are judged once the ring was emptied after it.
        self._early: list[Probe] = []
        self._overdue: list[Probe] = []
        self._capture: Capture | None = None
        self._links: LinkWatch | None = None
        self._filtered: bpf.Watched | None = None
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Packets that the kernel had no room for; some scans may lack a port, or be missed."""
        return self._capture.dropped if self._capture is not None else self._dropped

    def __enter__(self) -> Self:
        """Open the sockets. Raises FatalError (no privilege, unknown interface, too many ranges) and RetryLater."""
        self._links = LinkWatch()
        try:
            now = time.monotonic()
            self._own.load(now)
            self._listening.refresh(now)
            if self._ack:
                self._connections = Connections()
            wanted, missing = self._wanted()
            refuse_absent(missing)
            # The live services are taken out in `run`, if there is room for them.
            self._filtered = replace(wanted, ack=self._ack)
            self._capture = Capture(_program(self._filtered), outgoing=bool(self._sent or self._accepting))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the sockets."""
        if self._capture is not None:
            self._capture.count_drops()
            self._dropped = self._capture.dropped
            self._capture.close()
            self._capture = None
        for inner in (self._links, self._connections):
            if inner is not None:
                inner.close()

    def run(self, stop: threading.Event, take: Callable[[Sequence[Probe], float], None]) -> None:
        """Watch until `stop` is set; give `take` the probes and the monotonic time, a batch at a time."""
        capture, links = self._capture, self._links
        if capture is None or links is None:
            raise RuntimeError("not opened")
        counted = filtered = time.monotonic()
        log.info("watching interfaces=%s", ",".join(self._interfaces))
        with selectors.DefaultSelector() as selector:
            selector.register(capture, selectors.EVENT_READ)
            selector.register(links, selectors.EVENT_READ)
            self.ready.set()
            try:
                while not stop.is_set():
                    selector.select(GATHER_S if self._early or self._overdue else WAKE_S)
                    now = time.monotonic()
                    changed = links.changed()
                    self._own.refresh(now, changed)
                    if changed or (self._ack and now - filtered >= LIVE_FILTER_S):
                        self._follow(capture, now)
                        filtered = now
                    if self._early:
                        self._read_live(now, self._live_s)
                    seen, overdue, self._overdue = False, self._overdue, []
                    for batch in capture.batches():
                        seen, now = True, time.monotonic()
                        if probes := list(self._probes(batch, now)):
                            take(probes, now)
                        if stop.is_set():
                            break
                    for first in range(0, len(overdue), BATCH):
                        some = overdue[first : first + BATCH]
                        if unanswered := [probe for probe in some if not self._lets_in(probe, now)]:
                            take(unanswered, now)
                    if now - counted >= COUNT_DROPS_S:
                        counted = now
                        capture.count_drops()
                    if seen:
                        time.sleep(GATHER_S)
            finally:
                self.ready.clear()

    def _read_live(self, now: float, age_s: float) -> None:
        """Read the live ports if the last reading is so old; then the SYNs taken before it are as good as judged.

        A service that such a SYN was for either is there at this reading, or has answered before it and is gone: then
        the ring, once it is emptied, has told so. So nothing depends on how soon after a SYN its answer is seen. Every
        reading counts, whoever needed it: in a storm they are made between two batches.
        """
        began = time.monotonic()
        if self._listening.refresh(now, age_s if len(self._early) < MAX_EARLY else 0.0):
            self._live_s = LIVE_SHARE * (time.monotonic() - began)
            self._overdue += self._early
            self._early = []

    def _lets_in(self, probe: Probe, now: float) -> bool:
        live = probe.port in self._listening.tcp
        return live or self._accepted.answers(probe.version, probe.port, probe.source, now)

    def _probes(self, batch: Sequence[Captured], now: float) -> Iterator[Probe]:
        self._read_live(now, self._live_s)
        own = {4: self._own.v4, 6: self._own.v6}
        live = {Protocol.TCP: self._listening.tcp, Protocol.UDP: self._listening.udp}
        watched, may_accept, skip_live, skip_own = self._watched, self._may_accept, self._skip_live, self._skip_own
        if self._sent or self._accepting:
            # Before what they answer: a question's answer comes later anyway.
            for kind, _, data in batch:
                if kind == bpf.PACKET_OUTGOING:
                    self._note(data, now)
        twins: dict[bytes, int] = {}
        for kind, interface, data in batch:
            if kind == bpf.PACKET_OUTGOING or (probe := parse(data)) is None:
                continue
            # A bridge's packet comes from its port and from itself, one right after the other.
            if twins.setdefault(data, interface) != interface:
                continue
            version, source, destination, _, port, protocol, what, flags, _ = probe
            ours = own[version]
            if (
                destination not in ours
                # Behind IPv6 extension headers the kernel's filter has not looked.
                or not watched[protocol][port]
                or (skip_live and port in live[protocol])
                or (skip_own if source in ours else is_martian(version, source))
                or (protocol is Protocol.UDP and self._sent and self._solicited.answers(version, port, source, now))
                or (protocol is Protocol.TCP and self._accepting and self._accepted.answers(version, port, source, now))
                or (flags is not None and flags & ACK and not self._is_ack_scan(probe, interface, now))
            ):
                continue
            if what is Kind.SYN and may_accept[port]:
                self._early.append(probe)
                continue
            yield probe

    def _note(self, data: bytes, now: float) -> None:
        """Remember what this host itself sent."""
        if (peer := accepted(data)) is not None:
            self._accepted.sent(*peer, now)
        elif (ours := parse(data)) is not None:
            self._solicited.sent(ours.version, ours.source_port, ours.destination, now)

    def _is_ack_scan(self, probe: Probe, interface: int, now: float) -> bool:
        """Tell whether an ACK came where this host has no connection, nor begins one."""
        return (
            self._connections is not None
            and bool(self._ack_watched[probe.port])
            and not self._connections.exists(
                probe.version, probe.destination, probe.port, probe.source, probe.source_port, now, interface
            )
        )

    def _follow(self, capture: Capture, now: float) -> None:
        """Have the filter fit the interfaces and services of the moment."""
        self._read_live(now, REFRESH_S)
        wanted, missing = self._wanted()
        if wanted == self._filtered:
            return
        before = self._filtered.interfaces if self._filtered is not None else None
        if wanted.interfaces != before:
            log.info("interfaces changed watching=%s missing=%s", ",".join(self._interfaces), ",".join(missing))
        try:
            capture.refilter(_program(wanted))
        except FatalError:
            # More live services than a filter has room for: it lets their ACKs pass too, and we leave them aside.
            capture.refilter(_program(replace(wanted, ack=self._ack)))
        self._filtered = wanted

    def _wanted(self) -> tuple[bpf.Watched, Sequence[str]]:
        found, missing = indexes(self._interfaces)
        live = tuple((port, port) for port in sorted(self._listening.tcp))
        watched = bpf.Watched(
            tcp=self._tcp,
            udp=self._udp,
            ack=without(self._ack, live),
            sent=self._sent,
            accepting=self._accepting,
            interfaces=found,
            loopback=ALL_BUT_LOOPBACK not in self._interfaces or ALL in self._interfaces,
        )
        return watched, missing


def _program(watched: bpf.Watched) -> Sequence[bpf.Instruction]:
    try:
        return bpf.program(watched)
    except ParseError as error:
        raise FatalError(str(error)) from None


def _few(ranges: Sequence[PortRange]) -> Sequence[PortRange]:
    """Return the ranges, or one over all of them: a filter has no room for every list three times."""
    return ranges if len(ranges) <= MAX_NOTED_RANGES else ((ranges[0][0], ranges[-1][1]),)


def _bitmap(ranges: Sequence[PortRange]) -> bytearray:
    watched = bytearray(65536)
    for low, high in ranges:
        watched[low : high + 1] = b"\x01" * (high + 1 - low)
    return watched
