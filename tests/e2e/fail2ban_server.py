"""A real fail2ban of the tests' own: own folder, own socket, own network namespace."""

import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jailbridge.config.settings import Settings
from jailbridge.errors import RetryLater
from jailbridge.model.plan import ObservedBan
from jailbridge.stores.fail2ban import Fail2banStore
from jailbridge.stores.fail2ban_socket import Fail2banSocket, Refused
from tests.contract.kits_fail2ban import INSTALLED, NEEDS_NEWER, NEWER, Fail2ban

PATIENCE_S = 20.0
FAIL2BANS = [pytest.param(INSTALLED, id="installed"), pytest.param(NEWER, id="1.1", marks=NEEDS_NEWER)]
# For what fail2ban itself decides: of our own thinking nothing depends on its version.
on_both = pytest.mark.parametrize("server", FAIL2BANS, indirect=True)


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def now() -> datetime:
    return datetime.now(UTC)


def held(store: Fail2banStore) -> dict[str, ObservedBan]:
    return {str(ban.network): ban for ban in store.observe(now()).bans}


class Server:
    """A fail2ban with the shipped configuration, no jail of its own, and whatever is written into its folder."""

    def __init__(self, root: Path, namespace: str, fail2ban: Fail2ban) -> None:
        self.namespace = namespace
        self.program = fail2ban.program
        self.release = fail2ban.release
        self.directory = root / "fail2ban"
        shutil.copytree(fail2ban.shipped, self.directory, ignore=shutil.ignore_patterns("jail.d", "*.local"))
        (self.directory / "jail.d").mkdir()
        self.socket = root / "socket"
        self.wake = root / "fail2ban.wake"
        self.history = root / "portsentry.history"
        self.history.touch()
        self.log = root / "fail2ban.log"
        (self.directory / "fail2ban.local").write_text(
            f"[DEFAULT]\nsocket = {self.socket}\npidfile = {root}/pid\nlogtarget = {self.log}\n"
            f"dbfile = {root}/db.sqlite3\n[Definition]\nallowipv6 = yes\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def settings(self, **policy: object) -> Settings:
        control = {"socket": str(self.wake.with_name("control.sock"))}
        return Settings.model_validate({"tail": [{"path": str(self.history)}], "policy": policy, "control": control})

    def start(self, jail: str | None = "portsentry") -> None:
        """Start and wait for the jail: fail2ban answers before it has loaded any."""
        server = [self.program("server"), "-c", str(self.directory), "-f", "start"]
        command = ["ip", "netns", "exec", self.namespace, *server]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(lambda: self.asked("ping") == "pong")
        eventually(lambda: jail is None or self.asked("get", jail, "actions"))

    def asked(self, *words: str) -> object:
        try:
            with Fail2banSocket(self.socket) as server:
                return server.ask(*words)
        except (RetryLater, Refused):
            return None

    def client(self, *words: str) -> str:
        done = subprocess.run(
            [self.program("client"), "-c", str(self.directory), *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def store(self, jail: str = "portsentry") -> Fail2banStore:
        return Fail2banStore(jail=jail, socket=self.socket, wake=self.wake)

    def scan(self, address: str, *, ignored: str = "false") -> None:
        """PortSentry's line for a scan right now."""
        now = datetime.now(UTC)
        with self.history.open("a", encoding="ascii") as history:
            history.write(
                f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03d}+0000 Scan from: [{address}] ({address}) "
                "protocol: [TCP] port: [23] type: [TCP SYN/Normal scan] IP opts: [not set] "
                f"ignored: [{ignored}] triggered: [true] noblock: [true] blocked: [false]\n"
            )
