"""The kit of the store behind fail2ban: a server of the tests' own."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


class Fail2banKit:
    """A fail2ban server of the tests' own, with the jail that we ship and another one."""

    def __init__(self, root: Path) -> None:
        self.root = root
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
        return done("fail2ban-client", "-c", str(self.root), "-s", str(self.root / "socket"), *words)

    def start(self) -> None:
        command = ["unshare", "--net", "fail2ban-server", "-f", "-x", "-c", str(self.root), "start"]
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE_S
        ping = ["fail2ban-client", "-c", str(self.root), "-s", str(self.root / "socket"), "status", "portsentry"]
        while process.run(ping).code != 0:
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
