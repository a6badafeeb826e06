"""What the kernel's LOG rules tell of packets; the lines that it really wrote are in sample-logs."""

from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from jailbridge.errors import ParseError
from jailbridge.history.kernel import scans
from jailbridge.model.event import Kind, Protocol, ScanEvent, TcpFlags

NOW = datetime(2026, 11, 22, 18, tzinfo=UTC)
HEAD = b"IN=eth0 OUT= MAC= SRC=192.0.2.7 DST=198.51.100.1 LEN=44 TOS=0x00 PREC=0x00 TTL=51 ID=1 DF "
TCP = b"PROTO=TCP SPT=4321 DPT=23 WINDOW=1024 RES=0x00 %bURGP=0 "
SYN = HEAD + TCP % b"SYN "
UDP = HEAD + b"PROTO=UDP SPT=4321 DPT=53 LEN=20 "
EVENT = ScanEvent(NOW, ip_address("192.0.2.7"), 23, Protocol.TCP, Kind.SYN, flags=TcpFlags.SYN)


def seen(packet: bytes, prefix: str = "P:") -> ScanEvent | None:
    return scans([prefix])(prefix.encode() + packet, NOW)


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (b"", Kind.NULL), (b"SYN ", Kind.SYN), (b"FIN ", Kind.FIN), (b"URG PSH FIN ", Kind.XMAS), (b"ACK ", Kind.ACK),
        (b"ACK FIN ", Kind.OTHER), (b"SYN FIN ", Kind.OTHER), (b"PSH ", Kind.OTHER), (b"URG PSH SYN FIN ", Kind.XMAS),
        (b"CWR ECE SYN ", Kind.SYN), (b"AE CWR ECE SYN ", Kind.SYN), (b"CWR ", Kind.NULL),
    ],
)  # fmt: skip
def test_the_flags_tell_the_kind(flags: bytes, kind: Kind) -> None:
    found = seen(HEAD + TCP % flags)
    assert found is not None
    assert found.kind is kind
    of_scans = [TcpFlags[name] for name in flags.decode().split() if name in TcpFlags.__members__]
    assert found.flags == TcpFlags(sum(of_scans))


@pytest.mark.parametrize("flags", [b"ACK SYN ", b"RST ", b"ACK RST ", b"URG ACK PSH RST SYN FIN ", b"ECE ACK SYN "])
def test_an_answer_is_no_probe(flags: bytes) -> None:
    assert seen(HEAD + TCP % flags) is None


def test_what_this_host_sends_is_no_probe() -> None:
    assert seen(SYN.replace(b"IN=eth0 OUT= MAC= ", b"IN= OUT=eth0 ")) is None
    assert seen(SYN.replace(b"IN=eth0 OUT=", b"IN=eth0 OUT=eth1")) == EVENT


def test_udp_has_no_flags() -> None:
    assert seen(UDP) == EVENT._replace(port=53, protocol=Protocol.UDP, kind=Kind.UDP, flags=None)


def test_ip_options_are_known_only_where_they_are_logged() -> None:
    assert seen(SYN.replace(b"DF ", b"DF OPT (94040000) ")) == EVENT._replace(ip_options=True)
    assert seen(SYN + b"OPT (020405B4) ") == EVENT


@pytest.mark.parametrize("prefix", ["P:", "a.b*c ", "[x] ", "%s %d ", "(", "\\", "IN=", " ", "p" * 127])
def test_a_prefix_is_taken_letter_by_letter(prefix: str) -> None:
    assert seen(SYN, prefix) == EVENT
    assert scans([prefix])(b"[12345.678901] " + prefix.encode() + SYN, NOW) == EVENT
    assert scans([prefix])(b"x" + prefix.encode() + SYN, NOW) is None
    assert scans([prefix])(b"?" * len(prefix) + SYN, NOW) is None


def test_one_prefix_may_begin_another() -> None:
    for prefixes in (["P", "P:"], ["P:", "P"]):
        scan = scans(prefixes)
        assert scan(b"P" + SYN, NOW) == scan(b"P:" + SYN, NOW) == EVENT
        assert scan(b"P: " + SYN, NOW) is None


@pytest.mark.parametrize(
    "packet",
    [HEAD + b"PROTO=ICMP TYPE=8 CODE=0 ID=1 SEQ=0 ", HEAD + b"PROTO=47 ", HEAD + b"PROTO=UDPLITE SPT=1 DPT=2 LEN=9 ",
     HEAD + b"MF PROTO=TCP INCOMPLETE [8 bytes] ", HEAD + b"FRAG:185 PROTO=UDP ",
     b"IN=br0 OUT= ARP HTYPE=1 PTYPE=0x0800 OPCODE=1 MACSRC=1e:2d:9a:52:9c:f3 IPSRC=192.0.2.7"],
)  # fmt: skip
def test_a_packet_without_a_port_is_refused_with_a_remedy(packet: bytes) -> None:
    with pytest.raises(ParseError, match="a packet that tells no port: have the rule log TCP and UDP only"):
        seen(packet)


@pytest.mark.parametrize("cut", range(3, len(SYN) - 1, 7))
def test_half_a_packet_is_refused(cut: int) -> None:
    with pytest.raises(ParseError):
        seen(SYN[:cut])


def test_the_blank_at_the_end_may_be_missing_and_nothing_else_may_stand_there() -> None:
    assert seen(SYN[:-1]) == EVENT
    for tail in (b" ", b"x", b"\0", b"\r", b"\n", SYN):
        with pytest.raises(ParseError):
            seen(SYN + tail)
