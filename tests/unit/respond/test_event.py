"""What commands and templates are told, and an event's way through the queue."""

import pytest

from jailbridge.config.placeholders import HOSTNAME, NAMES
from jailbridge.config.responding import On
from jailbridge.model.event import Evidence
from jailbridge.respond.event import Event
from tests.unit.respond.events import event


def test_every_placeholder_but_the_hostname_has_a_value() -> None:
    assert {*event().values, HOSTNAME} == set(NAMES)


def test_the_values_of_a_scanners_ban() -> None:
    assert event().values == {
        "address": "192.0.2.7",
        "port": "23",
        "ports": "tcp/23 tcp/80",
        "protocol": "tcp",
        "mode": "stealth",
        "reason": "syn scan of tcp/23",
        "until": "2026-11-22T06:40:59Z",
        "time": "2026-11-22T06:30:59Z",
        "what": "ban",
        "origin": "sensor",
    }


@pytest.mark.parametrize(
    ("evidence", "mode"), [(Evidence.HANDSHAKE, "connect"), (Evidence.SPOOFABLE, "stealth"), (None, "manual")]
)
def test_the_mode_is_a_word_of_portsentrys(evidence: Evidence | None, mode: str) -> None:
    assert event(evidence=evidence).mode == mode


def test_a_ban_for_ever_says_so_and_an_unban_has_no_end() -> None:
    assert event(minutes=None).values["until"] == "permanent"
    assert event(what=On.UNBAN).values["until"] == ""


@pytest.mark.parametrize(
    "one",
    [
        event(),
        event("2001:db8::/61", On.UNBAN, evidence=None, ports=()),
        event(minutes=None, reason="naïve \u202e {address} %s"),
    ],
)
def test_it_comes_back_from_json_as_it_was(one: Event) -> None:
    assert Event.from_json(one.to_json()) == one
