"""The text of hosts.deny: our block between two marks, everything else kept to the byte. Pure.

Syntax: hosts_access(5), hosts_options(5). IPv4 networks are written with a dotted mask, which every libwrap knows; IPv6
addresses stand in brackets. A final backslash joins a line to the next, in comments too.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from types import MappingProxyType
from typing import TypeAlias

from jailbridge.errors import FatalError, ParseError
from jailbridge.model.network import Network, network_text, parse_network

BEGIN = b"# jailbridge begin "
END = b"# jailbridge end"
_HINT = b" - bans, written by jailbridge; see `jailbridge unban`"
# Line numbers shown of broken marks.
_SHOWN = 5
_CLIENT = rb"(?:\[(?P<six>[0-9A-Fa-f:.]{2,45})\](?P<size>/\d{1,3})?|(?P<four>[0-9.]{7,15}(?:/[0-9.]{1,15})?))"
# What denies exactly one network, under any rule: a list, an EXCEPT or an ALLOW says something else.
_DENIAL = re.compile(rb"[^:#\n]+:\s*" + _CLIENT + rb"\s*(?::(?!.*\ballow\b).*)?", re.IGNORECASE)
_ALL4 = (1 << 32) - 1
_ONE_CLIENT = re.compile(_CLIENT)
_SIZES = {b"": 128, **{b"/%d" % size: size for size in range(129)}}
_JOINED_LINES = re.compile(rb"(?:[^\n]*\\\n)*(?:[^\n]*\n|[^\n]+)")

Said: TypeAlias = Mapping[bytes, Network]
"""What lines, with their newlines, were found to say: given to the next reading, which need not find it out again."""
NOTHING: Said = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class DenyFile:
    """A hosts.deny taken apart. `token` None: there is no block of ours, or it bears none.

    block   our block in its order: bans, and lines that are none (bytes, with their newline)
    refers  whether a line of it names the list, the file in which the addresses stand under `form = "file"`
    said    its lines that are bans, and what they say
    """

    before: bytes
    token: str | None
    block: tuple[Network | bytes, ...]
    after: bytes
    refers: bool = False
    said: Said = field(default_factory=dict, repr=False)

    @property
    def bans(self) -> tuple[Network, ...]:
        """The bans of our block, each once."""
        return tuple(dict.fromkeys(self.said.values()))

    @property
    def unknown(self) -> tuple[bytes, ...]:
        """The lines of our block that are no bans."""
        return tuple(entry for entry in self.block if isinstance(entry, bytes))

    @property
    def foreign(self) -> int:
        """How many rules that are not ours stand in the file."""
        lines = [*_JOINED_LINES.findall(self.before), *self.unknown, *_JOINED_LINES.findall(self.after)]
        return sum(1 for line in lines if line.strip() and not line.lstrip().startswith(b"#"))


def take_apart(content: bytes, where: str, rule: str, listed: str | None = None, known: Said = NOTHING) -> DenyFile:
    """Return the parts of a hosts.deny; `where` names it in errors, `listed` is the list's path.

    `known` is what an earlier reading under the same rule found: with it 100,000 lines are read in a fifth of the time.
    Raises FatalError for broken marks.
    """
    before, marked, after = split(content, where)
    begin, _, inner = marked.partition(b"\n")
    token = begin[len(BEGIN) :].split(maxsplit=1)
    denied, naming = _reader(rule), _naming(listed, rule)
    block: list[Network | bytes] = []
    said: dict[bytes, Network] = {}
    refers = False
    # Without the line of the end mark.
    for line in _JOINED_LINES.findall(inner[: inner.rfind(b"\n", 0, -1) + 1]):
        network = known.get(line) or denied(line)
        if network is not None:
            said[line] = network
            block.append(network)
        elif naming.fullmatch(line.rstrip()):
            refers = True
        else:
            block.append(line)
    return DenyFile(
        before=before,
        token=token[0].decode("ascii", "replace") if token else None,
        block=tuple(block),
        after=after,
        refers=refers,
        said=said,
    )


def split(content: bytes, where: str) -> tuple[bytes, bytes, bytes]:
    """Return what stands before our block, the block with its marks (nothing where there is none), and what follows.

    `where` names the file in errors. Raises FatalError for broken marks.
    """
    begins = [start for start, _ in _lines_with(BEGIN, content)]
    ends = [(start, end) for start, end in _lines_with(END, content) if content[start:end].rstrip() == END]
    if not begins and not ends:
        return content, b"", b""
    if len(begins) != 1 or len(ends) != 1 or begins[0] > ends[0][0]:
        broken = sorted(begins + [start for start, _ in ends])
        lines = (content.count(b"\n", 0, start) + 1 for start in broken[:_SHOWN])
        numbers = ", ".join(map(str, lines)) + (", …" if len(broken) > _SHOWN else "")
        raise FatalError(
            f"{where}: broken jailbridge marks (line {numbers}): there must be one '{BEGIN.decode()}…' "
            f"and after it one '{END.decode()}'; put them right, or delete them all"
        )
    begin, end = begins[0], ends[0][1]
    return content[:begin], content[begin:end], content[end:]


def put_together(parts: DenyFile, bans: Iterable[Network], rule: str, token: str, listed: str | None = None) -> bytes:
    """Return the file with exactly `bans` in our block, one `rule` a ban, and the token in its begin line.

    `listed` gets a rule as well, and is the first. What stands in the block keeps its place; new bans come last.
    """
    left = dict.fromkeys(bans)
    head, _, tail = rule.encode().partition(b"{address}")
    tail += b"\n"
    text = [_ended(parts.before), BEGIN, token.encode(), _HINT, b"\n"]
    if listed is not None:
        text.append(head + listed.encode() + tail)
    for entry in parts.block:
        if isinstance(entry, bytes):
            text.append(_ended(entry))
        elif entry in left:
            del left[entry]
            text.append(head + client(entry).encode() + tail)
    text += [head + client(network).encode() + tail for network in left]
    return b"".join([*text, END, b"\n", parts.after])


def client(network: Network) -> str:
    """Return a network as libwrap's client list writes it."""
    text = network_text(network)
    if ":" in text:
        address, slash, size = text.partition("/")
        return f"[{address}]{slash}{size}"
    return f"{network.network_address}/{IPv4Address(_ALL4 << 32 - network.prefixlen & _ALL4)}" if "/" in text else text


def client_network(text: bytes) -> Network | None:
    """Return the network that a client pattern names, None for every other kind of pattern."""
    if (network := _as_written(text)) is not None:
        return network
    match = _ONE_CLIENT.fullmatch(text)
    return _matched(match) if match is not None else None


def _lines_with(mark: bytes, content: bytes) -> Iterator[tuple[int, int]]:
    """Yield where each line that begins with `mark` starts, and where it ends, its newline included."""
    start = content.find(mark)
    while start >= 0:
        end = content.find(b"\n", start) + 1 or len(content)
        if start == 0 or content[start - 1] == ord(b"\n"):
            yield start, end
        start = content.find(mark, end - 1)


def _reader(rule: str) -> Callable[[bytes], Network | None]:
    """Return what tells which network a line of our block denies, None where it says something else."""
    before, _, after = rule.encode().partition(b"{address}")
    own = re.compile(re.escape(before) + _CLIENT + re.escape(after) + rb"\s*")
    after += b"\n"

    def denied(line: bytes) -> Network | None:
        if line.startswith(before) and line.endswith(after):
            network = _as_written(line[len(before) : -len(after)])
            if network is not None:
                return network
        match = own.fullmatch(line) or _DENIAL.fullmatch(line.rstrip())
        return _matched(match) if match is not None else None

    return denied


def _as_written(text: bytes) -> Network | None:
    """Return the network of a client pattern that reads as we write it: for IPv6 in a fifth of the usual time.

    None for all others; IPv4 networks, with their masks, are among these.
    """
    address, is_six, size = text.partition(b"]")
    try:
        name = address.decode("ascii")
        if not is_six:
            # It takes no leading zeros and nothing shortened: every text that it takes is as we write it.
            return Network(4, int.from_bytes(inet_pton(AF_INET, name)), 32)
        packed = inet_pton(AF_INET6, name[1:])
    except (OSError, ValueError):
        return None
    start, length = int.from_bytes(packed), _SIZES.get(size)
    # An IPv4-mapped address is one of IPv4.
    if length is None or start >> 32 == 0xFFFF or start & (1 << 128 - length) - 1:
        return None
    return Network(6, start, length) if "[" + inet_ntop(AF_INET6, packed) == name else None


def _matched(match: re.Match[bytes]) -> Network | None:
    try:
        return parse_network((match["four"] or match["six"] + (match["size"] or b"")).decode("ascii"))
    except ParseError:
        return None


def _naming(listed: str | None, rule: str) -> re.Pattern[bytes]:
    """A line that denies just what the list has: ours, or one under another rule."""
    if listed is None:
        return re.compile(rb"(?!)")
    own = re.escape(rule.replace("{address}", listed).encode().rstrip())
    return re.compile(own + rb"|[^:#\n]+:\s*" + re.escape(listed.encode()) + rb"\s*(?::(?!.*\b(?i:allow)\b).*)?")


def _ended(text: bytes) -> bytes:
    """What follows must begin a line of its own, and not continue the one before."""
    if text and not text.endswith(b"\n"):
        text += b"\n"
    return text + b"\n" if text.endswith(b"\\\n") else text
