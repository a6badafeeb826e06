"""Real files, the kernel's own word, living processes; only the clock is ours."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from jailbridge import process
from jailbridge.config.settings import PolicySettings
from jailbridge.daemon.exemptions import FRESH_S, PAUSE_S, STALE_S, PresentExemptions, unreadable
from jailbridge.model.network import Network, parse_network


class Clock:
    """Monotonic seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Host:
    """The files of a host, and who is exempt there a look later."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.allow, self.hosts_allow = folder / "allow", folder / "hosts.allow"
        self.resolv_conf, self.utmp = folder / "resolv.conf", folder / "utmp"
        self.allow.touch()
        self.hosts_allow.touch()
        self.added: Sequence[tuple[Network, str]] = []
        self.rules = PolicySettings.model_validate({"allow_files": [self.allow], "hosts_allow": self.hosts_allow})
        self.present = PresentExemptions(
            self.rules, self.clock, lambda: self.added, resolver_files=[self.resolv_conf], utmp=self.utmp
        )

    def why(self, network: str) -> str | None:
        self.clock.now += PAUSE_S
        exemptions = self.present()
        assert exemptions is not None, self.present.problem
        found = exemptions.find(parse_network(network))
        return None if found is None else f"{found} ({'permanent' if found.permanent else 'for now'})"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def ip(command: str) -> None:
    done = process.run(["ip", *command.split()])
    assert done.code == 0, f"ip {command}: {done.err}"


def test_each_source_is_named_and_noticed_when_it_comes_and_goes(host: Host) -> None:
    assert host.why("198.18.7.0/24") is None
    host.allow.write_text("198.18.7.1\n")
    assert host.why("198.18.7.1") == f"198.18.7.1 is exempt: {host.allow}:1 (permanent)"
    host.hosts_allow.write_text("\nALL: 198.18.7.2\n")
    assert host.why("198.18.7.2") == f"198.18.7.2 is exempt: {host.hosts_allow}:2 (permanent)"
    host.resolv_conf.write_text("nameserver 198.18.7.3\n")
    assert host.why("198.18.7.3") == f"198.18.7.3 is exempt: nameserver in {host.resolv_conf} (for now)"
    host.added = [(parse_network("198.18.7.4"), "allowed by root")]
    assert host.why("198.18.7.4") == "198.18.7.4 is exempt: allowed by root (permanent)"

    host.added = []
    for path in (host.allow, host.hosts_allow, host.resolv_conf):
        path.write_text("")
    assert host.why("198.18.7.0/24") is None


def test_what_a_command_allows_counts_at_once(host: Host) -> None:
    host.why("198.18.7.4")
    host.added = [(parse_network("198.18.7.4"), "allowed by root")]
    exemptions = host.present()
    assert exemptions is not None
    assert exemptions.find(parse_network("198.18.7.0/24")) is not None


def test_the_same_object_answers_until_something_changes(host: Host) -> None:
    first = host.present()
    host.clock.now += STALE_S
    assert host.present() is first
    host.allow.write_text("198.18.7.1\n")
    host.clock.now += FRESH_S
    second = host.present()
    assert second != first
    host.allow.write_text("")
    host.clock.now += FRESH_S
    third = host.present()
    assert third is not first
    assert third == first


@pytest.mark.e2e
def test_addresses_and_gateways_are_noticed_as_they_come_and_go(
    own_network: Callable[[], None], tmp_path: Path
) -> None:
    ip("link add card0 type veth peer card1")
    ip("link set card1 up")
    ip("link set card0 up")
    host = Host(tmp_path)
    assert host.why("198.51.100.0/24") is None
    ip("address add 198.51.100.7/24 dev card0")
    assert host.why("198.51.100.7") == "198.51.100.7 is exempt: own address (for now)"
    ip("route add default via 198.51.100.1 table 100")
    assert host.why("198.51.100.1") == "198.51.100.1 is exempt: default gateway (for now)"
    ip("link set card0 down")
    assert host.why("198.51.100.1") is None
    assert host.why("198.51.100.7") is not None
    ip("link delete card0")
    assert host.why("198.51.100.0/24") is None


@pytest.mark.e2e
def test_no_program_is_started_while_nothing_changes(
    own_network: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An `ip` of our own in front of the real one, that leaves a mark.
    calls, real = tmp_path / "calls", process.find("ip", "iproute2")
    program = tmp_path / "bin" / "ip"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho >>"{calls}"\nexec {real} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(process, "SEARCH_PATH", f"{program.parent}:{process.SEARCH_PATH}")
    host = Host(tmp_path)
    host.why("198.18.7.1")
    at_first = calls.stat().st_size
    assert at_first > 0
    for _ in range(int(STALE_S / PAUSE_S) - 1):
        host.why("198.18.7.1")
    assert calls.stat().st_size == at_first
    host.why("198.18.7.1")
    assert calls.stat().st_size == 2 * at_first
    for n in range(8):
        ip(f"address add 198.51.100.{n}/32 dev lo")
        host.clock.now += PAUSE_S / 8
        host.present()
    assert calls.stat().st_size == 3 * at_first


@pytest.mark.parametrize("name", ["allow", "hosts_allow", "resolv_conf", "utmp"])
def test_what_cannot_be_read_leaves_nobody_known_and_is_told_once_with_the_remedy(
    host: Host, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path: Path = getattr(host, name)
    host.why("198.18.7.1")
    path.unlink(missing_ok=True)
    path.mkdir()
    for _ in range(3):
        host.clock.now += FRESH_S
        assert host.present() is None
    (told,) = caplog.messages
    assert told == host.present.problem
    assert f"{path} cannot be read: Is a directory; nobody new is banned until it" in told
    path.rmdir()
    path.touch()
    assert host.why("198.18.7.1") is None
    assert not host.present.problem
    assert len(caplog.messages) == 2


def test_one_problem_after_the_other_is_told(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.allow.write_text("x\n")
    host.utmp.mkdir()
    assert host.present() is None
    host.allow.write_text("")
    host.clock.now += FRESH_S
    assert host.present() is None
    first, second = caplog.messages
    assert str(host.allow) in first
    assert str(host.utmp) in second


def test_all_that_cannot_be_read_is_told_at_once_when_asked(tmp_path: Path) -> None:
    rules = PolicySettings.model_validate(
        {"allow_files": [tmp_path / "none", tmp_path], "hosts_allow": os.devnull},
    )
    told = unreadable(rules)
    assert [line.partition(";")[0] for line in told] == [
        f"allow file {tmp_path / 'none'} is not there",
        f"allow file {tmp_path} cannot be read: Is a directory",
        "/dev/null is not a regular file",
    ]
