"""What was seen: one scan event, and the line of a log that told it. Knows no format."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from jailbridge.model.network import Address


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


class Dialect(StrEnum):
    """Who writes lines of this form."""

    PORTSENTRY_1 = "1.2"
    PORTSENTRY_2 = "2"
    SYSLOG = "syslog"
    KERNEL = "kernel"


class Evidence(StrEnum):
    """What a sighting proves of its source: a completed handshake, or nothing (a sender can forge it)."""

    HANDSHAKE = "handshake"
    SPOOFABLE = "spoofable"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanEvent:
    """One probe of one port. `ignored` and `triggered` are None where the dialect does not say."""

    time: datetime
    address: Address
    port: int
    protocol: Protocol
    kind: Kind
    ignored: bool | None = None
    triggered: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TailPosition:
    """How far a followed file has been read: everything before `offset` (bytes) of this very inode.

    `head` is a fingerprint of the file's first bytes: it tells a reused inode from the same file.
    Inode 0 is a file that did not exist yet.
    """

    path: str
    device: int
    inode: int
    offset: int
    head: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One complete line of a followed file, without its newline, and where it begins (bytes)."""

    path: str
    device: int
    inode: int
    offset: int
    text: bytes
