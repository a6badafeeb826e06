import struct
from ipaddress import ip_address

import pytest

from jailbridge.model.event import Kind, Protocol
from jailbridge.sensor.packet import Probe, is_martian, parse

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128


def tcp(port: int, flags: int) -> bytes:
    return struct.pack("!HHIIBBHHH", 40000, port, 7, 0, 0x50, flags, 1024, 0, 0)


def udp(port: int) -> bytes:
    return struct.pack("!HHHH", 40000, port, 8, 0)


def ipv4(
    payload: bytes, *, following: int = 6, options: bytes = b"", fragment: int = 0, first: int | None = None
) -> bytes:
    head = 0x45 + len(options) // 4 if first is None else first
    fixed = struct.pack("!BBHHHBBH", head, 0, 20 + len(options) + len(payload), 1, fragment, 64, following, 0)
    return fixed + bytes([192, 0, 2, 7]) + bytes([198, 51, 100, 1]) + options + payload


def ipv6(payload: bytes, *, following: int = 6) -> bytes:
    addresses = ip_address("2001:db8::7").packed + ip_address("2001:db8:1::1").packed
    return struct.pack("!IHBB", 6 << 28, len(payload), following, 64) + addresses + payload


def kind_of(flags: int) -> Kind | None:
    probe = parse(ipv4(tcp(23, flags)))
    return probe.kind if probe else None


def test_a_syn_over_ipv4_is_a_probe_with_its_addresses_and_port() -> None:
    assert parse(ipv4(tcp(23, SYN))) == Probe(
        source=ip_address("192.0.2.7"),
        destination=ip_address("198.51.100.1"),
        port=23,
        protocol=Protocol.TCP,
        kind=Kind.SYN,
    )


def test_a_syn_over_ipv6_is_a_probe_with_its_addresses_and_port() -> None:
    assert parse(ipv6(tcp(0xFEDC, SYN))) == Probe(
        source=ip_address("2001:db8::7"),
        destination=ip_address("2001:db8:1::1"),
        port=0xFEDC,
        protocol=Protocol.TCP,
        kind=Kind.SYN,
    )


@pytest.mark.parametrize("packet", [ipv4(udp(161), following=17), ipv6(udp(161), following=17)])
def test_udp_is_a_probe(packet: bytes) -> None:
    probe = parse(packet)
    assert probe is not None
    assert (probe.port, probe.protocol, probe.kind) == (161, Protocol.UDP, Kind.UDP)


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (0, Kind.NULL),
        (FIN, Kind.FIN),
        (FIN | PSH | URG, Kind.XMAS),
        (FIN | PSH | URG | SYN, Kind.XMAS),
        (SYN | FIN, Kind.OTHER),
        (PSH, Kind.OTHER),
        (URG, Kind.OTHER),
        (SYN | PSH, Kind.OTHER),
    ],
)
def test_the_flags_name_the_kind(flags: int, kind: Kind) -> None:
    assert kind_of(flags) is kind


@pytest.mark.parametrize(("flags", "kind"), [(SYN, Kind.SYN), (0, Kind.NULL), (FIN, Kind.FIN)])
def test_congestion_flags_do_not_change_the_kind(flags: int, kind: Kind) -> None:
    assert kind_of(flags | ECE | CWR) is kind


@pytest.mark.parametrize("flags", [ACK, RST, SYN | ACK, RST | ACK, FIN | ACK, 0xFF])
def test_packets_of_a_conversation_are_no_probes(flags: int) -> None:
    assert kind_of(flags) is None


def test_ip_options_are_stepped_over() -> None:
    probe = parse(ipv4(tcp(79, SYN), options=bytes(40)))
    assert probe is not None
    assert (probe.port, probe.kind) == (79, Kind.SYN)


@pytest.mark.parametrize("fragment", [1, 0x1FFF, 0x2001, 0x0100])
def test_later_fragments_are_no_probes(fragment: int) -> None:
    assert parse(ipv4(tcp(79, SYN), fragment=fragment)) is None


def test_a_first_fragment_is_a_probe() -> None:
    probe = parse(ipv4(tcp(79, SYN), fragment=0x2000))
    assert probe is not None
    assert probe.kind is Kind.SYN


def test_a_fragment_too_short_for_the_flags_is_a_probe_of_another_kind() -> None:
    probe = parse(ipv4(tcp(79, SYN)[:8], fragment=0x2000))
    assert probe is not None
    assert (probe.port, probe.kind) == (79, Kind.OTHER)


def test_sixteen_byte_fragments_keep_their_kind() -> None:
    probe = parse(ipv4(tcp(79, SYN)[:16], fragment=0x2000))
    assert probe is not None
    assert probe.kind is Kind.SYN


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x45",
        ipv4(tcp(79, SYN), first=0x44),
        ipv4(tcp(79, SYN), first=0x55),
        ipv4(tcp(79, SYN)[:3]),
        ipv4(udp(79)[:7], following=17),
        ipv4(tcp(79, SYN), following=1),
        ipv6(tcp(79, SYN)[:3]),
        ipv6(tcp(79, SYN), following=58),
    ],
    ids=[
        "empty",
        "one byte",
        "header length 4",
        "version 5",
        "no port",
        "half udp",
        "icmp",
        "no port 6",
        "icmp 6",
    ],
)
def test_anything_else_is_no_probe(packet: bytes) -> None:
    assert parse(packet) is None


@pytest.mark.parametrize(
    "source", ["0.0.0.0", "127.0.0.9", "224.0.0.5", "255.255.255.255", "::", "::1", "ff02::1", "::ffff:192.0.2.7"]
)
def test_sources_that_nobody_outside_can_have_are_martians(source: str) -> None:
    assert is_martian(ip_address(source))


@pytest.mark.parametrize("source", ["192.0.2.7", "10.0.0.1", "2001:db8::7", "fe80::1"])
def test_other_sources_are_no_martians(source: str) -> None:
    assert not is_martian(ip_address(source))
