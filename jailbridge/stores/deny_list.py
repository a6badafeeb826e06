"""The text of the list that hosts.deny names under `form = "file"`: one client pattern a line, and our token. Pure.

hosts_access(5): a pattern that begins with "/" names a file of patterns, separated by blanks or line ends. There are no
comments: libwrap compares each word of one with the client, "ALL" too (tcp_wrappers 7.6, hosts_access.c,
hostfile_match). So the token stands there as a pattern that no client can match, and for whose sake no name is looked
up: its letters' numbers, three digits each, joined by dots. (What has a letter is compared with the client's name,
which a server of the client's own tells.)
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from jailbridge.model.network import Network
from jailbridge.model.token import Token
from jailbridge.stores.deny_file import NOTHING, Said, client, client_network

_LINES = re.compile(rb"[^\n]*\n|[^\n]+")
# An address has four numbers, the shortest token a dozen.
_TOKEN = re.compile(rb"\d{3}(?:\.\d{3}){7,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DenyList:
    """A list taken apart. `token` None: it bears none.

    unknown  lines with other patterns, with their newline
    said     its lines of one ban each, and what they say
    """

    token: str | None = None
    bans: tuple[Network, ...] = ()
    unknown: tuple[bytes, ...] = ()
    said: Said = field(default_factory=dict, repr=False)


def read_list(content: bytes, known: Said = NOTHING) -> DenyList:
    """Return the parts of a list; any bytes are one. `known` is what an earlier reading found, and saves time."""
    token: str | None = None
    bans: dict[Network, None] = {}
    unknown: list[bytes] = []
    said: dict[bytes, Network] = {}
    for line in _LINES.findall(content):
        if (network := known.get(line)) is not None:
            bans[network] = None
            said[line] = network
            continue
        words = line.split()
        if len(words) == 1 and _TOKEN.fullmatch(words[0]):
            token = _decoded(words[0])
            continue
        networks = [network for word in words if (network := client_network(word)) is not None]
        if len(networks) < len(words):
            unknown.append(line)
            continue
        bans.update(dict.fromkeys(networks))
        if len(networks) == 1:
            said[line] = networks[0]
    return DenyList(token=token, bans=tuple(bans), unknown=tuple(unknown), said=said)


def list_text(parts: DenyList, bans: Iterable[Network], token: str) -> bytes:
    """Return the list with exactly `bans` and the token; what was there keeps its order, the unknown is first."""
    wanted = dict.fromkeys(bans)
    kept = [network for network in parts.bans if network in wanted]
    lines = [_encoded(token), *(line.rstrip(b"\n") for line in parts.unknown)]
    lines += [client(network).encode() for network in dict.fromkeys([*kept, *wanted])]
    return b"\n".join(lines) + b"\n"


def agreed(block: str | None, listed: str | None) -> str | None:
    """Return the token of a block and the list that it names, None where they are not of one writing.

    The block is written once and the list for every change: they agree where ledger and layout do.
    """
    ours, theirs = Token.parse(block), Token.parse(listed)
    if ours is None or theirs is None or (ours.ledger, ours.layout) != (theirs.ledger, theirs.layout):
        return None
    return listed


def _encoded(token: str) -> bytes:
    return b".".join(b"%03d" % letter for letter in token.encode("ascii"))


def _decoded(word: bytes) -> str | None:
    numbers = [int(number) for number in word.split(b".")]
    return bytes(numbers).decode("ascii", "replace") if max(numbers) < 256 else None
