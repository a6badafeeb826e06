"""What PortSentry's KILL_HOSTS_DENY and KILL_ROUTE leave behind, and how each is found and undone. Pure.

Only what can be told apart with certainty is found: a line or a rule that is the configured one to the letter, but for
the address. Sources: portsentry.conf(5); iptables(8), whose `-save` prints a rule in its own order of words; route(8),
whose `reject` is the kernel's unreachable route; ip-route(8).
"""

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TypeAlias

from jailbridge.config.portsentry_conf import MODE, PORT, TARGET, DenyRule, KillCommand, Mode
from jailbridge.errors import ParseError
from jailbridge.model.network import Network, is_host, network_text, parse_network

Words: TypeAlias = tuple[str, ...]
_JOINED_LINES = re.compile(rb"(?:[^\n]*\\\n)*(?:[^\n]*\n|[^\n]+)")
_ADDRESS = rb"(?:\[(?P<six>[0-9A-Fa-f:.]{2,45})\]|(?P<bare>[0-9A-Fa-f:.]{2,45}))"


class DenyLine:
    """KILL_HOSTS_DENY's line, its address with or without the brackets that 2.x leaves out."""

    def __init__(self, rule: DenyRule) -> None:
        text = re.escape(rule.text.rstrip().replace(f"[{TARGET}]", TARGET).encode())
        tokens = {TARGET: _ADDRESS, PORT: rb"\d{1,5}", MODE: b"(?:" + "|".join(Mode).encode() + b")"}
        for token, pattern in tokens.items():
            text = text.replace(re.escape(token.encode()), pattern, 1 if token == TARGET else -1)
        self._line = re.compile(text + rb"[ \t]*\r?\n?")

    def hosts(self, text: bytes) -> set[Network]:
        """Return the hosts that have such a line in a part of hosts.deny."""
        return {host for line in _JOINED_LINES.findall(text) if (host := self._host(line)) is not None}

    def without(self, text: bytes, ended: Iterable[Network]) -> bytes:
        """Return this part without such lines of these hosts."""
        gone = set(ended)
        return b"".join(line for line in _JOINED_LINES.findall(text) if self._host(line) not in gone)

    def _host(self, line: bytes) -> Network | None:
        match = self._line.fullmatch(line)
        return _host((match["six"] or match["bare"]).decode("ascii")) if match is not None else None


# iptables(8): the long names of what `iptables-save` prints short.
_SHORT = {
    "--source": "-s", "--src": "-s", "--destination": "-d", "--dst": "-d", "--jump": "-j", "--goto": "-g",
    "--protocol": "-p", "--proto": "-p", "--in-interface": "-i", "--out-interface": "-o", "--match": "-m",
}  # fmt: skip
# What `iptables-save` adds to a rule that was given without.
_IMPLIED = {("--reject-with", "icmp-port-unreachable"), ("--reject-with", "icmp6-port-unreachable")}
_PROGRAM = re.compile(r"(?:.*/)?(ip6?tables)(?:-legacy|-nft)?")
# What every IPv6 route has that was given none (linux/ipv6_route.h, IP6_RT_PRIO_USER).
_METRIC_6 = 1024
_HOST_IN_RULE = re.compile(r"(?<= -[sd] )([0-9a-f:.]+)/(?:32|128)(?= |$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleCommand:
    """KILL_ROUTE as a rule of netfilter. `waiting` are the words of `-w`, `rule` those of the rule itself."""

    program: str
    table: str
    chain: str
    rule: Words
    waiting: Words = ()

    @property
    def listings(self) -> tuple[Words, ...]:
        """The commands whose output `marks` reads."""
        return ((f"{self.program}-save", "-t", self.table),)

    def marks(self, listing: str) -> Counter[Network]:
        """Return how often each host has such a rule."""
        found: Counter[Network] = Counter()
        # Of thousands of rules few have another form than the one before.
        known: dict[str, bool] = {}
        ours = _parts(self.rule)
        begin = f"-A {self.chain} "
        for line in listing.splitlines():
            if not line.startswith(begin):
                continue
            for address in set(_HOST_IN_RULE.findall(line)):
                form = re.sub(rf"(?<![0-9a-f:.]){re.escape(address)}(?:/(?:32|128))?(?![0-9a-f:.])", TARGET, line)
                if form not in known:
                    known[form] = _parts(_split(form.removeprefix(begin))) == ours
                if known[form] and (host := _host(address)) is not None:
                    found[host] += 1
        return found

    def undoing(self, host: Network) -> Words:
        """Return the command that takes one such rule out."""
        filled = (word.replace(TARGET, network_text(host)) for word in self.rule)
        return (self.program, *self.waiting, "-t", self.table, "-D", self.chain, *filled)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteCommand:
    """KILL_ROUTE as a route that leads nowhere: of a `kind` that refuses, or by a `gateway`."""

    kind: str = ""
    gateway: str = ""
    families: Words = ("-4",)

    @property
    def listings(self) -> tuple[Words, ...]:
        """The commands whose output `marks` reads."""
        chosen = ("type", self.kind) if self.kind else ("via", self.gateway)
        return tuple(("ip", "-json", family, "route", "show", *chosen) for family in self.families)

    def marks(self, listing: str) -> Counter[Network]:
        """Return the hosts that have such a route. Raises ParseError: this is no list of routes."""
        try:
            routes = json.loads(listing or "[]")
        except ValueError:
            raise ParseError("ip did not answer in JSON") from None
        hosts = (_host(str(route.get("dst"))) for route in routes if self._is_such(route))
        return Counter(host for host in hosts if host is not None and is_host(host))

    def undoing(self, host: Network) -> Words:
        """Return the command that takes one such route out."""
        which = (self.kind, network_text(host)) if self.kind else (network_text(host), "via", self.gateway)
        # Of IPv6 routes the kernel takes the first with this prefix, of whatever kind.
        metric = ("metric", str(_METRIC_6)) if host.version == 6 else ()
        return ("ip", f"-{host.version}", "route", "del", *which, *metric)

    def _is_such(self, route: Mapping[str, object]) -> bool:
        plain = route.get("metric") in {None, _METRIC_6}
        # ip leaves out what all that it shows have in common.
        return plain and (route.get("type", ""), route.get("gateway", self.gateway)) == (self.kind, self.gateway)


def undoable(command: KillCommand) -> RuleCommand | RouteCommand | None:
    """Return what KILL_ROUTE leaves, None where that cannot be undone for sure."""
    words = command.argv
    if words is None or any(PORT in word or MODE in word for word in words):
        return None
    name = words[0].rpartition("/")[2]
    match name, words[1:]:
        case "route", ("add", "-host", str(target), "reject") if target == TARGET:
            return RouteCommand(kind="unreachable")
        case "route", ("add", "-host", str(target), "gw", str(gateway)) if target == TARGET and _host(gateway):
            return RouteCommand(gateway=gateway)
        case "ip", ("route" | "ro" | "r", "add", "blackhole" | "unreachable" | "prohibit" as kind, str(target)) if (
            target == TARGET
        ):
            return RouteCommand(kind=kind, families=("-4", "-6"))
        case _:
            return _rule_command(words)


def _rule_command(words: Sequence[str]) -> RuleCommand | None:
    if _PROGRAM.fullmatch(words[0]) is None:
        return None
    table, chain = "filter", ""
    waiting: list[str] = []
    rule: list[str] = []
    left = list(words[1:])
    while left:
        match left.pop(0):
            case "-t" | "--table" if left:
                table = left.pop(0)
            case "-I" | "--insert" | "-A" | "--append" if left and not chain:
                chain = left.pop(0)
                if left and left[0].isdigit():
                    left.pop(0)
            case "-w" | "--wait" as word:
                waiting.append(word)
                if left and left[0].isdigit():
                    waiting.append(left.pop(0))
            case word:
                rule.append(word)
    parts = _parts(rule)
    if not chain or parts is None or not {("-s", TARGET), ("-d", TARGET)} & parts.keys():
        return None
    return RuleCommand(program=words[0], table=table, chain=chain, rule=tuple(rule), waiting=tuple(waiting))


def _parts(words: Sequence[str]) -> Counter[Words] | None:
    """Return a rule's matches and target in any order, in `iptables-save`'s names; None for what is not understood."""
    parts: list[list[str]] = []
    negated = False
    for word in words:
        if word == "!":
            negated = True
        elif word.startswith("-"):
            if not word.startswith("--") and word not in _SHORT.values():
                return None
            given, equals, value = word.partition("=")
            name = _SHORT.get(given, given)
            parts.append([*(["!"] if negated else []), name, *([_value(name, value)] if equals else [])])
            negated = False
        elif not parts or negated:
            return None
        else:
            parts[-1].append(_value(parts[-1][-1], word))
    whole = Counter(map(tuple, parts))
    # `-p tcp` loads `-m tcp` by itself.
    implied = _IMPLIED | {("-m", part[1]) for part in whole if part[0] == "-p" and len(part) > 1}
    return Counter({part: number for part, number in whole.items() if part not in implied})


def _value(name: str, word: str) -> str:
    if name not in {"-s", "-d"}:
        return word
    if word in {f"{TARGET}/32", f"{TARGET}/128"}:
        return TARGET
    try:
        return network_text(parse_network(word))
    except ParseError:
        return word


def _split(text: str) -> Words:
    # A hundred times as fast, and few rules have quotes.
    if '"' not in text:
        return tuple(text.split())
    try:
        return tuple(shlex.split(text))
    except ValueError:
        return ()


def _host(text: str) -> Network | None:
    try:
        return parse_network(str(ip_address(text)))
    except (ValueError, ParseError):
        return None
