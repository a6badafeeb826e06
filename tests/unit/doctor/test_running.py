"""What a daemon says of the stores, and whether somebody answers to bans."""

import fcntl
from pathlib import Path
from typing import Any

import pytest

from jailbridge.config import parse
from jailbridge.doctor import running
from tests.settings import settings_text

WELL: dict[str, Any] = {"reachable": True, "enforcing": True, "problem": None}


@pytest.mark.parametrize(
    ("store", "is_wanted", "said"),
    [
        ({}, True, []),
        ({"enforcing": None}, True, []),
        ({"reachable": False, "problem": "no answer: start it"}, True, ["s is out of reach: no answer: start it"]),
        ({"problem": "full: set max"}, True, ["s: full: set max"]),
        (
            {"enforcing": False},
            True,
            ["s is not in force, whom it holds gets in: `jailbridge reconcile`, and see who undoes that"],
        ),
        ({"enforcing": False}, False, []),
    ],
)
def test_what_is_the_matter_with_a_store_is_told(store: dict[str, Any], is_wanted: bool, said: list[str]) -> None:
    assert list(running.problems("s", {**WELL, **store}, is_wanted=is_wanted)) == said


def test_without_a_daemon_that_is_told_and_the_stores_are_looked_at_from_here(tmp_path: Path) -> None:
    settings = parse(settings_text(tmp_path), "test")
    (told,) = running.daemon(settings)
    assert told.startswith(f"no daemon answers at {tmp_path}/run/control.sock, nothing new is banned: ")
    settings.stores.hosts_deny.path.write_bytes(b"# BEGIN\n")
    assert list(running.stores(settings)) == []
    settings.stores.hosts_deny.path.unlink()
    settings.stores.hosts_deny.path.mkdir()
    (told,) = running.stores(settings)
    assert told.startswith("hosts_deny is out of reach: ")


def test_who_is_asked_to_answer_and_is_not_there_is_missed(tmp_path: Path) -> None:
    text = settings_text(tmp_path)
    queue = tmp_path / "queue"
    lock = tmp_path / "queue.lock"
    assert list(running.responder(parse(f'{text}[respond]\nqueue = "{queue}"\n', "test"))) == []
    settings = parse(f'{text}[respond]\nqueue = "{queue}"\n[[respond.command]]\nrun = ["true"]\n', "test")
    (told,) = running.responder(settings)
    assert told.startswith(f"nobody works on {queue}, no command is run and no mail sent: ")
    with lock.open("w") as held:
        assert len(list(running.responder(settings))) == 1
        fcntl.flock(held, fcntl.LOCK_EX)
        assert list(running.responder(settings)) == []
