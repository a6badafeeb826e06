"""The jail and the store against a real fail2ban."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from jailbridge import process
from jailbridge.config.settings import StoresSettings
from jailbridge.definitions import render, write
from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.network import Network, parse_network
from jailbridge.model.plan import Action, Change, Rejection
from jailbridge.model.token import Token
from jailbridge.stores.fail2ban import CHUNK, SLOW_TURN, WRITING, Fail2banStore
from jailbridge.stores.fail2ban import Server as Connection
from jailbridge.stores.fail2ban_socket import END, Fail2banSocket
from jailbridge.stores.protocol import Drifted
from tests.e2e.fail2ban_server import Server, eventually, held, now, on_both
from tests.fail2ban_talk import saying, serving

pytestmark = pytest.mark.e2e

TOKEN = Token(ledger="0123456789ab", boot="ba9876543210", layout=1, sequence=7)


def net(text: str) -> Network:
    return parse_network(text)


def change(action: Action, network: str) -> Change:
    return Change(store="fail2ban", action=action, network=net(network), why="test")


@on_both
def test_either_fail2ban_is_the_one_that_is_meant(server: Server) -> None:
    server.start(jail=None)
    assert str(server.asked("version")).startswith(server.release)


# the jail


@on_both
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


@on_both
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


@on_both
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


@on_both
def test_a_ban_of_no_address_is_foreign_and_stays(bridged: Server) -> None:
    bridged.client("set", "portsentry", "banip", "not-an-ip", "a b\t+ 1 = 2")
    store = bridged.store()
    store.apply([change(Action.ADD, "192.0.2.7")], TOKEN, now())
    observation = store.observe(now())
    assert [str(ban.network) for ban in observation.bans] == ["192.0.2.7"]
    assert observation.foreign == 2


@on_both
def test_a_ban_with_an_end_shows_it(bridged: Server) -> None:
    bridged.client("set", "portsentry", "bantime", "600")
    bridged.client("set", "portsentry", "banip", "192.0.2.7")
    ban = held(bridged.store())["192.0.2.7"]
    assert ban.since is not None
    assert ban.until == ban.since + timedelta(seconds=600)


@on_both
def test_a_reload_keeps_bans_and_token(bridged: Server) -> None:
    store = bridged.store()
    store.apply([change(Action.ADD, "192.0.2.7")], TOKEN, now())
    bridged.client("reload")
    assert Token.parse(store.observe(now()).token) == TOKEN
    assert set(held(store)) == {"192.0.2.7"}


@on_both
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

    def _banned(self, server: Connection) -> list[str]:
        self._server_itself.client("restart", "--unban", "portsentry")
        return super()._banned(server)

    def _send(self, server: Connection, command: str, chunk: Sequence[Change]) -> Iterator[Rejection]:
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


@on_both
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


@on_both
def test_an_open_connection_survives_a_restart_of_the_server(bridged: Server) -> None:
    with Fail2banSocket(bridged.socket) as connection:
        assert connection.ask("ping") == "pong"
        bridged.stop()
        bridged.start()
        assert connection.ask("ping") == "pong"


@on_both
def test_a_missing_jail_names_the_remedy(server: Server) -> None:
    server.start(jail=None)
    with pytest.raises(RetryLater, match="no jail portsentry: run `jailbridge fail2ban install`"):
        server.store().observe(now())
    with pytest.raises(RetryLater, match="no jail portsentry"):
        server.store().apply([change(Action.ADD, "192.0.2.7")], TOKEN, now())


@on_both
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


@on_both
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


# both


@on_both
def test_where_both_block_a_ban_of_ours_is_in_fail2bans_own_firewall_too_and_leaves_it(server: Server) -> None:
    stores = {"fail2ban": {"banaction": "always"}}
    settings = server.settings().model_copy(update={"stores": StoresSettings.model_validate(stores)})
    write(render(settings), server.directory)
    server.start()
    store = Fail2banStore(jail="portsentry", socket=server.socket, blocks=True)

    def blocked() -> list[str]:
        listing = ["ip", "netns", "exec", server.namespace, "iptables", "-S", "f2b-portsentry"]
        rules = subprocess.run(listing, capture_output=True, text=True, check=False).stdout
        return sorted(set(re.findall(r"-s (\S+)/32", rules)))

    addresses = [f"192.0.2.{n}" for n in range(1, 10)]
    assert store.capabilities.turn == SLOW_TURN
    assert store.apply([change(Action.ADD, one) for one in addresses], TOKEN, now()) == []
    assert blocked() == addresses
    assert store.observe(now()).token == str(TOKEN)
    store.apply([change(Action.REMOVE, one) for one in addresses[1:]], replace(TOKEN, sequence=8), now())
    assert blocked() == addresses[:1]


# what is not as it should be


@on_both
def test_another_bantime_is_told_once_with_the_remedy(bridged: Server, caplog: pytest.LogCaptureFixture) -> None:
    store = bridged.store()
    assert store.observe(now()).problem is None
    bridged.client("set", "portsentry", "bantime", "600")
    said = (
        "fail2ban's jail portsentry has bantime '600' and not -1, so that fail2ban ends bans which go on: "
        "`jailbridge fail2ban check` says where"
    )
    assert [store.observe(now()).problem for _ in range(2)] == [said, said]
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [said]
    bridged.client("set", "portsentry", "bantime", "-1")
    assert store.observe(now()).problem is None


# Knows another socket than it is told; for the rest it is the real one.
CLIENT = """#!/bin/sh
while [ "$1" != -s ]; do shift; done
shift 2
exec {client} -s {socket} "$@"
"""


@on_both
def test_a_server_that_speaks_otherwise_is_asked_by_fail2bans_own_client(
    bridged: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "other", tmp_path / "programs"
    folder.mkdir()
    (folder / "fail2ban-client").write_text(
        CLIENT.format(client=bridged.program("client").replace(" ", "\\ "), socket=bridged.socket)
    )
    (folder / "fail2ban-client").chmod(0o755)
    monkeypatch.setattr(process, "SEARCH_PATH", f"{folder}:{process.SEARCH_PATH}")
    changes = [change(Action.ADD, one) for one in ("192.0.2.7", "2001:db8::/64", "198.51.100.0/24")]
    with serving(path, *[saying(b"\x93NEWPROTOCOL" + END)] * 4):
        store = Fail2banStore(jail="portsentry", socket=path)
        assert store.observe(now()).bans == ()
        assert store.apply(changes, TOKEN, now()) == []
        store.apply([change(Action.REMOVE, "198.51.100.0/24")], replace(TOKEN, sequence=8), now(), expected=str(TOKEN))
        seen = store.observe(now())
    assert seen == bridged.store().observe(now())
    assert set(seen.held) == {net("192.0.2.7"), net("2001:db8::/64")}
    assert seen.token == str(replace(TOKEN, sequence=8))
