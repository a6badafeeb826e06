"""Tells cheaply that something in netfilter's rules changed, by a mark that every change moves; not what did.

Each question is one system call on a socket of its own, in the network namespace of the thread that asks. Both need
CAP_NET_ADMIN. Numbers: linux/netfilter/nf_tables.h, nfnetlink.h, linux/netfilter_ipv4/ip_tables.h, ip6_tables.h.
"""

import ctypes
import errno
import hashlib
import os
import socket
import struct
import sys
from contextlib import suppress
from typing import NamedTuple

_NETLINK_NETFILTER = 12
_NLM_F_REQUEST = 1
_NFNL_SUBSYS_NFTABLES = 10
_NFT_MSG_NEWGEN = _NFNL_SUBSYS_NFTABLES << 8 | 15
_NFT_MSG_GETGEN = _NFNL_SUBSYS_NFTABLES << 8 | 16
_NFTA_GEN_ID = 1
_HEADERS = struct.Struct("=IHHII" + "BBH")
_ATTRIBUTE = struct.Struct("=HH")
_TIMEOUT_S = 1.0
_SO_GET_INFO, _SO_GET_ENTRIES = 64, 65
_NAME = b"filter"
# struct ipt_getinfo and ip6t_getinfo: name[32], valid_hooks, hook_entry[5], underflow[5], num_entries, size.
_INFO_SIZE = 84
_NEXT = struct.Struct("=H")
# How often another may be in the middle of a writing.
_TRIES = 10

_libc = ctypes.CDLL(None, use_errno=True)


def ruleset_mark() -> bytes:
    """Return the number that every transaction of nftables moves, anyone's. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.settimeout(_TIMEOUT_S)
        netlink.send(_HEADERS.pack(_HEADERS.size, _NFT_MSG_GETGEN, _NLM_F_REQUEST, 1, 0, socket.AF_UNSPEC, 0, 0))
        answer = netlink.recv(4096)
    if len(answer) < _HEADERS.size + 8 or _HEADERS.unpack_from(answer)[1] != _NFT_MSG_NEWGEN:
        raise OSError("nftables does not tell its ruleset's generation")
    length, kind = _ATTRIBUTE.unpack_from(answer, _HEADERS.size)
    if (length, kind) != (8, _NFTA_GEN_ID):
        raise OSError("nftables tells something else than its ruleset's generation")
    return answer[_HEADERS.size + 4 : _HEADERS.size + 8]


def legacy_mark() -> bytes:
    """Return a digest of all rules in both legacy tables `filter`, without what they have counted. Raises OSError.

    The kernel numbers no changes of these tables: they are read, which takes 5 ms at a thousand rules.
    """
    digest = hashlib.blake2b(digest_size=16)
    for table in _LEGACY:
        digest.update(_without_counters(_entries(table), table))
    return digest.digest()


class _Entry(ctypes.Structure):
    """struct ipt_entry."""

    _fields_ = (
        ("ip", ctypes.c_uint32 * 21),
        ("nfcache", ctypes.c_uint),
        ("target_offset", ctypes.c_uint16),
        ("next_offset", ctypes.c_uint16),
        ("comefrom", ctypes.c_uint),
        ("counters", ctypes.c_uint64 * 2),
    )


class _Entry6(ctypes.Structure):
    """struct ip6t_entry."""

    _fields_ = (("ip", ctypes.c_uint32 * 34), *_Entry._fields_[1:])


class _Entries(ctypes.Structure):
    """struct ipt_get_entries and ip6t_get_entries."""

    _fields_ = (("name", ctypes.c_char * 32), ("size", ctypes.c_uint), ("entries", _Entry * 0))


class _Table(NamedTuple):
    family: int
    level: int
    entry: type[ctypes.Structure]


_LEGACY = (
    _Table(socket.AF_INET, socket.IPPROTO_IP, _Entry),
    _Table(socket.AF_INET6, socket.IPPROTO_IPV6, _Entry6),
)


def _entries(table: _Table) -> bytearray:
    """Return all entries of a table `filter`, one after the other."""
    start = _Entries.entries.offset
    with socket.socket(table.family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for _ in range(_TRIES):
            size = int.from_bytes(_asked(raw, table, _SO_GET_INFO, _NAME.ljust(_INFO_SIZE, b"\0"))[-4:], sys.byteorder)
            asking = bytes(_Entries(name=_NAME, size=size)).ljust(start + size, b"\0")
            with suppress(BlockingIOError):
                return _asked(raw, table, _SO_GET_ENTRIES, asking)[start:]
    raise BlockingIOError(errno.EAGAIN, "the tables of iptables are being written all the time")


def _asked(raw: socket.socket, table: _Table, question: int, asking: bytes) -> bytearray:
    """Return the kernel's answer, which it writes over what it is asked by. Raises OSError."""
    # Python's own getsockopt gives the kernel nothing, and this one reads the table's name there.
    answer = ctypes.create_string_buffer(asking, len(asking))
    size = ctypes.c_uint32(len(asking))
    if _libc.getsockopt(raw.fileno(), table.level, question, answer, ctypes.byref(size)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return bytearray(answer)


def _without_counters(entries: bytearray, table: _Table) -> bytearray:
    entry, nothing = table.entry, bytes(16)
    size, following, counters = ctypes.sizeof(entry), entry.next_offset.offset, entry.counters.offset
    at = 0
    while at < len(entries):
        entries[at + counters : at + counters + len(nothing)] = nothing
        at += max(size, _NEXT.unpack_from(entries, at + following)[0])
    return entries
