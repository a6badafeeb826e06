"""The marks that PortSentry itself leaves: its lines in hosts.deny, its rules or routes, its blocked files.

They are found, and taken out where they belong to a ban that ended; which these are is the reconciler's business. What
a mark is stands in kill_commands and blocked_records.

PortSentry 1.2 reads its blocked file at each sighting, so a host that is taken out is noticed again. 2.x reads its own
at the start only: it goes on ignoring that host until it is restarted, unless its BLOCKED_FILE is "".
"""

import glob
import logging
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from jailbridge import process
from jailbridge.config import portsentry_conf
from jailbridge.config.load import ConfigError
from jailbridge.config.portsentry_conf import PortsentryConf
from jailbridge.config.settings import Settings
from jailbridge.errors import ParseError, RetryLater
from jailbridge.model.network import Network, network_text
from jailbridge.stores import blocked_records
from jailbridge.stores.deny_file import split
from jailbridge.stores.hosts_deny import REMEDY
from jailbridge.stores.kill_commands import DenyLine, RouteCommand, RuleCommand, Words, undoable
from jailbridge.stores.protocol import Traces
from jailbridge.stores.replaced_file import ReplacedFile

log = logging.getLogger("jailbridge.stores.traces")

# 100,000 rules are listed in 1 s.
TIMEOUT_S = 30.0


def portsentry_traces(settings: Settings) -> Sequence[Traces]:
    """Return the places where the PortSentry of this host leaves marks, in the order in which they are cleared.

    A place whose store is not enabled is left alone. What cannot be undone is told, once, and is none.
    """
    return tuple(_traces(settings, _conf(settings.portsentry.conf)))


def _traces(settings: Settings, conf: PortsentryConf) -> Iterator[Traces]:
    stores = settings.stores
    if conf.kill_route is not None and stores.firewall.enabled:
        if (undone := undoable(conf.kill_route)) is not None:
            yield RouteRules(undone)
        else:
            log.info("KILL_ROUTE is none that can be undone: what it does to a host stays when its ban ends")
    if conf.kill_hosts_deny is not None and stores.hosts_deny.enabled:
        yield DenyLines(stores.hosts_deny.path, DenyLine(conf.kill_hosts_deny))
    if stores.blocked_files.enabled:
        own = conf.blocked_file
        named = (own, own.with_name(f"{glob.escape(own.name)}.*")) if own is not None else ()
        yield BlockedFiles([*stores.blocked_files.paths, *named])


def _conf(path: Path) -> PortsentryConf:
    try:
        if path.exists():
            return portsentry_conf.load(path)
    except (ConfigError, OSError) as error:
        reason = str(error).partition("\n")[0]
        log.warning("PortSentry's own lines and rules stay when a ban ends: %s", reason)
    return PortsentryConf()


class DenyLines:
    """KILL_HOSTS_DENY's lines in hosts.deny, outside of our block."""

    name = "portsentry_hosts_deny"

    def __init__(self, path: Path, line: DenyLine) -> None:
        self._file = ReplacedFile(path, REMEDY)
        self._line = line

    def observe(self) -> Collection[Network]:
        """Return the hosts that have a line. Raises RetryLater, FatalError (broken marks)."""
        before, _, after = split(self._file.content(), str(self._file.path))
        return self._line.hosts(before) | self._line.hosts(after)

    def remove(self, networks: Collection[Network]) -> None:
        """Take their lines out, in one replacement of the file. Raises RetryLater, FatalError (broken marks)."""

        def edit(content: bytes) -> bytes:
            before, block, after = split(content, str(self._file.path))
            return self._line.without(before, networks) + block + self._line.without(after, networks)

        self._file.rewrite(edit)


class RouteRules:
    """KILL_ROUTE's rules in a chain of netfilter, or its routes."""

    name = "portsentry_route"

    def __init__(self, command: RuleCommand | RouteCommand) -> None:
        self._command = command

    def observe(self) -> Collection[Network]:
        """Return the hosts that have a rule or route; where its program is not there, none has. Raises RetryLater."""
        return self._marks().keys()

    def remove(self, networks: Collection[Network]) -> None:
        """Take out every one of theirs. Raises RetryLater where one stays."""
        failed = ""
        present = self._marks()
        for network in networks:
            for _ in range(present[network]):
                result = self._run(self._command.undoing(network))
                # Somebody else may have been quicker.
                failed = result.first_error if result.code != 0 else failed
        if failed and (left := self._marks().keys() & set(networks)):
            raise RetryLater(f"KILL_ROUTE's mark of {network_text(min(left, key=str))} cannot be taken out: {failed}")

    def _marks(self) -> Counter[Network]:
        found: Counter[Network] = Counter()
        for listing in self._command.listings:
            if shutil.which(listing[0], path=process.SEARCH_PATH) is None:
                continue
            result = self._run(listing)
            if result.code != 0:
                raise RetryLater(f"{listing[0]} failed: {result.first_error}")
            try:
                found += self._command.marks(result.out)
            except ParseError as error:
                raise RetryLater(str(error)) from None
        return found

    def _run(self, words: Words) -> process.Result:
        program = shutil.which(words[0], path=process.SEARCH_PATH) or words[0]
        return process.run([program, *words[1:]], timeout_s=TIMEOUT_S)


class BlockedFiles:
    """The files of those that PortSentry has "already blocked". `paths` are patterns (glob(7))."""

    name = "blocked_files"

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        # Each remembers what came late to it.
        self._known: dict[str, ReplacedFile] = {}

    def observe(self) -> Collection[Network]:
        """Return the hosts that have a record in any of the files. Raises RetryLater, FatalError (far too large)."""
        return set[Network]().union(*(blocked_records.hosts(file.content()) for file in self._files()))

    def remove(self, networks: Collection[Network]) -> None:
        """Take their records out of every file; what is no record stays to the byte. Raises RetryLater, FatalError."""
        ended = frozenset(networks)
        for file in self._files():
            file.rewrite(lambda content: blocked_records.without(content, ended))

    def _files(self) -> Iterator[ReplacedFile]:
        names = {name for path in self._paths for name in glob.glob(str(path))}  # noqa: PTH207 - any part may be one
        for name in sorted(names):
            if Path(name).is_file():
                yield self._known.setdefault(name, ReplacedFile(Path(name), "move it away"))
