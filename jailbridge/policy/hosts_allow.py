"""Which networks a hosts.allow lets in to everything, and which of its lines are not taken for that. Pure.

Taken is the one form that says just this, and says it of addresses: `ALL: 192.0.2.7, 198.51.100.0/24`, alone or with
`: ALLOW`. What hosts_access(5) and hosts_options(5) have besides (other daemons, names, wildcards, files, EXCEPT, DENY,
commands) says less, or asks the DNS, which a scanner may answer: such lines are told with the reason and not obeyed.
What TCP wrappers themselves do not obey (7.6.q tried: a mask that leaves host bits, the last line without its end) is
not obeyed here either.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from jailbridge.errors import ParseError
from jailbridge.model.network import Network, network_text, parse_network, shown

# The buffer of TCP wrappers (BUFLEN in tcpd.h, 2048) holds a line with its continuations, its end and a NUL.
MAX_LINE = 2047
# A larger network is a typing error, or a wish to switch bans off altogether: neither is to be taken from this file.
MIN_PREFIX = {4: 8, 6: 16}
EVERYBODY = (parse_network("0.0.0.0/0"), parse_network("::/0"))


@dataclass(frozen=True, slots=True, kw_only=True)
class HostsAllow:
    """What a hosts.allow says: each network and each line that is not obeyed, with the number of its line."""

    networks: tuple[tuple[Network, int], ...]
    not_obeyed: tuple[tuple[int, str], ...]


def parse_hosts_allow(text: str) -> HostsAllow:
    """Read the text of a hosts.allow. A line is obeyed whole or not at all, and not where an earlier one denies."""
    networks: list[tuple[Network, int]] = []
    not_obeyed: list[tuple[int, str]] = []
    denied: list[tuple[Network, int]] = []
    for number, line in _rules(text):
        try:
            daemons, clients, options = _fields(line)
            if daemons.upper() == "ALL" and "DENY" in map(str.upper, options):
                denied += [(network, number) for network in _denied(clients)]
            found = _allowed(daemons, clients, options, denied)
        except ParseError as error:
            not_obeyed.append((number, str(error)))
        else:
            networks += [(network, number) for network in found]
    return HostsAllow(networks=tuple(networks), not_obeyed=tuple(not_obeyed))


def _rules(text: str) -> Iterator[tuple[int, str]]:
    """Yield each rule as (number of its first line, line with its continuations and its end), without comments."""
    parts: list[str] = []
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        is_last = number == len(lines)
        # Also a comment goes on in the next line.
        if line.endswith("\\") and not is_last:
            parts.append(line[:-1])
            continue
        first, rule = number - len(parts), "".join([*parts, line])
        parts.clear()
        if not rule.startswith("#") and rule.strip(" \t\r"):
            yield first, rule if is_last else rule + "\n"


def _fields(line: str) -> tuple[str, list[str], list[str]]:
    """Return a rule's daemons, the words of its clients, and its options.

    Raises ParseError for a line that TCP wrappers pass over.
    """
    if not line.endswith("\n"):
        raise ParseError("TCP wrappers pass over a last line without its end: add a newline")
    if len(line.encode("utf-8", "replace")) > MAX_LINE:
        raise ParseError(f"it is longer than the {MAX_LINE} bytes that TCP wrappers read")
    fields, depth = [""], 0
    for char in line:
        # Within brackets a ':' is part of an IPv6 address.
        depth += (char == "[") - (char == "]")
        if char == ":" and depth == 0:
            fields.append("")
        else:
            fields[-1] += char
    daemons, *more = (field.strip(" \t\r\n") for field in fields)
    if not more:
        raise ParseError("it has no ':' between daemons and clients")
    if not (clients := [word for word in re.split(r"[, \t\r\n]+", more[0]) if word]):
        raise ParseError("it names no client")
    return daemons, clients, more[1:]


def _allowed(daemons: str, clients: list[str], options: list[str], denied: list[tuple[Network, int]]) -> list[Network]:
    """Return the networks of a rule of the one form. Raises ParseError, the reason its text."""
    if daemons.upper() != "ALL":
        raise ParseError(f"it is for {shown(daemons)}, and not for ALL")
    if options and [option.upper() for option in options] != ["ALLOW"]:
        raise ParseError(f"it has an option other than ALLOW: {shown(', '.join(options))}")
    found = [_network(word) for word in clients]
    for network in found:
        if before := next((line for one, line in denied if one.overlaps(network)), None):
            raise ParseError(f"line {before} denies {network_text(network)} first")
    return found


def _denied(clients: list[str]) -> Iterator[Network]:
    """Yield the networks that a line turns away from everything, as far as it says so in addresses."""
    for word in clients if "EXCEPT" not in map(str.upper, clients) else ():
        if word.upper() == "ALL":
            yield from EVERYBODY
            continue
        try:
            yield _literal(word)
        except ParseError:
            continue


def _network(word: str) -> Network:
    network = _literal(word)
    if network.prefixlen < MIN_PREFIX[network.version]:
        raise ParseError(
            f"{shown(word)} is so large that nobody would be banned: if that is meant, policy.allow takes it"
        )
    return network


def _literal(word: str) -> Network:
    """Return the network of a word as TCP wrappers understand it. Raises ParseError."""
    # One branch each: `192.0.2.`, `[2001:db8::]/32`, `192.0.2.0/24`, `192.0.2.0/255.255.255.0`, `192.0.2.7`.
    if found := re.fullmatch(r"((?:[0-9]{1,3}\.){1,3})", word):
        octets = found[1].split(".")[:-1]
        return parse_network(".".join(octets + ["0"] * (4 - len(octets))) + f"/{8 * len(octets)}")
    if found := re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](/[0-9]{1,3})?", word):
        network = parse_network(found[1] + (f"/{int(found[2][1:])}" if found[2] else ""))
        if network.version == 6:
            return network
    elif found := re.fullmatch(r"([0-9.]+)(?:/([0-9]{1,3}|[0-9.]+))?", word):
        size = found[2]
        network = parse_network(found[1] + ("" if size is None else f"/{_bits(size)}"))
        if str(network.network_address) != found[1]:
            raise ParseError(f"{shown(word)} matches nobody: its address has bits outside its mask")
        return network
    raise ParseError(f"{shown(word)} is not a literal address or network")


def _bits(size: str) -> int:
    """Return the length of a prefix. Raises ParseError for a mask that is none; ipaddress takes wildcards too."""
    if size.isdigit():
        return int(size)
    mask = parse_network(size).start
    bits = mask.bit_count()
    if mask != (1 << 32) - (1 << (32 - bits)):
        raise ParseError(f"{shown(size)} is not a network mask")
    if bits == 32:
        raise ParseError(f"TCP wrappers do not take {shown(size)}: leave it out")
    return bits
