import struct
from collections.abc import Sequence
from typing import Any

import pytest

from jailbridge.config.values import PortRange
from jailbridge.errors import ParseError
from jailbridge.sensor import bpf

WIDE = ((1, 1023),)


def program(tcp: Sequence[PortRange] = (), udp: Sequence[PortRange] = (), **more: Any) -> tuple[bpf.Instruction, ...]:
    return bpf.program(bpf.Watched(tcp=tcp, udp=udp, **more))


def test_a_single_port_takes_two_instructions_and_a_range_three() -> None:
    nothing = len(program())
    assert len(program(((79, 79),))) == nothing + 2
    assert len(program(((79, 80),))) == nothing + 3


def test_every_jump_lands_inside_the_program_and_every_program_ends_with_a_return() -> None:
    single = tuple((port, port) for port in range(1, 2000, 2))
    for whole in (
        program(single, WIDE, loopback=False),
        program(single, WIDE, ack=single[:100], sent=WIDE, interfaces=range(1, 500)),
        program(WIDE, WIDE, interfaces=()),
    ):
        for at, step in enumerate(whole):
            assert 0 <= step.yes <= 255
            assert 0 <= step.no <= 255
            skip = step.k if step.code == bpf.JUMP else max(step.yes, step.no)
            assert step.code == bpf.RETURN or at + 1 + skip < len(whole)
        assert whole[-1].code == bpf.RETURN


def test_more_ranges_than_the_kernel_takes_are_an_error_that_counts_them() -> None:
    single = tuple((port, port) for port in range(1, 5001, 2))
    with pytest.raises(ParseError, match="2500 tcp and 1 udp ranges"):
        program(single, WIDE)


def test_the_largest_program_has_no_more_instructions_than_the_kernel_takes() -> None:
    room = bpf.MAX_INSTRUCTIONS - len(program())
    single = tuple((port, port) for port in range(1, room, 2))
    assert len(program(single)) in {bpf.MAX_INSTRUCTIONS - 1, bpf.MAX_INSTRUCTIONS}


def test_the_packed_form_is_the_kernels_struct_sock_filter() -> None:
    assert bpf.packed([bpf.Instruction(bpf.JEQ, 0x86DD, yes=3, no=9)]) == struct.pack("=HBBI", 0x15, 3, 9, 0x86DD)
