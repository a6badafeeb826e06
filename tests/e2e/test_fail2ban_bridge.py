"""Daemon and fail2ban side by side: whatever befalls either, both hold the same bans, and neither undoes the other."""

import re
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from jailbridge.daemon.answers import is_agreement
from jailbridge.daemon.control import call
from jailbridge.demo.lab import ATTACKER, INNOCENT, SECOND, Lab
from jailbridge.errors import RetryLater
from jailbridge.process import Running
from jailbridge.stores.fail2ban import CHUNK
from jailbridge.stores.fail2ban_socket import Fail2banSocket, Refused

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

JAIL = "portsentry"
NETWORK = "2001:db8:9::/64"
LATER = "203.0.113.7"
MANY = [f"203.0.{n >> 8}.{n & 255}" for n in range(0x7200, 0x7200 + 10_000)]
PATIENCE_S = 60.0
# The figure asked for. Of many pongs a few may be late because somebody else has the processor.
PONG_S = 0.1


def append(lab: Lab, *addresses: str) -> None:
    now = int(time.time())
    rows = [f"{now} - 11/22/2026 06:30:59 Host: {one}/{one} Port: 23 TCP Blocked\n" for one in addresses]
    with lab.history.open("a", encoding="ascii") as file:
        file.write("".join(rows))


# Both sides


def conversation(lab: Lab) -> Fail2banSocket:
    return Fail2banSocket(lab.run_folder / "fail2ban.sock", timeout_s=30)


def jailed(lab: Lab) -> list[str] | None:
    """What the jail holds, None where there is no jail."""
    try:
        with conversation(lab) as server:
            answer = server.ask("get", JAIL, "banip")
    except (RetryLater, Refused):
        return None
    return sorted(answer) if isinstance(answer, list) else None


def holds(lab: Lab, *addresses: str) -> Callable[[], bool]:
    return lambda: jailed(lab) == sorted(addresses)


def done_in_jail(lab: Lab) -> list[tuple[str, str]]:
    """What fail2ban's own log tells: `Ban`, `Restore Ban` or `Unban`, and of whom."""
    text = (lab.disk / "fail2ban.log").read_text(encoding="utf-8")
    return re.findall(rf"NOTICE +\[{JAIL}\] (Ban|Restore Ban|Unban) (\S+)$", text, re.MULTILINE)


def done_to(lab: Lab, address: str) -> list[str]:
    return [what for what, whom in done_in_jail(lab) if whom == address]


def restored(lab: Lab) -> list[str]:
    return [whom for what, whom in done_in_jail(lab) if what == "Restore Ban"]


def told(lab: Lab) -> list[tuple[str, str]]:
    """All that ever happened to the ledger's bans."""
    with closing(sqlite3.connect(f"file:{lab.settings.ledger.path}?mode=ro", uri=True)) as ledger:
        return list(ledger.execute("SELECT what, network FROM feed ORDER BY sequence"))


def denied(lab: Lab) -> list[str]:
    text = (lab.disk / "hosts.deny").read_text(encoding="utf-8")
    return sorted(row.removeprefix("ALL: ") for row in text.splitlines() if row.startswith("ALL: "))


def is_cut_off(lab: Lab, source: str) -> bool:
    return lab.connect(source, timeout_s=0.2) == "timed out"


def ask(lab: Lab, command: str, **arguments: object) -> Any:
    """Ask the daemon as the command line does, which takes half a second to start."""
    return call(lab.settings.control.socket, command, arguments)


def listed(lab: Lab) -> list[str]:
    return sorted(row["address"] for row in ask(lab, "list_bans"))


def agrees(lab: Lab) -> bool:
    return is_agreement(ask(lab, "plan"))


def come_to_rest(lab: Lab) -> None:
    """Wait for agreement, then have every store read and compared some more times."""
    lab.wait("agreement", lambda: agrees(lab), PATIENCE_S)
    for _ in range(2):
        assert is_agreement(ask(lab, "reconcile"))


# What befalls them


def begun(make_lab: Callable[..., Lab], *sources: str) -> tuple[Lab, Running]:
    """A host whose daemon and fail2ban have banned these sources of the history."""
    lab = make_lab()
    server = lab.start_fail2ban()
    lab.start_daemon("--without", "sensor")
    append(lab, *sources)
    lab.wait("both have them", lambda: holds(lab, *sources)() and denied(lab) == sorted(sources))
    lab.wait("agreement", lambda: agrees(lab))
    return lab, server


def end(lab: Lab, server: Running, how: str) -> None:
    if how == "killed":
        lab.kill(server)
    else:
        server.send_signal(signal.SIGTERM)
        server.wait(PATIENCE_S)


def customise(lab: Lab, text: str, name: str = "jail.d/portsentry.local") -> None:
    """Write a file of the user's own into fail2ban's folder."""
    path = lab.disk / "fail2ban" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@contextmanager
def pinged(lab: Lab) -> Iterator[list[float]]:
    """Have fail2ban pinged all the time; how long each took stands, ordered, in the list that is empty until then."""
    took: list[float] = []
    over = threading.Event()

    def ping() -> None:
        with conversation(lab) as server:
            while not over.wait(0.005):
                begins = time.monotonic()
                server.ask("ping")
                took.append(time.monotonic() - begins)

    thread = threading.Thread(target=ping)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()
        took.sort()


def faults_of_processes(server: Running) -> int:
    """Count page faults of the processes that a server has started and waited for: none can do without (proc(5))."""
    return int(Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[8])


def processes(lab: Lab) -> set[str]:
    return set(lab.from_outside("ip", "netns", "pids", lab.host).out.split())


# One ban on both sides


def test_a_scan_is_one_ban_on_both_sides(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    lab.start_fail2ban()
    lab.start_daemon()
    lab.scan(ATTACKER)
    lab.wait("both sides have it", lambda: holds(lab, ATTACKER)() and denied(lab) == [ATTACKER])
    come_to_rest(lab)
    assert is_cut_off(lab, ATTACKER)
    assert lab.connect(INNOCENT) == "connected"
    assert told(lab) == [("ban", ATTACKER)], "both read the line"
    assert done_in_jail(lab) == [("Ban", ATTACKER)]


def test_durations_are_ours_whoever_bans_and_nobody_is_banned_again_by_the_same_line(
    make_lab: Callable[..., Lab],
) -> None:
    lab = make_lab('[[policy.network]]\nnetwork = "198.51.100.0/24"\nban_for = "4s"')
    lab.start_fail2ban()
    lab.start_daemon("--without", "sensor")
    lab.wait("agreement", lambda: agrees(lab))
    append(lab, ATTACKER)
    assert lab.fail2ban("set", JAIL, "banip", SECOND).code == 0
    both = sorted([ATTACKER, SECOND])
    lab.wait("both are banned", lambda: {("ban", one) for one in both} <= set(told(lab)))
    lab.wait("both are out everywhere", lambda: jailed(lab) == denied(lab) == [])
    assert lab.connect(ATTACKER) == lab.connect(SECOND) == "connected"
    assert lab.fail2ban("reload").code == 0
    append(lab, LATER)
    lab.wait("fail2ban has read on, past the old line", holds(lab, LATER))
    come_to_rest(lab)
    assert done_to(lab, ATTACKER) == done_to(lab, SECOND) == ["Ban", "Unban"]
    assert sorted(told(lab)) == sorted([*((what, one) for what in ("ban", "unban") for one in both), ("ban", LATER)])


def test_who_is_exempt_and_banned_in_fail2ban_is_taken_out_again_once(make_lab: Callable[..., Lab]) -> None:
    lab, _ = begun(make_lab, ATTACKER)
    # The jail was rendered before: its ignoreip knows nothing of either.
    ask(lab, "allow_add", networks=[SECOND])
    append(lab, SECOND)
    banned_once = ["Ban", "Unban"]
    lab.wait("the allowed one is out again", lambda: done_to(lab, SECOND) == banned_once)
    assert lab.on_host("ip", "route", "add", "default", "via", INNOCENT).code == 0
    lab.wait("the gateway is known", lambda: bool(ask(lab, "explain", address=INNOCENT)["exempt"]))
    assert lab.fail2ban("set", JAIL, "banip", INNOCENT).code == 0
    lab.wait("the gateway is out again", lambda: done_to(lab, INNOCENT) == banned_once)
    come_to_rest(lab)
    assert done_to(lab, SECOND) == done_to(lab, INNOCENT) == banned_once
    assert told(lab) == [("ban", ATTACKER)]
    assert denied(lab) == [ATTACKER]
    assert lab.connect(SECOND) == lab.connect(INNOCENT) == "connected"


# fail2ban goes and comes back


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_fail2ban_started_anew_with_or_without_its_database_holds_the_same_bans(
    make_lab: Callable[..., Lab], how: str
) -> None:
    lab, server = begun(make_lab, ATTACKER)
    ask(lab, "ban", addresses=[SECOND, NETWORK])
    everyone = sorted([ATTACKER, SECOND, NETWORK])
    lab.wait("all are banned", lambda: jailed(lab) == everyone)
    come_to_rest(lab)
    before = told(lab)
    for keeps_database in (True, False):
        end(lab, server, how)
        assert is_cut_off(lab, ATTACKER), "our firewall needs no fail2ban"
        if not keeps_database:
            (lab.disk / "fail2ban.sqlite3").unlink()
        server = lab.start_fail2ban()
        lab.wait("they are back", lambda: jailed(lab) == everyone, PATIENCE_S)
        come_to_rest(lab)
        assert told(lab) == before, "nobody is unbanned, or banned once more"
        assert jailed(lab) == listed(lab) == everyone
        assert denied(lab) == sorted([ATTACKER, SECOND, "[2001:db8:9::]/64"])


def test_what_fail2ban_bans_again_from_an_old_line_is_taken_out_again(make_lab: Callable[..., Lab]) -> None:
    lab, server = begun(make_lab, ATTACKER, SECOND)
    ask(lab, "unban", addresses=[ATTACKER])
    lab.wait("it is out", holds(lab, SECOND))
    before = told(lab)
    lab.kill(server)
    # Killed before it noted how far it has read.
    with closing(sqlite3.connect(lab.disk / "fail2ban.sqlite3")) as database, database:
        database.execute("UPDATE logs SET lastfilepos = 0")
    lab.start_fail2ban()
    banned_twice = ["Ban", "Unban", "Ban", "Unban"]
    lab.wait("it is banned again and out again", lambda: done_to(lab, ATTACKER) == banned_twice, PATIENCE_S)
    come_to_rest(lab)
    assert jailed(lab) == listed(lab) == denied(lab) == [SECOND]
    assert told(lab) == before
    assert done_to(lab, ATTACKER) == banned_twice
    assert lab.connect(ATTACKER) == "connected"


def test_a_thousand_bans_that_fail2ban_missed_are_made_up_for(make_lab: Callable[..., Lab], tmp_path: Path) -> None:
    lab, server = begun(make_lab, ATTACKER, SECOND)
    end(lab, server, "stopped")
    many = tmp_path / "many"
    many.write_text("\n".join(MANY[:1000]), encoding="ascii")
    assert lab.jailbridge("ban", "--from", str(many)).code == 0
    for one in (SECOND, *MANY[:6]):
        # Each is one more vain try: by now it is as if a minute had passed, and half of one goes by between two tries.
        ask(lab, "unban", addresses=[one])
    everyone = sorted([ATTACKER, *MANY[6:1000]])
    assert denied(lab) == everyone
    lab.start_fail2ban()
    lab.wait("the jail is filled as soon as it is there", lambda: jailed(lab) == everyone, 20)
    come_to_rest(lab)
    assert jailed(lab) == listed(lab) == everyone


def test_a_disabled_jail_holds_up_no_other_store_and_is_filled_when_it_is_enabled(make_lab: Callable[..., Lab]) -> None:
    lab, _ = begun(make_lab, ATTACKER, SECOND)
    customise(lab, f"[{JAIL}]\nenabled = false\n")
    assert lab.fail2ban("reload").code == 0
    lab.wait("the jail is gone", lambda: jailed(lab) is None)
    ask(lab, "ban", addresses=[INNOCENT])
    ask(lab, "unban", addresses=[SECOND])
    everyone = sorted([ATTACKER, INNOCENT])
    assert denied(lab) == everyone
    assert is_cut_off(lab, INNOCENT)
    assert lab.connect(SECOND) == "connected"
    problem = ask(lab, "plan")["stores"]["fail2ban"]["problem"]
    assert problem.startswith("fail2ban has no jail portsentry: run `jailbridge fail2ban install`")
    customise(lab, "")
    assert lab.fail2ban("reload").code == 0
    lab.wait("it is filled", lambda: jailed(lab) == everyone, PATIENCE_S)
    come_to_rest(lab)
    assert jailed(lab) == listed(lab) == everyone
    assert Counter(told(lab)).most_common(1)[0][1] == 1, "nothing happened twice"


def test_a_bantime_of_the_users_own_ends_bans_in_fail2ban_alone_and_is_told(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    # Between two readings there is time enough to run out unseen.
    lab.config.write_text(lab.config.read_text().replace('interval = "5s"', 'interval = "10m"'))
    customise(lab, f"[{JAIL}]\nbantime = 4s\n")
    lab.start_fail2ban()
    lab.start_daemon("--without", "sensor")
    lab.wait("the daemon hears of bans", lambda: agrees(lab) and lab.settings.control.fail2ban_wake.is_socket())
    come_to_rest(lab)
    both = sorted([ATTACKER, SECOND])
    ask(lab, "ban", addresses=both)

    def ran_out(address: str) -> bool:
        return done_to(lab, address)[:3] == ["Ban", "Unban", "Ban"]

    lab.wait("fail2ban ends them and gets them again", lambda: ran_out(ATTACKER) and ran_out(SECOND), PATIENCE_S)
    assert listed(lab) == denied(lab) == both
    assert sorted(told(lab)) == [("ban", one) for one in both]
    assert is_cut_off(lab, ATTACKER)
    assert "has bantime" in lab.jailbridge("status").out
    # An end that is far away: what goes before it was taken out by somebody.
    assert lab.fail2ban("set", JAIL, "bantime", "3600").code == 0
    lab.wait("both are in the jail", lambda: jailed(lab) == both)
    come_to_rest(lab)
    assert lab.fail2ban("set", JAIL, "unbanip", ATTACKER).code == 0
    lab.wait("that is a wish", lambda: listed(lab) == [SECOND])


def test_a_bantime_set_for_a_while_unbans_nobody_and_a_later_wish_is_one(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    lab.config.write_text(lab.config.read_text().replace('interval = "5s"', 'interval = "10m"'))
    lab.start_fail2ban()
    daemon = lab.start_daemon("--without", "sensor")
    lab.wait("the daemon hears of bans", lambda: agrees(lab) and lab.settings.control.fail2ban_wake.is_socket())
    ask(lab, "ban", addresses=[ATTACKER])
    lab.wait("the first is in the jail", holds(lab, ATTACKER))
    come_to_rest(lab)
    # Now and for what comes; then back again, before anything is read.
    assert lab.fail2ban("set", JAIL, "bantime", "3").code == 0
    ask(lab, "ban", addresses=[SECOND])
    lab.wait("the second runs out", lambda: "Unban" in done_to(lab, SECOND))
    assert lab.fail2ban("set", JAIL, "bantime", "-1").code == 0
    both = sorted([ATTACKER, SECOND])
    lab.wait("both are there for good", lambda: jailed(lab) == both and agrees(lab))
    come_to_rest(lab)
    # The same while nobody looks.
    lab.kill(daemon)
    assert lab.fail2ban("set", JAIL, "bantime", "2").code == 0
    assert lab.fail2ban("set", JAIL, "banip", LATER).code == 0
    lab.wait("that one runs out", lambda: "Unban" in done_to(lab, LATER))
    assert lab.fail2ban("set", JAIL, "bantime", "-1").code == 0
    lab.start_daemon("--without", "sensor")
    lab.wait("all is as it was", lambda: lab.jailbridge("plan").code == 0 and jailed(lab) == both)
    assert sorted(told(lab)) == [("ban", one) for one in both]
    come_to_rest(lab)
    assert lab.fail2ban("set", JAIL, "unbanip", SECOND).code == 0
    lab.wait("a wish", lambda: listed(lab) == [ATTACKER])


# Ten thousand


def test_fail2ban_answers_within_a_tenth_of_a_second_through_a_storm(
    make_lab: Callable[..., Lab], record_property: Callable[[str, object], None]
) -> None:
    lab = make_lab(policy="max_new_spoofable_per_minute = 100000")
    lab.start_fail2ban()
    lab.start_daemon("--without", "sensor")
    lab.wait("the jail", lambda: jailed(lab) is not None)
    begins = time.monotonic()
    with pinged(lab) as pongs:
        append(lab, *MANY)
        # Its log tells without asking it.
        lab.wait("the bans", lambda: len(done_in_jail(lab)) >= len(MANY), PATIENCE_S)
    figures = {"in the jail after": time.monotonic() - begins, "worst pong": pongs[-1], "pongs": len(pongs)}
    for name, figure in {**figures, "late": sum(took > PONG_S for took in pongs)}.items():
        record_property(name, figure)
    assert pongs[len(pongs) * 9 // 10] < PONG_S
    come_to_rest(lab)
    assert jailed(lab) == denied(lab) == sorted(MANY)
    assert Counter(done_in_jail(lab)).most_common(1)[0][1] == 1, "both read the lines, and nobody is banned twice"


def test_ten_thousand_bans_are_restored_without_a_process_and_without_a_mail(
    make_lab: Callable[..., Lab], record_property: Callable[[str, object], None]
) -> None:
    lab = make_lab()
    mail = lab.disk / "mail"
    customise(lab, f"[Definition]\nactionban = touch {mail}\n", "action.d/mail.conf")
    customise(lab, "[DEFAULT]\naction = mail\n", "jail.local")
    server = lab.start_fail2ban()
    lab.wait("the jail", lambda: jailed(lab) is not None)
    with conversation(lab) as connection:
        for start in range(0, len(MANY), CHUNK):
            connection.ask("set", JAIL, "banip", *MANY[start : start + CHUNK])
    end(lab, server, "stopped")
    begins = time.monotonic()
    server = lab.start_fail2ban()
    before = processes(lab)
    lab.wait("they are back", lambda: len(restored(lab)) == len(MANY), PATIENCE_S)
    record_property("restored after", time.monotonic() - begins)
    assert jailed(lab) == sorted(restored(lab)) == sorted(MANY)
    assert processes(lab) == before
    assert faults_of_processes(server) == 0
    assert not mail.exists()
    # That it is looked for in the right place: one process of one ban shows.
    for words in (("addaction", "mail"), ("action", "mail", "actionban", f"touch {mail}"), ("banip", ATTACKER)):
        assert lab.fail2ban("set", JAIL, *words).code == 0
    lab.wait("it is seen", lambda: mail.exists() and faults_of_processes(server) > 0)
