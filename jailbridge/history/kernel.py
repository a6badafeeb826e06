"""Messages of the kernel about packets that a LOG rule of iptables or nft has met. Pure.

`PREFIXIN=eth0 OUT= MAC=… SRC=192.0.2.7 DST=198.51.100.1 LEN=44 … PROTO=TCP SPT=4321 DPT=23 WINDOW=1024 RES=0x00 SYN
URGP=0 `, as net/netfilter/nf_log_syslog.c of Linux 6.18 writes it, with all that --log-* and `flags` add.

A packet makes numbers in there, never text; interfaces' names are the host's. The grammar covers the whole message all
the same, from a prefix that the settings name. Which rule has that prefix is the administrator's to know: every packet
that it logs is taken for a probe, but for those that sensor and PortSentry do not count either: answers (SYN and ACK,
RST), and what this host has sent.
"""

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache

from jailbridge.errors import ParseError
from jailbridge.model.event import Kind, Protocol, ScanEvent, TcpFlags
from jailbridge.model.network import parse_address

# With printk's own clock before it where syslog keeps that: seconds since the boot.
_BEGIN = rb"(?:\[ {0,6}\d{1,10}\.\d{6}\] )?(?:%b)(?P<packet>IN=.*)"
# No blank, slash or colon (dev_valid_name), at most IFNAMSIZ - 1 bytes.
_DEVICE = rb"[^\x00-\x20/:\x7f]{1,15}"
_NUMBER = rb"\d{1,10}"
_V4 = rb"\d{1,3}(?:\.\d{1,3}){3}"
_V6 = rb"[0-9a-f]{4}(?::[0-9a-f]{4}){7}"
_MAC = rb"[0-9a-f]{2}(?::[0-9a-f]{2}){5}"
_OPTIONS = rb"OPT \([0-9A-F]{2,80}\) "
_FLAGS = b"".join(rb"(?:%b )?" % flag for flag in (b"AE", b"CWR", b"ECE"))
_SEEN = b"".join(rb"(?:%b )?" % flag for flag in (b"URG", b"ACK", b"PSH", b"RST", b"SYN", b"FIN"))
_PACKET = re.compile(
    rb"IN=(?P<in>%(device)b)? OUT=(?:%(device)b)? (?:PHYSIN=%(device)b )?(?:PHYSOUT=%(device)b )?"
    rb"(?:MAC=[0-9a-f:]{0,255} (?:TUNNEL=%(v4)b->%(v4)b )?"
    rb"|MACSRC=%(mac)b MACDST=%(mac)b (?:VPROTO=[0-9a-f]{4} VID=\d{1,4} )?MACPROTO=[0-9a-f]{4} )?"
    rb"(?:SRC=(?P<v4>%(v4)b) DST=%(v4)b LEN=%(n)b TOS=0x[0-9A-F]{2} PREC=0x[0-9A-F]{2} TTL=\d{1,3} ID=\d{1,5} "
    rb"(?:CE )?(?:DF )?(?:MF )?(?P<options>%(options)b)?"
    rb"|SRC=(?P<v6>%(v6)b) DST=%(v6)b LEN=%(n)b TC=\d{1,3} HOPLIMIT=\d{1,3} FLOWLBL=\d{1,7} "
    rb"(?:OPT \( |\) |FRAG:0 (?:INCOMPLETE )?ID:[0-9a-f]{8} |AH SPI=0x[0-9a-f]{1,8} ){0,32})"
    rb"(?:PROTO=TCP SPT=\d{1,5} DPT=(?P<tcp>\d{1,5}) (?:SEQ=%(n)b ACK=%(n)b )?WINDOW=\d{1,5} RES=0x[0-9a-f]{2} "
    rb"%(flags)b(?P<flags>%(seen)b)URGP=\d{1,5} (?:%(options)b)?"
    rb"|PROTO=UDP SPT=\d{1,5} DPT=(?P<udp>\d{1,5}) LEN=\d{1,5} )"
    rb"(?:UID=%(n)b GID=%(n)b )?(?:MARK=0x[0-9a-f]{1,8} )?"
    % {
        b"device": _DEVICE, b"n": _NUMBER, b"v4": _V4, b"v6": _V6, b"mac": _MAC, b"options": _OPTIONS,
        b"flags": _FLAGS, b"seen": _SEEN,
    }
)  # fmt: skip
_NO_PORT = re.compile(rb" (?:PROTO=(?!TCP |UDP )|FRAG:[1-9]|INCOMPLETE \[)|ARP HTYPE=")
_XMAS = TcpFlags.FIN | TcpFlags.PSH | TcpFlags.URG
_ANSWER = TcpFlags.SYN | TcpFlags.ACK
_KINDS = {0: Kind.NULL, TcpFlags.SYN: Kind.SYN, TcpFlags.FIN: Kind.FIN, TcpFlags.ACK: Kind.ACK}


def scans(prefixes: Sequence[str]) -> Callable[[bytes, datetime], ScanEvent | None]:
    """Return what reads the kernel's messages (with their time) of rules with these prefixes, of ASCII.

    It returns None for other messages, and for packets that are no probes; it raises ParseError for a packet that tells
    no port (ICMP, fragments, ARP), and for what is not whole.
    """
    begin = re.compile(_BEGIN % b"|".join(re.escape(prefix.encode("ascii")) for prefix in prefixes), re.DOTALL)

    def scan(message: bytes, time: datetime) -> ScanEvent | None:
        found = begin.fullmatch(message)
        return None if found is None else _event(found["packet"], time)

    return scan


def _event(packet: bytes, time: datetime) -> ScanEvent | None:
    # journald and some syslog daemons take the blank at the end away.
    match = _PACKET.fullmatch(packet if packet.endswith(b" ") else packet + b" ")
    if match is None:
        if _NO_PORT.search(packet):
            raise ParseError("a packet that tells no port: have the rule log TCP and UDP only")
        raise ParseError("not a packet as the kernel logs it")
    protocol, number = (Protocol.TCP, match["tcp"]) if match["tcp"] else (Protocol.UDP, match["udp"])
    port = int(number)
    if not 1 <= port <= 65535:
        raise ParseError(f"{port} is not a port")
    address = parse_address((match["v4"] or match["v6"]).decode("ascii"))
    flags = None
    kind: Kind | None = Kind.UDP
    if protocol is Protocol.TCP:
        flags, kind = _flags_and_kind(match["flags"])
    if kind is None or not match["in"]:
        return None
    # Without --log-ip-options nothing is known of them.
    options = True if match["options"] else None
    return ScanEvent(
        time=time, address=address, port=port, protocol=protocol, kind=kind, flags=flags, ip_options=options
    )


# Of 64 texts, as the grammar has them.
@cache
def _flags_and_kind(text: bytes) -> tuple[TcpFlags, Kind | None]:
    flags = TcpFlags(sum(TcpFlags[name.decode()] for name in text.split()))
    if flags & TcpFlags.RST or flags & _ANSWER == _ANSWER:
        return flags, None
    if not flags & TcpFlags.ACK and flags & _XMAS == _XMAS:
        return flags, Kind.XMAS
    return flags, _KINDS.get(flags, Kind.OTHER)
