"""One packet's bytes, from its IP header on, as the probe in it. Pure; knows no sockets and no port lists.

Headers: RFC 791 (IPv4), RFC 8200 (IPv6), RFC 9293 (TCP), RFC 768 (UDP). `bpf` says the same to the kernel.
IPv6 extension headers are not followed: such a packet is no probe.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from jailbridge.model.event import Kind, Protocol
from jailbridge.model.network import Address

TCP, UDP = 6, 17
FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
ANSWER = ACK | RST
"""A packet with one of these claims to belong to a conversation; PortSentry looks at neither."""
XMAS = FIN | PSH | URG
# ECE and CWR (RFC 3168) stand in ordinary connection attempts and say nothing of the kind.
_FLAGS = FIN | SYN | RST | PSH | ACK | URG
_BROADCAST = IPv4Address("255.255.255.255")
_KINDS = {0: Kind.NULL, SYN: Kind.SYN, FIN: Kind.FIN}
PORTS_END, FLAGS_AT, UDP_HEADER = 4, 13, 8
IPV6_HEADER = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One packet that tries a port without belonging to a conversation."""

    source: Address
    destination: Address
    port: int
    protocol: Protocol
    kind: Kind


def parse(data: bytes) -> Probe | None:
    """Return the probe in a packet that starts with its IP header, None for any other bytes."""
    source: Address
    destination: Address
    version = data[0] >> 4 if data else 0
    if version == 4:
        header = (data[0] & 0x0F) * 4
        # Later fragments (offset not 0) carry no ports.
        if header < 20 or len(data) < header + PORTS_END or data[6] & 0x1F or data[7]:
            return None
        following = data[9]
        source, destination = IPv4Address(data[12:16]), IPv4Address(data[16:20])
    elif version == 6:
        header = IPV6_HEADER
        if len(data) < header + PORTS_END:
            return None
        following = data[6]
        source, destination = IPv6Address(data[8:24]), IPv6Address(data[24:40])
    else:
        return None
    if following == TCP:
        protocol, kind = Protocol.TCP, _tcp_kind(data, header)
    elif following == UDP and len(data) >= header + UDP_HEADER:
        protocol, kind = Protocol.UDP, Kind.UDP
    else:
        return None
    if kind is None:
        return None
    port = data[header + 2] << 8 | data[header + 3]
    return Probe(source=source, destination=destination, port=port, protocol=protocol, kind=kind)


def is_martian(source: Address) -> bool:
    """Tell whether no packet from outside can truly have this source; the kernel drops these after we see them.

    RFC 1812 5.3.7; for IPv4-mapped IPv6 sources, which would pass for another host's IPv4 address, RFC 4942 2.2.
    """
    mapped = isinstance(source, IPv6Address) and source.ipv4_mapped is not None
    return mapped or source.is_multicast or source.is_unspecified or source.is_loopback or source == _BROADCAST


def _tcp_kind(data: bytes, header: int) -> Kind | None:
    # A first fragment too short for the flags exists only to slip past filters (RFC 3128; nmap -f).
    if len(data) <= header + FLAGS_AT:
        return Kind.OTHER
    flags = data[header + FLAGS_AT] & _FLAGS
    if flags & ANSWER:
        return None
    if flags & XMAS == XMAS:
        return Kind.XMAS
    return _KINDS.get(flags, Kind.OTHER)
