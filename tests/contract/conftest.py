"""One kit for each store: the store itself, and what its surroundings may do to it behind our back."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jailbridge import process
from jailbridge.config.settings import FirewallSettings, HostsDenySettings, Settings
from jailbridge.definitions import render, write
from jailbridge.model.plan import Capabilities
from jailbridge.stores.deny_file import BEGIN, END
from jailbridge.stores.fail2ban import Fail2banStore
from jailbridge.stores.fail2ban_socket import Fail2banSocket
from jailbridge.stores.hosts_deny import HostsDenyStore
from jailbridge.stores.memory import MemoryStore
from jailbridge.stores.nftables import NftablesStore
from jailbridge.stores.protocol import Store

FOREIGN_RULES = """
table inet filter {
    set jailbridge {
        type ipv4_addr
        flags interval
        elements = { 192.0.2.0/24 }
    }
    chain input {
        type filter hook input priority -10; policy accept;
        ip saddr @jailbridge counter accept
    }
}
table ip jailbridge {
    set hosts4 {
        type ipv4_addr
        flags timeout
        elements = { 192.0.2.7 }
    }
}
"""
FOREIGN_LINES = b"# by hand\nsshd: 203.0.113.5\n"
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


def done(argv: list[str], given: str = "") -> str:
    result = process.run(argv, given=given, timeout_s=60)
    assert result.code == 0, f"{argv}: {result.err or result.out}"
    return result.out


class MemoryKit:
    """The twin."""

    def __init__(self, store: MemoryStore) -> None:
        self.store: Store = store
        self._twin = store

    def prepare(self) -> None:
        """Have it in force, as `apply` finds it."""

    def foreign(self) -> object:
        return None

    def lose(self) -> None:
        self._twin.lose()

    def older_copy(self) -> Callable[[], None]:
        bans, token = dict(self._twin.bans), self._twin.token

        def put_back() -> None:
            self._twin.bans, self._twin.token = bans, token

        return put_back

    def unhook(self) -> bool:
        self._twin.enforcing = False
        return True

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        self._twin.reachable = False
        yield
        self._twin.reachable = True


class HostsDenyKit:
    """A file in a folder of the test's own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(FOREIGN_LINES)
        self.store: Store = HostsDenyStore(HostsDenySettings(path=path))

    def prepare(self) -> None:
        """Foreign lines on both sides of the block."""
        self.path.write_bytes(FOREIGN_LINES + BEGIN + b"\n" + END + b"\n# more by hand\nin.ftpd: .example.org")

    def foreign(self) -> object:
        before, _, rest = self.path.read_bytes().partition(BEGIN)
        return before, rest.partition(END + b"\n")[2]

    def lose(self) -> None:
        """Somebody's configuration management puts its own file there."""
        self.path.write_bytes(FOREIGN_LINES)

    def older_copy(self) -> Callable[[], None]:
        content = self.path.read_bytes()

        def put_back() -> None:
            self.path.write_bytes(content)

        return put_back

    def unhook(self) -> bool:
        return False

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        content = self.path.read_bytes()
        self.path.unlink()
        self.path.mkdir()
        yield
        self.path.rmdir()
        self.path.write_bytes(content)


class NftablesKit:
    """The tables of a network namespace of the test's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store: Store = NftablesStore(FirewallSettings())
        self._monkeypatch = monkeypatch

    def prepare(self) -> None:
        done(["nft", "-f", "-"], FOREIGN_RULES)

    def foreign(self) -> object:
        return done(["nft", "-s", "list", "table", "inet", "filter"]), done(
            ["nft", "list", "table", "ip", "jailbridge"]
        )

    def lose(self) -> None:
        done(["nft", "delete", "table", "inet", "jailbridge"])

    def older_copy(self) -> Callable[[], None]:
        saved = done(["nft", "list", "ruleset"])

        def put_back() -> None:
            done(["nft", "-f", "-"], "flush ruleset\n" + saved)

        return put_back

    def unhook(self) -> bool:
        done(["nft", "flush", "chain", "inet", "jailbridge", "input"])
        return True

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        with self._monkeypatch.context() as patch:
            patch.setattr(process, "SEARCH_PATH", "/nowhere")
            yield


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
        return done(["fail2ban-client", "-c", str(self.root), "-s", str(self.root / "socket"), *words])

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


Kit = MemoryKit | HostsDenyKit | NftablesKit | Fail2banKit


@pytest.fixture(scope="session")
def fail2ban(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fail2banKit]:
    kit = Fail2banKit(tmp_path_factory.mktemp("fail2ban"))
    kit.start()
    yield kit
    kit.stop()


@pytest.fixture(
    params=[
        "memory",
        "memory-narrow",
        "hosts_deny",
        pytest.param("nftables", marks=pytest.mark.e2e),
        pytest.param("fail2ban", marks=pytest.mark.e2e),
    ]
)
def kit(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kit:
    """A store that holds nothing of ours, beside entries of others."""
    made: Kit
    match request.param:
        case "memory":
            made = MemoryKit(MemoryStore())
        case "memory-narrow":
            narrow = Capabilities(overlaps=False, ends=False, volatile=True, early=True)
            made = MemoryKit(MemoryStore(capabilities=narrow))
        case "hosts_deny":
            made = HostsDenyKit(tmp_path / "hosts.deny")
        case "nftables":
            request.getfixturevalue("own_network")
            made = NftablesKit(monkeypatch)
        case _:
            made = request.getfixturevalue("fail2ban")
    made.prepare()
    return made
