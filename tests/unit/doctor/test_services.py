"""What systemd says of a unit, and what of that is amiss."""

import pytest

from jailbridge.config import parse
from jailbridge.doctor import services
from jailbridge.doctor.services import State, amiss, wanted
from jailbridge.service_files import DAEMON, RESPOND, RESTORE, SENSOR

WELL = "LoadState=loaded\nActiveState=active\nUnitFileState=enabled\nNeedDaemonReload=no\n"


@pytest.mark.parametrize(
    ("shown", "state"),
    [
        (WELL, State(True, True, True, False)),
        (WELL.replace("=active", "=failed"), State(True, True, False, False)),
        (WELL.replace("=enabled", "=disabled").replace("=no\n", "=yes\n"), State(True, False, True, True)),
        ("LoadState=not-found\nActiveState=inactive\nUnitFileState=\n", State(False, False, False, False)),
        ("", State(False, False, False, False)),
    ],
)
def test_systemds_words_are_understood(shown: str, state: State) -> None:
    assert services.parse(shown) == state


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (State(True, True, True, False), []),
        (State(True, False, True, False), ["u is not enabled, a reboot ends it: systemctl enable --now u"]),
        (State(True, False, False, False), ["u is not enabled, a reboot ends it: systemctl enable --now u"]),
        (State(True, True, False, False), ["u does not run: `systemctl status u` says why, systemctl restart u"]),
        (
            State(True, True, True, True),
            ["u was changed since systemd read it: systemctl daemon-reload, then systemctl restart u"],
        ),
    ],
)
def test_what_is_amiss_is_told_with_the_command_that_mends_it(state: State, said: list[str]) -> None:
    assert list(amiss("u", state)) == said


def test_only_what_the_configuration_needs_is_wanted() -> None:
    usual = parse("", "test")
    assert list(wanted(usual, is_left_to_another=False)) == [RESTORE, DAEMON, SENSOR]
    assert list(wanted(usual, is_left_to_another=True)) == [RESTORE, DAEMON]
    answering = parse('[sensor]\nmode = "off"\n[[respond.command]]\nrun = ["true"]\n', "test")
    assert list(wanted(answering, is_left_to_another=False)) == [RESTORE, DAEMON, RESPOND]
