"""`jailbridge sensor` as its users start it: what it becomes, what it writes, beside whom it does not start."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jailbridge.demo.lab import ATTACKER, ATTACKER6, SECOND, Lab
from jailbridge.process import Running

pytestmark = pytest.mark.e2e

NO_FAIL2BAN = "enabled = false"


def start(lab: Lab, *prefix: str, name: str = "sensor") -> Running:
    sensor = lab.spawn(name, [*prefix, *lab.jailbridge_argv("sensor")])
    lab.wait("the sensor watches, or ends", lambda: "watching" in lab.tail(name, 50) or sensor.poll() is not None)
    return sensor


def lines(lab: Lab) -> list[str]:
    return lab.history.read_text().splitlines()


def with_settings(make_lab: Callable[..., Lab], *replaced: tuple[str, str]) -> Lab:
    lab = make_lab(NO_FAIL2BAN)
    text = lab.config.read_text()
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    lab.config.write_text(text)
    return lab


def status(sensor: Running) -> dict[str, list[str]]:
    rows = (row.partition(":") for row in Path(f"/proc/{sensor.pid}/status").read_text().splitlines())
    return {key: value.split() for key, _, value in rows}


def test_it_has_no_privilege_left_when_it_watches_and_writes_the_history(lab: Lab) -> None:
    sensor = start(lab)
    assert sensor.poll() is None, lab.tail("sensor")
    now = status(sensor)
    assert "0" not in now["Uid"] + now["Gid"]
    assert now["Groups"] == []
    assert {int(now[key][0], 16) for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert now["NoNewPrivs"] == ["1"]
    lab.scan(ATTACKER)
    lab.wait("the scanner is in the history", lambda: len(lines(lab)) == 1)
    assert f"Host: {ATTACKER}/{ATTACKER} Port: " in lines(lab)[0]


def test_it_follows_a_rotation_and_goes_on_writing_without_privileges(lab: Lab) -> None:
    start(lab)
    lab.scan(ATTACKER)
    lab.wait("the first is in the history", lambda: len(lines(lab)) == 1)
    # As logrotate does with `create`: the new file has the old one's owner.
    owner = lab.history.stat()
    lab.history.rename(lab.history.with_suffix(".history.1"))
    lab.history.touch()
    os.chown(lab.history, owner.st_uid, owner.st_gid)
    lab.scan(SECOND)
    lab.wait("the second is in the new one", lambda: [SECOND in line for line in lines(lab)] == [True])


def test_it_ends_within_a_second_of_sigterm(lab: Lab) -> None:
    sensor = start(lab)
    asked = time.monotonic()
    sensor.terminate()
    assert sensor.wait(10) == 0
    # Of which the interpreter takes its share to end, on a busy machine more.
    assert time.monotonic() - asked < 2.0


def test_a_second_one_on_the_same_history_is_refused(lab: Lab) -> None:
    start(lab)
    second = start(lab, name="second")
    assert second.wait(10) == 1
    assert lab.tail("second", 1) == (
        f"jailbridge: history {lab.history} is written by another process ('fuser {lab.history}' tells which): "
        "end it, or set history.path"
    )


def test_beside_a_real_portsentry_neither_the_sensor_nor_the_daemon_starts(lab: Lab, open_folder: Path) -> None:
    # A program's name is all that tells it: one that does nothing is easier to keep still.
    program = Path(shutil.copy("/bin/sleep", open_folder / "portsentry"))
    rival = lab.spawn("rival", [str(program), "600"])
    lab.wait("it runs", lambda: "portsentry" in Path(f"/proc/{rival.pid}/cmdline").read_text())
    for command in ("sensor", "run"):
        answer = lab.on_host(*lab.jailbridge_argv(command))
        assert answer.code == 1
        assert f"process {rival.pid}: stop it" in answer.err
    lab.kill(rival)
    assert start(lab).poll() is None


def test_connect_mode_proves_the_source_and_sends_the_banner(make_lab: Callable[..., Lab]) -> None:
    settings = 'tcp_ports = "1-1023"\nmode = "connect"\nudp_ports = "100-110"\nbanner = "go away"\ntrigger_ports = 2'
    lab = with_settings(
        make_lab,
        ('tcp_ports = "1-1023"', settings),
        ("[policy]", 'dialect = "2"\n[policy]'),
    )
    start(lab)
    assert "ports with a live service are left alone protocol=tcp ports=80" in lab.tail("sensor", 50)
    scan = lab.from_outside(
        "nmap", "-n", "-Pn", "-sT", "-S", ATTACKER, "-e", "eth0", "-p", "21,80,443", "--script=banner", "198.51.100.1"
    )
    assert scan.code == 0, scan.err
    assert "go away" in scan.out or "open" in scan.out
    lab.wait("both ports are in the history", lambda: len(lines(lab)) == 2)
    assert {line.partition(" type: ")[2] for line in lines(lab)} == {
        "[Connect] IP opts: [unknown] ignored: [false] triggered: [false] noblock: [unset] blocked: [unset]",
        "[Connect] IP opts: [unknown] ignored: [false] triggered: [true] noblock: [true] blocked: [false]",
    }
    assert not any("[80]" in line for line in lines(lab))


def test_a_sensor_in_connect_mode_has_no_privilege_left_either(make_lab: Callable[..., Lab]) -> None:
    lab = with_settings(make_lab, ('tcp_ports = "1-1023"', 'tcp_ports = "1-100"\nmode = "connect"\nudp_ports = "7"'))
    sensor = start(lab)
    assert "0" not in status(sensor)["Uid"]
    assert int(status(sensor)["CapEff"][0], 16) == 0
    lab.scan(ATTACKER6, "20-30", "-sT")
    lab.wait("the scanner is in the history", lambda: [ATTACKER6 in line for line in lines(lab)] == [True])


def test_resolve_names_shows_the_name_that_the_host_knows(make_lab: Callable[..., Lab], open_folder: Path) -> None:
    lab = with_settings(make_lab, ('tcp_ports = "1-1023"', 'tcp_ports = "1-1023"\nresolve_names = true'))
    hosts = open_folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{ATTACKER} scanner.example\n{SECOND} 192.0.2.1\n")
    start(lab, "unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts))
    for source in (ATTACKER, SECOND):
        lab.scan(source)
    lab.wait("both are in the history", lambda: len(lines(lab)) == 2)
    told = sorted(line.partition("Host: ")[2].partition(" ")[0] for line in lines(lab))
    assert told == [f"{SECOND}/{SECOND}", f"scanner.example/{ATTACKER}"]


def test_an_unknown_user_is_an_error_that_says_what_to_do(make_lab: Callable[..., Lab]) -> None:
    lab = with_settings(make_lab, ('tcp_ports = "1-1023"', 'tcp_ports = "1-1023"\nuser = "nosuchuser"'))
    answer = lab.on_host(*lab.jailbridge_argv("sensor"))
    assert answer.code == 1
    assert 'sensor.user: there is no account "nosuchuser": make it (useradd --system), or name another' in answer.err


def test_a_history_that_its_user_cannot_reach_is_an_error_before_it_watches(lab: Lab) -> None:
    lab.disk.chmod(0o700)
    answer = lab.on_host(*lab.jailbridge_argv("sensor"))
    assert answer.code == 1
    assert f"history {lab.history} cannot be written: Permission denied: " in answer.err
    assert "watching" not in answer.err
