"""The services in a guest, with a drop-in of docs/services.md: whom the daemon answers, what it may write, its log."""

import json
import re
import stat
from pathlib import Path

import pytest

from jailbridge.service_files import DAEMON, SENSOR
from tests.e2e.guest import UNITS, Guest
from tests.e2e.rebooting import CONFIG, HOSTS_DENY, hosts_deny, said_by

pytestmark = [pytest.mark.e2e, pytest.mark.needs("journalctl"), pytest.mark.timeout(180)]

DOCS = (Path(__file__).parents[2] / "docs" / "services.md").read_text(encoding="utf-8")
(DROPIN,) = re.findall(r"^```ini\n(\[Service\]\n(?:.*=jailbridge-admin\n)[^`]*)^```$", DOCS, re.MULTILINE)
GROUPS = {"jailbridge-admin": 4001, "others": 4002}
SOCKET = "/run/jailbridge/control.sock"
BANNED, LATER = "203.0.113.5", "203.0.113.6"


def prepare(guest: Guest, dropin: str) -> None:
    """Have a guest that is off let a group in."""
    guest.write("/etc/jailbridge/jailbridge.toml", f'{CONFIG}[control]\ngroup = "jailbridge-admin"\n')
    guest.write(f"{UNITS}/{DAEMON}.d/groups.conf", dropin)
    with guest.path("/etc/group").open("a", encoding="ascii") as groups:
        groups.writelines(f"{name}:x:{gid}:\n" for name, gid in GROUPS.items())


def as_user(guest: Guest, group: str, *arguments: str) -> tuple[int, str]:
    """Run a command as nobody, who is of this group too."""
    nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--groups", str(GROUPS[group]))
    done = guest.run(*nobody, "jailbridge", *arguments)
    return done.code, done.out + done.err


def entries(guest: Guest, *matches: str) -> list[dict[str, str]]:
    told = guest.run("journalctl", "--boot", "--unit", "jailbridge", "--output", "json", *matches).out
    return [json.loads(line) for line in told.splitlines()]


def told_stores(guest: Guest) -> set[str]:
    return {entry.get("JAILBRIDGE_STORE", "") for entry in entries(guest, f"JAILBRIDGE_ADDRESS={BANNED}")}


def test_the_daemon_answers_a_group_and_tells_the_journal_in_fields(installed: Guest) -> None:
    with Guest(installed) as guest:
        prepare(guest, DROPIN)
        guest.start()
        guest.wait("the daemon answers", lambda: as_user(guest, "jailbridge-admin", "list")[0] == 0)
        status = guest.path(SOCKET).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o660, 0, 4001)
        assert as_user(guest, "jailbridge-admin", "ban", BANNED)[0] == 0
        code, told = as_user(guest, "others", "unban", BANNED)
        assert (code, told.count("\n")) == (1, 1)
        assert f"control socket {SOCKET} is for root and the group that control.group names: run as root" in told

        guest.wait("hosts.deny is written", lambda: BANNED in hosts_deny(guest))
        guest.wait("each store's is told", lambda: told_stores(guest) == {"firewall", "fail2ban", "hosts_deny"})
        told_of = entries(guest, f"JAILBRIDGE_ADDRESS={BANNED}")
        assert {(entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) for entry in told_of} == {("6", "jailbridge")}
        assert all(BANNED in entry["MESSAGE"] for entry in told_of)
        assert entries(guest, f"JAILBRIDGE_ADDRESS={LATER}") == []
        # As another user, without privileges.
        sensors = ("journalctl", "--boot", "--unit", SENSOR, "--output", "cat", "JAILBRIDGE_PART=jailbridge.sensor")
        guest.wait("the sensor tells too", lambda: "watching interfaces=" in guest.run(*sensors).out)

        # hosts.deny of a group that the daemon is not of, then of one that it is of.
        before = guest.path(HOSTS_DENY).read_bytes()
        guest.do("chgrp", "others", HOSTS_DENY)
        assert as_user(guest, "jailbridge-admin", "ban", LATER)[0] == 0
        guest.wait("that is told", lambda: f"{HOSTS_DENY} is left as it is" in guest.run("jailbridge", "status").out)
        assert (guest.path(HOSTS_DENY).read_bytes(), guest.path(HOSTS_DENY).stat().st_gid) == (before, 4002)
        warnings = entries(guest, "--priority", "warning", "JAILBRIDGE_STORE=hosts_deny")
        assert len(warnings) == 1, warnings
        assert f"{HOSTS_DENY} is left as it is: it belongs to root:others" in warnings[0]["MESSAGE"]
        guest.do("chgrp", "jailbridge-admin", HOSTS_DENY)
        guest.wait("hosts.deny is written again", lambda: LATER in hosts_deny(guest))
        assert guest.path(HOSTS_DENY).stat().st_gid == 4001


def test_without_the_drop_in_the_service_says_what_it_needs(installed: Guest) -> None:
    with Guest(installed) as guest:
        prepare(guest, "[Service]\nRestart=no\n")
        guest.start()
        needs = 'cannot be given to the group jailbridge-admin: .*"SupplementaryGroups=jailbridge-admin"'
        guest.wait("that is told", lambda: re.search(needs, said_by(guest, DAEMON)) is not None)
