"""What the kernel is told and tells over netlink, as bytes."""

import errno
import struct

import pytest

from jailbridge.stores import nft_netlink
from jailbridge.stores.nft_sets import SETS, Element, Step, Verb, standing

NEW_ELEMENT, DELETE_TABLE, NEW_GENERATION = 0x0A0C, 0x0A02, 0x0A0F
STEP = Step(Verb.ADD, SETS["hosts4"], [Element(standing(SETS["hosts4"], 0xC0000207), 60, "x")])


def message(kind: int, content: bytes, *, number: int = 0, port: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(content), kind, 0, number, port) + content + bytes(-len(content) % 4)


def news(kind: int, table: str, *, family: int = 1, port: int = 7, rest: bytes = b"") -> bytes:
    """What the kernel tells of a change to a table, in generation 3."""
    name = table.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(name), 1) + name + bytes(-len(name) % 4)
    return message(kind, bytes((family, 0, 0, 3)) + attribute + rest, port=port)


def answer(error: int, number: int) -> bytes:
    return message(2, struct.pack("=i", -error) + bytes(16), number=number)


def test_a_ban_is_the_message_that_nft_sends_for_it() -> None:
    # As `nft --debug=mnl` shows `add element inet jailbridge hosts4 { 192.0.2.7 timeout 60s comment "x" }`, but for the
    # set's number in the transaction, which only a new set needs.
    expected = """
        14000000 1000 0100 00000000 00000000  0000000a
        58000000 0c0a 0504 01000000 00000000  01000000
        0f000100 6a61696c627269646765 0000  0b000200 686f73747334 0000
        28000380 24000180  0c000180 08000100 c0000207  0c000400 000000000000ea60  08000600 00027800
        14000000 1100 0100 02000000 00000000  0000000a
    """
    assert nft_netlink.batch([STEP]) == bytes.fromhex("".join(expected.split()))


def test_only_the_last_step_is_acknowledged() -> None:
    sent = nft_netlink.batch([STEP, STEP, STEP])
    flags, at = [], 0
    while at < len(sent):
        flags.append(struct.unpack_from("=H", sent, at + 6)[0])
        at += struct.unpack_from("=I", sent, at)[0]
    assert [bool(each & 4) for each in flags] == [False, False, False, True, False]


@pytest.mark.parametrize("count", [1, 511, 512])
@pytest.mark.parametrize("name", ["hosts4", "hosts6", "nets6"])
def test_a_step_of_any_size_fits_its_attribute(name: str, count: int) -> None:
    s = SETS[name]
    elements = [Element(standing(s, n << 128 - s.width if s.width > 32 else n), 2**40) for n in range(count)]
    sent = nft_netlink.batch([Step(Verb.ADD, s, elements)])
    (length,) = struct.unpack_from("=I", sent, 20)
    assert length == len(sent) - 40 < 1 << 16


def test_the_last_address_of_an_interval_set_has_no_end() -> None:
    s = SETS["prefixes4"]
    sent = nft_netlink.batch([Step(Verb.ADD, s, [Element(standing(s, int(s.last)), None, "x")])])
    assert sent.count(bytes.fromhex("0e000600" + "00027800" + "010401000000")) == 1


def test_answers_are_read_with_the_number_of_what_they_answer() -> None:
    part = answer(errno.ENOENT, 2) + answer(0, 11)
    assert list(nft_netlink.answers(part)) == [(2, errno.ENOENT), (11, 0)]
    assert list(nft_netlink.answers(b"")) == []


@pytest.mark.parametrize(
    ("part", "is_one"),
    [
        (news(NEW_ELEMENT, "jailbridge"), True),
        (news(DELETE_TABLE, "jailbridge"), True),
        (news(NEW_ELEMENT, "jailbridge", port=5), False),
        (news(NEW_ELEMENT, "jailbridge2"), False),
        (news(NEW_ELEMENT, "jailbridg"), False),
        (news(NEW_ELEMENT, "filter"), False),
        (news(NEW_ELEMENT, "jailbridge", family=2), False),
        (news(NEW_ELEMENT, "filter", rest=news(NEW_ELEMENT, "jailbridge")[20:]), False),
        (news(NEW_GENERATION, "jailbridge", family=0), False),
        (news(0x0100, "jailbridge"), False),
        (news(NEW_ELEMENT, "filter") * 50 + news(NEW_ELEMENT, "jailbridge"), True),
        (news(NEW_ELEMENT, "jailbridge", port=5) * 50 + news(NEW_ELEMENT, "jailbridge"), True),
        (b"", False),
    ],
)
def test_news_of_our_table_that_we_did_not_cause_is_told_from_all_other(part: bytes, is_one: bool) -> None:
    assert nft_netlink.is_of_others(part, 5) is is_one


def test_before_we_wrote_anything_all_news_are_of_others() -> None:
    assert nft_netlink.is_of_others(news(NEW_ELEMENT, "jailbridge", port=5), None)


# listings


def element(content: str) -> bytes:
    """An element of hosts4 in a listing, from what the kernel really sent."""
    raw = bytes.fromhex("".join(content.split()))
    elements = struct.pack("=HH", 4 + len(raw), 3) + raw
    return message(NEW_ELEMENT, bytes((1, 0, 0, 3)) + elements)


def done(error: int = 0) -> bytes:
    return message(3, struct.pack("=i", -error))


def test_a_listing_asks_for_one_set_of_our_table() -> None:
    # As `nft --debug=mnl list set inet jailbridge hosts4` shows it, names the other way round.
    expected = """
        30000000 0d0a 0103 00000000 00000000  01000000
        0f000100 6a61696c627269646765 0000  0b000200 686f73747334 0000
    """
    sent = nft_netlink.listing(SETS["hosts4"])
    assert sent == bytes.fromhex("".join(expected.split()))


@pytest.mark.parametrize(
    ("name", "content", "held"),
    [
        ("hosts4", "10000100 0c000100 08000100 c0000208", nft_netlink.Held(0xC0000208)),
        (
            "hosts4",
            "30000100 0c000100 08000100 c0000207 0c000400 000000000000ea60 0c000500 000000000000ea5008000600 00027800",
            nft_netlink.Held(0xC0000207, 59984, "x"),
        ),
        (
            "prefixes4",
            "20000100 0c000100 08000100 ffffffff 0e000600 00027800 010401000000 0000",
            nft_netlink.Held(0xFFFFFFFF, None, "x"),
        ),
        (
            "prefixes4",
            "18000100 0c000100 08000100 0c000000 08000300 00000001",
            nft_netlink.Held(0x0C000000, is_end=True),
        ),
        (
            "prefixes6",
            "1c000100 18000100 14000100 20010db8000000080000000000000000",
            nft_netlink.Held(0x20010DB8 << 96 | 8 << 64),
        ),
        # Other keys than an address: a port, a catch-all; other data of a user's.
        ("hosts4", "10000100 0a000100 06000100 0016 0000", nft_netlink.Held(None)),
        ("hosts4", "0c000100 08000300 00000002", nft_netlink.Held(None)),
        ("hosts4", "18000100 0c000100 08000100 c0000207 05000600 07000000", nft_netlink.Held(0xC0000207)),
        ("hosts4", "18000100 0c000100 08000100 c0000207 06000600 ff09 0000", nft_netlink.Held(0xC0000207)),
        ("hosts4", "18000100 0c000100 08000100 c0000207 08000600 0002ff00", nft_netlink.Held(0xC0000207, None, "�")),
    ],
)
def test_an_element_is_read_as_the_kernel_lists_it(name: str, content: str, held: nft_netlink.Held) -> None:
    part = element(content + content) + element("") + element(content)
    assert list(nft_netlink.held(part, SETS[name])) == [held] * 3


def test_a_listing_ends_well_or_with_an_error() -> None:
    some = element("10000100 0c000100 08000100 c0000208")
    assert nft_netlink.outcome(some) is None
    assert nft_netlink.outcome(some + done()) == 0
    assert nft_netlink.outcome(done(errno.EINTR)) == errno.EINTR
    assert nft_netlink.outcome(answer(errno.ENOENT, 0)) == errno.ENOENT
