"""Boots with what remembers bans lost, or put back from an older copy, in any combination; on real systemd.

What must hold afterwards follows from what each place knew (`expected`):

- With its ledger a host holds just what that says, whatever the other places come up with: no unban is undone.
- With an older one, or none, nothing is forgotten that any place knows of: what the stores hold beyond the ledger is
  taken over, by policy like evidence that can be forged. A ban that an older ledger knows keeps its own end. Of one
  that has ended meanwhile nobody knows that without a ledger: it may come back for a time.
- PortSentry's blocked files are no memory of bans: they are only cleared of those that the ledger knows to have ended.
"""

import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Set
from datetime import UTC, datetime, timedelta
from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple

import pytest

from jailbridge.demo.lab import ATTACKER
from jailbridge.service_files import DAEMON
from tests.e2e.guest import Guest
from tests.e2e.rebooting import (
    BANS,
    EXPIRED,
    FOREIGN,
    HISTORY,
    HOSTS_DENY,
    LAN,
    LEDGER,
    UDP,
    held,
    networks,
    said_by,
    untils,
)

pytestmark = [pytest.mark.e2e, pytest.mark.needs("journalctl"), pytest.mark.timeout(180)]

BLOCKED = "/var/lib/portsentry/portsentry.blocked.tcp"
RULES = "/etc/nftables.conf"
FILES = {
    "ledger": (LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm"),
    "hosts_deny": (HOSTS_DENY,),
    "fail2ban": ("/var/lib/fail2ban/fail2ban.sqlite3",),
    "blocked": (BLOCKED,),
}
KEPT, OLDER, LOST = STATES = "kept", "older", "lost"

# Banned, and unbanned, after the copies were made; marked by PortSentry and never banned by us.
NEW, GONE, UNKNOWN = "198.51.100.7", "203.0.113.30", "203.0.113.99"
LOGGED = {ATTACKER, LAN, UDP, GONE}
THEN, NOW = {*BANS, GONE}, {*BANS, NEW}
KNEW: Mapping[str, Mapping[str, Set[str]]] = {
    "ledger": {KEPT: NOW, OLDER: THEN, LOST: set()},
    "hosts_deny": {KEPT: NOW, OLDER: THEN, LOST: set()},
    # Without its database fail2ban reads the logs from their beginning.
    "fail2ban": {KEPT: NOW, OLDER: THEN, LOST: LOGGED},
    "rules": {OLDER: THEN, LOST: set()},
}
MARKED: Mapping[str, Set[str]] = {KEPT: {LAN, UNKNOWN}, OLDER: {LAN, UNKNOWN, GONE}, LOST: set()}


class Case(NamedTuple):
    """What becomes of each place while the machine is off; `rules` are loaded by nftables.service."""

    ledger: str
    hosts_deny: str
    fail2ban: str
    blocked: str
    rules: str


CASES = [
    Case(*states.split())
    for states in (
        "kept   kept   kept   lost   older",
        "kept   older  older  older  older",
        "kept   kept   lost   older  older",
        "kept   lost   older  kept   lost ",
        "older  kept   kept   kept   lost ",
        "older  kept   older  older  older",
        "older  older  lost   lost   lost ",
        "older  lost   kept   kept   lost ",
        "lost   kept   kept   kept   lost ",
        "lost   older  kept   kept   older",
        "lost   lost   kept   older  lost ",
        "lost   lost   older  lost   older",
        "lost   lost   lost   kept   older",
    )
]


def expected(case: Case) -> Set[str]:
    """Return who is banned after the boot."""
    if case.ledger == KEPT:
        return NOW
    return set[str]().union(*(KNEW[place][state] for place, state in case._asdict().items() if place in KNEW))


def marked(case: Case) -> Set[str]:
    """Return whom PortSentry has "already blocked" after the boot."""
    return MARKED[case.blocked] - ({GONE} if case.ledger == KEPT else set())


def test_the_cases_have_every_pair_of_states_of_two_places() -> None:
    pairs = [{(a, b, case[a], case[b]) for case in CASES} for a, b in combinations(range(len(Case._fields)), 2)]
    places = dict.fromkeys(range(4), STATES) | {4: (OLDER, LOST)}
    wanted = {(a, b, *two) for a, b in combinations(places, 2) for two in product(places[a], places[b])}
    assert set().union(*pairs) == wanted


def line(address: str) -> str:
    return f"{int(time.time())} - 11/22/2026 06:30:59 Host: {address}/{address} Port: 23 TCP Blocked\n"


def wait_until_held(guest: Guest, bans: Set[str], *, but: Set[str] = frozenset()) -> None:
    """Wait until every store holds these, each once and nothing else; of some it may hold what it likes."""
    wanted = dict.fromkeys(("firewall", "fail2ban", "hosts_deny"), networks(bans))

    def found() -> dict[str, list[str]]:
        return {
            store: [one for one in all_of_it if one not in networks(but)] for store, all_of_it in held(guest).items()
        }

    try:
        guest.wait("every store holds them", lambda: found() == wanted)
    except AssertionError:
        assert found() == wanted, guest.run("journalctl", "-b", "-u", "jailbridge*").out
        raise


def keep(guest: Guest, folder: Path) -> None:
    """Copy what a guest that is off remembers."""
    for path in (path for paths in FILES.values() for path in paths if guest.path(path).exists()):
        shutil.copy2(guest.path(path), folder)


class Machine(NamedTuple):
    """A guest that is off, the folders of what it remembers now and remembered once, and its bans' ends."""

    guest: Guest
    copies: Mapping[str, Path]
    ends: Mapping[str, object]

    def put(self, case: Case) -> None:
        """Have the disk be as the case says."""
        for place, paths in FILES.items():
            for path in map(self.guest.path, paths):
                path.unlink(missing_ok=True)
                if path == self.guest.path(HOSTS_DENY):
                    # A hole in the overlay: else this machine's own would show through.
                    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
                copy = self.copies[getattr(case, place)] / path.name
                if copy.exists():
                    path.unlink(missing_ok=True)
                    shutil.copy2(copy, path)
        self.guest.path(RULES).unlink(missing_ok=True)
        self.guest.write(RULES, (self.copies[case.rules] / "rules").read_text() if case.rules == OLDER else "")


@pytest.fixture(scope="module")
def machine(installed: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    copies = {state: tmp_path_factory.mktemp(state) for state in STATES}
    with Guest(installed) as guest:
        guest.write(BLOCKED, "".join(map(line, (LAN, UNKNOWN, GONE))))
        guest.start()
        with guest.path(HISTORY).open("a", encoding="ascii") as history:
            history.write(line(GONE))
        guest.do("jailbridge", "ban", EXPIRED, "--for", "10s")
        over = time.time() + 10
        wait_until_held(guest, THEN, but={EXPIRED})
        (copies[OLDER] / "rules").write_text(guest.do("nft", "list", "ruleset"), encoding="utf-8")
        guest.cut_power()
        keep(guest, copies[OLDER])
        guest.start()
        guest.do("jailbridge", "unban", GONE)
        guest.do("jailbridge", "ban", NEW)
        time.sleep(max(0.0, over - time.time()))
        wait_until_held(guest, NOW)
        ends = untils(guest)
        guest.shut_down()
        keep(guest, copies[KEPT])
        guest.enable("nftables.service")
        yield Machine(guest, copies, ends)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_no_ban_is_lost_that_any_place_knew_and_no_unban_undone(machine: Machine, case: Case) -> None:
    guest, bans, known = machine.guest, expected(case), KNEW["ledger"][case.ledger]
    machine.put(case)
    guest.start()
    try:
        nobody_knows = {EXPIRED} if case.ledger == LOST else set[str]()
        wait_until_held(guest, bans, but=nobody_knows)
        guest.wait("agreement", lambda: guest.run("jailbridge", "plan").code == 0)
        # A ban that the ledger knows keeps its end; of another one nobody knows it, so policy says.
        ends = untils(guest)
        assert {address: ends[address] for address in NOW & known} == {a: machine.ends[a] for a in NOW & known}
        soon = (datetime.now(UTC) + timedelta(days=1, minutes=1)).isoformat()
        assert all(str(ends[address]) < soon for address in bans - known)
        # Our block in hosts.deny is all that changed there, and only ended bans' marks went from the blocked file.
        lines = guest.path(HOSTS_DENY).read_text(encoding="utf-8").splitlines()
        assert len(set(lines)) == len(lines)
        assert (FOREIGN in lines) is (case.hosts_deny != LOST)
        blocked = guest.path(BLOCKED)
        found = blocked.read_text(encoding="ascii").splitlines() if blocked.exists() else []
        assert {entry.split()[5].partition("/")[0] for entry in found} == marked(case)
        # The log tells what was taken over, and why.
        said = said_by(guest, DAEMON)
        adopted = sum(map(int, re.findall(r"store=\w+ adopted=(\d+)", said)))
        assert 0 <= adopted - len(bans - known) <= len(nobody_knows)
        is_newer = case.ledger != KEPT and (case.hosts_deny == KEPT or (case.ledger, case.hosts_deny) == (LOST, OLDER))
        assert ("store=hosts_deny bears the mark of another ledger" in said) is is_newer
        assert ("there is no ledger at" in said) is (case.ledger == LOST)
    finally:
        guest.cut_power()
