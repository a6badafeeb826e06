"""What every test may use: a network of its own, and the rule for tests that need root and real programs.

A test marked `e2e` is skipped, with the reason, where it cannot run. With JAILBRIDGE_E2E=required it is an error
instead: then nothing may be left untested.
"""

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jailbridge import process

PROGRAMS = {
    "ip": "iproute2",
    "nft": "nftables",
    "nmap": "nmap",
    "fail2ban-server": "fail2ban",
    "tcpdmatch": "tcpd",
}
CLONE_NEWNET = 0x40000000
OWN_NETWORK = Path("/proc/thread-self/ns/net")

_libc = ctypes.CDLL(None, use_errno=True)
_untested: list[str] = []


def what_is_missing() -> list[str]:
    """Return the reasons why an end-to-end test cannot run here."""
    if sys.platform != "linux":
        return ["Linux"]
    if os.geteuid() != 0:
        return ["root"]
    programs = [
        f"{program} (apt install {package})"
        for program, package in PROGRAMS.items()
        if shutil.which(program, path=process.SEARCH_PATH) is None
    ]
    if process.run(["unshare", "--net", "true"]).code != 0:
        programs.append("the right to make network namespaces (CAP_SYS_ADMIN)")
    return programs


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run here, or refuse to run at all where nothing may be skipped."""
    marked = [item for item in items if item.get_closest_marker("e2e") is not None]
    missing = what_is_missing() if marked else []
    if not missing:
        return
    reason = f"end-to-end tests need {', '.join(missing)}"
    if os.environ.get("JAILBRIDGE_E2E") == "required":
        raise pytest.UsageError(f"JAILBRIDGE_E2E=required, but {reason}")
    for item in marked:
        item.add_marker(pytest.mark.skip(reason=reason))
    _untested.append(f"NOT TESTED: {len(marked)} end-to-end tests; {reason}")


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
