"""PortSentry's own marks in files, and which places there are. Rules, routes and a real PortSentry: tests/e2e."""

import contextlib
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jailbridge.config.settings import Settings
from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.network import Network, parse_network
from jailbridge.stores.deny_file import BEGIN, END
from jailbridge.stores.protocol import Traces
from jailbridge.stores.traces import BlockedFiles, portsentry_traces

LINE = b"1795329057 - 11/22/2026 06:30:57 Host: %b/%b Port: 11 TCP Blocked\n"
BINARY = (2).to_bytes(2, "little") + bytes([192, 0, 2, 7])
BLOCK = BEGIN + b"jb1:a:-:1:1 x\nALL: 192.0.2.7\nALL: 192.0.2.8\n" + END + b"\n"
CONF = """
KILL_HOSTS_DENY="ALL: $TARGET$ : DENY"
KILL_ROUTE="/sbin/route add -host $TARGET$ reject"
BLOCKED_FILE="{folder}/own.blocked"
"""


def nets(*texts: str) -> set[Network]:
    return {parse_network(text) for text in texts}


def settings(folder: Path, **stores: Any) -> Settings:
    made = {
        "hosts_deny": {"path": str(folder / "hosts.deny")},
        "blocked_files": {"paths": [str(folder / "portsentry.blocked.*")]},
        **stores,
    }
    return Settings.model_validate({"stores": made, "portsentry": {"conf": str(folder / "portsentry.conf")}})


def named(traces: list[Traces], name: str) -> Traces:
    (one,) = [trace for trace in traces if trace.name == name]
    return one


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "portsentry.conf").write_text(CONF.format(folder=tmp_path))
    return tmp_path


def traces(folder: Path, **stores: Any) -> list[Traces]:
    return list(portsentry_traces(settings(folder, **stores)))


# which there are


def test_every_place_that_the_portsentry_conf_names_is_one(folder: Path) -> None:
    assert [trace.name for trace in traces(folder)] == ["portsentry_route", "portsentry_hosts_deny", "blocked_files"]


def test_without_a_portsentry_conf_there_are_its_files_at_most(folder: Path) -> None:
    (folder / "portsentry.conf").unlink()
    assert [trace.name for trace in traces(folder)] == ["blocked_files"]
    assert traces(folder, blocked_files={"enabled": False}) == []


def test_a_place_whose_store_is_not_enabled_is_left_alone(folder: Path) -> None:
    off = {"enabled": False}
    assert [trace.name for trace in traces(folder, hosts_deny=off, firewall=off)] == ["blocked_files"]


def test_a_broken_portsentry_conf_is_told_in_one_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "portsentry.conf").write_text('KILL_ROUTE="x\nNO=1\n')
    assert [trace.name for trace in traces(folder)] == ["blocked_files"]
    (told,) = caplog.records
    assert "\n" not in told.message
    assert "PortSentry's own lines and rules stay when a ban ends: " in told.message


def test_a_command_that_cannot_be_undone_is_told_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (folder / "portsentry.conf").write_text('KILL_ROUTE="/usr/local/bin/block $TARGET$ | logger"\n')
    assert [trace.name for trace in traces(folder)] == ["blocked_files"]
    assert [record.levelname for record in caplog.records] == ["INFO"]


# its lines in hosts.deny


def test_its_lines_go_and_our_block_and_all_others_stay(folder: Path) -> None:
    deny = folder / "hosts.deny"
    foreign = b"sshd: 192.0.2.7\nALL: 192.0.2.7\n"
    its = b"ALL: 192.0.2.7 : DENY\nALL: fd98::2 : DENY\n"
    deny.write_bytes(its + foreign + BLOCK + its + b"# end \\\nALL: 192.0.2.7 : DENY")
    trace = named(traces(folder), "portsentry_hosts_deny")
    assert trace.observe() == nets("192.0.2.7", "fd98::2")
    trace.remove(nets("192.0.2.7", "192.0.2.8"))
    kept = b"ALL: fd98::2 : DENY\n"
    assert deny.read_bytes() == kept + foreign + BLOCK + kept + b"# end \\\nALL: 192.0.2.7 : DENY"
    trace.remove(nets("192.0.2.7"))
    assert trace.observe() == nets("fd98::2")


def test_a_line_of_the_same_form_in_our_block_is_ours(folder: Path) -> None:
    content = BEGIN + b"jb1:a:-:1:1 x\nALL: 192.0.2.7 : DENY\n" + END + b"\n"
    (folder / "hosts.deny").write_bytes(content)
    trace = named(traces(folder), "portsentry_hosts_deny")
    assert trace.observe() == set()
    trace.remove(nets("192.0.2.7"))
    assert (folder / "hosts.deny").read_bytes() == content


def test_a_missing_hosts_deny_has_none_and_broken_marks_are_an_error(folder: Path) -> None:
    trace = named(traces(folder), "portsentry_hosts_deny")
    assert trace.observe() == set()
    trace.remove(nets("192.0.2.7"))
    assert not (folder / "hosts.deny").exists()
    (folder / "hosts.deny").write_bytes(BEGIN)
    for act in (trace.observe, lambda: trace.remove(nets("192.0.2.7"))):
        with pytest.raises(FatalError, match="broken jailbridge marks"):
            act()


# its blocked files


def test_every_file_that_a_pattern_or_the_conf_names_is_looked_at(folder: Path) -> None:
    (folder / "portsentry.blocked.tcp").write_bytes(LINE % (b"192.0.2.7", b"192.0.2.7"))
    (folder / "portsentry.blocked.audp").write_bytes(LINE % (b"192.0.2.8", b"192.0.2.8"))
    (folder / "own.blocked").write_bytes(BINARY)
    (folder / "own.blocked.stcp").write_bytes(LINE % (b"192.0.2.9", b"192.0.2.9"))
    (folder / "portsentry.blocked.d").mkdir()
    trace = named(traces(folder), "blocked_files")
    assert trace.observe() == nets("192.0.2.7", "192.0.2.8", "192.0.2.9")
    trace.remove(nets("192.0.2.7", "192.0.2.9"))
    assert trace.observe() == nets("192.0.2.8")
    assert (folder / "own.blocked").read_bytes() == b""


def test_mode_and_owner_stay_and_a_file_without_the_host_is_not_written(folder: Path) -> None:
    files = [folder / "portsentry.blocked.tcp", folder / "portsentry.blocked.udp"]
    for file, host in zip(files, (b"192.0.2.7", b"192.0.2.8"), strict=True):
        file.write_bytes(LINE % (host, host))
        file.chmod(0o640)
    before = [file.stat() for file in files]
    BlockedFiles([folder / "portsentry.blocked.*"]).remove(nets("192.0.2.7"))
    after = [file.stat() for file in files]
    assert after[1] == before[1]
    assert (after[0].st_mode, after[0].st_uid) == (before[0].st_mode, before[0].st_uid)


@pytest.mark.parametrize("record", [LINE % (b"10.9.%d.%d", b"10.9.%d.%d"), b"\x02\x00\x0a\x09%c%c"])
def test_no_record_that_is_appended_meanwhile_is_lost_and_none_is_halved(folder: Path, record: bytes) -> None:
    code = """
import os, sys
for number in range(3000):
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
    os.write(file, eval(sys.argv[2]) % (divmod(number, 256) * (eval(sys.argv[2]).count(b"%") // 2)))
    os.close(file)
"""
    path = folder / "portsentry.blocked.x"
    seven = BINARY if record.startswith(b"\x02") else LINE % (b"192.0.2.7", b"192.0.2.7")
    eight = seven.replace(b"192.0.2.7", b"192.0.2.8").replace(b"\xc0\x00\x02\x07", b"\xc0\x00\x02\x08")
    path.write_bytes(eight + seven)
    trace, rounds = BlockedFiles([path]), 0
    with subprocess.Popen([sys.executable, "-c", code, path, repr(record)]) as other:
        while other.poll() is None:
            # On a slow machine the other may always be quicker, and the next pass tries again.
            with contextlib.suppress(RetryLater):
                trace.remove(nets("192.0.2.7", "192.0.2.8"))
            with path.open("ab") as file:
                file.write(seven)
            rounds += 1
    assert other.returncode == 0
    trace.remove(nets("192.0.2.7", "192.0.2.8"))
    assert rounds > 1
    # What comes late comes last.
    expected = [record % (divmod(number, 256) * (record.count(b"%") // 2)) for number in range(3000)]
    content, size = path.read_bytes(), len(expected[0])
    found = content.splitlines(keepends=True)
    if record.startswith(b"\x02"):
        found = [content[at : at + size] for at in range(0, len(content), size)]
    assert sorted(found) == sorted(expected)
