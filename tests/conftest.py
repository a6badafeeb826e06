"""What every test may use: a network of its own, and the rule for tests that need root and real programs.

A test marked `e2e` is skipped, with the reason, where it cannot run. With JAILBRIDGE_E2E=required it is an error
instead: then nothing may be left untested. What must pass before a change lands is also the same each time; elsewhere
property tests try other examples in each run.
"""

import ctypes
import os
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import hypothesis
import pytest

from jailbridge import process

PROGRAMS = {
    "ip": "iproute2",
    "nft": "nftables",
    "ipset": "ipset",
    "iptables-nft": "iptables",
    "iptables-legacy": "iptables",
    "nmap": "nmap",
    "fail2ban-server": "fail2ban",
    "tcpdmatch": "tcpd",
    "sysctl": "procps",
}
# What only the tests marked `needs(PROGRAM)` need besides.
MORE_PROGRAMS = {
    "portsentry": "portsentry; make test only unpacks it",
    "sshd": "openssh-server; make test only unpacks it",
    "netfilter-persistent": "iptables-persistent ipset-persistent; make test only unpacks them",
    "ssh": "openssh-client",
    "logrotate": "logrotate; make test only unpacks it",
    "journalctl": "systemd",
    "systemd-journal-remote": "systemd-journal-remote; make test only unpacks it",
}
# Where packaging/prepare unpacks what must not be installed, and where Debian keeps programs for systemd's own use.
_PROGRAMS = Path(__file__).parents[1] / ".programs"
UNPACKED = os.pathsep.join(map(str, (_PROGRAMS / "usr/sbin", _PROGRAMS / "lib/systemd", "/lib/systemd")))
IS_REQUIRED = os.environ.get("JAILBRIDGE_E2E") == "required"
CLONE_NEWNET = 0x40000000
OWN_NETWORK = Path("/proc/thread-self/ns/net")

_libc = ctypes.CDLL(None, use_errno=True)
_untested: list[str] = []


def absent(programs: Mapping[str, str]) -> list[str]:
    """Return those that this machine lacks, with the package that has each."""
    path = f"{process.SEARCH_PATH}{os.pathsep}{UNPACKED}"
    return [f"{one} (apt install {package})" for one, package in programs.items() if not shutil.which(one, path=path)]


def what_is_missing() -> list[str]:
    """Return the reasons why an end-to-end test cannot run here."""
    if sys.platform != "linux":
        return ["Linux"]
    if os.geteuid() != 0:
        return ["root"]
    programs = absent(PROGRAMS)
    if process.run(["unshare", "--net", "true"]).code != 0:
        programs.append("the right to make network namespaces (CAP_SYS_ADMIN)")
    return programs


def pytest_configure() -> None:
    """Let the tests find, after the machine's own programs, those that are only unpacked; let an interrupt be one."""
    os.environ["PATH"] += f"{os.pathsep}{UNPACKED}"
    # A shell's job in the background has it ignored, and what is started here would, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if IS_REQUIRED:
        hypothesis.settings.register_profile("required", derandomize=True, deadline=None)
        hypothesis.settings.load_profile("required")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run here, or refuse to run at all where nothing may be skipped."""
    marked = [item for item in items if item.get_closest_marker("e2e") is not None]
    missing = what_is_missing() if marked else []
    reasons: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in marked:
        needed = {mark.args[0] for mark in item.iter_markers("needs")}
        if lacks := [*missing, *absent({one: MORE_PROGRAMS[one] for one in sorted(needed)})]:
            reasons[f"end-to-end tests need {', '.join(lacks)}"].append(item)
    if reasons and IS_REQUIRED:
        raise pytest.UsageError("JAILBRIDGE_E2E=required, but " + "; ".join(reasons))
    for reason, lacking in reasons.items():
        for item in lacking:
            item.add_marker(pytest.mark.skip(reason=reason))
        _untested.append(f"NOT TESTED: {len(lacking)} end-to-end tests; {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end what was not tested."""
    for line in _untested:
        terminalreporter.write_line(line, yellow=True)


@pytest.fixture
def own_network() -> Iterator[Callable[[], None]]:
    """Move this thread, and what it starts, into a new network namespace, and back; called, it makes another."""
    before = os.open(OWN_NETWORK, os.O_RDONLY | os.O_CLOEXEC)

    def anew() -> None:
        if _libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        done = process.run(["ip", "link", "set", "lo", "up"])
        assert done.code == 0, done.err

    try:
        anew()
        yield anew
    finally:
        back = _libc.setns(before, CLONE_NEWNET)
        os.close(before)
        assert back == 0, "this thread is left in a foreign network namespace"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter, above which all may be entered too: pytest's own are closed."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="jailbridge-test-"))
    folder.chmod(0o755)
    yield folder
    for inner in (path for path in folder.rglob("*") if path.is_dir()):
        inner.chmod(0o700)
    shutil.rmtree(folder)
