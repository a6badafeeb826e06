"""`explain`, `allow`, `pause` on a running daemon and real stores."""

import json
import time
from typing import Any

import pytest

from jailbridge.demo.lab import ATTACKER, HOST, INNOCENT, SECOND, Lab

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def line(address: str, port: int = 23, name: str | None = None) -> str:
    return f"{int(time.time())} - 11/22/2026 06:30:59 Host: {name or address}/{address} Port: {port} TCP Blocked\n"


def append(lab: Lab, *lines: str) -> None:
    with lab.history.open("a", encoding="utf-8") as file:
        file.write("".join(lines))


def explain(lab: Lab, address: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(lab.jailbridge("explain", address, "--json").out)
    return answer


def is_everywhere(lab: Lab, address: str) -> bool:
    answer = explain(lab, address)
    return answer["banned"] is not None and set(answer["stores"].values()) <= {"present", "covered", "disabled"}


def test_the_whole_story_of_a_scanner_is_told(lab: Lab) -> None:
    lab.start_daemon("--without", "sensor")
    hostile = line(ATTACKER, 23, name="\u202e[red]evil")
    append(lab, hostile, line(ATTACKER, 80), line(HOST))
    lab.wait("the ban", lambda: is_everywhere(lab, ATTACKER))
    append(lab, line(ATTACKER, 443))
    lab.wait("the third sighting", lambda: explain(lab, ATTACKER)["banned"]["sightings"] == 3)
    assert explain(lab, ATTACKER)["banned"]["ports"] == ["tcp/23", "tcp/80", "tcp/443"]
    assert lab.jailbridge("unban", ATTACKER).code == 0

    answer = explain(lab, ATTACKER)
    assert (answer["banned"], answer["ended"]["why"]) == (None, "operator")
    assert (answer["stores"]["firewall"], answer["stores"]["hosts_deny"]) == ("absent", "absent")
    whats = [told["what"] for told in answer["story"]]
    assert [what for what in whats if what != "placed"] == ["seen", "seen", "banned", "seen", "unbanned"]
    first = answer["story"][0]
    assert first["line"] == hostile.rstrip("\n").encode().decode("ascii", "backslashreplace")
    assert (first["file"], first["offset"]) == (str(lab.history), 0)
    assert first["detail"].startswith("scan, port tcp/23: banned until ")

    shown = lab.jailbridge("explain", ATTACKER)
    assert shown.code == 0
    assert "[red]evil" in shown.out
    assert "\u202e" not in shown.out

    (own,) = explain(lab, HOST)["exempt"]
    assert own == {"network": HOST, "why": "own address", "permanent": False}
    assert explain(lab, HOST)["story"][0]["detail"] == f"scan, port tcp/23: {HOST} is exempt: own address"
    assert "nothing was ever seen of it" in lab.jailbridge("explain", "203.0.113.77").out


def test_the_story_survives_the_daemon_and_is_told_without_one(lab: Lab) -> None:
    daemon = lab.start_daemon("--without", "sensor")
    append(lab, line(SECOND))
    lab.wait("the ban", lambda: is_everywhere(lab, SECOND))
    before = explain(lab, SECOND)
    lab.kill(daemon)
    assert explain(lab, SECOND)["story"] == before["story"]


def test_what_is_allowed_ends_everywhere_at_once_and_is_not_banned_again(lab: Lab) -> None:
    lab.start_daemon("--without", "sensor")
    append(lab, line(INNOCENT))
    lab.wait("the ban", lambda: is_everywhere(lab, INNOCENT))
    assert lab.connect(INNOCENT) == "timed out"
    done = lab.jailbridge("allow", "add", INNOCENT, "--reason", "ours")
    assert f"unbanned {INNOCENT}" in done.out
    assert lab.connect(INNOCENT) == "connected"
    assert INNOCENT not in (lab.disk / "hosts.deny").read_text()
    append(lab, line(INNOCENT, 80), line(ATTACKER))
    lab.wait("a later line's ban", lambda: is_everywhere(lab, ATTACKER))
    assert explain(lab, INNOCENT)["banned"] is None
    assert explain(lab, INNOCENT)["story"][-1]["detail"].endswith(f"{INNOCENT} is exempt: jailbridge allow (ours)")
    assert [row["network"] for row in json.loads(lab.jailbridge("allow", "list", "--json").out)] == [INNOCENT]
    assert lab.jailbridge("allow", "remove", INNOCENT).out == f"removed {INNOCENT}\n"
    append(lab, line(INNOCENT, 443))
    lab.wait("the ban", lambda: is_everywhere(lab, INNOCENT))
