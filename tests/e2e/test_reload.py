"""SIGHUP: the configuration is read anew, and no line and no ban is lost by it."""

import json
import os
import signal
import time
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from jailbridge.demo.lab import ATTACKER, SECOND, Lab
from tests.e2e.test_loop import append, is_everywhere, line, listed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

FOR_AN_HOUR = '[[policy.network]]\nnetwork = "203.0.113.0/24"\nban_for = "1h"\n'


def change(lab: Lab, text: str) -> None:
    with lab.config.open("a") as config:
        config.write(text)


def hang_up(lab: Lab, pid: int, then: str) -> None:
    """Send the signal; wait until this is told."""
    told = lab.tail("jailbridge", 1000).count(then)
    os.kill(pid, signal.SIGHUP)
    lab.wait(then, lambda: lab.tail("jailbridge", 1000).count(then) > told)


@pytest.mark.parametrize("arguments", [("--without", "sensor"), ()])
def test_a_hangup_reads_the_configuration_anew(lab: Lab, arguments: tuple[str, ...]) -> None:
    daemon = lab.start_daemon(*arguments)
    append(lab, line("203.0.113.1"))
    lab.wait("the first ban", lambda: is_everywhere(lab, "203.0.113.1"))
    change(lab, FOR_AN_HOUR)
    hang_up(lab, daemon.pid, "the configuration was read anew")
    append(lab, line("203.0.113.2"))
    lab.wait("the second ban", lambda: is_everywhere(lab, "203.0.113.2"))
    assert daemon.poll() is None
    (ban,) = [ban for ban in json.loads(lab.jailbridge("list", "--json").out) if ban["address"] == "203.0.113.2"]
    assert datetime.fromisoformat(ban["until"]) - datetime.fromisoformat(ban["since"]) == timedelta(hours=1)
    assert is_everywhere(lab, "203.0.113.1")


def test_with_its_sensor_it_sees_scans_afterwards_too(lab: Lab) -> None:
    daemon = lab.start_daemon()
    hang_up(lab, daemon.pid, "the configuration was read anew")
    lab.wait("it listens again", lambda: lab.jailbridge("status").code == 0)
    lab.scan(ATTACKER)
    lab.wait("the ban", lambda: ATTACKER in listed(lab))


def test_no_line_is_lost_by_many_hangups(lab: Lab) -> None:
    daemon = lab.start_daemon("--without", "sensor")
    addresses = [f"203.0.113.{n}" for n in range(1, 201)]
    for number, address in enumerate(addresses):
        append(lab, line(address))
        if number % 40 == 20:
            os.kill(daemon.pid, signal.SIGHUP)
    lab.wait("all bans", lambda: set(addresses) <= listed(lab).keys())
    lab.wait("agreement", lambda: lab.jailbridge("plan").code == 0)
    assert daemon.poll() is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sensor]\nno = 1", "the configuration cannot be used, the one before goes on: "),
        ("[sensor]\nnosuch", "the configuration cannot be used, the one before goes on: "),
        ('[sensor]\ninterfaces = ["nosuch0"]', "the new configuration does not work, the one before goes on: "),
    ],
)
def test_a_configuration_that_cannot_be_used_is_told_and_the_one_before_goes_on(
    make_lab: Callable[..., Lab], text: str, said: str
) -> None:
    lab = make_lab("enabled = false")
    daemon = lab.start_daemon()
    lab.config.write_text(lab.config.read_text().replace("[sensor]", text))
    hang_up(lab, daemon.pid, said)
    append(lab, line(SECOND))
    lab.wait("a ban", lambda: SECOND in (lab.disk / "hosts.deny").read_text())
    assert daemon.poll() is None


def test_an_end_is_an_end_though_a_hangup_came_just_before(lab: Lab) -> None:
    for pause_s in (0.0, 0.05, 0.2):
        daemon = lab.start_daemon("--without", "sensor")
        daemon.send_signal(signal.SIGHUP)
        # Any moment of the reload will do.
        time.sleep(pause_s)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(20) == 0
