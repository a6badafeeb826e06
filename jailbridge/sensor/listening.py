"""Which ports have a live service: a listening TCP socket, any bound UDP socket. Reads /proc/net only.

As with PortSentry a port counts as in use whatever address the service is bound to.
Form: Documentation/networking/proc_net_tcp.rst.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from jailbridge.errors import FatalError
from jailbridge.model.event import Protocol

PROC_NET = Path("/proc/net")
REFRESH_S = 1.0
_LISTEN = "0A"


def listening_ports(lines: Iterable[str]) -> Iterator[int]:
    """Yield the ports of /proc/net/tcp's listening sockets; they stand first, the rest is not read."""
    for local, state in _sockets(lines):
        if state != _LISTEN:
            return
        yield local


def bound_ports(lines: Iterable[str]) -> Iterator[int]:
    """Yield the local ports of /proc/net/udp's sockets."""
    return (local for local, _ in _sockets(lines))


class Listening:
    """The live ports, read again when asked a second after the last reading. `now` is monotonic seconds."""

    def __init__(self, folder: Path = PROC_NET) -> None:
        self._folder = folder
        self._read_at: float | None = None
        self._live: dict[Protocol, frozenset[int]] = {}

    def is_live(self, protocol: Protocol, port: int, now: float) -> bool:
        """Tell whether a service uses the port. Raises FatalError where /proc cannot be read."""
        if self._read_at is None or now - self._read_at >= REFRESH_S:
            self._live = {protocol: self._ports(protocol) for protocol in Protocol}
            self._read_at = now
        return port in self._live[protocol]

    def _ports(self, protocol: Protocol) -> frozenset[int]:
        ports: set[int] = set()
        ports_of = listening_ports if protocol is Protocol.TCP else bound_ports
        for path in (self._folder / protocol, self._folder / f"{protocol}6"):
            try:
                with path.open(encoding="ascii") as lines:
                    ports.update(ports_of(lines))
            except FileNotFoundError:
                # A kernel without IPv6 has no second file; without the first nobody knows what is live.
                if not path.name.endswith("6"):
                    raise FatalError(f"{path} is not there: mount /proc, it tells which ports are live") from None
            except OSError as error:
                raise FatalError(f"{path} cannot be read ({error.strerror}): it tells which ports are live") from None
        return frozenset(ports)


def _sockets(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    for line in lines:
        fields = line.split(maxsplit=4)
        if len(fields) > 3 and fields[0] != "sl":
            yield int(fields[1].rpartition(":")[2], 16), fields[3]
