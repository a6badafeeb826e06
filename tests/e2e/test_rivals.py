"""Real programs called portsentry, in networks of their own and in ours."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jailbridge.errors import FatalError
from jailbridge.process import SEARCH_PATH
from jailbridge.rivals import portsentry_running, refuse

pytestmark = pytest.mark.e2e

DEADLINE_S = 20.0
# Debian's, installed or unpacked beside these tests by packaging/prepare.
UNPACKED = Path(__file__).parents[2] / ".programs" / "usr" / "sbin"
CONFIG = """
TCP_PORTS="40421"
UDP_PORTS="40421"
IGNORE_FILE="/etc/portsentry/portsentry.ignore"
HISTORY_FILE="/var/lib/portsentry/portsentry.history"
BLOCKED_FILE="/var/lib/portsentry/portsentry.blocked"
BLOCK_UDP="0"
BLOCK_TCP="0"
SCAN_TRIGGER="0"
"""
# Its folders are built in: others stand in the places of /etc and /var/lib, for it alone, so that it changes nothing.
# With the shell all that it has started is killed.
START = """
mount --bind "$1/etc" /etc && mount --bind "$1/lib" /var/lib && "$2" -tcp && exec sleep 600
"""
# An unprivileged thread that looks at root's processes: their programs and networks cannot be read.
LOOK = """
import os, sys
from jailbridge.rivals import portsentry_running
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
print(int(sys.argv[1]) in portsentry_running())
"""


@contextmanager
def running(*argv: str) -> Iterator[int]:
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
        try:
            yield process.pid
        finally:
            process.send_signal(signal.SIGKILL)


@pytest.fixture
def named(tmp_path: Path) -> str:
    """Stands for PortSentry wherever a program of that name is all it takes."""
    copied = shutil.which("sleep")
    assert copied is not None
    return shutil.copy(copied, str(tmp_path / "portsentry"))


def test_one_in_this_network_is_refused_and_one_in_another_is_not(named: str, own_network: Callable[[], None]) -> None:
    with running(named, "600") as pid:
        assert portsentry_running() == [pid]
        with pytest.raises(FatalError, match=f"as process {pid}: stop it"):
            refuse()
        own_network()
        assert portsentry_running() == []
        refuse()
    assert portsentry_running() == []


def test_one_whose_program_is_replaced_or_that_is_named_otherwise_is_still_found(
    named: str, own_network: Callable[[], None]
) -> None:
    other = Path(named).rename(Path(named).with_name("portsentry-2.0.7"))
    link = Path(named)
    link.symlink_to(other)
    with running(str(link), "600") as pid:
        assert portsentry_running() == [pid]
        other.unlink()
        assert portsentry_running() == [pid]


def test_a_dead_one_that_nobody_has_waited_for_does_not_run(named: str, own_network: Callable[[], None]) -> None:
    with running(named, "600") as pid:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert "State:\tZ" in (Path("/proc") / str(pid) / "status").read_text()
        assert portsentry_running() == []


def test_roots_counts_for_a_user_who_cannot_see_its_network(named: str, own_network: Callable[[], None]) -> None:
    with running(named, "600") as pid:
        own_network()
        assert portsentry_running() == []
        looked = subprocess.run(
            [sys.executable, "-c", LOOK, str(pid)], capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
    assert (looked.stdout, looked.stderr) == ("True\n", "")


def test_debians_portsentry_is_refused(own_network: Callable[[], None], tmp_path: Path) -> None:
    program = shutil.which("portsentry", path=f"{UNPACKED}{os.pathsep}{SEARCH_PATH}")
    assert program is not None
    for folder in ("etc/portsentry", "lib/portsentry"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc" / "portsentry" / "portsentry.conf").write_text(CONFIG)
    (tmp_path / "etc" / "portsentry" / "portsentry.ignore").touch()
    shell = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", START, "sh"]
    with running(*shell, str(tmp_path), program):
        deadline = time.monotonic() + DEADLINE_S
        while not (found := portsentry_running()) and time.monotonic() < deadline:
            time.sleep(0.05)
        # It starts a second one of itself and ends the first.
        assert found
        with pytest.raises(FatalError, match=r"/portsentry' as process .*: stop it"):
            refuse()
        own_network()
        assert portsentry_running() == []
