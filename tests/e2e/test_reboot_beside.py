"""Real boots beside what saves and loads rules, ours among them, and beside an sshd that obeys hosts.deny."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from jailbridge import process
from jailbridge.demo.lab import ATTACKER, ATTACKER6, HOST, HOST6, INNOCENT
from jailbridge.service_files import DAEMON, RESTORE
from tests.e2e.guest import INNOCENT6, Guest
from tests.e2e.rebooting import BANS, BY_HAND, CONFIG, firewall, networks, pinged, said_by, show

pytestmark = [
    *(pytest.mark.e2e, pytest.mark.timeout(180)),
    *map(pytest.mark.needs, ("journalctl", "netfilter-persistent", "sshd")),
]

NEW = "203.0.113.70"
SAVER, NFTABLES = "netfilter-persistent.service", "nftables.service"
PLUGINS = "usr/share/netfilter-persistent/plugins.d"
RULES = {"iptables": "/etc/iptables/rules.v4", "ip6tables": "/etc/iptables/rules.v6"}
# What the administrator has: in each family of iptables, and where nftables.service runs a table besides.
USERS = [":INPUT ACCEPT", ":FORWARD DROP", ":OUTPUT ACCEPT", "-A INPUT -p tcp -m tcp --dport 8080 -j DROP"]
USERS_TABLE = "table inet users {\n\tset kept {\n\t\ttype ipv4_addr\n\t\telements = { 203.0.113.99 }\n\t}\n}\n"


class Case(NamedTuple):
    """How bans are held, the kind of iptables, whether ipsets are saved, too, and whether by a stop or by hand.

    What is saved by hand is older than what holds at the end.
    """

    backend: str
    kind: str
    sets: bool
    by_stop: bool

    def __str__(self) -> str:
        words = (self.backend, self.kind, "sets" if self.sets else "", "by a stop" if self.by_stop else "")
        return " ".join(filter(None, words))


CASES = [
    Case("nftables", "legacy", sets=False, by_stop=False),
    Case("ipset", "nft", sets=True, by_stop=False),
    Case("ipset", "legacy", sets=False, by_stop=True),
    Case("iptables", "nft", sets=False, by_stop=True),
    Case("iptables", "legacy", sets=False, by_stop=False),
]


def configure(guest: Guest, setting: str) -> None:
    guest.write("/etc/jailbridge/jailbridge.toml", f"{CONFIG}[stores.firewall]\n{setting}\n")


def furnish(guest: Guest, case: Case) -> None:
    """Have a guest that is off hold its bans this way, and load the administrator's rules when it boots."""
    configure(guest, f'backend = "{case.backend}"')
    alternatives = guest.path("/etc/alternatives")
    alternatives.mkdir()
    for tool in RULES:
        for suffix in ("", "-save", "-restore"):
            (alternatives / f"{tool}{suffix}").symlink_to(f"/usr/sbin/{tool}-{case.kind}{suffix}")
    plugins = ["15-ip4tables", "25-ip6tables", *(("10-ipset", "40-ipset") if case.sets else ())]
    units = [f"lib/systemd/system/{unit}" for unit in (SAVER, f"{SAVER}.d")]
    guest.add("usr/sbin/netfilter-persistent", "etc/default/netfilter-persistent", *units)
    guest.add(*(f"{PLUGINS}/{name}" for name in plugins))
    for path in RULES.values():
        guest.write(path, "\n".join(["*filter", *USERS, "COMMIT", ""]))
    guest.enable(SAVER)
    if case.by_stop:
        stopping = "ExecStop=\nExecStop=netfilter-persistent save"
        guest.write(f"/etc/systemd/system/{SAVER}.d/save.conf", f"[Service]\n{stopping}\n")
    if case.backend == "nftables":
        guest.write("/etc/nftables.conf", f"flush ruleset\n{USERS_TABLE}")
        guest.enable(NFTABLES)


def save(guest: Guest, case: Case) -> None:
    guest.do("netfilter-persistent", "save")
    if case.backend == "nftables":
        guest.write("/etc/nftables.conf", f"flush ruleset\n{guest.do('nft', 'list', 'ruleset')}")


def table(guest: Guest, tool: str) -> list[str]:
    """Return the table filter of a family, chains and rules, without what was counted."""
    lines = guest.do(f"{tool}-save", "-t", "filter").splitlines()
    return [line.partition(" [")[0] for line in lines if line.startswith((":", "-A"))]


def held(guest: Guest) -> list[str]:
    """Return what is banned in any kind of firewall, so many times as it is."""
    rules = [line.split() for tool in RULES for line in table(guest, tool)]
    by_rule = [words[3] for words in rules if words[:3] == ["-A", "jailbridge", "-s"] and words[-1] == "DROP"]
    elements = [line.split() for line in guest.do("ipset", "save").splitlines()]
    by_set = [words[2] for words in elements if words[0] == "add" and "comment" not in words]
    return networks([*firewall(guest), *by_rule, *by_set])


def wait_for(guest: Guest, bans: Iterable[str]) -> None:
    """Wait until the firewall holds these, each once."""
    wanted = networks(bans)
    try:
        guest.wait("the firewall holds every ban", lambda: held(guest) == wanted)
    except AssertionError:
        said = [guest.run(*argv).out for argv in (["journalctl", "--boot"], ["jailbridge", "plan"])]
        assert held(guest) == wanted, "\n".join(said)
        raise


def others(guest: Guest) -> list[str]:
    """Return what is ours elsewhere than in nftables."""
    lines = [*table(guest, "iptables"), *table(guest, "ip6tables"), *guest.do("ipset", "list", "-n").splitlines()]
    return [line for line in lines if "jailbridge" in line]


def assert_whole(guest: Guest, case: Case) -> None:
    """See that the administrator's rules are all there, and that no rule is twice."""
    for tool in RULES:
        rules = table(guest, tool)
        assert len(set(rules)) == len(rules), rules
        assert [rule for rule in rules if "jailbridge" not in rule] == USERS, said_by(guest, SAVER)
    if case.backend == "nftables":
        assert guest.do("nft", "list", "table", "inet", "users") == USERS_TABLE


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rules_saved_with_ours_and_loaded_before_us(installed: Guest, case: Case) -> None:
    later = {*BANS, NEW} - {BY_HAND[0]}
    with Guest(installed) as guest:
        furnish(guest, case)
        guest.start()
        wait_for(guest, BANS)
        assert_whole(guest, case)
        if not case.by_stop:
            save(guest, case)
        guest.do("jailbridge", "unban", BY_HAND[0])
        guest.do("jailbridge", "ban", NEW)
        wait_for(guest, later)
        guest.shut_down()
        with pinged(guest) as answers:
            guest.start()
            wait_for(guest, later)
        assert set(answers) == {INNOCENT, INNOCENT6}, answers
        assert_whole(guest, case)
        assert {show(guest, unit, "Result") for unit in (SAVER, NFTABLES, RESTORE)} == {"success"}
        # Loaded once more, it is older than what the daemon has left there.
        guest.do("systemctl", "restart", NFTABLES if case.backend == "nftables" else SAVER)
        wait_for(guest, later)
        assert_whole(guest, case)
        guest.wait("agreement", lambda: guest.run("jailbridge", "plan").out.endswith("agreement\n"))
        configure(guest, 'backend = "nftables"')
        guest.do("systemctl", "reload", DAEMON)
        guest.wait("nothing is left of another backend", lambda: others(guest) == [])
        wait_for(guest, later)


def furnish_sshd(guest: Guest) -> None:
    """Give a guest that is off Debian's sshd, and what its installation makes: account, configuration, key."""
    guest.add("usr/sbin/sshd", "etc/pam.d/sshd", "lib/systemd/system/ssh.service")
    accounts = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("sshd:")]
    guest.write("/etc/passwd", "\n".join([*accounts, "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin", ""]))
    guest.write("/etc/ssh/sshd_config", "UsePAM yes\nHostKey /etc/ssh/key\n")
    key = str(guest.path("/etc/ssh/key"))
    assert process.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key]).code == 0
    guest.enable("ssh.service")


# Tells what the SSH server says first to each source, nothing where it hangs up. Arguments: source, server, source, ...
BANNERS = """
import json, socket, sys
clients = {s: socket.create_connection((t, 22), 60, (s, 0)) for s, t in zip(sys.argv[1::2], sys.argv[2::2])}
def said(client):
    try:
        return client.makefile("rb").readline()[:7].decode()
    except ConnectionResetError:
        return ""
print(json.dumps({source: said(client) for source, client in clients.items()}))
"""


def test_after_a_reboot_sshd_refuses_whom_hosts_deny_alone_bans(installed: Guest) -> None:
    with Guest(installed) as guest:
        configure(guest, "enabled = false")
        furnish_sshd(guest)
        guest.start()
        pairs = (ATTACKER, HOST, ATTACKER6, HOST6, INNOCENT, HOST, INNOCENT6, HOST6)
        told = guest.from_outside(sys.executable, "-I", "-c", BANNERS, *pairs, timeout_s=90)
        assert told.code == 0, told.err
        assert json.loads(told.out) == {ATTACKER: "", ATTACKER6: "", INNOCENT: "SSH-2.0", INNOCENT6: "SSH-2.0"}
        assert held(guest) == []
        refused = said_by(guest, "ssh.service")
        assert all(f"refused connect from {source}" in refused for source in (ATTACKER, ATTACKER6)), refused
        assert json.loads(guest.run("jailbridge", "plan", "--json").out)["stores"]["hosts_deny"]["enforcing"]
