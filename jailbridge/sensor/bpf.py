"""The kernel's filter for the packet sockets: port lists as a classic BPF program. Pure; opens nothing.

For AF_PACKET sockets of type SOCK_DGRAM: offset 0 is the IP header. Accepts what `packet.parse` calls a
probe, on a watched port, in a packet addressed to this host; of a packet it hands on the first SNAP bytes.
Form and numbers: linux/filter.h, linux/bpf_common.h, Documentation/networking/filter.rst.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jailbridge.config.values import PortRange
from jailbridge.errors import ParseError
from jailbridge.sensor.packet import ANSWER, FLAGS_AT, IPV6_HEADER, TCP, UDP, UDP_HEADER

MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
SNAP = 128  # bytes; the longest headers that matter take 60 + 14

LD_WORD, LD_HALF, LD_BYTE, LD_LENGTH = 0x20, 0x28, 0x30, 0x80
LD_HALF_X, LD_BYTE_X = 0x48, 0x50
LDX_NUMBER, LDX_HEADER = 0x01, 0xB1
SUB_X = 0x1C
JUMP, JEQ, JGT, JGE, JSET = 0x05, 0x15, 0x25, 0x35, 0x45
RETURN = 0x06

_ANCILLARY = 0x1_0000_0000 - 0x1000  # SKF_AD_OFF
PROTOCOL, PACKET_TYPE, HARDWARE_TYPE = _ANCILLARY, _ANCILLARY + 4, _ANCILLARY + 28
PACKET_HOST = 0
ARPHRD_LOOPBACK = 772
ETHERTYPE_IP, ETHERTYPE_IPV6 = 0x0800, 0x86DD


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
    label: str = ""


def program(tcp: Sequence[PortRange], udp: Sequence[PortRange], *, loopback: bool = True) -> tuple[Instruction, ...]:
    """Return the filter for these ports (sorted, joined); `loopback`: also from loopback interfaces.

    Raises ParseError if the kernel would not take so many separate ranges.
    """
    steps = [
        # A packet through lo is seen twice, going out and coming in: only the second is to this host.
        _Step(LD_WORD, PACKET_TYPE),
        _Step(JEQ, PACKET_HOST, no="reject"),
        *([] if loopback else [_Step(LD_WORD, HARDWARE_TYPE), _Step(JEQ, ARPHRD_LOOPBACK, yes="reject")]),
        _Step(LD_WORD, PROTOCOL),
        _Step(JEQ, ETHERTYPE_IP, yes="ipv4"),
        _Step(JEQ, ETHERTYPE_IPV6, yes="ipv6", no="reject"),
        # Version 4 and a header of 5 to 15 words.
        _Step(LD_BYTE, 0, label="ipv4"),
        _Step(JGE, 0x45, no="reject"),
        _Step(JGT, 0x4F, yes="reject"),
        _Step(LD_HALF, 6),
        _Step(JSET, 0x1FFF, yes="reject"),
        _Step(LDX_HEADER, 0),
        _Step(LD_BYTE, 9),
        _Step(JUMP, yes="transport"),
        _Step(LD_BYTE, 0, label="ipv6"),
        _Step(JGE, 0x60, no="reject"),
        _Step(JGT, 0x6F, yes="reject"),
        _Step(LDX_NUMBER, IPV6_HEADER),
        _Step(LD_BYTE, 6),
        # X is now the length of the IP header. A load beyond the packet's end ends the program with 0.
        _Step(JEQ, TCP, yes="tcp", label="transport"),
        _Step(JEQ, UDP, no="reject"),
        _Step(LD_BYTE_X, UDP_HEADER - 1),
        _Step(LD_HALF_X, 2),
        _Step(JUMP, yes="udp ports"),
        _Step(LD_LENGTH, label="tcp"),
        _Step(SUB_X),
        _Step(JGT, FLAGS_AT, no="tcp port"),
        _Step(LD_BYTE_X, FLAGS_AT),
        _Step(JSET, ANSWER, yes="reject"),
        _Step(LD_HALF_X, 2, label="tcp port"),
        _Step(JUMP, yes="tcp ports"),
        _Step(RETURN, 0, label="reject"),
    ]
    tcp_part, udp_part = _port_tests(tcp), _port_tests(udp)
    size = len(steps) + len(tcp_part) + len(udp_part)
    if size > MAX_INSTRUCTIONS:
        raise ParseError(
            f"the sensor's ports are {len(tcp)} tcp and {len(udp)} udp ranges, too many for the "
            f"kernel ({size} of {MAX_INSTRUCTIONS} instructions): watch ranges rather than single ports"
        )
    places = {step.label: at for at, step in enumerate(steps)}
    places |= {"tcp ports": len(steps), "udp ports": len(steps) + len(tcp_part)}
    return (*(_placed(step, at, places) for at, step in enumerate(steps)), *tcp_part, *udp_part)


def packed(instructions: Sequence[Instruction]) -> bytes:
    """Return the program as the kernel's array of struct sock_filter, in this machine's byte order."""
    return b"".join(struct.pack("=HBBI", step.code, step.yes, step.no, step.k) for step in instructions)


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
