"""Elements of ipsets put in, taken out and asked for over netlink, without a program. Knows no set of ours.

The kernel answers within the sending itself, so nothing here waits. Every call sees the network namespace of its
thread. Numbers: linux/netlink.h, linux/netfilter/nfnetlink.h and linux/netfilter/ipset/ip_set.h; what the kernel
demands of a message: net/netfilter/ipset/ip_set_core.c.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from itertools import islice
from typing import NamedTuple

from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.network import Network

# Error numbers that only ipset has. EXIST: already added, or not there to be taken out, or not in the set.
PRIVATE = 4096
EXIST = 4103
HASH_FULL = 4352
# Spoken by every kernel since 2.6.39; version 7 adds nothing that is used here.
PROTOCOL = 6
# Answers lie in the socket, 1 KiB each, until they are read: it takes 208 KiB (net.core.rmem_default).
TOGETHER = 100

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 6
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _EXCL = 0x001, 0x004, 0x200
_NESTED, _NETORDER, _KIND = 0x8000, 0x4000, 0x3FFF
_VERSION, _NAME, _FLAGS, _DATA = 1, 2, 6, 7
_IP, _CIDR, _TIMEOUT, _ELEMENTS, _REFERENCES, _COMMENT = 1, 3, 6, 24, 25, 26
_LIST = 7
_LIST_HEADER = 1 << 2
_PART = 1 << 16

_HEADER = struct.Struct("=IHHII")
_NETFILTER = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_CODE = struct.Struct("=i")


class Verb(IntEnum):
    """What is done with an element, as the kernel numbers it."""

    ADD = 9
    DELETE = 10
    TEST = 11


class Request(NamedTuple):
    """One thing to do with one element of a set.

    timeout_s  after which the kernel takes it out, 0 for never; at most 2,147,483
    strict     to add what is there, or delete what is not, is the error EXIST and changes nothing; otherwise it is
               none, and an addition renews timeout and comment
    """

    verb: Verb
    set: str
    network: Network
    timeout_s: int = 0
    comment: str = ""
    strict: bool = False


class Standing(NamedTuple):
    """How a set stands: its elements, and how many rules and other sets refer to it."""

    elements: int
    references: int


def ask(requests: Iterable[Request]) -> list[int]:
    """Make each request in this order, whatever becomes of the others; return their error numbers, 0 for done.

    Raises RetryLater and FatalError where the kernel cannot be asked at all.
    """
    codes: list[int] = []
    rest = iter(requests)
    with _opened() as sock:
        while together := list(islice(rest, TOGETHER)):
            _send(sock, b"".join(_message(one, number) for number, one in enumerate(together)))
            answered: dict[int, int] = {}
            while len(answered) < len(together):
                for number, kind, code, _ in _answers(sock):
                    if code == errno.EPERM:
                        # Told once, of all that were sent together.
                        raise failure(code, together[number].set)
                    if kind == _ERROR:
                        answered[number] = code
            codes += [answered[number] for number in range(len(together))]
    return codes


def standing(name: str) -> Standing | None:
    """Return how a set stands, None where none has this name. Raises RetryLater and FatalError.

    The kernel walks all elements to count them: 0.2 ms at 100,000.
    """
    body = _named(name) + _attribute(_FLAGS | _NETORDER, struct.pack("!I", _LIST_HEADER))
    found: Standing | None = None
    with _opened() as sock:
        _send(sock, _framed(_LIST, _REQUEST, 0, socket.AF_UNSPEC, body))
        while True:
            for _, kind, code, part in _answers(sock):
                if code == errno.ENOENT:
                    return None
                if code:
                    raise failure(code, name)
                if kind in {_ERROR, _DONE}:
                    return found
                found = _standing(part)


def failure(code: int, name: str) -> RetryLater | FatalError:
    """Return what an error number means to somebody who asked about the set `name`."""
    if code == errno.EPERM:
        return FatalError("ipset: not permitted: run as root, or with CAP_NET_ADMIN")
    if code in {errno.EINVAL, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT}:
        return FatalError("ipset: this kernel has none: modprobe ip_set_hash_net, or choose another backend")
    if code == errno.ENOENT:
        return RetryLater(f"ipset: the set {name} is gone")
    words = os.strerror(code) if code < PRIVATE else f"error {code}"
    return RetryLater(f"ipset: the kernel refuses {name}: {words}")


def _opened() -> socket.socket:
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)
    except OSError as error:
        raise failure(error.errno or 0, "") from None


def _send(sock: socket.socket, messages: bytes) -> None:
    try:
        sock.sendto(messages, (0, 0))
    except OSError as error:
        raise failure(error.errno or 0, "") from None


def _answers(sock: socket.socket) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield of each message of one part: the number of what it answers, kind, error number, and all behind these."""
    try:
        part = sock.recv(_PART)
    except OSError as error:
        raise RetryLater(f"ipset: the kernel did not answer: {error.strerror}") from None
    at = 0
    while at < len(part):
        length, kind, _, number, _ = _HEADER.unpack_from(part, at)
        body = part[at + _HEADER.size : at + length]
        code = -_CODE.unpack_from(body)[0] if kind in {_ERROR, _DONE} else 0
        yield number, kind, code, body
        at += _padded(length)


def _standing(body: bytes) -> Standing:
    data = _attributes(_attributes(body[_NETFILTER.size :])[_DATA])
    return Standing(int.from_bytes(data[_ELEMENTS]), int.from_bytes(data[_REFERENCES]))


def _message(request: Request, number: int) -> bytes:
    network = request.network
    four = network.version == 4
    address = _attribute((1 if four else 2) | _NETORDER, network.packed)
    data = _attribute(_IP | _NESTED, address) + _attribute(_CIDR, bytes([network.prefixlen]))
    if request.verb is Verb.ADD:
        # Always told: without, a set's own default would hold.
        data += _attribute(_TIMEOUT | _NETORDER, struct.pack("!I", request.timeout_s))
    if request.comment:
        data += _attribute(_COMMENT, request.comment.encode() + b"\0")
    flags = _REQUEST | _ACK | (_EXCL if request.strict else 0)
    family = socket.AF_INET if four else socket.AF_INET6
    return _framed(request.verb, flags, number, family, _named(request.set) + _attribute(_DATA | _NESTED, data))


def _named(name: str) -> bytes:
    return _attribute(_VERSION, bytes([PROTOCOL])) + _attribute(_NAME, name.encode() + b"\0")


def _framed(command: int, flags: int, number: int, family: int, body: bytes) -> bytes:
    length = _HEADER.size + _NETFILTER.size + len(body)
    return _HEADER.pack(length, _SUBSYSTEM << 8 | command, flags, number, 0) + _NETFILTER.pack(family, 0, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value.ljust(_padded(len(value)), b"\0")


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        found[kind & _KIND] = data[at + _ATTRIBUTE.size : at + length]
        at += _padded(length)
    return found


def _padded(length: int) -> int:
    return length + 3 & ~3
