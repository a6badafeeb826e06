"""Records as sshd and logind leave them, and a living process for each; libsystemd is the real one."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from jailbridge import process
from jailbridge.errors import RetryLater
from jailbridge.host.sessions import LOGIND, RECORD, in_utmp

USER_PROCESS, DEAD_PROCESS, LOGIN_PROCESS = 7, 8, 6

# As systemd 252 writes it for an SSH session.
AS_LOGIND = """\
# This is private data. Do not parse.
UID={uid}
USER={user}
ACTIVE=1
IS_DISPLAY=0
STATE={state}
REMOTE={remote}
STOPPING=0
TYPE=tty
ORIGINAL_TYPE=tty
CLASS=user
SCOPE=session-{id}.scope
FIFO=/run/systemd/sessions/{id}.ref
TTY=pts/0
REMOTE_HOST={host}
SERVICE={service}
LEADER=1
AUDIT=1
REALTIME=1700000000000000
MONOTONIC=1000000
"""


def record(pid: int, host: str = "", address: str = "", *, user: bytes = b"root", kind: int = USER_PROCESS) -> bytes:
    packed = ip_address(address).packed.ljust(16, b"\0") if address else b""
    return RECORD.pack(kind, pid, user, host.encode(), packed)


def told(utmp: Path) -> list[tuple[str, str]]:
    return [(str(address), why) for address, why in in_utmp(utmp)]


@pytest.fixture
def utmp(tmp_path: Path) -> Path:
    return tmp_path / "utmp"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], process.Running]]:
    """Start a process that is called NAME and does nothing."""
    with ExitStack() as stack:

        def start(name: str) -> process.Running:
            program = tmp_path / name
            if not program.exists():
                shutil.copy(process.find("sleep", "coreutils"), program)
            running = process.start([str(program), "1000"])
            stack.callback(running.wait)
            stack.callback(running.kill)
            # The kernel gives the new name a moment after it tells that the program runs.
            comm, late = Path(f"/proc/{running.pid}/comm"), time.monotonic() + 10
            while comm.read_text() != f"{name}\n":
                assert time.monotonic() < late
            return running

        yield start


def test_a_record_has_the_machines_own_size() -> None:
    # glibc, sizeof (struct utmp): <bits/utmp.h>
    assert RECORD.size == (400 if os.uname().machine in {"aarch64", "riscv64", "loongarch64"} else 384)


@pytest.mark.parametrize("name", ["sshd", "sshd-session", "dropbear"])
def test_a_session_with_a_living_server_counts(utmp: Path, start: Callable[[str], process.Running], name: str) -> None:
    pid = start(name).pid
    utmp.write_bytes(
        record(pid, "192.0.2.9", "192.0.2.9")
        + record(pid, "2001:db8::9", "2001:db8::9", user=b"anna")
        + record(pid, "mapped.example.com", "::ffff:192.0.2.10")
        + record(pid, "192.0.2.11")
        + record(pid, "fe80::1%eth0")
    )
    assert told(utmp) == [
        ("192.0.2.9", "session of root from 192.0.2.9 (utmp)"),
        ("2001:db8::9", "session of anna from 2001:db8::9 (utmp)"),
        ("192.0.2.10", "session of root from 192.0.2.10 (utmp)"),
        ("192.0.2.11", "session of root from 192.0.2.11 (utmp)"),
        ("fe80::1", "session of root from fe80::1 (utmp)"),
    ]


def test_the_sockets_own_peer_counts_and_not_the_name_that_it_gives_itself(
    utmp: Path, start: Callable[[str], process.Running]
) -> None:
    pid = start("sshd").pid
    utmp.write_bytes(record(pid, "198.51.100.1", "192.0.2.9") + record(pid, "198.51.100.1.example.com"))
    assert [address for address, _ in told(utmp)] == ["192.0.2.9"]


def test_a_record_that_outlived_its_session_does_not_count(utmp: Path, start: Callable[[str], process.Running]) -> None:
    server, other = start("sshd"), start("tmux")
    utmp.write_bytes(
        record(server.pid, "192.0.2.1", "192.0.2.1", kind=DEAD_PROCESS)
        + record(server.pid, "192.0.2.2", "192.0.2.2", kind=LOGIN_PROCESS)
        + record(other.pid, "192.0.2.3", "192.0.2.3")
        + record(0, "192.0.2.4", "192.0.2.4")
        + record(-1, "192.0.2.5", "192.0.2.5")
        + record(server.pid, "192.0.2.6", "192.0.2.6")
    )
    assert [address for address, _ in told(utmp)] == ["192.0.2.6"]
    server.kill()
    server.wait()
    assert told(utmp) == []


def test_a_shell_that_a_server_started_is_a_session_too(
    utmp: Path, tmp_path: Path, start: Callable[[str], process.Running]
) -> None:
    # So sshd notes root's sessions. Its name is the worst there can be.
    shutil.copy(process.find("sleep", "coreutils"), tmp_path / ") R 1 (")
    shutil.copy(process.find("dash", "dash"), tmp_path / "sshd")
    server = process.start([str(tmp_path / "sshd"), "-c", '"$0" 1000; exit 1', str(tmp_path / ") R 1 (")])
    try:
        children, late = Path(f"/proc/{server.pid}/task/{server.pid}/children"), time.monotonic() + 10
        while not (found := children.read_text().split()) or "R 1" not in Path(f"/proc/{found[0]}/comm").read_text():
            assert time.monotonic() < late
        shell = int(found[0])
        utmp.write_bytes(record(shell, "192.0.2.9", "192.0.2.9"))
        assert [address for address, _ in told(utmp)] == ["192.0.2.9"]
        server.kill()
        server.wait()
        assert told(utmp) == []
    finally:
        server.kill()
        os.kill(shell, signal.SIGKILL)


def test_a_record_that_is_cut_off_is_left_for_the_next_look(
    utmp: Path, start: Callable[[str], process.Running]
) -> None:
    one = record(start("sshd").pid, "192.0.2.9", "192.0.2.9")
    for size in range(0, len(one), 13):
        utmp.write_bytes(one + one[:size])
        assert len(told(utmp)) == 1


def test_a_strange_name_is_shown_quoted(utmp: Path, start: Callable[[str], process.Running]) -> None:
    utmp.write_bytes(record(start("sshd").pid, "192.0.2.9", "192.0.2.9", user=b"\x1b[2Jroot\xff"))
    ((_, why),) = told(utmp)
    assert why.isprintable()
    assert why.startswith("session of '\\x1b[2Jroot")


def test_without_utmp_there_are_no_sessions_and_an_unreadable_one_is_told(utmp: Path, tmp_path: Path) -> None:
    assert told(utmp) == []
    with pytest.raises(RetryLater, match=f"^SSH sessions are unknown: {tmp_path} cannot be read: Is a dir.*; nobody"):
        in_utmp(tmp_path)


# logind

SHOW = """
import json
from jailbridge.host.sessions import in_logind
print(json.dumps([(str(address), why) for address, why in in_logind()]))
"""
GROW = """
from jailbridge.host.sessions import in_logind
def held(times):
    for _ in range(times):
        assert len(in_logind()) == 20
    return int(open("/proc/self/statm").read().split()[1])
print(-held(50) + held(300))
"""


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Any]:
    """Return what a program prints, as JSON, where these sessions stand in a /run/systemd/sessions of its own."""
    if not LOGIND.is_dir():
        pytest.skip(f"no {LOGIND} to put ours over")
    folder = tmp_path / "sessions"
    folder.mkdir()

    def ask(program: str, **entries: dict[str, object]) -> Any:
        for name, entry in entries.items():
            known = {"id": name, "uid": 0, "user": "root", "state": "active", "remote": 1, "service": "sshd"} | entry
            (folder / name).write_text(AS_LOGIND.format(**known))
        mount = f'mount --bind "$0" {LOGIND} && exec "$@"'
        argv = ["unshare", "--mount", "sh", "-c", mount, str(folder), sys.executable, "-c", program]
        done = process.run(argv, timeout_s=60)
        assert done.code == 0, done.err
        return json.loads(done.out)

    return ask


@pytest.mark.e2e
def test_logind_tells_of_ssh_sessions_from_elsewhere(ask: Callable[..., Any]) -> None:
    found = ask(
        SHOW,
        c1={"host": "192.0.2.1"},
        c2={"host": "2001:db8::2", "uid": 1000, "user": "anna", "state": "online"},
        c3={"host": "192.0.2.3", "state": "opening"},
        c4={"host": "192.0.2.4", "state": "closing"},
        c5={"host": "192.0.2.5", "remote": 0},
        c6={"host": "192.0.2.6", "service": "login"},
        c7={"host": "host.example.com"},
        c8={"host": ""},
    )
    assert sorted(found) == [
        ["192.0.2.1", "session of root from 192.0.2.1 (logind)"],
        ["192.0.2.3", "session of root from 192.0.2.3 (logind)"],
        ["2001:db8::2", "session of uid-1000 from 2001:db8::2 (logind)"],
    ]


@pytest.mark.e2e
def test_asking_libsystemd_again_and_again_takes_no_memory(ask: Callable[..., Any]) -> None:
    # In pages: 5 where all is given back, 400 where no text is.
    assert ask(GROW, **{f"c{n}": {"host": f"192.0.2.{n}"} for n in range(20)}) < 50
