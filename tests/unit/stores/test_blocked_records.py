"""PortSentry's blocked files: whose records they have, and what is left without some."""

import pytest

from jailbridge.model.network import Network, parse_network
from jailbridge.stores.blocked_records import hosts, without

TEXT = b"1795329057 - 11/22/2026 06:30:57 Host: %b/%b Port: 11 TCP Blocked\n"
SEVEN, EIGHT = (TEXT % (host, host) for host in (b"192.0.2.7", b"192.0.2.8"))
NAMED = TEXT % (b"a.example/", b"192.0.2.9")
SIX = TEXT % (b"fd98::2", b"fd98::2")
BINARY_7 = (2).to_bytes(2, "little") + bytes([192, 0, 2, 7])
BINARY_8 = (2).to_bytes(2, "little") + bytes([192, 0, 2, 8])
BINARY_6 = (10).to_bytes(2, "little") + bytes.fromhex("fd980000000000000000000000000002")


def nets(*texts: str) -> set[Network]:
    return {parse_network(text) for text in texts}


def test_every_record_names_its_host() -> None:
    assert hosts(SEVEN + EIGHT + NAMED + SIX) == nets("192.0.2.7", "192.0.2.8", "192.0.2.9", "fd98::2")
    assert hosts(BINARY_7 + BINARY_6) == nets("192.0.2.7", "fd98::2")
    assert hosts(b"") == set()


@pytest.mark.parametrize(
    "junk", [b"", b"\n", b"# x\n", b"\x00\xff\n", SEVEN[:-2] + b"\n", b"Host: 192.0.2.7/192.0.2.7 \n"]
)
def test_a_hosts_lines_go_and_what_is_no_record_stays(junk: bytes) -> None:
    content = junk + SEVEN + EIGHT + junk + SEVEN
    assert without(content, nets("192.0.2.7")) == junk + EIGHT + junk
    assert without(content, nets("192.0.2.77")) == content


@pytest.mark.parametrize("end", [b"\r\n", b""])
def test_a_line_may_end_as_it_likes(end: bytes) -> None:
    assert without(EIGHT + SEVEN.rstrip(b"\n") + end, nets("192.0.2.7")) == EIGHT


@pytest.mark.parametrize("tail", [b"", b"\x02", b"\x02\x00\xc0\x00", b"\x0a\x00" + bytes(15), b"\x63\x00 whatever\n"])
def test_binary_records_go_and_a_damaged_end_stays(tail: bytes) -> None:
    content = BINARY_7 + BINARY_6 + BINARY_8 + BINARY_7 + tail
    assert without(content, nets("192.0.2.7")) == BINARY_6 + BINARY_8 + tail
    assert without(content, nets("192.0.2.7", "192.0.2.8", "fd98::2")) == tail
    assert without(content, ()) == content


def test_a_mapped_address_is_the_ipv4_host() -> None:
    mapped = (10).to_bytes(2, "little") + bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 7])
    assert hosts(mapped) == nets("192.0.2.7")
    assert without(mapped + BINARY_8, nets("192.0.2.7")) == BINARY_8
