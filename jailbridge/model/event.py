"""What was seen: one scan event, and the line of a log that told it. Knows no format.

Events and lines are named tuples: hundreds of thousands a second are made of them.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import IntFlag, StrEnum
from typing import NamedTuple

from jailbridge.model.network import Address

# Ten times the longest line that any PortSentry writes (packet options included).
MAX_LINE = 4096
"""The longest line (bytes, without its newline) that is read; a longer one is refused as a whole."""


class Protocol(StrEnum):
    """The transport protocol that was probed."""

    TCP = "tcp"
    UDP = "udp"


class Kind(StrEnum):
    """How a port was probed; `unknown` where the dialect does not tell (PortSentry 1.2's history)."""

    CONNECT = "connect"
    SYN = "syn"
    FIN = "fin"
    NULL = "null"
    XMAS = "xmas"
    UDP = "udp"
    ACK = "ack"
    OTHER = "other"
    UNKNOWN = "unknown"


class TcpFlags(IntFlag):
    """The flags of a TCP header that tell one kind of scan from another (RFC 9293, 3.1)."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10
    URG = 0x20

    @property
    def letters(self) -> str:
        """The first letter of each flag that is set, as `FPU`; `-` for none."""
        return "".join(flag.name[0] for flag in TcpFlags if flag in self and flag.name) or "-"


class Dialect(StrEnum):
    """Who writes lines of this form."""

    PORTSENTRY_1 = "1.2"
    PORTSENTRY_2 = "2"
    SYSLOG = "syslog"
    KERNEL = "kernel"


class TailFormat(StrEnum):
    """The form in which a log's lines are read; `auto`: told line by line."""

    AUTO = "auto"
    PORTSENTRY_1 = "portsentry-1.2"
    PORTSENTRY_2 = "portsentry-2"
    SYSLOG = "syslog"
    KERNEL = "kernel"


class Evidence(StrEnum):
    """What a sighting proves of its source: a completed handshake, or nothing (a sender can forge it)."""

    HANDSHAKE = "handshake"
    SPOOFABLE = "spoofable"


class ScanEvent(NamedTuple):
    """One probe of one port. `ignored` and `triggered` are None where the dialect does not say.

    `flags` are those of the TCP packet, None where none was seen; `ip_options` tells whether its IP header had
    options, None where that is not known (IPv6, connections).
    """

    time: datetime
    address: Address
    port: int
    protocol: Protocol
    kind: Kind
    ignored: bool | None = None
    triggered: bool | None = None
    flags: TcpFlags | None = None
    ip_options: bool | None = None

    @property
    def scan(self) -> str:
        """What it is called: `syn scan`, `scan` where the kind is not known, `FS scan` by the letters of odd flags."""
        if self.kind is Kind.UNKNOWN:
            return "scan"
        odd = self.kind is Kind.OTHER and self.flags is not None
        return f"{self.flags.letters if odd and self.flags is not None else self.kind} scan"


class Report(NamedTuple):
    """What the sensor tells: an event, and whether it has newly made its source a scanner.

    `name` is the source's name in the DNS, "" where nobody asked: the source's owner chooses it.
    """

    event: ScanEvent
    newly_triggered: bool
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TailPosition:
    """How far a followed file has been read: everything before `offset` (bytes) of this very inode.

    `head` is a fingerprint of the file's first bytes, which tells a reused inode from the same file, and when what was
    read last was written.
    Inode 0 is a file that did not exist yet.
    """

    path: str
    device: int
    inode: int
    offset: int
    head: str


class LogLine(NamedTuple):
    """One complete line of a followed file, without its newline, and where it begins (bytes)."""

    path: str
    device: int
    inode: int
    offset: int
    text: bytes
