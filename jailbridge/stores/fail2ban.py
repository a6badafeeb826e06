"""The store behind fail2ban's jail: the bans it lists, our token in a property of our action.

The jail is the one we ship: its bans have no end of their own, and stopping packets is not its business. What fail2ban
bans there from its own reading of a log is only reported. That something is done there our action tells
(fail2ban_news). Other jails are never read or changed.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import TypeAlias, TypeVar

from jailbridge.errors import ParseError, RetryLater
from jailbridge.model.network import Network, is_host, network_text, parse_network, shown
from jailbridge.model.plan import Action, Capabilities, Change, Observation, ObservedBan, Rejection
from jailbridge.model.token import Token
from jailbridge.stores.fail2ban_client import Fail2banClient
from jailbridge.stores.fail2ban_news import JailNews
from jailbridge.stores.fail2ban_socket import TIMEOUT_S, Fail2banSocket, OtherProtocol, Refused
from jailbridge.stores.protocol import Drifted

T = TypeVar("T")
Server: TypeAlias = Fail2banSocket | Fail2banClient

ACTION = "jailbridge"
PROPERTY = "token"
# Stands for the token while a jail that bears none is filled, so that its being restarted meanwhile is seen.
WRITING = "writing"
TOO_WIDE = "fail2ban takes a network of size 0 for a single address"
REMEDY = "run `jailbridge fail2ban install`"
# One command holds up the whole control socket: 20 addresses take 4 ms with our action, 500 ms with a shell one beside.
CHUNK, HOLD_S = 20, 0.05
# Bans made at once while other stores wait: 40 ms, and 200 ms with a shell action.
TURN, SLOW_TURN = 200, 8
PERMANENT = "-1"
# 11,000 bans are listed in 0.3 s, in one piece and before the first byte of the reply.
LIST_TIMEOUT_S = 10.0

# sqlite3's: a lock, a full disk.
_NOT_NOW = {"OperationalError", "DatabaseError"}
# server/banmanager.py: "%s \t%s + %d = %s"; local time without a zone; -1 seconds is for ever.
_ENTRY = re.compile(r"(.*) \t(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) \+ (-?\d{1,12}) = .*", re.ASCII | re.DOTALL)

_log = logging.getLogger("jailbridge.stores.fail2ban")


class Fail2banStore:
    """fail2ban's jail as a store. Each call makes its own connection; only news are kept between calls."""

    name = "fail2ban"

    def __init__(
        self,
        *,
        jail: str,
        socket: Path,
        wake: Path | None = None,
        blocks: bool = False,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Make no connection yet.

        wake    where our action tells what is done in the jail; None: changes wait for the next reading
        blocks  whether fail2ban's own banaction, which starts programs for each ban, is in the jail too
        """
        turn = SLOW_TURN if blocks else TURN
        self.capabilities = Capabilities(overlaps=True, ends=False, volatile=True, early=False, turn=turn, tells=True)
        self._news = JailNews(wake) if wake is not None else None
        self._jail = jail
        self._socket = socket
        self._timeout_s = timeout_s
        self._least = self._at_once = 1 if blocks else CHUNK // 4
        self._problem: str | None = None

    def observe(self, now: datetime) -> Observation:
        """Read the jail. Entries that are no IP network (fail2ban bans any text) count as foreign.

        Raises RetryLater: no answer, no such jail, or a jail without our action; FatalError: somebody else's socket.
        """
        mark, entries, bantime = self._talk(self._read)
        bans: dict[Network, ObservedBan] = {}
        for entry in entries:
            if (ban := parse_entry(entry, now)) is None:
                _log.debug("foreign entry=%s", shown(entry))
            else:
                bans.setdefault(ban.network, ban)
        foreign = len(entries) - len(bans)
        self._tell(bantime)
        return Observation(
            token=_token(mark), enforcing=True, bans=tuple(bans.values()), foreign=foreign, problem=self._problem
        )

    def touched(self) -> bool:
        """Tell whether our action told of something that we did not have done; never raises."""
        return self._news is not None and self._news.heard()

    def apply(
        self,
        changes: Sequence[Change],
        token: Token,
        now: datetime,  # noqa: ARG002
        *,
        expected: str | None = None,
    ) -> Sequence[Rejection]:
        """Ban and unban in the jail, then set the token. A hook changes nothing: this store has none.

        Raises RetryLater and FatalError as `observe` does, and Drifted; that also where the jail is restarted
        meanwhile, and then it bears no token.
        """
        return self._talk(lambda server: self._write(server, changes, token, expected))

    def _talk(self, act: Callable[[Server], T]) -> T:
        """Do something with a connection of its own; by fail2ban's own client where we do not know what it speaks."""
        try:
            with Fail2banSocket(self._socket, timeout_s=self._timeout_s) as server:
                return act(server)
        except OtherProtocol:
            client = Fail2banClient(self._socket, timeout_s=self._timeout_s)
            if not client.is_answered:
                raise
        return act(client)

    def _read(self, server: Server) -> tuple[str, list[str], str]:
        """Return what the jail bears where its token belongs, its entries, and its bantime."""
        before = self._mark(server)
        entries = self._banned(server)
        # A jail that was restarted between the two questions has lost its bans: the token must not vouch for that.
        mark = before if self._mark(server) == before else ""
        return mark, entries, str(self._ask(server, "get", self._jail, "bantime"))

    def _write(
        self, server: Server, changes: Sequence[Change], token: Token, expected: str | None
    ) -> Sequence[Rejection]:
        mark = self._mark(server)
        if expected is not None and _token(mark) != expected:
            raise Drifted(f"fail2ban's jail {self._jail} is not as it was left")
        if not mark:
            mark = WRITING
            self._set_mark(server, mark)
        rejections = [Rejection(change=change, why=TOO_WIDE) for change in changes if _is_everything(change)]
        adapts = isinstance(server, Fail2banSocket)
        for command, chunk in self._chunks(self._effective(server, changes), adapts=adapts):
            rejections += self._send(server, command, chunk)
            if self._news is not None:
                what = command.removesuffix("ip")
                self._news.disregard(f"{what} {network_text(c.network)}" for c in chunk if c.network is not None)
        if self._mark(server) != mark:
            raise Drifted(f"fail2ban's jail {self._jail} was restarted while it was written")
        self._set_mark(server, str(token))
        return rejections

    def _tell(self, bantime: str) -> None:
        problem = None
        if bantime != PERMANENT:
            problem = (
                f"fail2ban's jail {self._jail} has bantime {shown(bantime)} and not {PERMANENT}, so that fail2ban ends "
                "bans which go on: `jailbridge fail2ban check` says where"
            )
            if problem != self._problem:
                _log.warning("%s", problem)
        self._problem = problem

    def _mark(self, server: Server) -> str:
        """Return what the jail bears where its token belongs: nothing, once it was restarted."""
        mark = self._ask(server, "get", self._jail, "action", ACTION, PROPERTY)
        return mark if isinstance(mark, str) else ""

    def _set_mark(self, server: Server, mark: str) -> None:
        self._ask(server, "set", self._jail, "action", ACTION, PROPERTY, mark)

    def _banned(self, server: Server) -> list[str]:
        return _texts(self._ask(server, "get", self._jail, "banip", "--with-time", timeout_s=LIST_TIMEOUT_S))

    def _ask(self, server: Server, *words: str, timeout_s: float | None = None) -> object:
        """Ask what our own jail never refuses: a refusal means that it is gone or not ours."""
        try:
            return server.ask(*words, timeout_s=timeout_s)
        except Refused as error:
            raise self._unready(error) from None

    def _unready(self, error: Refused) -> RetryLater:
        if error.kind == "UnknownJailException":
            return RetryLater(f"fail2ban has no jail {self._jail}: {REMEDY}")
        return RetryLater(f"fail2ban's jail {self._jail} lacks the action {ACTION}: {REMEDY}")

    def _effective(self, server: Server, changes: Sequence[Change]) -> Iterator[Change]:
        """Leave out the removal of a network that is not banned: fail2ban would unban every host inside it instead."""
        wanted = [
            change
            for change in changes
            if change.network is not None and change.action in _COMMANDS and not _is_everything(change)
        ]
        if any(_is_wide_removal(change) for change in wanted):
            entries = self._banned(server)
            held = {network for entry in entries if (network := entry_network(entry)) is not None}
            wanted = [change for change in wanted if not _is_wide_removal(change) or change.network in held]
        return iter(wanted)

    def _chunks(self, changes: Iterator[Change], *, adapts: bool) -> Iterator[tuple[str, Sequence[Change]]]:
        """Keep the order; as many addresses a command as take HOLD_S, by what the one before took.

        adapts  whether addresses are what takes the time, rather than starting a program to send them
        """
        for command, group in groupby(changes, key=lambda change: _COMMANDS[change.action]):
            left = list(group)
            while left:
                chunk = left[: self._at_once if adapts else CHUNK]
                began = time.monotonic()
                yield command, chunk
                each_s = max(time.monotonic() - began, 1e-6) / len(chunk)
                if adapts:
                    self._at_once = max(self._least, min(CHUNK, 2 * self._at_once, int(HOLD_S / each_s)))
                del left[: len(chunk)]

    def _send(self, server: Server, command: str, chunk: Sequence[Change]) -> Iterator[Rejection]:
        addresses = [network_text(change.network) for change in chunk if change.network is not None]
        try:
            server.ask("set", self._jail, command, *addresses)
        except Refused as error:
            if error.kind == "UnknownJailException":
                raise self._unready(error) from None
            if error.kind in _NOT_NOW:
                raise RetryLater(f"fail2ban cannot write its database: {error}") from None
            if len(chunk) == 1:
                yield Rejection(change=chunk[0], why=str(error))
                return
            for change in chunk:
                yield from self._send(server, command, [change])


def parse_entry(entry: str, now: datetime) -> ObservedBan | None:
    """Return the ban that one line of `get JAIL banip --with-time` tells, None for what is no IP network.

    The times are this host's local ones; of the hour that is repeated in autumn the later is meant that is not to come.
    """
    network = entry_network(entry)
    match = _ENTRY.fullmatch(entry)
    if network is None:
        return None
    if match is None:
        return ObservedBan(network=network)
    try:
        local = datetime.fromisoformat(match[2])
        since = local.replace(fold=1).astimezone(UTC)
        if since > now:
            since = local.astimezone(UTC)
        until = None if (lasts_s := int(match[3])) < 0 else since + timedelta(seconds=lasts_s)
    except (ValueError, OverflowError, OSError):
        return ObservedBan(network=network)
    return ObservedBan(network=network, since=since, until=until)


def entry_network(entry: str) -> Network | None:
    """Return what one line of `get JAIL banip`, with or without times, says is banned; None for what is no network."""
    match = _ENTRY.fullmatch(entry)
    return _network(match[1] if match else entry)


_COMMANDS = {Action.ADD: "banip", Action.UPDATE: "banip", Action.REMOVE: "unbanip"}


def _token(mark: str) -> str | None:
    return mark if mark and mark != WRITING else None


def _is_everything(change: Change) -> bool:
    return change.network is not None and change.network.prefixlen == 0 and change.action is not Action.REMOVE


def _is_wide_removal(change: Change) -> bool:
    return change.action is Action.REMOVE and change.network is not None and not is_host(change.network)


def _network(text: str) -> Network | None:
    try:
        return parse_network(text)
    except ParseError:
        return None


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        # As the client prints it.
        return value.splitlines()
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise RetryLater("fail2ban's list of bans is not a list of text: is this fail2ban 1.0.2 or later?")
    return value
