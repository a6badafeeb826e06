"""Real boots: systemd, fail2ban, nftables and hosts.deny in a guest, with the services as they are installed."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import pytest

from jailbridge.demo.lab import INNOCENT
from jailbridge.service_files import DAEMON, RESTORE
from tests.e2e.guest import INNOCENT6, Guest
from tests.e2e.rebooting import (
    BANS,
    EXPIRED,
    HISTORY,
    LEDGER,
    SERVICES,
    WANTED,
    fail2ban,
    held,
    networks,
    pinged,
    said_by,
    show,
    untils,
    wait_for_agreement,
)

NEW = "203.0.113.40"

pytestmark = [pytest.mark.e2e, pytest.mark.needs("journalctl"), pytest.mark.timeout(180)]


@pytest.fixture(scope="module", params=[Guest.shut_down, Guest.cut_power], ids=["reboot", "power cut"])
def rebooted(request: pytest.FixtureRequest, installed: Guest) -> Iterator[tuple[Guest, dict[str, int]]]:
    """A guest that ran, ended, was off while a ban expired, and booted; and what it answered to pings since."""
    end: Callable[[Guest], None] = request.param
    with Guest(installed) as guest:
        guest.start()
        before = untils(guest)
        guest.do("jailbridge", "ban", EXPIRED, "--for", "3s")
        over = time.time() + 3
        end(guest)
        time.sleep(max(0.0, over - time.time()))
        with pinged(guest) as answers:
            guest.start()
            wait_for_agreement(guest)
        assert untils(guest) == before
        yield guest, answers


def test_after_a_boot_every_store_holds_every_ban_once_and_nothing_else(rebooted: tuple[Guest, object]) -> None:
    guest, _ = rebooted
    assert held(guest) == WANTED
    assert guest.do("jailbridge", "plan").endswith("agreement\n")
    assert "event=lines" not in said_by(guest, DAEMON), "a log was not found again"


def test_an_attacker_is_cut_off_before_the_network_is_up(rebooted: tuple[object, Mapping[str, int]]) -> None:
    _, answers = rebooted
    assert {INNOCENT, INNOCENT6} == set(answers), answers


def test_a_boot_needs_nothing_that_waits_for_itself(rebooted: tuple[Guest, object]) -> None:
    guest, _ = rebooted
    said = guest.console() + guest.do("journalctl", "--boot", "_PID=1")
    assert "Queued start job for default target" in said
    assert "ordering cycle" not in said
    assert {show(guest, service, "ActiveState") for service in SERVICES} == {"active"}


def test_restore_is_done_before_anything_makes_a_network(rebooted: tuple[Guest, object]) -> None:
    guest, _ = rebooted
    restored = int(show(guest, RESTORE, "ExecMainExitTimestampMonotonic"))
    assert show(guest, RESTORE, "Result") == "success"
    moments = [show(guest, unit, "ActiveEnterTimestampMonotonic") for unit in ("network-pre.target", "network.target")]
    assert 0 < restored <= int(moments[0]) <= int(moments[1])


def test_each_service_may_be_restarted_or_killed(installed: Guest) -> None:
    with Guest(installed) as guest:
        guest.start()
        for service in SERVICES:
            guest.do("systemctl", "restart", service, timeout_s=60)
            wait_for_agreement(guest)
        for service in SERVICES:
            if (before := show(guest, service, "MainPID")) != "0":
                guest.do("kill", "-KILL", before)
                guest.wait(f"{service} is there again", partial(is_another, guest, service, before))
                wait_for_agreement(guest)


def is_another(guest: Guest, service: str, before: str) -> bool:
    return show(guest, service, "MainPID") not in {"0", before} and show(guest, service, "ActiveState") == "active"


def test_a_restore_that_is_killed_half_way_leaves_what_the_daemon_mends(installed: Guest) -> None:
    with Guest(installed) as guest:
        guest.start()
        guest.do("systemctl", "stop", DAEMON)
        guest.wait("restore is dead", partial(has_killed_restore, guest))
        guest.do("systemctl", "start", DAEMON)
        wait_for_agreement(guest)


def has_killed_restore(guest: Guest) -> bool:
    """Kill it if it runs, have it run if it is done; tell whether it was killed."""
    # Asked once: of 0, which stands for none, kill makes whoever asked it, and that is us.
    if (pid := show(guest, RESTORE, "MainPID")) != "0":
        guest.run("kill", "-KILL", pid)
    elif show(guest, RESTORE, "ActiveState") == "active":
        guest.run("nft", "delete", "table", "inet", "jailbridge")
        guest.do("systemctl", "restart", "--no-block", RESTORE)
    return show(guest, RESTORE, "ActiveState") == "failed"


def test_a_ledger_of_garbage_is_set_aside_and_the_bans_are_taken_over_from_what_holds_them(installed: Guest) -> None:
    aside = f"{LEDGER}.damaged"
    with Guest(installed) as guest:
        guest.write(LEDGER, "garbage" * 1000)
        guest.start()
        wait_for_agreement(guest)
        assert guest.path(aside).read_text(encoding="utf-8") == "garbage" * 1000
        said = said_by(guest, RESTORE) + said_by(guest, DAEMON)
        assert said.count(f"ledger {LEDGER} is damaged: it lies at {aside} now") == 1
        # Whom operators allowed nobody knows.
        problem = f"the damaged ledger {aside} cannot be read; nobody new is banned until it is moved away"
        assert problem in said_by(guest, DAEMON)
        assert problem in show(guest, DAEMON, "StatusText")
        assert problem in guest.run("jailbridge", "status", "--json").out
        assert problem in guest.run("jailbridge", "explain", NEW, "--json").out
        with guest.path(HISTORY).open("a", encoding="ascii") as history:
            stamp = f"{int(time.time())} - 11/22/2026 06:30:59"
            history.write(f"{stamp} Host: {NEW}/{NEW} Port: 23 TCP Blocked\n")
        guest.wait("fail2ban has banned it", lambda: NEW in fail2ban(guest))
        guest.wait("we have seen that", lambda: "found there wait" in said_by(guest, DAEMON))
        assert held(guest) == {**WANTED, "fail2ban": networks([*BANS, NEW])}
        guest.path(aside).unlink()
        everywhere = dict.fromkeys(WANTED, networks([*BANS, NEW]))
        guest.wait("it is banned", lambda: held(guest) == everywhere)
        assert "nobody new" not in show(guest, DAEMON, "StatusText")
