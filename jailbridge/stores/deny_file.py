"""The text of hosts.deny: our block between two marks, everything else kept to the byte. Pure.

Syntax: hosts_access(5), hosts_options(5). IPv4 networks are written with a dotted mask, which every libwrap knows; IPv6
addresses stand in brackets. A final backslash joins a line to the next, in comments too.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from jailbridge.errors import FatalError, ParseError
from jailbridge.model.network import Network, is_host, network_text, parse_network

BEGIN = b"# jailbridge begin "
END = b"# jailbridge end"
_HINT = b" - bans, written by jailbridge; see `jailbridge unban`"
# Line numbers shown of broken marks.
_SHOWN = 5
_CLIENT = rb"(?:\[(?P<six>[0-9A-Fa-f:.]{2,45})\](?P<size>/\d{1,3})?|(?P<four>[0-9.]{7,15}(?:/[0-9.]{1,15})?))"
# What denies exactly one network, under any rule: a list, an EXCEPT or an ALLOW says something else.
_DENIAL = re.compile(rb"[^:#\n]+:\s*" + _CLIENT + rb"\s*(?::(?!.*\ballow\b).*)?", re.IGNORECASE)
_ONE_CLIENT = re.compile(_CLIENT)
_LINES = re.compile(rb"[^\n]*\n|[^\n]+")
_JOINED_LINES = re.compile(rb"(?:[^\n]*\\\n)*(?:[^\n]*\n|[^\n]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class DenyFile:
    """A hosts.deny taken apart. `token` None: there is no block of ours, or it bears none.

    block   our block in its order: bans, and lines that are none (bytes, with their newline)
    refers  whether a line of it names the list, the file in which the addresses stand under `form = "file"`
    """

    before: bytes
    token: str | None
    block: tuple[Network | bytes, ...]
    after: bytes
    refers: bool = False

    @property
    def bans(self) -> tuple[Network, ...]:
        """The bans of our block, each once."""
        return tuple(dict.fromkeys(entry for entry in self.block if not isinstance(entry, bytes)))

    @property
    def unknown(self) -> tuple[bytes, ...]:
        """The lines of our block that are no bans."""
        return tuple(entry for entry in self.block if isinstance(entry, bytes))

    @property
    def foreign(self) -> int:
        """How many rules that are not ours stand in the file."""
        lines = [*_JOINED_LINES.findall(self.before), *self.unknown, *_JOINED_LINES.findall(self.after)]
        return sum(1 for line in lines if line.strip() and not line.lstrip().startswith(b"#"))


def take_apart(content: bytes, where: str, rule: str, listed: str | None = None) -> DenyFile:
    """Return the parts of a hosts.deny; `where` names it in errors, `listed` is the list's path.

    Raises FatalError for broken marks.
    """
    before, marked, after = split(content, where)
    begin, *inner = _LINES.findall(marked)[:-1] or [b""]
    token = begin[len(BEGIN) :].split(maxsplit=1)
    block = tuple(_entries(b"".join(inner), rule))
    naming = _naming(listed, rule)
    kept = tuple(entry for entry in block if not isinstance(entry, bytes) or not naming.fullmatch(entry.rstrip()))
    return DenyFile(
        before=before,
        token=token[0].decode("ascii", "replace") if token else None,
        block=kept,
        after=after,
        refers=len(kept) < len(block),
    )


def split(content: bytes, where: str) -> tuple[bytes, bytes, bytes]:
    """Return what stands before our block, the block with its marks (nothing where there is none), and what follows.

    `where` names the file in errors. Raises FatalError for broken marks.
    """
    lines = _LINES.findall(content)
    begins = [n for n, line in enumerate(lines) if line.startswith(BEGIN)]
    ends = [n for n, line in enumerate(lines) if line.rstrip() == END]
    if not begins and not ends:
        return content, b"", b""
    if len(begins) != 1 or len(ends) != 1 or begins[0] > ends[0]:
        broken = sorted(begins + ends)
        numbers = ", ".join(str(n + 1) for n in broken[:_SHOWN]) + (", …" if len(broken) > _SHOWN else "")
        raise FatalError(
            f"{where}: broken jailbridge marks (line {numbers}): there must be one '{BEGIN.decode()}…' "
            f"and after it one '{END.decode()}'; put them right, or delete them all"
        )
    parts = lines[: begins[0]], lines[begins[0] : ends[0] + 1], lines[ends[0] + 1 :]
    before, marked, after = map(b"".join, parts)
    return before, marked, after


def put_together(parts: DenyFile, bans: Iterable[Network], rule: str, token: str, listed: str | None = None) -> bytes:
    """Return the file with exactly `bans` in our block, one `rule` a ban, and the token in its begin line.

    `listed` gets a rule as well, and is the first. What stands in the block keeps its place; new bans come last.
    """
    left = dict.fromkeys(bans)
    text = [_ended(parts.before), BEGIN, token.encode(), _HINT, b"\n"]
    if listed is not None:
        text.append(_denying(listed, rule))
    for entry in parts.block:
        if isinstance(entry, bytes):
            text.append(_ended(entry))
        elif entry in left:
            del left[entry]
            text.append(_line(entry, rule))
    text += [_line(network, rule) for network in left]
    return b"".join([*text, END, b"\n", parts.after])


def client(network: Network) -> str:
    """Return a network as libwrap's client list writes it."""
    if network.version == 6:
        return (
            f"[{network.network_address}]" if is_host(network) else f"[{network.network_address}]/{network.prefixlen}"
        )
    return network_text(network) if is_host(network) else network.with_netmask


@lru_cache(maxsize=1 << 16)
def client_network(text: bytes) -> Network | None:
    """Return the network that a client pattern names, None for every other kind of pattern."""
    match = _ONE_CLIENT.fullmatch(text)
    return _matched(match) if match is not None else None


def _entries(block: bytes, rule: str) -> Iterator[Network | bytes]:
    before, _, after = (re.escape(part) for part in rule.encode().partition(b"{address}"))
    own = re.compile(before + _CLIENT + after + rb"\s*")
    for line in _JOINED_LINES.findall(block):
        network = _network(line, own)
        yield network if network is not None else line


# The block is read again at every writing, and few of its lines are new.
@lru_cache(maxsize=1 << 16)
def _network(line: bytes, own: re.Pattern[bytes]) -> Network | None:
    match = own.fullmatch(line) or _DENIAL.fullmatch(line.rstrip())
    return _matched(match) if match is not None else None


def _matched(match: re.Match[bytes]) -> Network | None:
    try:
        return parse_network((match["four"] or match["six"] + (match["size"] or b"")).decode("ascii"))
    except ParseError:
        return None


def _naming(listed: str | None, rule: str) -> re.Pattern[bytes]:
    """A line that denies just what the list has: ours, or one under another rule."""
    if listed is None:
        return re.compile(rb"(?!)")
    own = re.escape(_denying(listed, rule).rstrip())
    return re.compile(own + rb"|[^:#\n]+:\s*" + re.escape(listed.encode()) + rb"\s*(?::(?!.*\b(?i:allow)\b).*)?")


def _line(network: Network, rule: str) -> bytes:
    return _denying(client(network), rule)


def _denying(clients: str, rule: str) -> bytes:
    return rule.replace("{address}", clients).encode() + b"\n"


def _ended(text: bytes) -> bytes:
    """What follows must begin a line of its own, and not continue the one before."""
    if text and not text.endswith(b"\n"):
        text += b"\n"
    return text + b"\n" if text.endswith(b"\\\n") else text
