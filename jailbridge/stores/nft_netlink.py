"""The bytes that our nftables steps travel to the kernel in, and those in which it lists and tells. Pure.

Forms and numbers: linux/netlink.h, linux/netfilter/nfnetlink.h and nf_tables.h; what nft adds to them for its own
listings: libnftnl's udata.h. Numbers are in the machine's order, but for those that netfilter wants in the network's.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jailbridge.stores.nft_sets import TABLE, Element, NftSet, Step, Verb

# A NamedTuple's own way to make one takes three times as long.
_new = tuple.__new__
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_CODE = struct.Struct("=i")
_REQUEST, _ACK, _CREATE, _DUMP = 0x001, 0x004, 0x400, 0x300
_ERROR, _DONE = 2, 3
_NESTED = 0x8000
_NFTABLES = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_STEPS = {Verb.ADD: (_NFTABLES << 8 | 12, _REQUEST | _CREATE), Verb.DELETE: (_NFTABLES << 8 | 14, _REQUEST)}
_LIST, _ELEMENTS = _NFTABLES << 8 | 13, _NFTABLES << 8 | 12
_INET = 1
# struct nfgenmsg: family, version, a number: in a batch's ends whose batch it is, in news the ruleset's generation.
_GENERAL = struct.Struct("!BBH")
_BATCH = _GENERAL.pack(0, 0, _NFTABLES)
_ELEMENT, _VALUE, _KEY, _FLAGS, _TIMEOUT, _REMAINING, _USERDATA = 1, 1, 1, 3, 4, 5, 6
_INTERVAL_END = 1
_COMMENT = 0
_MILLISECONDS = struct.Struct("!Q")
# A range that has no end, as one up to the last address: nft then lists it as it was asked for.
_OPEN = bytes((1, 4)) + struct.pack("=I", 1)


def _attribute(kind: int, content: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(content), kind) + content + bytes(-len(content) & 3)


# The first attribute of every message on a table's content is the table's name.
_OUR_NAME = _attribute(1, TABLE.encode() + b"\0")
_OUR_TABLE = _GENERAL.pack(_INET, 0, 0) + _OUR_NAME
# What stands before an address where it is a key, by the bytes that it has.
_BEFORE_KEY = {n: _ATTRIBUTE.pack(8 + n, _KEY | _NESTED) + _ATTRIBUTE.pack(4 + n, _VALUE) for n in (4, 16)}
# What stands before it in an element that has nothing else, as nearly all: as we write it, and as the kernel does, who
# does not mark what is nested.
_BARE = {n: _ATTRIBUTE.pack(12 + n, _ELEMENT | _NESTED) + before for n, before in _BEFORE_KEY.items()}
_BARE_HELD = {
    n: _ATTRIBUTE.pack(12 + n, _ELEMENT) + _ATTRIBUTE.pack(8 + n, _KEY) + _ATTRIBUTE.pack(4 + n, _VALUE)
    for n in _BEFORE_KEY
}


class Answer(NamedTuple):
    """What the kernel says of one message of a batch: its place in it, and an errno or 0."""

    number: int
    error: int


class Held(NamedTuple):
    """An element as the kernel lists it.

    address       its key as a number; None where that is no address of the set's type
    remaining_ms  how long it will last, None for ever
    is_end        it says no more than where the interval that starts before it ends: at the address before this
    """

    address: int | None
    remaining_ms: int | None = None
    comment: str | None = None
    is_end: bool = False


def batch(steps: Sequence[Step]) -> bytes:
    """Return steps as one transaction, made as a whole or not at all; the last, number len(steps), is acknowledged.

    Of interval sets they may hold the last address only, whose range needs no end.
    """
    parts = [_message(_BATCH_BEGIN, _REQUEST, 0, _BATCH)]
    for number, step in enumerate(steps, start=1):
        kind, flags = _STEPS[step.verb]
        if number == len(steps):
            flags |= _ACK
        elements = b"".join([_element(element, step.set) for element in step.elements])
        parts.append(_message(kind, flags, number, _of(step.set) + _attribute(3 | _NESTED, elements)))
    parts.append(_message(_BATCH_END, _REQUEST, len(steps) + 1, _BATCH))
    return b"".join(parts)


def listing(s: NftSet) -> bytes:
    """Return the request for all elements of a set."""
    return _message(_LIST, _REQUEST | _DUMP, 0, _of(s))


def _of(s: NftSet) -> bytes:
    return _OUR_TABLE + _attribute(2, s.name.encode() + b"\0")


def _message(kind: int, flags: int, number: int, content: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(content), kind, flags, number, 0) + content


def _element(element: Element, s: NftSet) -> bytes:
    network, timeout_s, comment = element
    address = network.packed
    if timeout_s is None and comment is None and not s.interval:
        return _BARE[len(address)] + address
    content = _BEFORE_KEY[len(address)] + address
    if timeout_s is not None:
        content += _attribute(_TIMEOUT, _MILLISECONDS.pack(timeout_s * 1000))
    more = b""
    if comment is not None:
        text = comment.encode() + b"\0"
        more = bytes((_COMMENT, len(text))) + text
    if s.interval:
        more += _OPEN
    if more:
        content += _attribute(_USERDATA, more)
    return _attribute(_ELEMENT | _NESTED, content)


def answers(part: bytes) -> Iterator[Answer]:
    """Yield what the kernel answers to a batch, from one piece that was received."""
    for start, _, kind, number, _ in _messages(part):
        if kind == _ERROR:
            yield Answer(number, -_CODE.unpack_from(part, start)[0])


def outcome(part: bytes) -> int | None:
    """Return how a listing ended, an errno or 0; None where this piece is not its last."""
    for start, _, kind, _, _ in _messages(part):
        if kind in {_ERROR, _DONE}:
            return -int(_CODE.unpack_from(part, start)[0])
    return None


def held(part: bytes, s: NftSet) -> Iterator[Held]:
    """Yield the elements of a set from one piece of its listing, in no order."""
    size = s.last.max_prefixlen // 8
    bare = _BARE_HELD[size]
    whole = len(bare) + size
    for content, end, kind, _, _ in _messages(part):
        if kind != _ELEMENTS:
            continue
        for what, start, stop in _attributes(part, content + _GENERAL.size, end):
            at = start if what == 3 else stop
            while at < stop:
                if part.startswith(bare, at):
                    yield _new(Held, (int.from_bytes(part[at + len(bare) : at + whole]), None, None, False))
                    at += whole
                else:
                    length, _ = _ATTRIBUTE.unpack_from(part, at)
                    yield _held(part, at + _ATTRIBUTE.size, at + length, size)
                    at += length + 3 & ~3


def _held(part: bytes, at: int, end: int, size: int) -> Held:
    address = remaining_ms = comment = None
    is_end = False
    for kind, start, stop in _attributes(part, at, end):
        if kind == _KEY and stop - start == _ATTRIBUTE.size + size:
            address = int.from_bytes(part[start + _ATTRIBUTE.size : stop])
        elif kind == _FLAGS:
            is_end = bool(int.from_bytes(part[start:stop]) & _INTERVAL_END)
        elif kind == _REMAINING:
            [remaining_ms] = _MILLISECONDS.unpack_from(part, start)
        elif kind == _USERDATA:
            comment = _comment(part[start:stop])
    return Held(address, remaining_ms, comment, is_end)


def _comment(userdata: bytes) -> str | None:
    while len(userdata) >= 2:
        kind, length = userdata[:2]
        if kind == _COMMENT:
            return userdata[2 : 2 + length].rstrip(b"\0").decode(errors="replace")
        userdata = userdata[2 + length :]
    return None


def is_of_others(part: bytes, own: int | None) -> bool:
    """Tell whether a piece of the kernel's news has something of our table that did not come from the port `own`."""
    return _OUR_NAME in part and any(
        port != own and kind >> 8 == _NFTABLES and part[start] == _INET and part.startswith(_OUR_NAME, start + 4)
        for start, _, kind, _, port in _messages(part)
    )


def _messages(part: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield where each message's content starts and ends, its kind, its number and its sender's port."""
    at = 0
    while at < len(part):
        length, kind, _, number, port = _HEADER.unpack_from(part, at)
        yield at + _HEADER.size, at + length, kind, number, port
        at += length + 3 & ~3


def _attributes(part: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield each attribute's kind, and where its content starts and ends."""
    while at < end:
        length, kind = _ATTRIBUTE.unpack_from(part, at)
        yield kind & ~_NESTED, at + _ATTRIBUTE.size, at + length
        at += length + 3 & ~3
