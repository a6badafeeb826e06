"""What PortSentry says, word for word: the log lines of 1.2 and of 2.x. Pure; knows no clock, no files.

As Debian's PortSentry 1.2 and PortSentry 2.0.7 say it: programs search logs for `attackalert` and take hosts and ports
from what follows. Of a source's name only what `history.dialects` would write stands in a line.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice

from jailbridge.config.values import PortRange
from jailbridge.history.dialects import format_2, shown_name
from jailbridge.model.event import Kind, Protocol, ScanEvent, TcpFlags
from jailbridge.model.network import Address

STARTING_1 = "adminalert: PortSentry 1.2 is starting."
ACTIVE_1 = "adminalert: PortSentry is now active and listening."
STOPPING_1 = ("securityalert: PortSentry is shutting down", "adminalert: PortSentry is shutting down")
ACTIVE_2 = "Portsentry is now active and listening."
STOPPING_2 = ("Portsentry is shutting down",)
MAX_PORT_LINES = 1024
"""So many ports are named one by one at the start; PortSentry 1.2 takes 64 of them."""

_KINDS_1 = {
    Kind.SYN: "TCP SYN/Normal scan",
    Kind.FIN: "TCP FIN scan",
    Kind.NULL: " TCP NULL scan",
    Kind.XMAS: "TCP XMAS scan",
    Kind.UDP: "UDP scan",
    Kind.CONNECT: "Connect",
}
_FLAG_ORDER = (TcpFlags.SYN, TcpFlags.FIN, TcpFlags.ACK, TcpFlags.PSH, TcpFlags.URG, TcpFlags.RST)


def attack_1(event: ScanEvent, name: str = "") -> Iterator[str]:
    """Yield 1.2's lines of a probe that counts."""
    kind = _KINDS_1.get(event.kind) or _unknown_kind(event.flags)
    host, protocol = _host(event.address, name), event.protocol.upper()
    yield f"attackalert: {kind} from host: {host} to {protocol} port: {event.port}"
    if event.ip_options:
        yield (
            f"attackalert: Packet from host: {host} to {protocol} port: {event.port} "
            "has IP options set (detection avoidance technique)."
        )


def already_blocked_1(event: ScanEvent, name: str = "") -> str:
    """Return 1.2's line of a source in its blocked file; the modes that bind the ports say it in other words."""
    if event.kind is Kind.CONNECT:
        return f"attackalert: Host: {event.address} is already blocked. Ignoring"
    return already_blocked_2(event, name)


def not_blocking_1(protocol: Protocol) -> str:
    """Return 1.2's line with BLOCK_TCP or BLOCK_UDP at 0."""
    return f"attackalert: Ignoring {protocol.upper()} response per configuration file setting."


def already_blocked_2(event: ScanEvent, name: str = "") -> str:
    """Return 2.x's line of a source in its blocked file."""
    return f"attackalert: Host: {_host(event.address, name)} is already blocked Ignoring"


def scan_2(event: ScanEvent, local: datetime, name: str = "", *, noblock: bool, blocked: bool) -> tuple[str, str]:
    """Return 2.x's log line of a probe, and its history line, which begins with the local time of the writing."""
    line = format_2(event._replace(time=local), local, name=name, noblock=noblock, blocked=blocked)
    return line.partition(" ")[2], line


def ignored_2(address: Address, ignore_file: str) -> str:
    """Return 2.x's line (-v) of a source in its ignore file."""
    return f"Host: {address} found in ignore file {ignore_file} aborting actions"


def wrapped(address: Address, line: str) -> str:
    """Return the line of a `line` appended to hosts.deny."""
    return f'attackalert: Host {address} has been blocked via wrappers with string: "{line}"'


def routed(address: Address, command: str) -> str:
    """Return the line of a KILL_ROUTE that has been run."""
    return f'attackalert: Host {address} has been blocked via dropped route using command: "{command}"'


def commanded(address: Address, command: str) -> str:
    """Return the line of a KILL_RUN_CMD that has been run."""
    return f'attackalert: External command run for host: {address} using command: "{command}"'


def route_failed(address: Address, reason: str) -> str:
    """Return the line of a KILL_ROUTE that could not be run, or that failed."""
    return f"adminalert: ERROR: There was an error trying to block host (exec fail) {address}: {reason}"


def command_failed(address: Address, reason: str) -> str:
    """Return the line of a KILL_RUN_CMD that could not be run, or that failed."""
    return f"adminalert: ERROR: There was an error trying to run command (exec fail) {address}: {reason}"


def listening_1(ports: Iterable[int], in_use: Iterable[int], protocol: Protocol, *, stealth: bool) -> Iterator[str]:
    """Yield 1.2's lines of the start in the modes that take a list of ports."""
    how, name = "stealth listen" if stealth else "listen", protocol.upper()
    taken = frozenset(in_use)
    rest = iter(ports)
    for port in islice(rest, MAX_PORT_LINES):
        yield f"adminalert: Going into {how} mode on {name} port: {port}"
        if port in taken and stealth:
            yield f"adminalert: ERROR: Socket {port} is in use and will not be monitored. Attempting to continue"
        elif port in taken:
            yield f"adminalert: ERROR: could not bind {name} socket: {port}. Attempting to continue"
    if more := sum(1 for _ in rest):
        yield f"adminalert: Going into {how} mode on {more} more {name} ports"


def advanced_1(below: int, excluded: Sequence[int], in_use: Iterable[int], protocol: Protocol) -> Iterator[str]:
    """Yield 1.2's lines of the start in the advanced modes."""
    yield f"adminalert: Advanced mode will monitor first {below} ports"
    for port in excluded[:MAX_PORT_LINES]:
        yield f"adminalert: Advanced mode will manually exclude port: {port} "
    if not excluded:
        yield "adminalert: Advanced mode will manually exclude no ports"
    for port in islice((*in_use, *excluded), MAX_PORT_LINES):
        yield (f"adminalert: Advanced Stealth scan detection mode activated. Ignored {protocol.upper()} port: {port}")


def listening_2(ports: Iterable[int], protocol: Protocol) -> Iterator[str]:
    """Yield 2.x's lines of the start in connect mode."""
    rest = iter(ports)
    for port in islice(rest, MAX_PORT_LINES):
        yield f"Listen on AF_INET6: {protocol.upper()} port: {port}"
    if more := sum(1 for _ in rest):
        yield f"Listen on AF_INET6: {more} more {protocol.upper()} ports"


def numbers(ranges: Iterable[PortRange]) -> Iterator[int]:
    """Yield each port of the ranges."""
    return (port for low, high in ranges for port in range(low, high + 1))


def _host(address: Address, name: str) -> str:
    return f"{shown_name(name, str(address))}/{address}"


def _unknown_kind(flags: TcpFlags | None) -> str:
    seen = flags or TcpFlags(0)
    return "Unknown Type: TCP Packet Flags: " + " ".join(f"{flag.name}: {int(flag in seen)}" for flag in _FLAG_ORDER)
