"""Commands as answers, with the real daemon: right words, no ban held up, nothing lost, nothing twice without need."""

import json
import sqlite3
import time
from collections import Counter
from pathlib import Path

import pytest

from jailbridge.demo.lab import ATTACKER, INNOCENT, SECOND, Lab
from jailbridge.process import Running
from jailbridge.service_files import RESPOND
from tests.e2e.guest import Guest
from tests.e2e.rebooting import said_by

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOSTILE = "$(touch /tmp/jailbridge-hostile); `id` 'x\" --all {address} & | > %s"


class Answered:
    """A lab whose daemon answers by a script."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.told = lab.disk / "told"
        self.told.touch()
        self.daemon: Running | None = None

    def script(self, text: str, name: str = "script") -> str:
        path = self.lab.disk / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    def configure(self, *commands: str, parallel: int = 4) -> None:
        """Each of the commands is the text of its table."""
        tables = "".join(f"[[respond.command]]\n{command}\n" for command in commands)
        text = self.lab.config.read_text().replace("[respond]\n", f"[respond]\nparallel = {parallel}\n")
        self.lab.config.write_text(f"{text}\n{tables}")

    def start(self, *arguments: str) -> None:
        before = self.log.count("responding commands=")
        self.daemon = self.lab.start_daemon(*arguments)
        self.lab.wait("it answers", lambda: self.log.count("responding commands=") > before, 60.0)
        self.lab.wait("it reads the feed", lambda: place(self.lab) is not None, 60.0)

    @property
    def log(self) -> str:
        path = self.lab.disk / "jailbridge.log"
        return path.read_text() if path.exists() else ""

    def lines(self) -> list[str]:
        return self.told.read_text().splitlines()


def place(lab: Lab) -> object:
    path = lab.disk / "respond.sqlite3"
    if not path.exists():
        return None
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        try:
            found = db.execute("SELECT sequence FROM place").fetchone()
        except sqlite3.OperationalError:
            found = None
    db.close()
    return found


@pytest.fixture
def answered(lab: Lab) -> Answered:
    return Answered(lab)


def in_firewall(lab: Lab, address: str) -> bool:
    return f"{address}" in lab.on_host("nft", "list", "table", "inet", "jailbridge").out


def history(lab: Lab, addresses: list[str]) -> None:
    now = int(time.time())
    with lab.history.open("a", encoding="ascii") as file:
        for address in addresses:
            file.write(f"{now} - 11/22/2026 06:30:59 Host: {address}/{address} Port: 23 TCP Blocked\n")


def runs(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def many(count: int) -> list[str]:
    return [f"203.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in range(count)]


def test_a_scan_runs_a_command_with_the_right_words_and_environment(answered: Answered) -> None:
    lab = answered.lab
    after = answered.script(
        f"exec 9>{lab.disk}/lock; flock 9\n"
        f'printf "%s|" "$@" >> {answered.told}; echo >> {answered.told}\n'
        f"env | sort > {lab.disk}/env.$JAILBRIDGE_EVENT"
    )
    first = answered.script(f'echo "first $1" >> {answered.told}', "first")
    answered.configure(
        f'run = ["{after}", "{{what}}", "{{address}}", "{{protocol}}", "{{mode}}", "{{until}}"]\non = ["ban", "unban"]',
        f'run = ["{first}", "{{address}}"]\nfirst = true',
        f'run = ["{first}", "never"]\nnetworks = ["10.0.0.0/8"]',
    )
    answered.start()
    lab.scan(ATTACKER)
    lab.wait("both have run", lambda: len(answered.lines()) == 2, 60.0)
    until = json.loads(lab.jailbridge("list", "--json").out)[0]["until"]
    assert answered.lines() == [f"first {ATTACKER}", f"ban|{ATTACKER}|tcp|stealth|{until[:19]}Z|"]
    environment = dict(line.split("=", 1) for line in (lab.disk / "env.ban").read_text().splitlines())
    assert environment["PATH"] == PATH
    assert environment["LANG"] == "C.UTF-8"
    assert environment["JAILBRIDGE_ADDRESS"] == ATTACKER
    assert environment["JAILBRIDGE_PORTS"].startswith("tcp/")
    # It has waited until the source was cut off.
    assert environment["JAILBRIDGE_BLOCKED"] == "yes"
    assert set(environment) - {"PWD", "OLDPWD", "SHLVL", "_"} == {
        *("PATH", "HOME", "LANG"),
        *(f"JAILBRIDGE_{name}" for name in ("ADDRESS", "PORT", "PORTS", "PROTOCOL", "MODE", "HOSTNAME", "REASON")),
        *(f"JAILBRIDGE_{name}" for name in ("UNTIL", "EVENT", "TIME", "BLOCKED")),
    }
    assert lab.jailbridge("unban", ATTACKER).code == 0
    lab.wait("the end is answered", lambda: len(answered.lines()) == 3, 60.0)
    assert answered.lines()[2] == f"unban|{ATTACKER}|tcp|stealth||"
    assert "JAILBRIDGE_BLOCKED=no" in (lab.disk / "env.unban").read_text()


def test_hostile_words_stay_one_argument(answered: Answered) -> None:
    lab = answered.lab
    script = answered.script(f'printf "%s\\n" "$#" "$@" "$JAILBRIDGE_REASON" >> {answered.told}')
    answered.configure(f'run = ["{script}", "{{reason}}", "<{{reason}}>"]')
    answered.start()
    assert lab.jailbridge("ban", ATTACKER, "--reason", HOSTILE).code == 0
    lab.wait("it has run", lambda: len(answered.lines()) == 4, 60.0)
    assert answered.lines() == ["2", HOSTILE, f"<{HOSTILE}>", HOSTILE]
    assert not Path("/tmp/jailbridge-hostile").exists()


def test_hanging_and_failing_commands_hold_up_no_ban_and_are_killed_and_counted(answered: Answered) -> None:
    lab = answered.lab
    waits = answered.script(f'echo "$1" >> {answered.told}; while [ ! -e {lab.disk}/go ]; do sleep 0.05; done', "waits")
    hangs = answered.script(f"sleep 600 & echo $! >> {lab.disk}/pids; wait", "hangs")
    fails = answered.script("echo cannot >&2; exit 7", "fails")
    answered.configure(
        f'run = ["{waits}", "{{address}}"]\ntimeout = "1h"\nfirst = true',
        f'run = ["{hangs}", "{{address}}"]\ntimeout = "1s"\nfirst = true',
        f'run = ["{fails}"]\nfirst = true',
        'run = ["/no/such/program"]\nfirst = true',
        parallel=1,
    )
    answered.start()
    assert "respond.command.3.run: there is no program /no/such/program" in answered.log
    lab.scan(ATTACKER)
    lab.wait("the first one hangs", lambda: answered.lines() == [ATTACKER], 60.0)
    # While it does, others are banned.
    lab.scan(SECOND)
    lab.wait("the second one is cut off", lambda: in_firewall(lab, SECOND), 60.0)
    assert lab.connect(SECOND) == "timed out"
    assert lab.connect(INNOCENT) == "connected"
    assert answered.lines() == [ATTACKER]
    (lab.disk / "go").touch()
    lab.wait("all have come to an end", lambda: answered.log.count("cannot be started") == 2, 60.0)
    for pid in (lab.disk / "pids").read_text().split():
        lab.wait("what it had started is gone", lambda pid=pid: not runs(pid), 60.0)  # type: ignore[misc]
    assert answered.log.count("command killed") == 2
    assert answered.log.count("code=7") == 2
    assert f"command said program={fails} address={ATTACKER} what=ban: cannot" in answered.log


def test_a_daemon_that_is_killed_between_ban_and_command_runs_it_after_its_restart(answered: Answered) -> None:
    lab = answered.lab
    script = answered.script(f'echo "$1" >> {answered.told}; [ -e {lab.disk}/go ] || sleep 600')
    answered.configure(f'run = ["{script}", "{{address}}"]\ntimeout = "1h"', parallel=1)
    answered.start()
    assert lab.jailbridge("ban", ATTACKER, SECOND).code == 0
    lab.wait("one hangs, one waits", lambda: len(answered.lines()) == 1, 60.0)
    assert answered.daemon is not None
    lab.kill(answered.daemon)
    # A ban while nobody answers.
    assert lab.jailbridge("ban", INNOCENT).code == 0
    (lab.disk / "go").touch()
    answered.start()
    lab.wait("all have run", lambda: len(answered.lines()) == 4, 60.0)
    # At least once: what was cut short runs again.
    assert Counter(answered.lines()) == {ATTACKER: 2, SECOND: 1, INNOCENT: 1}


def test_what_is_restored_runs_nothing(answered: Answered) -> None:
    lab = answered.lab
    script = answered.script(f'echo "$1" >> {answered.told}')
    answered.configure(f'run = ["{script}", "{{address}}"]')
    answered.start()
    assert lab.jailbridge("ban", ATTACKER).code == 0
    lab.wait("it has run", lambda: answered.lines() == [ATTACKER], 60.0)
    lab.cut_power()
    lab.power_on()
    assert lab.jailbridge("restore").code in {0, 2}
    assert in_firewall(lab, ATTACKER)
    answered.start()
    # What is banned after it is answered after it.
    assert lab.jailbridge("ban", SECOND).code == 0
    lab.wait("the next one has run", lambda: len(answered.lines()) == 2, 60.0)
    assert answered.lines() == [ATTACKER, SECOND]


def test_in_a_storm_every_command_runs_once_and_at_most_so_many_at_a_time(answered: Answered) -> None:
    lab, sources = answered.lab, many(5000)
    script = answered.script(f'echo "+$1" >> {answered.told}; echo "-$1" >> {answered.told}')
    answered.configure(f'run = ["{script}", "{{address}}"]', parallel=3)
    lab.config.write_text(lab.config.read_text().replace("[policy]", "[policy]\nmax_new_spoofable_per_minute = 50000"))
    answered.start("--without", "sensor")
    history(lab, sources)
    lab.wait("every ban is in force", lambda: in_firewall(lab, sources[-1]), 60.0)
    lab.wait("all have run", lambda: len(answered.lines()) == 2 * len(sources), 150.0)
    at_once = most = 0
    for line in answered.lines():
        at_once += 1 if line[0] == "+" else -1
        most = max(most, at_once)
    assert most <= 3
    assert Counter(answered.lines()) == dict.fromkeys([f"{sign}{source}" for sign in "+-" for source in sources], 1)


def test_the_responder_alone_answers_what_the_daemon_decides(answered: Answered) -> None:
    lab = answered.lab
    script = answered.script(f'echo "$JAILBRIDGE_BLOCKED $1" >> {answered.told}')
    answered.configure(f'run = ["{script}", "{{address}}"]')
    lab.start_daemon("--without", "sensor,respond")
    responder = lab.spawn("respond", lab.jailbridge_argv("respond"))
    lab.wait("it reads the feed", lambda: place(lab) is not None, 60.0)
    assert lab.jailbridge("ban", ATTACKER).code == 0
    lab.wait("it is answered", lambda: answered.lines() == [f"yes {ATTACKER}"], 60.0)
    responder.terminate()
    assert responder.wait(30) == 0
    assert lab.jailbridge("ban", SECOND).code == 0
    lab.spawn("respond", lab.jailbridge_argv("respond"))
    lab.wait("what was decided meanwhile is answered", lambda: len(answered.lines()) == 2, 60.0)
    assert "responding" not in answered.log


def test_a_reload_takes_up_other_commands_and_a_bad_one_changes_nothing(answered: Answered) -> None:
    lab = answered.lab
    script = answered.script(f'echo "$*" >> {answered.told}')
    answered.configure(f'run = ["{script}", "old", "{{address}}"]')
    answered.start()
    good = lab.config.read_text().replace('"old"', '"new"')
    lab.config.write_text(good.replace("{address}", "{adress}"))
    assert answered.daemon is not None
    lab.on_host("kill", "-HUP", str(answered.daemon.pid))
    lab.wait("it is refused", lambda: "the one before goes on" in answered.log, 60.0)
    assert "no placeholder '{adress}'" in answered.log
    lab.config.write_text(good)
    lab.on_host("kill", "-HUP", str(answered.daemon.pid))
    lab.wait("it is read anew", lambda: answered.log.count("responding commands=1") >= 2, 60.0)
    lab.wait(
        "the new one works", lambda: answered.log.rindex("read anew") < answered.log.rindex("responding com"), 60.0
    )
    assert lab.jailbridge("ban", ATTACKER).code == 0
    lab.wait("the new one has run", lambda: answered.lines() == [f"new {ATTACKER}"], 60.0)


def test_check_config_names_what_cannot_run(answered: Answered) -> None:
    lab = answered.lab
    answered.configure('run = ["no-such-program-here"]')
    done = lab.jailbridge("check-config")
    assert done.code == 1
    assert f"respond.command.0.run: there is no program no-such-program-here in {PATH}" in done.err


ANSWER = """#!/bin/sh
set -e
{
    # A mail system's own programs are setgid.
    [ ! -e /usr/local/bin/setgid-id ] || /usr/local/bin/setgid-id -gn
    grep NoNewPrivs /proc/self/status | tr -d "[:space:]"
    echo " $JAILBRIDGE_EVENT $1 $JAILBRIDGE_BLOCKED $HOME $(id -un)"
    touch /etc/answered && touch /usr/answered 2>&1 || true
} >> /var/lib/answered
"""
RESPOND_CONFIG = """
[[respond.command]]
run = ["answer", "{address}"]
[respond.syslog]
enabled = true
"""


def test_the_unit_answers_with_a_command_as_root_under_its_hardening(installed: Guest) -> None:
    with Guest(installed) as guest:
        config = guest.path("/etc/jailbridge/jailbridge.toml")
        config.write_text(config.read_text() + RESPOND_CONFIG)
        guest.write("/usr/local/bin/answer", ANSWER, 0o755)
        guest.start()
        guest.do("sh", "-c", "cp /usr/bin/id /usr/local/bin/setgid-id; chgrp mail /usr/local/bin/setgid-id")
        guest.do("chmod", "2755", "/usr/local/bin/setgid-id")
        guest.wait("the unit runs", lambda: guest.run("systemctl", "is-active", RESPOND).code == 0)
        guest.wait("it reads the feed", lambda: "responding commands=1" in said_by(guest, RESPOND))
        guest.do("jailbridge", "ban", SECOND)
        answered = guest.path("/var/lib/answered")
        guest.wait("it has run", lambda: answered.exists() and "touch" in answered.read_text())
        first, second, third = answered.read_text().splitlines()
        assert (first, second) == ("mail", f"NoNewPrivs:0 ban {SECOND} yes /root root")
        assert "Read-only file system" in third
        assert guest.path("/etc/answered").exists()
        said = f"attackalert: Host {SECOND} has been blocked until permanent (by hand)"
        guest.wait(
            "the system log has it", lambda: said in guest.do("journalctl", "--boot", "-t", "portsentry", "-o", "cat")
        )
        # Nothing that was restored at the boot was answered.
        assert said_by(guest, RESPOND).count("command ended") == 1
        guest.do("jailbridge", "unban", SECOND)
        removed = f"Removed the ban for IP: {SECOND}"
        guest.wait("and its end", lambda: removed in guest.do("journalctl", "--boot", "-t", "portsentry", "-o", "cat"))
