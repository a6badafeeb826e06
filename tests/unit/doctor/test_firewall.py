"""What asks a network of its own touches no other; who may not make one is told nothing."""

import os
from pathlib import Path

import pytest

from jailbridge.config import parse
from jailbridge.doctor import firewall
from tests.settings import settings_text

NETWORK = Path("/proc/thread-self/ns/net")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a network namespace")
def test_what_is_asked_elsewhere_is_asked_in_a_network_that_is_gone_afterwards() -> None:
    before = NETWORK.readlink()
    there = firewall.elsewhere(lambda: str(NETWORK.readlink()))
    assert there != str(before)
    assert NETWORK.readlink() == before


def test_what_is_switched_off_is_not_missed(tmp_path: Path) -> None:
    settings = parse(settings_text(tmp_path, store="none"), "test")
    for check in (firewall.backend, firewall.hook, firewall.kinds, firewall.wrappers):
        assert list(check(settings)) == []


def test_a_library_that_is_not_here_is_told_from_one_that_is() -> None:
    assert firewall._loads("libc.so.6")
    assert not firewall._loads("libnosuch.so.0")
