"""A pause on a running daemon and every real store: nothing is held anywhere, nothing is forgotten."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from jailbridge.demo.lab import ATTACKER, INNOCENT, SECOND, Lab

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def append(lab: Lab, *addresses: str) -> None:
    with lab.history.open("a", encoding="utf-8") as file:
        for address in addresses:
            file.write(f"{int(time.time())} - 11/22/2026 06:30:59 Host: {address}/{address} Port: 23 TCP Blocked\n")


def bans(lab: Lab) -> dict[str, set[str]]:
    """Every ban, and the stores that hold it."""
    listed: list[dict[str, Any]] = json.loads(lab.jailbridge("list", "--json").out)
    return {ban["address"]: {name for name, state in ban["stores"].items() if state == "present"} for ban in listed}


def held(lab: Lab) -> set[str]:
    """What stands in the real stores, whatever we believe."""
    text = lab.on_host("nft", "list", "table", "inet", "jailbridge").out
    text += (lab.disk / "hosts.deny").read_text() if (lab.disk / "hosts.deny").exists() else ""
    text += lab.fail2ban("get", "portsentry", "banip").out
    return {address for address in (ATTACKER, SECOND, INNOCENT) if address in text}


EVERYWHERE = {"firewall", "fail2ban", "hosts_deny"}


def test_a_pause_empties_every_store_and_resume_fills_them_again(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    lab.start_fail2ban()
    daemon = lab.start_daemon("--without", "sensor")
    append(lab, ATTACKER)
    lab.wait("the ban", lambda: bans(lab) == {ATTACKER: EVERYWHERE})

    assert lab.jailbridge("pause").code == 0
    assert held(lab) == set()
    assert lab.jailbridge("ban", INNOCENT, "--force").code == 0
    append(lab, SECOND)
    lab.wait("the scan is decided on", lambda: bans(lab).keys() == {ATTACKER, SECOND, INNOCENT})
    lab.wait("fail2ban's own ban of it is taken out", lambda: held(lab) == set())

    lab.kill(daemon)
    lab.start_daemon("--without", "sensor")
    assert json.loads(lab.jailbridge("status", "--json").out)["paused"] is True
    lab.jailbridge("reconcile")
    assert held(lab) == set(), "a pause survives a restart"

    assert lab.jailbridge("unban", INNOCENT).code == 0
    assert lab.jailbridge("resume").code == 0
    lab.wait("everything is back", lambda: bans(lab) == dict.fromkeys((ATTACKER, SECOND), EVERYWHERE))
    assert held(lab) == {ATTACKER, SECOND}
    assert lab.jailbridge("plan").code == 0


def test_a_pause_with_an_end_ends_by_itself(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    lab.start_fail2ban()
    lab.start_daemon("--without", "sensor")
    append(lab, ATTACKER)
    lab.wait("the ban", lambda: bans(lab) == {ATTACKER: EVERYWHERE})
    assert lab.jailbridge("pause", "--for", "2s").code == 0
    assert held(lab) == set()
    lab.wait("its end", lambda: held(lab) == {ATTACKER})


def test_a_power_cut_does_not_end_a_pause(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab("enabled = false")
    lab.start_daemon("--without", "sensor")
    append(lab, ATTACKER)
    lab.wait("the ban", lambda: ATTACKER in bans(lab))
    assert lab.jailbridge("pause").code == 0
    lab.cut_power()
    lab.power_on()
    assert lab.jailbridge("restore").code == 0
    assert ATTACKER not in lab.on_host("nft", "list", "ruleset").out
    assert lab.jailbridge("resume").code == 0
    assert ATTACKER in lab.on_host("nft", "list", "ruleset").out
