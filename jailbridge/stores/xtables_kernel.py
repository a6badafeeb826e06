"""Tells cheaply that something in netfilter's rules changed, by a mark that every change moves; not what did.

Each question is one system call on a socket of its own, in the network namespace of the thread that asks. Both need
CAP_NET_ADMIN. Numbers: linux/netfilter/nf_tables.h, nfnetlink.h, linux/netfilter_ipv4/ip_tables.h, ip6_tables.h.
"""

import ctypes
import os
import socket
import struct

_NETLINK_NETFILTER = 12
_NLM_F_REQUEST = 1
_NFNL_SUBSYS_NFTABLES = 10
_NFT_MSG_NEWGEN = _NFNL_SUBSYS_NFTABLES << 8 | 15
_NFT_MSG_GETGEN = _NFNL_SUBSYS_NFTABLES << 8 | 16
_NFTA_GEN_ID = 1
_HEADERS = struct.Struct("=IHHII" + "BBH")
_ATTRIBUTE = struct.Struct("=HH")
_TIMEOUT_S = 1.0
_SO_GET_INFO = 64
# struct ipt_getinfo and ip6t_getinfo: name[32], valid_hooks, hook_entry[5], underflow[5], num_entries, size.
_INFO_SIZE = 84

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
    """Return how many rules both legacy tables `filter` have, their size and where each chain's begin. Raises OSError.

    Neither counters nor what stands in a rule move it: a rule exchanged for one of the same size is not seen.
    """
    return _info(socket.AF_INET, socket.IPPROTO_IP) + _info(socket.AF_INET6, socket.IPPROTO_IPV6)


def _info(family: int, level: int) -> bytes:
    # Python's own getsockopt gives the kernel nothing, and this one reads the table's name there.
    info = ctypes.create_string_buffer(b"filter", _INFO_SIZE)
    size = ctypes.c_uint32(_INFO_SIZE)
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        if _libc.getsockopt(raw.fileno(), level, _SO_GET_INFO, info, ctypes.byref(size)) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return info.raw
