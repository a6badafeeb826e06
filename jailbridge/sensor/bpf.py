"""The kernel's filter for the packet socket: what to watch as a classic BPF program. Pure; opens nothing.

For AF_PACKET sockets of type SOCK_DGRAM: offset 0 is the IP header. Accepts what `packet.parse` calls a probe, on a
watched port, in a packet addressed to this host, and IPv6 packets with extension headers, which only `packet.parse`
can follow; and, where asked for, what this host itself sends that others may answer. Of a packet it hands on the
first SNAP bytes.
Form and numbers: linux/filter.h, linux/bpf_common.h, Documentation/networking/filter.rst.
"""

import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from jailbridge.config.values import PortRange
from jailbridge.errors import ParseError
from jailbridge.sensor.packet import ACK, EXTENSIONS, FLAGS_AT, IPV6_HEADER, RST, SYN, TCP, UDP, UDP_HEADER

MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
SNAP = 176  # bytes, what a frame of the ring has room for; IPv4's longest headers take 60 + 14

LD_WORD, LD_HALF, LD_BYTE, LD_LENGTH = 0x20, 0x28, 0x30, 0x80
LD_HALF_X, LD_BYTE_X = 0x48, 0x50
LDX_NUMBER, LDX_HEADER = 0x01, 0xB1
SUB_X = 0x1C
JUMP, JEQ, JGT, JGE, JSET = 0x05, 0x15, 0x25, 0x35, 0x45
RETURN = 0x06

_ANCILLARY = 0x1_0000_0000 - 0x1000  # SKF_AD_OFF
PROTOCOL, PACKET_TYPE, INTERFACE = _ANCILLARY, _ANCILLARY + 4, _ANCILLARY + 8
HARDWARE_TYPE, VLAN_TAG, VLAN_TAG_PRESENT = _ANCILLARY + 28, _ANCILLARY + 44, _ANCILLARY + 48
VLAN_ID = 0x0FFF
PACKET_HOST, PACKET_OUTGOING = 0, 4
ARPHRD_LOOPBACK = 772
ETHERTYPE_IP, ETHERTYPE_IPV6 = 0x0800, 0x86DD


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What the filter lets through.

    tcp, udp    ports whose probes count (sorted, joined)
    ack         ports whose ACK packets count: those without a service
    sent        UDP ports from which this host's own packets are seen, so that their answers are known
    accepting   TCP ports from which this host's own SYN-ACKs are seen, so that who was let in is known
    interfaces  their indexes; None for all
    loopback    whether loopback interfaces are among them
    """

    tcp: Sequence[PortRange]
    udp: Sequence[PortRange]
    ack: Sequence[PortRange] = ()
    sent: Sequence[PortRange] = ()
    accepting: Sequence[PortRange] = ()
    interfaces: Collection[int] | None = None
    loopback: bool = True


@dataclass(frozen=True, slots=True)
class Instruction:
    """One struct sock_filter; `yes` and `no` count the instructions to skip."""

    code: int
    k: int
    yes: int = 0
    no: int = 0


@dataclass(frozen=True, slots=True)
class _Step:
    """An instruction whose jumps name a label further on; an empty name is the next instruction."""

    code: int
    k: int = 0
    yes: str = ""
    no: str = ""
    labels: tuple[str, ...] = field(default=(), kw_only=True)


def program(watched: Watched) -> tuple[Instruction, ...]:
    """Return the filter. Raises ParseError if the kernel would not take so many separate ranges."""
    parts = {
        "tcp": watched.tcp,
        "udp": watched.udp,
        "ack": watched.ack,
        "sent": watched.sent,
        "accepting": watched.accepting,
    }
    steps = [*_whose(watched), *_to_us(), *_by_us(), _Step(RETURN, 0, labels=("reject",))]
    tests = {name: _port_tests(ranges) for name, ranges in parts.items()}
    size = len(steps) + sum(map(len, tests.values()))
    if size > MAX_INSTRUCTIONS:
        raise ParseError(
            f"the sensor's ports are {len(watched.tcp)} tcp and {len(watched.udp)} udp ranges, too many for the "
            f"kernel ({size} of {MAX_INSTRUCTIONS} instructions): watch ranges rather than single ports"
        )
    places = {label: at for at, step in enumerate(steps) for label in step.labels}
    start = len(steps)
    for name, part in tests.items():
        places[f"{name} ports"] = start
        start += len(part)
    return (
        *(_placed(step, at, places) for at, step in enumerate(steps)),
        *(one for part in tests.values() for one in part),
    )


def packed(instructions: Sequence[Instruction]) -> bytes:
    """Return the program as the kernel's array of struct sock_filter, in this machine's byte order."""
    return b"".join(struct.pack("=HBBI", step.code, step.yes, step.no, step.k) for step in instructions)


def _whose(watched: Watched) -> Iterator[_Step]:
    """Whether it came in where we watch, to this host, or goes out from it."""
    if watched.interfaces is not None:
        yield _Step(LD_WORD, INTERFACE)
        for index in sorted(watched.interfaces):
            # Two steps each: a conditional jump does not reach over hundreds of interfaces.
            yield _Step(JEQ, index, no=f"not {index}")
            yield _Step(JUMP, yes="here")
            yield _Step(LD_WORD, INTERFACE, labels=(f"not {index}",))
        yield _Step(JUMP, yes="reject")
    if not watched.loopback:
        yield _Step(LD_WORD, HARDWARE_TYPE, labels=("here",))
        yield _Step(JEQ, ARPHRD_LOOPBACK, no="outside")
        yield _Step(JUMP, yes="reject")
    # The tag is still there on the interface below: the packet comes again, without it, on the VLAN's own. With a
    # priority and no VLAN (IEEE 802.1Q, VID 0) it is this host's right here.
    yield _Step(LD_WORD, VLAN_TAG_PRESENT, labels=("outside", "here") if watched.loopback else ("outside",))
    yield _Step(JEQ, 0, yes="untagged")
    yield _Step(LD_WORD, VLAN_TAG)
    yield _Step(JSET, VLAN_ID, yes="far reject")
    # A packet through lo is seen twice, going out and coming in: only the second is to this host.
    yield _Step(LD_WORD, PACKET_TYPE, labels=("untagged",))
    yield _Step(JEQ, PACKET_HOST, yes="to us")
    if watched.sent or watched.accepting:
        yield _Step(JEQ, PACKET_OUTGOING, no="far reject")
        yield _Step(JUMP, yes="by us")
    yield _Step(JUMP, yes="reject", labels=("far reject",))


def _to_us() -> Iterator[_Step]:
    yield _Step(LD_WORD, PROTOCOL, labels=("to us",))
    yield _Step(JEQ, ETHERTYPE_IP, yes="ipv4")
    yield _Step(JEQ, ETHERTYPE_IPV6, yes="ipv6", no="reject")
    # Version 4 and a header of 5 to 15 words.
    yield _Step(LD_BYTE, 0, labels=("ipv4",))
    yield _Step(JGE, 0x45, no="reject")
    yield _Step(JGT, 0x4F, yes="reject")
    yield _Step(LD_HALF, 6)
    yield _Step(JSET, 0x1FFF, yes="reject")
    yield _Step(LDX_HEADER, 0)
    yield _Step(LD_BYTE, 9)
    yield _Step(JUMP, yes="transport")
    yield _Step(LD_BYTE, 0, labels=("ipv6",))
    yield _Step(JGE, 0x60, no="reject")
    yield _Step(JGT, 0x6F, yes="reject")
    yield _Step(LDX_NUMBER, IPV6_HEADER)
    yield _Step(LD_BYTE, 6)
    for header in sorted(EXTENSIONS):
        yield _Step(JEQ, header, yes="accept")
    # X is now the length of the IP header. A load beyond the packet's end ends the program with 0.
    yield _Step(JEQ, TCP, yes="tcp", labels=("transport",))
    yield _Step(JEQ, UDP, no="reject")
    yield _Step(LD_BYTE_X, UDP_HEADER - 1)
    yield _Step(LD_HALF_X, 2)
    yield _Step(JUMP, yes="udp ports")
    yield _Step(LD_LENGTH, labels=("tcp",))
    yield _Step(SUB_X)
    yield _Step(JGT, FLAGS_AT, no="tcp port")
    yield _Step(LD_BYTE_X, FLAGS_AT)
    yield _Step(JSET, RST, yes="reject")
    yield _Step(JSET, ACK, no="tcp port")
    yield _Step(JSET, SYN, yes="reject")
    yield _Step(LD_HALF_X, 2)
    yield _Step(JUMP, yes="ack ports")
    yield _Step(LD_HALF_X, 2, labels=("tcp port",))
    yield _Step(JUMP, yes="tcp ports")
    yield _Step(RETURN, SNAP, labels=("accept",))


def _by_us() -> Iterator[_Step]:
    """UDP and SYN-ACKs from this host, judged by the port they go out from."""
    yield _Step(LD_WORD, PROTOCOL, labels=("by us",))
    yield _Step(JEQ, ETHERTYPE_IPV6, yes="ipv6 by us")
    yield _Step(JEQ, ETHERTYPE_IP, no="reject")
    yield _Step(LD_HALF, 6)
    yield _Step(JSET, 0x1FFF, yes="reject")
    yield _Step(LDX_HEADER, 0)
    yield _Step(LD_BYTE, 9)
    yield _Step(JUMP, yes="transport by us")
    yield _Step(LDX_NUMBER, IPV6_HEADER, labels=("ipv6 by us",))
    yield _Step(LD_BYTE, 6)
    yield _Step(JEQ, UDP, no="not udp by us", labels=("transport by us",))
    yield _Step(LD_HALF_X, 0)
    yield _Step(JUMP, yes="sent ports")
    yield _Step(JEQ, TCP, no="reject", labels=("not udp by us",))
    yield _Step(LD_BYTE_X, FLAGS_AT)
    yield _Step(JSET, SYN, no="reject")
    yield _Step(JSET, ACK, no="reject")
    yield _Step(LD_HALF_X, 0)
    yield _Step(JUMP, yes="accepting ports")


def _placed(step: _Step, at: int, places: dict[str, int]) -> Instruction:
    yes, no = (places[name] - at - 1 if name else 0 for name in (step.yes, step.no))
    placed = Instruction(step.code, step.k)
    # An unconditional jump reaches far (32 bits), a conditional one 255 instructions.
    return replace(placed, k=yes) if step.code == JUMP else replace(placed, yes=yes, no=no)


def _port_tests(ranges: Sequence[PortRange]) -> list[Instruction]:
    """Test the port in A against each range on its own, so that no jump is far."""
    tests: list[Instruction] = []
    for low, high in ranges:
        if low == high:
            tests.append(Instruction(JEQ, low, no=1))
        else:
            tests += [Instruction(JGE, low, no=2), Instruction(JGT, high, yes=1)]
        tests.append(Instruction(RETURN, SNAP))
    return [*tests, Instruction(RETURN, 0)]
