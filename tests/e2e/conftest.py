import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from jailbridge.definitions import render, write
from jailbridge.demo.lab import Lab
from tests.contract.kits_fail2ban import INSTALLED
from tests.e2e import rebooting
from tests.e2e.fail2ban_server import Server
from tests.e2e.guest import Guest, why_not

WITHOUT_FAIL2BAN = "enabled = false"


@pytest.fixture
def make_lab() -> Iterator[Callable[..., Lab]]:
    """Labs of a test's own, gone when it ends."""
    with ExitStack() as stack:
        yield lambda extra="", **options: stack.enter_context(Lab(extra, **options))


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A host without fail2ban, and its outside."""
    return make_lab(WITHOUT_FAIL2BAN)


@pytest.fixture
def fail2ban_namespace() -> Iterator[str]:
    name = f"jb-f2b-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path, fail2ban_namespace: str) -> Iterator[Server]:
    """The installed fail2ban's, or the one that `on_both` says."""
    fail2ban = Server(tmp_path, fail2ban_namespace, getattr(request, "param", INSTALLED))
    yield fail2ban
    fail2ban.stop()


@pytest.fixture
def bridged(server: Server) -> Server:
    write(render(server.settings(allow=["192.0.2.128/25"])), server.directory)
    server.start()
    return server


@pytest.fixture(scope="session")
def installed() -> Iterator[Guest]:
    """A guest that is off, with our services and all bans; tests boot copies of it."""
    if reason := why_not():
        # An overlay on this machine's root is not everywhere to be had, for root neither: nobody is required to.
        pytest.skip(f"a guest needs {reason}")
    with Guest() as guest:
        rebooting.install(guest)
        yield guest
