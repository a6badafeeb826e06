import struct
from ipaddress import ip_address

import pytest

from jailbridge.model.event import Kind, Protocol
from jailbridge.sensor.packet import Probe, is_martian, parse

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128
XMAS = FIN | PSH | URG


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
        version=4,
        source=int(ip_address("192.0.2.7")),
        destination=int(ip_address("198.51.100.1")),
        source_port=40000,
        port=23,
        protocol=Protocol.TCP,
        kind=Kind.SYN,
        flags=SYN,
        options=False,
    )


def test_a_syn_over_ipv6_is_a_probe_with_its_addresses_and_port() -> None:
    assert parse(ipv6(tcp(0xFEDC, SYN))) == Probe(
        version=6,
        source=int(ip_address("2001:db8::7")),
        destination=int(ip_address("2001:db8:1::1")),
        source_port=40000,
        port=0xFEDC,
        protocol=Protocol.TCP,
        kind=Kind.SYN,
        flags=SYN,
        options=None,
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


@pytest.mark.parametrize(
    ("flags", "kind"), [(ACK, Kind.ACK), (FIN | ACK, Kind.OTHER), (PSH | ACK, Kind.OTHER), (XMAS | ACK, Kind.OTHER)]
)
def test_an_ack_is_a_probe_for_those_who_know_that_no_connection_is_there(flags: int, kind: Kind) -> None:
    assert kind_of(flags) is kind


@pytest.mark.parametrize("flags", [RST, SYN | ACK, RST | ACK, SYN | FIN | ACK, 0xFF])
def test_answers_are_no_probes(flags: int) -> None:
    assert kind_of(flags) is None


def test_ip_options_are_stepped_over() -> None:
    probe = parse(ipv4(tcp(79, SYN), options=bytes(40)))
    assert probe is not None
    assert (probe.port, probe.kind, probe.options) == (79, Kind.SYN, True)


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
    assert (probe.port, probe.kind, probe.flags) == (79, Kind.OTHER, None)


def test_sixteen_byte_fragments_keep_their_kind() -> None:
    probe = parse(ipv4(tcp(79, SYN)[:16], fragment=0x2000))
    assert probe is not None
    assert probe.kind is Kind.SYN


HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60


def extended(*headers: int, following: int = 6, payload: bytes | None = None, units: int = 0) -> bytes:
    """An IPv6 packet with these extension headers; each but fragment has `units` more than the least it can have."""
    chain, data = [*headers, following], b""
    for header, then in zip(headers, chain[1:], strict=True):
        rest = {FRAGMENT: 6, AUTHENTICATION: 10 + 4 * units}.get(header, 6 + 8 * units)
        data += bytes([then, 0 if header == FRAGMENT else units + (header == AUTHENTICATION)]) + bytes(rest)
    return ipv6(data + (tcp(79, SYN) if payload is None else payload), following=headers[0])


@pytest.mark.parametrize("units", [0, 1, 3])
@pytest.mark.parametrize(
    "headers",
    [
        (HOP_BY_HOP,),
        (ROUTING,),
        (FRAGMENT,),
        (AUTHENTICATION,),
        (DESTINATION,),
        (HOP_BY_HOP, DESTINATION, ROUTING, FRAGMENT),
        (135, 139, 140),
    ],
)
def test_ipv6_extension_headers_are_stepped_over(headers: tuple[int, ...], units: int) -> None:
    probe = parse(extended(*headers, units=units))
    assert probe is not None
    assert (probe.port, probe.kind, probe.source_port) == (79, Kind.SYN, 40000)
    assert parse(extended(*headers, units=units, following=17, payload=udp(53))) == probe._replace(
        port=53, protocol=Protocol.UDP, kind=Kind.UDP, flags=0
    )


def test_an_ipv6_fragment_that_is_not_the_first_is_no_probe() -> None:
    whole = extended(FRAGMENT)
    for offset in (b"\x00\x08", b"\x01\x00", b"\x00\x09"):
        assert parse(whole[:42] + offset + whole[44:]) is None
    assert parse(whole[:42] + b"\x00\x01" + whole[44:]) is not None


def test_a_chain_of_headers_without_end_is_given_up() -> None:
    assert parse(extended(*[DESTINATION] * 8)) is not None
    assert parse(extended(*[DESTINATION] * 9)) is None


def test_a_packet_cut_inside_its_extension_headers_is_no_probe() -> None:
    whole = extended(HOP_BY_HOP, DESTINATION, units=1)
    ports_end = len(whole) - len(tcp(79, SYN)) + 4
    assert [parse(whole[:length]) is None for length in range(ports_end)] == [True] * ports_end
    assert parse(whole[:ports_end]) is not None


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
    assert is_martian(ip_address(source).version, int(ip_address(source)))


@pytest.mark.parametrize("source", ["192.0.2.7", "10.0.0.1", "2001:db8::7", "fe80::1"])
def test_other_sources_are_no_martians(source: str) -> None:
    assert not is_martian(ip_address(source).version, int(ip_address(source)))
