"""One packet's bytes, from its IP header on, as the probe in it. Pure; knows no sockets and no port lists.

Headers: RFC 791 (IPv4), RFC 8200 and RFC 7045 (IPv6 and its extension headers), RFC 9293 (TCP), RFC 768 (UDP).
`bpf` says the same to the kernel. Addresses are whole numbers here: this runs for every packet.
"""

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from jailbridge.model.event import Kind, Protocol, TcpFlags
from jailbridge.model.network import Address

TCP, UDP = 6, 17
FIN, SYN, RST, PSH, ACK, URG = (flag.value for flag in TcpFlags)
XMAS = FIN | PSH | URG
# ECE and CWR (RFC 3168) stand in ordinary connection attempts and say nothing of the kind.
FLAGS = FIN | SYN | RST | PSH | ACK | URG
PORTS_END, FLAGS_AT, UDP_HEADER = 4, 13, 8
IPV4_HEADER, IPV6_HEADER = 20, 40

HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60
EXTENSIONS = frozenset({HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION, 135, 139, 140})
"""IPv6 headers that another one may follow (IANA, "IPv6 Extension Header Types")."""
MAX_EXTENSIONS = 8
"""Far more than a packet has that means well."""

_KINDS = {0: Kind.NULL, SYN: Kind.SYN, FIN: Kind.FIN, ACK: Kind.ACK}


def _kind(flags: int) -> Kind | None:
    if flags & RST or flags & (SYN | ACK) == SYN | ACK:
        return None
    return Kind.XMAS if not flags & ACK and flags & XMAS == XMAS else _KINDS.get(flags, Kind.OTHER)


KIND_OF = tuple(_kind(flags) for flags in range(FLAGS + 1))
"""The kind of a TCP packet by its flags, without ECE and CWR; None for an answer."""

_IPV4 = struct.Struct("!B5xHxB2xII")
_IPV4_TCP = struct.Struct("!B5xHxB2xIIHH9xB")
_PLAIN = 0x45
"""The first byte of an IPv4 header without options."""
_IPV6 = struct.Struct("!BxxxHBx16s16s")


class Probe(NamedTuple):
    """One packet or connection that tries a port.

    `source` and `destination` are addresses of `version` (4 or 6) as whole numbers. `flags` are a TCP packet's, 0 for
    UDP; None where they were not seen (a connection, or a fragment too short for them). `options` tells whether the
    IPv4 header had options, None where that is not known.
    """

    version: int
    source: int
    destination: int
    source_port: int
    port: int
    protocol: Protocol
    kind: Kind
    flags: int | None
    options: bool | None

    @property
    def address(self) -> Address:
        """The source."""
        return IPv4Address(self.source) if self.version == 4 else IPv6Address(self.source)


# A NamedTuple's own way to make one is twice as slow.
_new = tuple.__new__


def parse(data: bytes) -> Probe | None:
    """Return the probe in a packet that starts with its IP header, None for any other bytes.

    A TCP packet with ACK and without SYN and RST is one too: whether a connection stands behind it is not seen here.
    """
    if len(data) >= _IPV4_TCP.size:
        # The way of nearly all packets of a flood, in one step.
        first, fragment, protocol, source, destination, source_port, port, flags = _IPV4_TCP.unpack_from(data)
        if first == _PLAIN and protocol == TCP and not fragment & 0x1FFF:
            flags &= FLAGS
            if (kind := KIND_OF[flags]) is None:
                return None
            return _new(Probe, (4, source, destination, source_port, port, Protocol.TCP, kind, flags, False))
    version = data[0] >> 4 if data else 0
    if version == 4:
        return _ipv4(data)
    if version == 6:
        return _ipv6(data)
    return None


def accepted(data: bytes) -> tuple[int, int, int] | None:
    """Return whom a SYN-ACK of this host lets in, None for any other bytes: IP version, local port, remote address."""
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= IPV4_HEADER:
        header, protocol, remote = (data[0] & 0x0F) * 4, data[9], data[16:20]
    elif version == 6 and len(data) >= IPV6_HEADER:
        header, protocol, remote = IPV6_HEADER, data[6], data[24:40]
    else:
        return None
    if protocol != TCP or len(data) <= header + FLAGS_AT or data[header + FLAGS_AT] & (SYN | ACK) != SYN | ACK:
        return None
    return version, data[header] << 8 | data[header + 1], int.from_bytes(remote, "big")


def is_martian(version: int, source: int) -> bool:
    """Tell whether no packet from outside can truly have this source; the kernel drops these after we see them.

    RFC 1812 5.3.7; for IPv4-mapped IPv6 sources, which would pass for another host's IPv4 address, RFC 4942 2.2.
    """
    if version == 4:
        first = source >> 24
        # 0/8 is "this network": only a host without an address sends from it (RFC 1122, 3.2.1.3).
        return first in {0, 127} or first & 0xF0 == 0xE0 or source == 0xFFFFFFFF
    return source <= 1 or source >> 120 == 0xFF or source >> 32 == 0xFFFF


def _ipv4(data: bytes) -> Probe | None:
    if len(data) < IPV4_HEADER:
        return None
    first, fragment, protocol, source, destination = _IPV4.unpack_from(data)
    header = (first & 0x0F) * 4
    # Later fragments (offset not 0) carry no ports.
    if header < IPV4_HEADER or fragment & 0x1FFF:
        return None
    return _transport(data, header, protocol, 4, source, destination, header > IPV4_HEADER)


def _ipv6(data: bytes) -> Probe | None:
    if len(data) < IPV6_HEADER:
        return None
    _, _, following, source, destination = _IPV6.unpack_from(data)
    header = IPV6_HEADER
    for _ in range(MAX_EXTENSIONS):
        if following not in EXTENSIONS:
            break
        if len(data) < header + 8:
            return None
        if following == FRAGMENT and (data[header + 2] or data[header + 3] & 0xF8):
            return None
        # In units of 8 bytes after the first 8; the fragment header has none, AH counts 4 after the first 8.
        length = 8 if following == FRAGMENT else (data[header + 1] + 2) * 4
        if following not in {FRAGMENT, AUTHENTICATION}:
            length = (data[header + 1] + 1) * 8
        following, header = data[header], header + length
    return _transport(
        data, header, following, 6, int.from_bytes(source, "big"), int.from_bytes(destination, "big"), None
    )


def _transport(  # noqa: PLR0911 - one return for each kind of thing that is no probe
    data: bytes, header: int, protocol: int, version: int, source: int, destination: int, options: bool | None
) -> Probe | None:
    if len(data) < header + PORTS_END:
        return None
    ports = data[header] << 8 | data[header + 1], data[header + 2] << 8 | data[header + 3]
    if protocol == UDP:
        if len(data) < header + UDP_HEADER:
            return None
        return Probe(version, source, destination, *ports, Protocol.UDP, Kind.UDP, 0, options)
    if protocol != TCP:
        return None
    if len(data) <= header + FLAGS_AT:
        # A first fragment too short for the flags exists only to slip past filters (RFC 3128; nmap -f).
        return Probe(version, source, destination, *ports, Protocol.TCP, Kind.OTHER, None, options)
    flags = data[header + FLAGS_AT] & FLAGS
    if (kind := KIND_OF[flags]) is None:
        return None
    return Probe(version, source, destination, *ports, Protocol.TCP, kind, flags, options)
