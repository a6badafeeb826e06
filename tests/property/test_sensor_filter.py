"""The kernel's filter and our parser say the same of every packet; the filter runs on a small machine."""

import struct
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jailbridge.config.values import PortRange, parse_ports
from jailbridge.model.event import Protocol
from jailbridge.sensor import bpf
from jailbridge.sensor.packet import ACK, EXTENSIONS, accepted, parse

ports = st.one_of(st.integers(1, 12), st.integers(0, 65535))
port_lists = st.lists(st.tuples(ports, ports), max_size=8).map(
    lambda pairs: parse_ports(",".join(f"{max(min(pair), 1)}-{max(*pair, 1)}" for pair in pairs))
)
HOST, OUTGOING, ETHERNET, LOOPBACK = 0, 4, 1, 772
INTERFACE = 2


def program(tcp: Sequence[PortRange], udp: Sequence[PortRange], **more: Any) -> tuple[bpf.Instruction, ...]:
    return bpf.program(bpf.Watched(tcp=tcp, udp=udp, **more))


def run(
    program: Sequence[bpf.Instruction],
    data: bytes,
    *,
    ethertype: int,
    kind: int = HOST,
    hardware: int = ETHERNET,
    interface: int = INTERFACE,
    tag: int | None = None,
) -> int:
    """Run a program as Documentation/networking/filter.rst defines it; return how many bytes it accepts."""
    ancillary = {
        bpf.PROTOCOL: ethertype,
        bpf.PACKET_TYPE: kind,
        bpf.HARDWARE_TYPE: hardware,
        bpf.INTERFACE: interface,
        bpf.VLAN_TAG_PRESENT: int(tag is not None),
        bpf.VLAN_TAG: tag or 0,
    }
    a = x = at = 0
    while (step := program[at]).code != bpf.RETURN:
        at += 1
        match step.code:
            case 0x20 if step.k in ancillary:
                a = ancillary[step.k]
            case 0x20 | 0x28 | 0x30 | 0x48 | 0x50:
                size = {0x00: 4, 0x08: 2, 0x10: 1}[step.code & 0x18]
                start = step.k + (x if step.code & 0x40 else 0)
                if start + size > len(data):
                    return 0
                a = int.from_bytes(data[start : start + size], "big")
            case 0x80:
                a = len(data)
            case 0x01:
                x = step.k
            case 0xB1:
                if step.k >= len(data):
                    return 0
                x = (data[step.k] & 0x0F) * 4
            case 0x1C:
                a = (a - x) & 0xFFFFFFFF
            case 0x05:
                at += step.k
            case 0x15 | 0x25 | 0x35 | 0x45:
                true = {0x15: a == step.k, 0x25: a > step.k, 0x35: a >= step.k, 0x45: bool(a & step.k)}[step.code]
                at += step.yes if true else step.no
            case code:
                raise AssertionError(f"no such instruction: {code:#x}")
    return step.k


def tcp(port: int, flags: int) -> bytes:
    return struct.pack("!HHIIBBHHH", 4000, port, 1, 0, 0x50, flags, 0, 0, 0)


def udp(port: int) -> bytes:
    return struct.pack("!HHHH", 4000, port, 8, 0)


def ipv4(payload: bytes, *, following: int, first: int = 0x45, fragment: int = 0) -> bytes:
    options = bytes(max(0, (first & 0x0F) - 5) * 4)
    return struct.pack("!BBHHHBBH8x", first, 0, 0, 0, fragment, 64, following, 0) + options + payload


def ipv6(payload: bytes, *, following: int, version: int = 6) -> bytes:
    return struct.pack("!IHBB32x", version << 28, 0, following, 64) + payload


def mostly(usual: int, *, otherwise: st.SearchStrategy[int]) -> st.SearchStrategy[int]:
    return st.one_of(st.just(usual), st.just(usual), st.just(usual), otherwise)


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """Packets that are nearly right: pure noise rarely gets past the first byte."""
    following = draw(st.sampled_from([6, 6, 6, 17, 17, 1, 44, 0]))
    port = draw(ports)
    flags = draw(st.one_of(st.sampled_from([2, 2, 0, 1, 0x29, 0x12, 0x14]), st.integers(0, 255)))
    payload = udp(port) if following == 17 else tcp(port, flags)
    if draw(st.booleans()):
        first = draw(mostly(0x45, otherwise=st.integers(0x40, 0x50)))
        fragment = draw(mostly(0, otherwise=st.sampled_from([0x2000, 0x4000, 1, 0x2001, 0x1000])))
        whole = ipv4(payload, following=following, first=first, fragment=fragment)
    else:
        whole = ipv6(payload, following=following, version=draw(mostly(6, otherwise=st.integers(5, 7))))
    return whole[: draw(mostly(len(whole), otherwise=st.integers(0, len(whole))))]


def boundary_packets() -> Iterator[bytes]:
    """Packets on both sides of every decision that the filter takes, for the ports 10 to 20 and 30."""
    for whole in (
        ipv4(tcp(10, 2), following=6),
        ipv4(tcp(10, 2), following=6, first=0x4F),
        ipv4(udp(10), following=17),
        ipv6(tcp(10, 2), following=6),
        ipv6(udp(10), following=17),
    ):
        yield from (whole[:length] for length in range(len(whole) + 1))
        yield from (bytes([first]) + whole[1:] for first in range(256))
    for port in (0, 9, 10, 11, 19, 20, 21, 29, 30, 31, 10 << 8, 65535):
        yield ipv4(tcp(port, 2), following=6)
        yield ipv6(udp(port), following=17)
    yield from (ipv4(tcp(10, flags), following=6) for flags in range(256))
    yield from (ipv6(tcp(10, flags), following=6) for flags in range(256))
    yield from (ipv4(tcp(10, 2), following=6, fragment=1 << bit) for bit in range(16))
    for following in range(256):
        yield ipv4(tcp(10, 2), following=following)
        yield ipv6(tcp(10, 2), following=following)


def ethertype_of(data: bytes) -> int:
    return {4: 0x0800, 6: 0x86DD}.get(data[0] >> 4 if data else 0, 0x0806)


def is_extended(data: bytes) -> bool:
    """Whether only the parser can follow the packet's headers."""
    return len(data) > 6 and data[0] >> 4 == 6 and data[6] in EXTENSIONS


def is_watched(
    data: bytes, tcp_ports: Sequence[PortRange], udp_ports: Sequence[PortRange], ack_ports: Sequence[PortRange] = ()
) -> bool:
    if is_extended(data):
        return True
    probe = parse(data)
    if probe is None:
        return False
    has_ack = probe.protocol is Protocol.TCP and bool((probe.flags or 0) & ACK)
    ranges = ack_ports if has_ack else tcp_ports if probe.protocol is Protocol.TCP else udp_ports
    return any(low <= probe.port <= high for low, high in ranges)


@given(
    data=st.one_of(packets(), st.binary(max_size=120)),
    tcp_ports=port_lists,
    udp_ports=port_lists,
    ack_ports=port_lists,
    loopback=st.booleans(),
    interfaces=st.sampled_from([None, {INTERFACE}, {1, INTERFACE, 9}]),
)
def test_the_filter_accepts_exactly_what_the_parser_calls_a_probe_on_a_watched_port(
    data: bytes,
    tcp_ports: tuple[PortRange, ...],
    udp_ports: tuple[PortRange, ...],
    ack_ports: tuple[PortRange, ...],
    loopback: bool,
    interfaces: set[int] | None,
) -> None:
    whole = program(tcp_ports, udp_ports, ack=ack_ports, loopback=loopback, interfaces=interfaces)
    accepted = run(whole, data, ethertype=ethertype_of(data))
    assert accepted == (bpf.SNAP if is_watched(data, tcp_ports, udp_ports, ack_ports) else 0)


def test_filter_and_parser_agree_on_both_sides_of_every_boundary() -> None:
    listed = ((10, 20), (30, 30))
    for ack in ((), listed):
        whole = program(listed, listed, ack=ack)
        accepted = 0
        for data in boundary_packets():
            watched = is_watched(data, listed, listed, ack)
            assert run(whole, data, ethertype=ethertype_of(data)) == (bpf.SNAP if watched else 0), data.hex()
            accepted += watched
        assert accepted > 100


@given(data=packets(), kind=st.integers(1, 7))
def test_packets_that_are_not_to_this_host_never_pass(data: bytes, kind: int) -> None:
    whole = program(((1, 65535),), ((1, 65535),), ack=((1, 65535),))
    assert run(whole, data, ethertype=ethertype_of(data), kind=kind) == 0


@given(data=packets(), sent=port_lists)
def test_of_outgoing_packets_udp_from_the_ports_asked_for_passes_and_nothing_else(
    data: bytes, sent: tuple[PortRange, ...]
) -> None:
    whole = program(((1, 65535),), ((1, 65535),), ack=((1, 65535),), sent=sent)
    accepted = run(whole, data, ethertype=ethertype_of(data), kind=OUTGOING)
    probe = None if is_extended(data) else parse(data)
    if probe is not None and probe.protocol is Protocol.UDP:
        assert accepted == (bpf.SNAP if any(low <= probe.source_port <= high for low, high in sent) else 0)
    elif parse(data) is not None:
        assert accepted == 0


@given(data=packets(), accepting=port_lists)
def test_of_outgoing_packets_syn_acks_from_the_ports_asked_for_pass(
    data: bytes, accepting: tuple[PortRange, ...]
) -> None:
    whole = program(((1, 65535),), (), ack=((1, 65535),), accepting=accepting)
    taken = run(whole, data, ethertype=ethertype_of(data), kind=OUTGOING)
    peer = accepted(data)
    if peer is None:
        assert taken == 0
    elif taken:
        # Of fragments and odd headers the filter lets fewer pass.
        assert any(low <= peer[1] <= high for low, high in accepting)
    for plain in (ipv4(tcp(9, 0x12), following=6), ipv6(tcp(9, 0x12), following=6)):
        assert accepted(plain) == (plain[0] >> 4, 4000, 0)
        listed = any(low <= 4000 <= high for low, high in accepting)
        assert run(whole, plain, ethertype=ethertype_of(plain), kind=OUTGOING) == (bpf.SNAP if listed else 0)


@given(data=packets(), kind=st.sampled_from([HOST, OUTGOING]))
def test_packets_of_other_interfaces_never_pass(data: bytes, kind: int) -> None:
    wide = ((1, 65535),)
    for interfaces in ((), (1,), range(3, 400)):
        whole = program(wide, wide, ack=wide, sent=wide, interfaces=interfaces)
        assert run(whole, data, ethertype=ethertype_of(data), kind=kind) == 0


@given(data=packets(), tag=st.integers(0, 0xFFFF))
def test_a_packet_that_still_has_a_vlans_tag_never_passes_and_a_mere_priority_changes_nothing(
    data: bytes, tag: int
) -> None:
    wide = ((1, 65535),)
    whole = program(wide, wide, ack=wide, sent=wide)
    untagged = run(whole, data, ethertype=ethertype_of(data))
    assert run(whole, data, ethertype=ethertype_of(data), tag=tag) == (0 if tag & 0x0FFF else untagged)


@given(data=packets())
def test_loopback_interfaces_are_left_out_where_asked_and_only_there(data: bytes) -> None:
    wide = ((1, 65535),)
    ethertype = ethertype_of(data)
    with_it, without_it = (program(wide, wide, loopback=loopback) for loopback in (True, False))
    assert run(without_it, data, ethertype=ethertype, hardware=LOOPBACK) == 0
    assert run(with_it, data, ethertype=ethertype, hardware=LOOPBACK) == run(with_it, data, ethertype=ethertype)


def test_a_version_that_contradicts_the_ethertype_never_passes() -> None:
    wide = ((1, 65535),)
    whole_program = program(wide, wide, ack=wide)
    for first in range(256):
        for whole in (ipv4(tcp(10, 2), following=6), ipv6(tcp(10, 2), following=6)):
            data = bytes([first]) + whole[1:]
            for ethertype in {0x0800, 0x86DD, 0x0806, 0x8100} - {ethertype_of(data)}:
                assert run(whole_program, data, ethertype=ethertype) == 0


@given(st.one_of(st.binary(), packets()))
def test_no_bytes_make_the_parser_fail(data: bytes) -> None:
    parse(data)
    accepted(data)


@given(data=packets(), rest=st.binary(max_size=300))
def test_the_bytes_that_the_filter_hands_on_tell_as_much_as_the_whole_packet(data: bytes, rest: bytes) -> None:
    assert parse((data + rest)[: bpf.SNAP]) == parse(data + rest)
