"""One script of faults at random on real stores: whatever happens, they agree in the end, and no ban is lost.

JAILBRIDGE_FAULTS sets how many (100 in all by default), JAILBRIDGE_SEED which; a failure names both.
"""

import json
import os
import random
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from jailbridge.daemon.control import call
from jailbridge.demo.lab import HOSTS_DENY, Lab
from jailbridge.model.network import parse_network
from jailbridge.stores.deny_file import client

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

FAULTS = int(os.environ.get("JAILBRIDGE_FAULTS", "100"))
SEED = int(os.environ.get("JAILBRIDGE_SEED", str(random.randrange(1 << 30))))
SETTLED_EVERY = 6
# Bans enough for several transactions, and a kill in each part of putting them back.
MANY, KILLS = 5000, 5
FLUSHES = {"nftables": "nft flush ruleset", "ipset": "nft flush ruleset; ipset destroy"}
ADDRESSES = [f"192.0.2.{n}" for n in range(1, 13)] + ["198.18.0.0/24", "2001:db8:7::/64", "2001:db8:8::7"]
BACKENDS = {"nftables": 0.5, "ipset": 0.3, "iptables": 0.2}


class Faults:
    """What may happen to a host. `live` is what must be banned, `maybe` what a person's hand may have ended."""

    def __init__(self, lab: Lab, choose: random.Random) -> None:
        self.lab = lab
        self.choose = choose
        self.live: set[str] = set()
        self.maybe: set[str] = set()
        self.ruleset = ""
        self.file = b""
        self.daemon: subprocess.Popen[bytes] = lab.start_daemon("--without", "sensor")
        self.server = lab.start_fail2ban()

    def ask(self, command: str, **arguments: Any) -> Any:
        return call(self.lab.settings.control.socket, command, arguments)

    def tell(self, command: str, address: str) -> None:
        """Give a command to the daemon or, where it is gone, to the ledger and the stores."""
        try:
            self.ask(command, addresses=[address])
        except ConnectionError:
            assert self.lab.jailbridge(command, address).code in {0, 2}

    # what people and logs do

    def ban(self) -> None:
        address = self.choose.choice(ADDRESSES)
        self.tell("ban", address)
        self.live.add(address)
        self.maybe.discard(address)

    def unban(self) -> None:
        address = self.choose.choice(ADDRESSES)
        self.tell("unban", address)
        self.live.discard(address)

    def a_line_in_the_log(self) -> None:
        address = f"203.0.113.{self.choose.randrange(1, 200)}"
        with self.lab.history.open("a", encoding="ascii") as file:
            file.write(f"{int(time.time()) + 1} - 11/22/2026 06:30:59 Host: {address}/{address} Port: 23 TCP Blocked\n")
        self.live.add(address)
        self.maybe.discard(address)

    def somebody_edits_hosts_deny(self) -> None:
        path = self.lab.disk / "hosts.deny"
        lines = path.read_bytes().splitlines(keepends=True)
        own = [n for n, line in enumerate(lines) if line.startswith(b"ALL: ")]
        if own:
            taken = self.choose.choice(own)
            self.maybe |= {a for a in self.live if lines[taken].decode() == f"ALL: {client(parse_network(a))}\n"}
            beside = path.with_name("hosts.deny.edited")
            beside.write_bytes(b"".join(line for n, line in enumerate(lines) if n != taken))
            beside.rename(path)

    def somebody_unbans_in_fail2ban(self) -> None:
        address = self.choose.choice(ADDRESSES)
        self.maybe.add(address)
        self.lab.fail2ban("set", "portsentry", "unbanip", address)

    # what goes wrong

    def the_ruleset_is_flushed(self) -> None:
        self.lab.on_host("nft", "flush", "ruleset")

    def a_set_or_a_chain_is_flushed(self) -> None:
        commands = [
            ["nft", "delete", "table", "inet", "jailbridge"],
            ["nft", "flush", "set", "inet", "jailbridge", "hosts4"],
            ["nft", "flush", "chain", "inet", "jailbridge", "input"],
            ["ipset", "flush", "jailbridge4"],
            ["iptables", "-F"],
            ["iptables", "-F", "INPUT"],
            ["ip6tables", "-F"],
        ]
        self.lab.on_host(*self.choose.choice(commands))

    def the_ruleset_is_saved(self) -> None:
        self.ruleset = self.lab.on_host("nft", "list", "ruleset").out

    def an_older_ruleset_is_loaded(self) -> None:
        if self.ruleset and "xt " not in self.ruleset:
            saved = self.lab.disk / "ruleset"
            saved.write_text(f"flush ruleset\n{self.ruleset}")
            self.lab.on_host("nft", "-f", str(saved))

    def hosts_deny_is_saved(self) -> None:
        self.file = (self.lab.disk / "hosts.deny").read_bytes()

    def an_older_hosts_deny_is_put_back(self) -> None:
        if self.file:
            (self.lab.disk / "hosts.deny").write_bytes(self.file)

    def hosts_deny_is_replaced(self) -> None:
        (self.lab.disk / "hosts.deny").write_text(HOSTS_DENY)

    def the_daemon_is_killed(self) -> None:
        if self.daemon.poll() is None:
            self.lab.kill(self.daemon)

    def the_daemon_is_started(self) -> None:
        if self.daemon.poll() is not None:
            self.daemon = self.lab.start_daemon("--without", "sensor")
            # The one that was killed has left its socket.
            self.lab.wait("it answers", self.is_there)

    def is_there(self) -> bool:
        with suppress(ConnectionError):
            self.ask("allow_list")
            return True
        return False

    def fail2ban_is_killed(self) -> None:
        self.lab.kill(self.server)
        self.server = self.lab.start_fail2ban()

    def the_jail_is_restarted(self) -> None:
        self.lab.fail2ban("restart", "portsentry")

    def the_power_is_cut(self) -> None:
        self.lab.cut_power()
        self.lab.power_on()
        self.lab.jailbridge("restore")
        self.server = self.lab.start_fail2ban()
        self.daemon = self.lab.start_daemon("--without", "sensor")

    # what must be so

    def settle(self) -> None:
        self.the_daemon_is_started()
        self.lab.wait("agreement, every line read", lambda: not self.lost and self.agrees, timeout_s=60)
        listed = self.listed
        assert listed.keys() <= self.live, f"too many: {listed.keys() - self.live}"
        for address, stores in listed.items():
            assert set(stores.values()) <= {"present", "covered"}, (address, stores)
        text = (self.lab.disk / "hosts.deny").read_text()
        assert text.startswith(HOSTS_DENY)
        own = [line for line in text.splitlines() if line.startswith("ALL: ")]
        assert sorted(own) == sorted(f"ALL: {client(parse_network(address))}" for address in listed)
        self.live, self.maybe = set(listed), set()

    @property
    def agrees(self) -> bool:
        return bool(self.ask("status")["agreement"])

    @property
    def listed(self) -> dict[str, dict[str, str]]:
        return {row["address"]: row["stores"] for row in self.ask("list_bans")}

    @property
    def lost(self) -> set[str]:
        return self.live - self.listed.keys() - self.maybe


@pytest.mark.parametrize("backend", BACKENDS)
def test_whatever_happens_the_stores_agree_in_the_end(make_lab: Callable[..., Lab], backend: str) -> None:
    extra = f'[stores.firewall]\nbackend = "{backend}"\n'
    lab = make_lab(extra, policy='ban_for_spoofable = "1d"')
    choose = random.Random(f"{SEED} {backend}")
    faults = Faults(lab, choose)
    often = [faults.ban, faults.a_line_in_the_log]
    sometimes = [
        *(faults.unban, faults.somebody_edits_hosts_deny, faults.the_daemon_is_killed, faults.the_daemon_is_started),
        *(faults.the_ruleset_is_flushed, faults.a_set_or_a_chain_is_flushed, faults.an_older_ruleset_is_loaded),
        *(faults.an_older_hosts_deny_is_put_back,),
    ]
    seldom = [
        *(faults.the_ruleset_is_saved, faults.hosts_deny_is_saved, faults.hosts_deny_is_replaced),
        *(faults.somebody_unbans_in_fail2ban, faults.fail2ban_is_killed, faults.the_jail_is_restarted),
        *(faults.the_power_is_cut,),
    ]
    ways = [*often * 4, *sometimes * 2, *seldom]
    told: list[str] = []
    try:
        for number in range(round(FAULTS * BACKENDS[backend])):
            act = choose.choice(ways)
            told.append(act.__name__)
            act()
            if number % SETTLED_EVERY == SETTLED_EVERY - 1:
                told.append("settle")
                faults.settle()
        faults.settle()
    except BaseException as error:
        error.add_note(f"JAILBRIDGE_SEED={SEED}: {backend}: {', '.join(told)}; live {sorted(faults.live)}")
        error.add_note(lab.tail("jailbridge", 60))
        raise


@pytest.mark.parametrize("backend", FLUSHES)
def test_a_restore_that_is_killed_anywhere_is_made_good(
    make_lab: Callable[..., Lab], tmp_path: Path, backend: str
) -> None:
    lab = make_lab(f'enabled = false\n[stores.firewall]\nbackend = "{backend}"\n')
    addresses = [f"198.18.{n >> 8}.{n & 255}" for n in range(MANY)] + ["198.19.0.0/24", "2001:db8:7::/64"]
    (listed := tmp_path / "addresses").write_text("\n".join(addresses) + "\n")
    assert lab.jailbridge("ban", "--from", str(listed), "--for", "1h").code == 0
    began = time.monotonic()
    assert lab.jailbridge("restore").code == 0
    lasts_s = time.monotonic() - began
    for kill in range(KILLS):
        # As after a reboot.
        lab.on_host("sh", "-c", FLUSHES[backend])
        restore = lab.spawn("restore", lab.jailbridge_argv("restore"))
        time.sleep(after_s := lasts_s * (0.3 + 0.7 * kill / KILLS))
        lab.kill(restore)
        for command in ("reconcile", "plan"):
            answer = lab.jailbridge(command)
            assert answer.code == 0, f"killed after {after_s:.2f} s: {answer}"
    assert len(json.loads(lab.jailbridge("list", "--json").out)) == len(addresses)
