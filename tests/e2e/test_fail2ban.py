"""The definitions and the store against a real fail2ban: own folder, own socket, own network namespace."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jailbridge.config.settings import Settings
from jailbridge.definitions import install, render, write
from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.network import Network, parse_network
from jailbridge.model.plan import Action, Change, ObservedBan, Rejection
from jailbridge.model.token import Token
from jailbridge.stores.fail2ban import CHUNK, WRITING, Fail2banStore
from jailbridge.stores.fail2ban_socket import Fail2banSocket, Refused
from jailbridge.stores.protocol import Drifted

pytestmark = pytest.mark.e2e

SAMPLES = Path(__file__).parents[2] / "sample-logs"
SHIPPED = Path("/etc/fail2ban")
TOKEN = Token(ledger="0123456789ab", boot="ba9876543210", layout=1, sequence=7)
PATIENCE_S = 20.0


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def net(text: str) -> Network:
    return parse_network(text)


def change(action: Action, network: str) -> Change:
    return Change(store="fail2ban", action=action, network=net(network), why="test")


class Server:
    """A fail2ban with the shipped configuration, no jail of its own, and whatever is written into its folder."""

    def __init__(self, root: Path, namespace: str) -> None:
        self.namespace = namespace
        self.directory = root / "fail2ban"
        shutil.copytree(SHIPPED, self.directory, ignore=shutil.ignore_patterns("jail.d", "*.local"))
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
        command = ["ip", "netns", "exec", self.namespace, "fail2ban-server", "-c", str(self.directory), "-f", "start"]
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
            ["fail2ban-client", "-c", str(self.directory), *words], capture_output=True, text=True, check=False
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


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"jb-f2b-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.fixture
def server(tmp_path: Path, namespace: str) -> Iterator[Server]:
    fail2ban = Server(tmp_path, namespace)
    yield fail2ban
    fail2ban.stop()


@pytest.fixture
def bridged(server: Server) -> Server:
    write(render(server.settings(allow=["192.0.2.128/25"])), server.directory)
    server.start()
    return server


def now() -> datetime:
    return datetime.now(UTC)


def held(store: Fail2banStore) -> dict[str, ObservedBan]:
    return {str(ban.network): ban for ban in store.observe(now()).bans}


# the filter


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
@pytest.mark.parametrize("tail_format", ["auto", "own"])
@pytest.mark.parametrize("sample", ["portsentry-1.2", "portsentry-2"])
def test_the_filter_bans_exactly_what_each_sample_line_says(
    tmp_path: Path, sample: str, tail_format: str, encoding: str
) -> None:
    settings = {"tail": [{"path": "/log", "format": sample if tail_format == "own" else "auto"}]}
    write(render(Settings.model_validate(settings)), tmp_path)
    expected = [json.loads(line) for line in (SAMPLES / f"{sample}.expected.jsonl").read_text().splitlines()]
    done = subprocess.run(
        ["fail2ban-regex", "-c", str(tmp_path), "-e", encoding, "-o", "ip", str(SAMPLES / f"{sample}.log"),
         str(tmp_path / "filter.d/jailbridge-portsentry.conf")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [line["fail2ban"] for line in expected if line["fail2ban"]]


@pytest.mark.parametrize(("sample", "other"), [("portsentry-1.2", "portsentry-2"), ("portsentry-2", "portsentry-1.2")])
def test_a_filter_for_one_dialect_matches_nothing_of_the_other(tmp_path: Path, sample: str, other: str) -> None:
    write(render(Settings.model_validate({"tail": [{"path": "/log", "format": sample}]})), tmp_path)
    done = subprocess.run(
        ["fail2ban-regex", "-c", str(tmp_path), "-o", "ip", str(SAMPLES / f"{other}.log"),
         str(tmp_path / "filter.d/jailbridge-portsentry.conf")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == []


def test_each_sample_line_has_its_expectation() -> None:
    for sample in ("portsentry-1.2", "portsentry-2"):
        lines = (SAMPLES / f"{sample}.log").read_bytes().split(b"\n")[:-1]
        expected = [json.loads(line) for line in (SAMPLES / f"{sample}.expected.jsonl").read_text().splitlines()]
        assert [line["line"] for line in expected] == list(range(1, len(lines) + 1))
        assert all(("refused" in line) is ("address" not in line) for line in expected)


# the jail


def test_a_line_in_the_history_bans_for_ever_and_ignored_or_allowed_sources_are_not_banned(bridged: Server) -> None:
    before = now().replace(microsecond=0)
    bridged.scan("192.0.2.1", ignored="true")
    bridged.scan("192.0.2.129")
    bridged.scan("fe80::1")
    bridged.scan("2001:db8::7")
    eventually(lambda: "2001:db8::7" in held(bridged.store()))
    bans = held(bridged.store())
    assert list(bans) == ["2001:db8::7"]
    ban = bans["2001:db8::7"]
    assert ban.until is None
    assert ban.since is not None
    assert before <= ban.since <= now()


def test_the_jail_pins_what_a_local_default_would_change(server: Server) -> None:
    (server.directory / "jail.local").write_text(
        "[DEFAULT]\nbantime = 5m\nbantime.increment = true\nmaxretry = 9\nfindtime = 1\nusedns = yes\n"
        "ignoreip = 0.0.0.0/1\nignorecommand = /bin/true\nlogencoding = utf-16\nbanaction = dummy\n"
    )
    write(render(server.settings()), server.directory)
    server.start()
    server.scan("192.0.2.1")
    eventually(lambda: "192.0.2.1" in held(server.store()))
    assert held(server.store())["192.0.2.1"].until is None
    assert server.asked("get", "portsentry", "actions") == ["jailbridge"]


# the store


def test_what_was_applied_is_observed_with_its_token(bridged: Server) -> None:
    store = bridged.store()
    networks = ["192.0.2.7", "192.0.2.0/24", "2001:db8::7", "2001:db8::/64", "2001:db8:1:2::/63"]
    assert store.observe(now()).token is None
    before = now().replace(microsecond=0)
    assert list(store.apply([change(Action.ADD, network) for network in networks], TOKEN, now())) == []
    observation = store.observe(now())
    assert Token.parse(observation.token) == TOKEN
    assert observation.enforcing is True
    assert {str(ban.network) for ban in observation.bans} == set(networks)
    assert all(ban.until is None and ban.since and before <= ban.since <= now() for ban in observation.bans)
    assert bridged.client("get", "portsentry", "action", "jailbridge", "token").strip() == str(TOKEN)


def test_adding_what_is_there_and_removing_what_is_not_are_no_errors(bridged: Server) -> None:
    store = bridged.store()
    store.apply([change(Action.ADD, "192.0.2.7"), change(Action.UPDATE, "192.0.2.8")], TOKEN, now())
    again = [
        change(Action.ADD, "192.0.2.7"),
        change(Action.UPDATE, "192.0.2.7"),
        change(Action.REMOVE, "192.0.2.9"),
    ]
    assert list(store.apply(again, TOKEN, now())) == []
    assert set(held(store)) == {"192.0.2.7", "192.0.2.8"}


def test_removing_a_network_keeps_the_hosts_inside_it(bridged: Server) -> None:
    store = bridged.store()
    store.apply([change(Action.ADD, "2001:db8::/64"), change(Action.ADD, "2001:db8::7")], TOKEN, now())
    store.apply([change(Action.REMOVE, "2001:db8::/64")], TOKEN, now())
    assert set(held(store)) == {"2001:db8::7"}
    store.apply([change(Action.REMOVE, "2001:db8::/64")], TOKEN, now())
    assert set(held(store)) == {"2001:db8::7"}
    store.apply([change(Action.REMOVE, "2001:db8::7")], TOKEN, now())
    assert held(store) == {}


def test_many_changes_go_in_order(bridged: Server) -> None:
    store = bridged.store()
    everyone = [f"198.51.100.{n}" for n in range(3 * CHUNK + 1)]
    store.apply([change(Action.ADD, network) for network in everyone], TOKEN, now())
    assert set(held(store)) == set(everyone)
    swap = [change(Action.REMOVE, network) for network in everyone[:-1]] + [change(Action.ADD, everyone[0])]
    store.apply(swap, TOKEN, now())
    assert set(held(store)) == {everyone[0], everyone[-1]}


def test_others_doings_are_noticed_and_our_own_are_not(bridged: Server) -> None:
    store = bridged.store()
    assert store.touched(), "nobody listened until now"
    networks = ["192.0.2.7", "192.0.2.0/24", "2001:db8::7", "2001:db8::/64", *(f"198.51.100.{n}" for n in range(2, 9))]
    store.apply([change(Action.ADD, network) for network in networks], TOKEN, now())
    assert not store.touched()
    store.apply([change(Action.REMOVE, network) for network in networks[1:]], replace(TOKEN, sequence=8), now())
    assert not store.touched()
    for command in (["set", "portsentry", "unbanip", "192.0.2.7"], ["set", "portsentry", "banip", "192.0.2.9"]):
        bridged.client(*command)
        assert store.touched()
        assert not store.touched()
    bridged.client("restart", "portsentry")
    eventually(store.touched)


def test_a_ban_of_no_address_is_foreign_and_stays(bridged: Server) -> None:
    bridged.client("set", "portsentry", "banip", "not-an-ip", "a b\t+ 1 = 2")
    store = bridged.store()
    store.apply([change(Action.ADD, "192.0.2.7")], TOKEN, now())
    observation = store.observe(now())
    assert [str(ban.network) for ban in observation.bans] == ["192.0.2.7"]
    assert observation.foreign == 2


def test_a_ban_with_an_end_shows_it(bridged: Server) -> None:
    bridged.client("set", "portsentry", "bantime", "600")
    bridged.client("set", "portsentry", "banip", "192.0.2.7")
    ban = held(bridged.store())["192.0.2.7"]
    assert ban.since is not None
    assert ban.until == ban.since + timedelta(seconds=600)


def test_a_reload_keeps_bans_and_token(bridged: Server) -> None:
    store = bridged.store()
    store.apply([change(Action.ADD, "192.0.2.7")], TOKEN, now())
    bridged.client("reload")
    assert Token.parse(store.observe(now()).token) == TOKEN
    assert set(held(store)) == {"192.0.2.7"}


def test_a_restart_of_the_jail_drops_the_token(bridged: Server) -> None:
    store = bridged.store()
    store.apply([change(Action.ADD, "192.0.2.7")], TOKEN, now())
    bridged.client("restart", "portsentry")
    assert store.observe(now()).token is None


class RestartedMeanwhile(Fail2banStore):
    """Has the jail restarted at one moment of a reading or a writing: just before the list, or after the first bans."""

    def __init__(self, server: Server) -> None:
        super().__init__(jail="portsentry", socket=server.socket)
        self._server_itself = server

    def _banned(self, server: Fail2banSocket, *options: str) -> list[str]:
        self._server_itself.client("restart", "--unban", "portsentry")
        return super()._banned(server, *options)

    def _send(self, server: Fail2banSocket, command: str, chunk: Sequence[Change]) -> Iterator[Rejection]:
        yield from super()._send(server, command, chunk)
        self._server_itself.client("restart", "--unban", "portsentry")


def test_a_jail_restarted_between_the_token_and_the_list_has_lost_its_bans_and_nobody_wished_it(
    bridged: Server,
) -> None:
    bridged.store().apply([change(Action.ADD, "192.0.2.7")], TOKEN, now())
    seen = RestartedMeanwhile(bridged).observe(now())
    assert (seen.token, seen.bans) == (None, ())


@pytest.mark.parametrize(("is_filled", "is_expected"), [(False, False), (True, False), (True, True)])
def test_a_jail_restarted_while_it_is_written_never_bears_the_newest_token(
    bridged: Server, *, is_filled: bool, is_expected: bool
) -> None:
    if is_filled:
        bridged.store().apply([change(Action.ADD, "192.0.2.7")], TOKEN, now())
    expected = str(TOKEN) if is_expected else None
    newest = replace(TOKEN, sequence=8)
    with pytest.raises(Drifted, match=r"^fail2ban's jail portsentry was restarted while it was written$"):
        RestartedMeanwhile(bridged).apply([change(Action.ADD, "192.0.2.8")], newest, now(), expected=expected)
    seen = bridged.store().observe(now())
    assert (seen.token, seen.bans) == (None, ())


def test_a_writing_that_never_ended_leaves_no_token_and_is_no_hindrance(bridged: Server) -> None:
    bridged.client("set", "portsentry", "action", "jailbridge", "token", WRITING)
    assert bridged.store().observe(now()).token is None
    bridged.store().apply([change(Action.ADD, "192.0.2.7")], TOKEN, now())
    assert bridged.store().observe(now()).token == str(TOKEN)


def test_a_killed_server_is_out_of_reach_until_it_is_back(bridged: Server) -> None:
    store = bridged.store()
    store.apply([change(Action.ADD, "192.0.2.7")], TOKEN, now())
    bridged.kill()
    with pytest.raises(RetryLater, match="is it running"):
        store.observe(now())
    with pytest.raises(RetryLater, match="is it running"):
        store.apply([], TOKEN, now())
    bridged.socket.unlink()
    bridged.start()
    assert store.observe(now()).token is None


def test_an_open_connection_survives_a_restart_of_the_server(bridged: Server) -> None:
    with Fail2banSocket(bridged.socket) as connection:
        assert connection.ask("ping") == "pong"
        bridged.stop()
        bridged.start()
        assert connection.ask("ping") == "pong"


def test_a_missing_jail_names_the_remedy(server: Server) -> None:
    server.start(jail=None)
    with pytest.raises(RetryLater, match="no jail portsentry: run `jailbridge fail2ban install`"):
        server.store().observe(now())
    with pytest.raises(RetryLater, match="no jail portsentry"):
        server.store().apply([change(Action.ADD, "192.0.2.7")], TOKEN, now())


def test_a_jail_without_our_action_names_the_remedy_and_is_not_touched(server: Server) -> None:
    write(render(server.settings()), server.directory)
    (server.directory / "jail.local").write_text("[portsentry]\naction = dummy\n")
    server.start()
    with pytest.raises(RetryLater, match="lacks the action jailbridge: run `jailbridge fail2ban install`"):
        server.store().apply([change(Action.ADD, "192.0.2.7")], TOKEN, now())
    assert server.asked("get", "portsentry", "banip") == []


def test_a_server_that_is_not_root_is_refused(tmp_path: Path) -> None:
    # pytest keeps tmp_path for root alone; the other user gets a socket that is bound already, and listens on it.
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        program = (
            "import os, socket, sys; os.setuid(65534); s = socket.socket(fileno=int(sys.argv[1])); "
            "s.listen(); print('ready', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program, str(listener.fileno())],
            pass_fds=[listener.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as other:  # fmt: skip
            assert other.stdout is not None
            assert other.stdin is not None
            assert other.stdout.readline() == b"ready\n"
            with pytest.raises(FatalError, match="served by user 65534"):
                Fail2banStore(jail="portsentry", socket=path).observe(now())
            other.stdin.close()


# without the daemon


@pytest.mark.parametrize("family", ["iptables", "nftables"])
def test_fail2ban_alone_bans_in_the_firewall_and_again_after_a_restart(server: Server, family: str) -> None:
    action = {"iptables": "iptables-allports", "nftables": "nftables[type=allports]"}[family]
    listing = {"iptables": ["iptables", "-S"], "nftables": ["nft", "list", "ruleset"]}[family]
    (server.directory / "jail.local").write_text(f"[DEFAULT]\nbanaction_allports = {action}\n")

    def firewall() -> str:
        command = ["ip", "netns", "exec", server.namespace, *listing]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    write(render(server.settings(ban_for_spoofable="1d"), standalone=True), server.directory)
    server.start()
    server.scan("192.0.2.1")
    eventually(lambda: "192.0.2.1" in firewall())
    assert "udp" in firewall()
    (ban,) = held_by_anyone(server)
    assert " + 86400 = " in ban
    server.stop()
    assert "192.0.2.1" not in firewall()
    server.history.write_text("")
    server.start()
    eventually(lambda: "192.0.2.1" in firewall())


def held_by_anyone(server: Server) -> list[str]:
    answer = server.asked("get", "portsentry", "banip", "--with-time")
    assert isinstance(answer, list)
    return answer


# the installation


def test_an_installation_is_tested_by_fail2ban_and_makes_the_missing_history(server: Server) -> None:
    server.history.unlink()
    done = install(render(server.settings()), server.directory, logs=[server.history])
    assert done.tested
    assert done.reload_needed
    assert done.created == (server.history,)
    server.start()
    assert server.store().observe(now()).enforcing is True
    again = install(render(server.settings()), server.directory, logs=[server.history])
    assert not again.reload_needed
    assert again.created == ()


def test_an_installation_that_fail2ban_refuses_leaves_everything_as_it_was(server: Server) -> None:
    old = render(server.settings())
    install(old, server.directory)
    (server.directory / "jail.d/jailbridge.local").write_text("[portsentry]\nfilter = no-such-filter\n")
    other = server.history.with_name("other.history")
    new = render(Settings.model_validate({"tail": [{"path": str(other)}]}), standalone=True)
    with pytest.raises(FatalError, match="no-such-filter"):
        install(new, server.directory, logs=[other])
    assert {name: (server.directory / name).read_text() for name in old} == old
    assert not other.exists()
