"""The import itself: read what is here, plan, and, if asked, write configuration and ledger.

Nothing else is ever written: the old places stay as they are, and the daemon brings the stores in line later.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from pathlib import Path

from jailbridge.config import Settings, load
from jailbridge.config.load import DEFAULT_PATH, parse
from jailbridge.config.portsentry_conf import Mode
from jailbridge.config.settings import DEFAULT_HISTORY, DEFAULT_PORTSENTRY_CONF, EvidenceRule, SensorMode
from jailbridge.errors import FatalError
from jailbridge.importing import cron_jobs, exempting, fail2ban_jails, histories, old_settings, places
from jailbridge.importing.configuration import LAN, Around, Wishes, drafted
from jailbridge.importing.finds import Find, judged, source_networks
from jailbridge.importing.notes import Note, Notes
from jailbridge.importing.old_settings import OldSettings
from jailbridge.importing.replay import Replay, kept
from jailbridge.importing.toml import written
from jailbridge.ledger import Ledger
from jailbridge.model.ban import Ban, Tombstone
from jailbridge.model.event import Dialect, LogLine, ScanEvent, TailPosition
from jailbridge.model.network import Network, network_text
from jailbridge.owned_files import put, shipped
from jailbridge.policy.decide import Past
from jailbridge.policy.exempt import Exemptions

# Examples of those for whom a reason holds.
NAMED = 5
HEAD = (
    "JailBridge's configuration, written by `jailbridge import`. Every key is optional; the whole list: README.md.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Where to look, and what is wanted. `config` None: the default place."""

    conf: Path = DEFAULT_PORTSENTRY_CONF
    defaults: Path = old_settings.DEFAULTS
    config: Path | None = None
    histories: Sequence[Path] = ()
    hosts_deny: Path | None = None
    socket: Path | None = None
    database: Path = fail2ban_jails.DATABASE
    jobs: Sequence[Path] = cron_jobs.PLACES
    wishes: Wishes = field(default_factory=Wishes)
    wants_configuration: bool = True
    wants_bans: bool = True
    force: bool = False
    session: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """The configuration file: what it would hold, and what becomes of it.

    action  "write", "replace" (`--force`, or one that `install` put there and nobody edited), "keep", or "none"
    """

    path: Path
    action: str
    text: str
    settings: Settings


@dataclass(slots=True)
class Counted:
    """What came of one place: lines or entries read, and how many bans of it would be made."""

    read: int = 0
    bans: int = 0


@dataclass(slots=True)
class ImportPlan:
    """What an import would do; `stopped` says why no ban is made.

    bans        each with the place that it comes from
    declined    why others are not banned: how many, and a few of them
    positions   where the daemon goes on reading
    """

    configuration: Configuration
    notes: Notes
    bans: list[tuple[Ban, str]] = field(default_factory=list)
    sources: dict[str, Counted] = field(default_factory=dict)
    declined: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    positions: list[TailPosition] = field(default_factory=list)
    stopped: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether everything was read and understood, and nothing is held back."""
        return not (self.stopped or self.notes.not_read or self.notes.misread)

    def decline(self, why: str, network: Network) -> None:
        """Note that a network is not banned."""
        self.declined[why] += 1
        named = self.examples.setdefault(why, [])
        if len(named) < NAMED:
            named.append(network_text(network))


def planned(
    asked: Asked,
    now: datetime,
    open_ledger: Callable[[Settings], Ledger | None],
    notes: Notes,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> ImportPlan:
    """Return the plan. `progress` hears how many bytes of the histories were read, and of how many.

    Raises FatalError for a configuration that is there and cannot be used, or one that we would write and could not.
    """
    old = old_settings.read(asked.conf, asked.defaults, notes)
    present = _present(asked)
    logs = _histories(asked, old, present)
    socket = asked.socket or (present or Settings()).stores.fail2ban.socket
    jails = fail2ban_jails.read(socket, asked.database, logs, now, notes)
    configuration = _configuration(asked, old, present, jails.names, notes)
    notes.left_alone += cron_jobs.jobs(asked.jobs)
    plan = ImportPlan(configuration=configuration, notes=notes)
    if asked.wants_bans:
        decisions = _Decisions(plan, old, now, open_ledger(configuration.settings), asked)
        decisions.decide(logs, jails.finds, progress)
    return plan


def apply(plan: ImportPlan, make_ledger: Callable[[Settings], Ledger], now: datetime) -> None:
    """Write what the plan says. Raises FatalError."""
    chosen = plan.configuration
    if chosen.action in {"write", "replace"}:
        if chosen.path.is_symlink():
            raise FatalError(f"{chosen.path} is a symbolic link: name the file itself with --config")
        if chosen.action == "replace":
            put(chosen.path.with_name(f"{chosen.path.name}.before-import"), chosen.path.read_bytes())
        put(chosen.path, chosen.text.encode())
    if plan.stopped is None and (plan.bans or plan.positions):
        bans = [ban for ban, _ in plan.bans]
        make_ledger(chosen.settings).record(bans, plan.positions, now=now, durable=True)


def _present(asked: Asked) -> Settings | None:
    """Return what the configuration says that is there already. Raises ConfigError for one that cannot be used."""
    path = asked.config or DEFAULT_PATH
    if not os.path.lexists(path) or _is_replaced(asked, path):
        return None
    return load(path)


def _is_replaced(asked: Asked, path: Path) -> bool:
    return asked.wants_configuration and (asked.force or _is_untouched(path))


def _is_untouched(path: Path) -> bool:
    """Tell whether a configuration is the one that `install` put there, which only has comments."""
    try:
        return path.read_bytes() == (shipped() / "packaging" / "jailbridge.toml").read_bytes()
    except OSError:
        return False


def _histories(asked: Asked, old: OldSettings, present: Settings | None) -> list[Path]:
    own = present.history.path if present is not None else DEFAULT_HISTORY
    return list(dict.fromkeys([old.conf.history_file or own, own, *asked.histories]))


def _configuration(
    asked: Asked, old: OldSettings, present: Settings | None, jails: Sequence[str] | None, notes: Notes
) -> Configuration:
    path = asked.config or DEFAULT_PATH
    own = old.conf.ignore_file
    is_beside = own is not None and own.with_name(f"{own.name}.static").is_file()
    spare = notes if present is None and asked.wants_configuration else Notes()
    entries = drafted(old, Around(jails=jails, ignore_beside=is_beside), asked.wishes, spare)
    if present is not None or not asked.wants_configuration:
        if present is not None:
            text = "is there already and is kept: its settings count; --force replaces it"
            notes.left_alone.append(Note(str(path), text))
        if asked.wishes != Wishes():
            text = (
                "--keep-portsentry and --ban-for-spoofable go into a configuration, and none is written: set it there"
            )
            notes.by_hand.append(Note(str(path), text))
        return Configuration(path=path, action="keep" if present else "none", text="", settings=present or Settings())
    # The same table twice would be an error; what belongs to one stands together.
    text = written(HEAD, entries, LAN)
    settings = parse(text, f"the configuration for {path}")
    action = "replace" if os.path.lexists(path) else "write"
    return Configuration(path=path, action=action, text=text, settings=settings)


class _Decisions:
    """Whom the plan bans."""

    def __init__(self, plan: ImportPlan, old: OldSettings, now: datetime, ledger: Ledger | None, asked: Asked) -> None:
        self._plan, self._old, self._now, self._ledger, self._asked = plan, old, now, ledger, asked
        self._settings = plan.configuration.settings
        self._rules = self._settings.policy

    def decide(self, logs: Sequence[Path], jailed: Sequence[Find], progress: Callable[[int, int], None]) -> None:
        """Fill the plan's bans."""
        plan, settings, now = self._plan, self._settings, self._now
        if (exempt := self._exemptions()) is None:
            return
        hosts_deny = self._asked.hosts_deny or settings.stores.hosts_deny.path
        blocked = settings.stores.blocked_files.paths
        found = [*jailed, *places.finds(self._old, hosts_deny, blocked, now, plan.notes)]
        for place, group in groupby(found, key=lambda find: find.place):
            plan.sources.setdefault(place, Counted()).read += sum(1 for _ in group)
        finds = source_networks(found, self._rules, exempt)
        replay = Replay(self._rules, exempt, now, frozenset(find.network for find in finds))
        self._read(logs, replay, progress)
        made = self._from_histories(replay)
        pasts = self._pasts([find.network for find in finds])
        for find in finds:
            network = find.network
            if network in made:
                plan.decline("banned because of the history", network)
            elif (exemption := exempt.find(network)) is not None:
                plan.decline("exempt", network)
                plan.notes.left_alone.append(Note(f"{find.place}: {network_text(network)}", str(exemption)))
            else:
                ban, why = judged(find, replay.told, pasts.get(network, Past()), self._rules, exempt, now)
                if ban is None:
                    plan.decline(why, network)
                else:
                    made[network] = ban, find.place
        self._take(list(made.values()))

    def _exemptions(self) -> Exemptions | None:
        """Return who is exempt; None, and a word in the plan, where that is in doubt."""
        orders = self._ledger.orders.allowed if self._ledger is not None else {}
        allowed = [(network, f"jailbridge allow ({order.reason})") for network, order in orders.items()]
        found, problems = exempting.exemptions(self._rules, allowed, self._asked.session)
        if self._old.unsure is not None:
            problems = [f"whom PortSentry never blocked is not known: {self._old.unsure}", *problems]
        if found is not None and not problems:
            return found
        if self._asked.force:
            self._plan.notes.not_read += [Note("exemptions", f"{problem} (--force)") for problem in problems]
            return exempting.readable(self._rules, allowed, self._asked.session, self._plan.notes)
        self._plan.stopped = "; ".join(problems)
        return None

    def _read(self, logs: Sequence[Path], replay: Replay, progress: Callable[[int, int], None]) -> None:
        plan = self._plan
        read_files = {log: histories.files(log, plan.notes) for log in logs}
        whole = sum(histories.size(files) for files in read_files.values())
        done = 0

        def more(size: int) -> None:
            nonlocal done
            done += size
            progress(done, whole)

        for log, files in read_files.items():
            rule, mode = self._evidence(log)

            def take(line: LogLine, event: ScanEvent, dialect: Dialect) -> None:
                replay.add(line, event, dialect, rule, mode)  # noqa: B023 - called in this turn only

            for file in files:
                lines, position = histories.replay(file, take, self._now, plan.notes, more)
                plan.sources[str(file)] = Counted(lines)
                if file == log and position is not None and self._is_followed_from_here(log):
                    plan.positions.append(position)

    def _evidence(self, log: Path) -> tuple[EvidenceRule, SensorMode | None]:
        """Return what lines of a history prove: by its [[tail]], else by the mode in which PortSentry ran."""
        rule = next((tail.evidence for tail in self._settings.tail if tail.name == str(log)), EvidenceRule.AUTO)
        modes = self._old.modes
        is_connect = modes is not None and modes["TCP"] is Mode.TCP
        return rule, SensorMode.CONNECT if is_connect else SensorMode.STEALTH

    def _is_followed_from_here(self, log: Path) -> bool:
        """Tell whether the daemon follows a log and has not begun: then it is to go on where the import ended."""
        begun = self._ledger.positions() if self._ledger is not None else {}
        return str(log) not in begun and any(tail.name == str(log) for tail in self._settings.tail)

    def _from_histories(self, replay: Replay) -> dict[Network, tuple[Ban, str]]:
        plan, made = self._plan, dict[Network, tuple[Ban, str]]()
        bans = list(replay.bans())
        pasts = self._pasts([ban.network for ban in bans])
        for ban in bans:
            past = pasts.get(ban.network, Past())
            if past.standing is not None:
                plan.decline("banned already", ban.network)
            elif past.tombstone is not None and ban.since <= past.tombstone.ended:
                plan.decline(f"its ban ended ({past.tombstone.why})", ban.network)
            else:
                made[ban.network] = ban, ban.file or ""
        for network, why in replay.exempt.items():
            plan.notes.left_alone.append(Note(network_text(network), why))
            plan.decline("exempt", network)
        plan.declined["its ban would be over by now"] += replay.counts["over"]
        plan.declined["over policy.max_bans"] += replay.counts["too many"]
        return made

    def _take(self, made: list[tuple[Ban, str]]) -> None:
        """Put the bans that there is room for into the plan."""
        held = len(self._ledger.bans()) if self._ledger is not None else 0
        staying = {ban.network for ban in kept([ban for ban, _ in made], self._rules.max_bans - held)}
        for ban, place in made:
            if ban.network in staying:
                self._plan.bans.append((ban, place))
                self._plan.sources.setdefault(place, Counted()).bans += 1
            else:
                self._plan.decline("over policy.max_bans", ban.network)
        self._plan.declined = Counter({why: number for why, number in self._plan.declined.items() if number})

    def _pasts(self, networks: Sequence[Network]) -> dict[Network, Past]:
        """Return what the ledger knows of each."""
        if self._ledger is None:
            return {}
        stones: dict[Network, Tombstone] = dict(self._ledger.tombstones(networks))
        return {network: Past(self._ledger.covering(network), stones.get(network)) for network in networks}
