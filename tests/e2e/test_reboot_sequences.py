"""Random sequences of boots, losses, restarts and what persons do, each step ending in agreement as the model has it.

    JAILBRIDGE_SEQUENCES=100 pytest tests/e2e/test_reboot_sequences.py

The number of a sequence is its seed. What happened is told with any failure, and with --log-cli-level=INFO as it
happens.
"""

import logging
import os
import random
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any, NamedTuple, TypeAlias

import pytest

from jailbridge.daemon.control import call
from jailbridge.demo.lab import ATTACKER
from jailbridge.errors import JailBridgeError
from jailbridge.service_files import UNITS
from tests.e2e.guest import Guest
from tests.e2e.rebooting import (
    BANS,
    FAIL2BAN,
    FOREIGN,
    HISTORY,
    HOSTS_DENY,
    LAN,
    LEDGER,
    UDP,
    fail2ban,
    firewall,
    hosts_deny,
    networks,
    show,
)
from tests.e2e.sequences import Copy, Ends, Model

pytestmark = [pytest.mark.e2e, pytest.mark.needs("journalctl"), pytest.mark.timeout(600)]

log = logging.getLogger(__name__)

SEQUENCES = int(os.environ.get("JAILBRIDGE_SEQUENCES", "2"))
CONTROL = "/run/jailbridge/control.sock"
RULES = "/etc/nftables.conf"
# Where bans outlive a boot, and in which files; a ruleset only where another tool has saved it.
PLACES = {
    "ledger": (LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm"),
    "hosts.deny": (HOSTS_DENY,),
    "fail2ban": ("/var/lib/fail2ban/fail2ban.sqlite3", "/var/lib/fail2ban/fail2ban.sqlite3-journal"),
    "rules": (RULES,),
}
SCANNERS = networks(("198.51.100.7", "198.51.100.8", "10.1.2.9", "203.0.113.66"))
# None of them lies in another: what a cover means is told by tests/property/test_reconcile.py.
NETWORKS = networks((*SCANNERS, "203.0.113.128/25", "2001:db8:5::7", "2001:db8:6::/64", "2001:db8:7::/48"))
TABLE = ("inet", "jailbridge")
FLUSHES = (
    ("flush", "ruleset"),
    ("delete", "table", *TABLE),
    ("flush", "table", *TABLE),
    ("flush", "set", *TABLE, "hosts4"),
)

Step: TypeAlias = Callable[[], str | None]
"""Does something and returns what; None where it cannot be done now."""


@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_whatever_happens_it_ends_in_agreement(installed: Guest, seed: int) -> None:
    with Guest(installed) as guest:
        host = Host(guest, random.Random(seed))
        try:
            host.live_through()
        except Exception as error:
            journal = guest.run("journalctl", "--output", "short-precise", "-u", "jailbridge*", "-u", FAIL2BAN).out
            steps = "\n".join((*host.told, host.seen))
            log.error("seed %d: %s\n%s\n%s", seed, error, journal, steps)
            raise AssertionError(f"seed {seed}: {error}\n{steps}") from error


class Saved(NamedTuple):
    """What a place knew, and its files."""

    copy: Copy
    files: Mapping[str, bytes]


class Host:
    """A guest that is off, what is done to it, and the model of what it should hold.

    told  the steps, for people
    seen  what the last look found
    """

    def __init__(self, guest: Guest, chance: random.Random) -> None:
        self.told: list[str] = []
        self.seen = ""
        self._guest = guest
        self._random = chance
        self._model = Model(dict.fromkeys(networks(BANS)), either=frozenset(networks(BANS)))
        self._model.lines = dict.fromkeys(networks((ATTACKER, LAN, UDP)), 0)
        self._model.known = dict.fromkeys(PLACES, self._model.copy())
        self._saved: dict[str, list[Saved]] = {place: [] for place in PLACES}
        self._has_fail2ban = self._has_foreign = True
        self._settled_at = 0.0

    def live_through(self) -> None:
        self._guest.enable("nftables.service")
        self._guest.write(RULES, "")
        self._save("")
        self._guest.start()
        self._agree()
        changes = (self._ban, self._unban, self._scan, *self._persons, self._let_run_out, self._stop_fail2ban)
        upsets = (self._boot, self._boot, self._boot, self._restart, self._kill, self._flush, self._load_rules)
        for _ in range(self._random.randint(6, 10)):
            self._model.moment += 1
            self._is_hurried = self._random.random() < 0.25
            if self._is_hurried:
                # What upsets it comes before anybody has seen what came of the change.
                self._do(self._ban, self._unban, self._scan, *self._persons)
                self._do(*upsets)
            else:
                self._do(*changes, *upsets)
            self._agree()

    def _do(self, *steps: Step) -> None:
        while (told := self._random.choice(steps)()) is None:
            pass
        self.told.append(f"{self._model.moment}. {told}")
        log.info("%s", self.told[-1])

    # What is seen

    def _agree(self) -> None:
        """Wait until every store holds the same bans, each once, as the model has it, and nothing is left to do."""
        self._guest.wait("agreement", self._agrees, 60)
        lines = self._guest.path(HOSTS_DENY).read_text(encoding="utf-8").splitlines()
        assert len(set(lines)) == len(lines), lines
        assert (FOREIGN in lines) == self._has_foreign, lines
        self._settled_at = time.time()

    def _agrees(self) -> bool:
        now, model = datetime.now(UTC), self._model
        seen: dict[str, object] = {"must": sorted(model.must(now)), "may": sorted(model.may(now)), "ends": model.live}
        try:
            return self._is_as_modelled(seen)
        except (OSError, JailBridgeError) as error:
            seen["error"] = error
            return False
        finally:
            self.seen = "\n".join(f"{what}: {value}" for what, value in seen.items())

    def _is_as_modelled(self, seen: dict[str, object]) -> bool:
        """Look at what costs little first: who looks all the time keeps the guest from working."""
        found = seen["hosts.deny"] = networks(hosts_deny(self._guest))
        if not self._model.allows(found, datetime.now(UTC)):
            return False
        for store in (firewall, *([fail2ban] if self._has_fail2ban else [])):
            seen[store.__name__] = networks(store(self._guest))
            if seen[store.__name__] != found:
                return False
        plan, live = self._ask("plan"), self._live()
        seen |= {"plan": plan, "ledger": live, "moved": (moved := self._model.moved(live))}
        if plan["changes"] or sorted(live) != found or moved or not self._model.allows(live, datetime.now(UTC)):
            return False
        self._model.settle(live, ("ledger", "hosts.deny", *(["fail2ban"] if self._has_fail2ban else [])))
        return True

    def _ask(self, command: str, **arguments: Any) -> Any:
        return call(self._guest.path(CONTROL), command, arguments)

    def _live(self) -> Ends:
        ends = {str(ip_network(row["address"])): row["until"] for row in self._ask("list_bans")}
        return {one: datetime.fromisoformat(end) if end is not None else None for one, end in ends.items()}

    def _banned(self) -> str | None:
        """Choose one that no time will end soon."""
        later = datetime.now(UTC) + timedelta(minutes=10)
        return self._one_of(one for one, until in self._model.live.items() if until is None or until > later)

    def _not_banned(self, among: Iterable[str] = NETWORKS) -> str | None:
        return self._one_of(set(among) - self._model.live.keys())

    def _one_of(self, some: Iterable[str]) -> str | None:
        chosen = sorted(some)
        return self._random.choice(chosen) if chosen else None

    # What changes

    def _ban(self, lasting: str | None = None) -> str | None:
        if (network := self._not_banned()) is None:
            return None
        lasting = lasting or self._random.choice(("permanent", "1h", "5s"))
        self._ask("ban", addresses=[network], duration=lasting)
        self._model.ban(network, self._live()[network])
        return f"jailbridge ban {network} --for {lasting}"

    def _let_run_out(self) -> str | None:
        if told := self._ban("2s"):
            time.sleep(2)
        return told and f"{told}, which runs out"

    def _unban(self) -> str | None:
        if (network := self._banned()) is None:
            return None
        self._ask("unban", addresses=[network])
        self._model.unban(network)
        return f"jailbridge unban {network}"

    def _scan(self) -> str | None:
        if (network := self._not_banned(SCANNERS)) is None:
            return None
        self._await_next_second()
        address, seconds = plain(network), int(time.time())
        line = f"{seconds} - 11/22/2026 06:30:59 Host: {address}/{address} Port: 23 TCP Blocked"
        with self._guest.path(HISTORY).open("a", encoding="ascii") as history:
            history.write(f"{line}\n")
        # As the configuration of these guests has it.
        lasting = timedelta(hours=2) if address.startswith("10.") else None
        self._model.ban(network, datetime.fromtimestamp(seconds, UTC) + lasting if lasting is not None else None)
        self._model.lines[network] = self._model.moment
        return f"history: {line}"

    def _await_next_second(self) -> None:
        """Of the second in which a ban ended a log's line and fail2ban's bans may be from before."""
        while int(time.time()) <= self._settled_at:
            time.sleep(0.05)

    @property
    def _persons(self) -> tuple[Step, ...]:
        return self._ban_in_fail2ban, self._unban_in_fail2ban, self._add_line, self._remove_line

    def _ban_in_fail2ban(self) -> str | None:
        return self._tell_fail2ban("banip", self._not_banned())

    def _unban_in_fail2ban(self) -> str | None:
        return self._tell_fail2ban("unbanip", self._banned())

    def _tell_fail2ban(self, what: str, network: str | None) -> str | None:
        if network is None or not self._has_fail2ban:
            return None
        self._prove()
        self._await_next_second()
        self._guest.do("fail2ban-client", "set", "portsentry", what, plain(network))
        self._model.wish("fail2ban", network)
        return f"fail2ban-client set portsentry {what} {network}"

    def _add_line(self) -> str | None:
        if (network := self._not_banned()) is None:
            return None
        address, slash, size = plain(network).partition("/")
        pattern = f"[{address}]{slash}{size}" if ":" in address else f"{address}{slash}{size}"
        return self._edit(network, f"/^# jailbridge end/i ALL: {pattern}")

    def _remove_line(self) -> str | None:
        if (network := self._banned()) is None:
            return None
        lines = self._guest.path(HOSTS_DENY).read_text(encoding="utf-8").splitlines()
        before = next(n for n, line in enumerate(lines) if line.startswith("ALL:"))
        number = before + 1 + [networks([one]) for one in hosts_deny(self._guest)].index([network])
        return self._edit(network, f"{number}d")

    def _edit(self, network: str, how: str) -> str:
        self._prove()
        self._guest.do("sed", "-i", how, HOSTS_DENY)
        self._model.wish("hosts.deny", network)
        return f"hosts.deny: {how} ({network})"

    def _prove(self) -> None:
        """Have every store read: what was not yet seen there cannot be taken out."""
        while self._ask("reconcile")["changes"]:
            time.sleep(0.05)

    # What upsets it

    def _restart(self) -> str:
        service = self._random.choice((FAIL2BAN, *UNITS))
        # Others than ours give up after so many starts in so many seconds.
        self._guest.do("systemctl", "reset-failed")
        self._guest.do("systemctl", "restart", service, timeout_s=60)
        if service == FAIL2BAN:
            self._has_fail2ban = True
            self._model.upset("fail2ban")
        return f"systemctl restart {service}"

    def _stop_fail2ban(self) -> str | None:
        if not self._has_fail2ban:
            return None
        self._guest.do("systemctl", "stop", FAIL2BAN, timeout_s=60)
        self._has_fail2ban = False
        return f"systemctl stop {FAIL2BAN}"

    def _kill(self) -> str:
        running = [(unit, pid) for unit in (FAIL2BAN, *UNITS) if (pid := show(self._guest, unit, "MainPID")) != "0"]
        unit, before = self._random.choice(running)
        self._guest.do("systemctl", "reset-failed")
        self._guest.do("kill", "-KILL", before)
        self._guest.wait(f"{unit} is another", lambda: show(self._guest, unit, "MainPID") not in {"0", before}, 60)
        self._guest.wait(f"{unit} is ready", lambda: show(self._guest, unit, "ActiveState") == "active", 60)
        if unit == FAIL2BAN:
            self._model.upset("fail2ban")
        return f"kill -9 {unit}"

    def _flush(self) -> str:
        argv = ("nft", *self._random.choice(FLUSHES))
        self._guest.do(*argv)
        return " ".join(argv)

    def _load_rules(self) -> str | None:
        saved = self._random.choice(self._saved["rules"])
        if not saved.files[RULES]:
            return None
        self._guest.path("/run/rules").write_bytes(saved.files[RULES])
        self._guest.do("nft", "-f", "/run/rules")
        self._model.load(saved.copy)
        return f"nft -f: the rules of {saved.copy.moment}"

    def _boot(self) -> str:
        rules = "flush ruleset\n" + self._guest.do("nft", "list", "ruleset")
        how, end = self._random.choice((("reboot", self._guest.shut_down), ("power cut", self._guest.cut_power)))
        end()
        older = {place: tuple(copies) for place, copies in self._saved.items()}
        if not self._is_hurried:
            self._save(rules)
        found, told = dict[str, Copy](), [how]
        for place in PLACES:
            fate = self._random.choices(("kept", "older", "lost"), (5, 3, 2))[0]
            if fate == "older":
                saved = self._random.choice(older[place])
                self._put(place, saved.files)
                found[place] = saved.copy
                told.append(f"{place} of {saved.copy.moment}")
            elif fate == "lost" or place == "rules":
                self._put(place, {RULES: b""} if place == "rules" else {})
                told += [f"{place} lost"] if place != "rules" else []
            else:
                found[place] = self._model.known[place]
        self._guest.start()
        self._has_fail2ban = True
        self._model.upset("fail2ban")
        if found.get("hosts.deny") != self._model.known["hosts.deny"]:
            self._model.upset("hosts.deny")
        self._model.boot(found)
        return ", ".join(told)

    # The disk, while it is off

    def _save(self, rules: str) -> None:
        for place, names in PLACES.items():
            paths = {name: self._guest.path(name) for name in names}
            files = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
            if place == "rules":
                files = {RULES: rules.encode()}
            copy = self._model.copy() if place == "rules" else self._model.known[place]
            self._saved[place].append(Saved(copy, files))

    def _put(self, place: str, files: Mapping[str, bytes]) -> None:
        for name in PLACES[place]:
            self._guest.path(name).unlink(missing_ok=True)
        for name, content in files.items():
            path = self._guest.path(name)
            path.write_bytes(content)
            path.chmod(0o644 if name in {HOSTS_DENY, RULES} else 0o600)
        if place == "hosts.deny":
            self._has_foreign = FOREIGN in files.get(HOSTS_DENY, b"").decode()
            if not files:
                # The overlay's sign that a file of the layer below is gone.
                os.mknod(self._guest.path(HOSTS_DENY), stat.S_IFCHR, os.makedev(0, 0))


def plain(network: str) -> str:
    """Return a single address without the size of its network, as people write it."""
    return network.removesuffix("/128" if ":" in network else "/32")
