"""The fail2bans that we work with, and the kit of the store behind one: a server of the tests' own."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from jailbridge import process
from jailbridge.config.settings import Settings
from jailbridge.definitions import render, write
from jailbridge.stores.fail2ban import Fail2banStore
from jailbridge.stores.fail2ban_socket import Fail2banSocket
from jailbridge.stores.protocol import Store
from tests.contract.programs import done

FAIL2BAN = """[Definition]
logtarget = {root}/log
syslogsocket = auto
socket = {root}/socket
pidfile = {root}/pid
dbfile = None
allowipv6 = yes
"""
OTHER_JAIL = """[DEFAULT]
[other]
enabled = true
filter =
backend = polling
logpath = {root}/other.log
bantime = -1
action =
"""
PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail2ban:
    """A fail2ban: how its version begins, and the folders of its programs and of the configuration it comes with."""

    release: str
    programs: Path
    shipped: Path

    def program(self, name: str) -> str:
        """The `client`, `regex` or `server`: its path, or its name where PATH has it."""
        return str(self.programs / f"fail2ban-{name}")


UNPACKED = Path(__file__).parents[2] / ".programs" / "fail2ban-1.1"
INSTALLED = Fail2ban(release="1.", programs=Path(), shipped=Path("/etc/fail2ban"))
NEWER = Fail2ban(release="1.1", programs=UNPACKED / "usr/bin", shipped=UNPACKED / "etc/fail2ban")
# Another release of Debian than the machine's is not everywhere to be had: nobody is required to.
NEEDS_NEWER = pytest.mark.skipif(not UNPACKED.exists(), reason="Debian trixie's fail2ban could not be unpacked")


class Fail2banKit:
    """A fail2ban server of the tests' own, with the jail that we ship and another one."""

    def __init__(self, root: Path, fail2ban: Fail2ban) -> None:
        self.root = root
        self.fail2ban = fail2ban
        (root / "history").touch()
        (root / "other.log").touch()
        (root / "fail2ban.conf").write_text(FAIL2BAN.format(root=root))
        (root / "jail.conf").write_text(OTHER_JAIL.format(root=root))
        write(render(Settings.model_validate({"tail": [{"path": str(root / "history")}]})), root)
        self.store: Store = Fail2banStore(jail="portsentry", socket=root / "socket")
        self._server: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        with Fail2banSocket(self.root / "socket") as server:
            server.ask("unban", "--all")
            server.ask("set", "portsentry", "action", "jailbridge", "token", "")
            server.ask("set", "other", "banip", "192.0.2.7", "2001:db8::7")

    def foreign(self) -> object:
        with Fail2banSocket(self.root / "socket") as server:
            return server.ask("get", "other", "banip", "--with-time")

    def client(self, *words: str) -> str:
        return done(*self._client(), *words)

    def _client(self) -> list[str]:
        return [self.fail2ban.program("client"), "-c", str(self.root), "-s", str(self.root / "socket")]

    def start(self) -> None:
        command = ["unshare", "--net", self.fail2ban.program("server"), "-f", "-x", "-c", str(self.root), "start"]
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE_S
        while process.run([*self._client(), "status", "portsentry"]).code != 0:
            assert self._server.poll() is None, (self.root / "log").read_text()
            assert time.monotonic() < deadline, "fail2ban does not answer"
            time.sleep(0.05)

    def stop(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait(PATIENCE_S)

    def lose(self) -> None:
        self.client("restart", "--unban", "portsentry")

    def older_copy(self) -> None:
        return None

    def unhook(self) -> bool:
        return False

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        (self.root / "socket").rename(self.root / "elsewhere")
        yield
        (self.root / "elsewhere").rename(self.root / "socket")
