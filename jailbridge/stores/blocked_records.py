"""The records of PortSentry's blocked files, of either version: who is "already blocked". Pure.

1.2   text, the history's own line per source
2.x   binary: per source a uint16 address family in host byte order (2 or 10), then 4 or 16 bytes of address
"""

import re
import struct
from collections.abc import Container, Iterator
from ipaddress import ip_address

from jailbridge.errors import ParseError
from jailbridge.model.network import Network, parse_network

LINE = re.compile(rb"\d+ - [\d/]+ [\d:]+ Host: [^\x00-\x20\x7f]+/(?P<address>[\da-f.:]+) Port: \d+ (?:TCP|UDP) Blocked")
"""As history.dialects reads it, but only the address, as it stands: whole files are read again and again."""

# sa_family_t is an unsigned short in host byte order; Linux has AF_INET 2 and AF_INET6 10.
_FAMILY = struct.Struct("=H")
_FAMILY_OF = {4: 2, 16: 10}
_SIZE_OF = {2: 4, 10: 16}
_LINES = re.compile(rb"[^\n]*\n|[^\n]+")


def record(source: bytes) -> bytes:
    """Return the binary record of a packed address."""
    return _FAMILY.pack(_FAMILY_OF[len(source)]) + source


def sources(data: bytes) -> tuple[list[bytes], int]:
    """Return the packed addresses of a binary list, and how many of its bytes were understood."""
    found, at = [], 0
    while at + _FAMILY.size <= len(data):
        size = _SIZE_OF.get(_FAMILY.unpack_from(data, at)[0])
        end = at + _FAMILY.size + (size or 0)
        if size is None or end > len(data):
            break
        found.append(data[end - size : end])
        at = end
    return found, at


def hosts(content: bytes) -> set[Network]:
    """Return the hosts that have a record in a blocked file of either version."""
    found = (_host(data) for data, _ in _records(content))
    return {host for host in found if host is not None}


def without(content: bytes, ended: Container[Network]) -> bytes:
    """Return a blocked file without the records of these hosts; all that is no record stays, a damaged end as well."""
    return b"".join(whole for data, whole in _records(content) if (host := _host(data)) is None or host not in ended)


def _records(content: bytes) -> Iterator[tuple[bytes | str | None, bytes]]:
    """Yield (address, bytes) of each record, a packed address or its text, None with the bytes that are none."""
    packed, understood = sources(content)
    if packed:
        yield from ((source, record(source)) for source in packed)
        yield None, content[understood:]
        return
    for line in _LINES.findall(content):
        match = LINE.fullmatch(line.rstrip(b"\r\n"))
        yield match["address"].decode("ascii") if match is not None else None, line


def _host(address: bytes | str | None) -> Network | None:
    if address is None:
        return None
    try:
        return parse_network(address if isinstance(address, str) else str(ip_address(address)))
    except ParseError:
        return None
