"""What the real TCP wrappers make of hosts.deny as we write it, in either form, and whether anything asks them."""

import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jailbridge.config.settings import HostsDenyForm, HostsDenySettings
from jailbridge.host.wrappers import Wrappers
from jailbridge.model.network import parse_network
from jailbridge.model.plan import Action, Change
from jailbridge.model.token import Token
from jailbridge.stores.hosts_deny import HostsDenyStore

pytestmark = pytest.mark.e2e

NOW = datetime(2026, 11, 22, tzinfo=UTC)
# Of each kind of network that we write: what it denies, and its neighbours.
KINDS = {
    "192.0.2.7": (["192.0.2.7", "::ffff:192.0.2.7"], ["192.0.2.8", "192.0.2.70", "::ffff:192.0.2.8"]),
    "192.0.2.64/26": (["192.0.2.64", "192.0.2.127", "::ffff:192.0.2.64"], ["192.0.2.63", "192.0.2.128"]),
    "10.0.0.0/9": (["10.0.0.0", "10.127.255.255"], ["10.128.0.0", "9.255.255.255"]),
    "198.18.0.0/15": (["198.18.0.1", "198.19.255.255"], ["198.17.255.255", "198.20.0.0"]),
    "203.0.113.4/31": (["203.0.113.4", "203.0.113.5"], ["203.0.113.3", "203.0.113.6"]),
    "0.0.0.0/0": (["192.0.2.7", "203.0.113.1"], ["2001:db8::1"]),
    "2001:db8::7": (["2001:db8::7", "2001:db8:0:0::0007"], ["2001:db8::8", "2001:db8::70"]),
    "2001:db8:1::/64": (["2001:db8:1::7", "2001:db8:1:0:ffff::"], ["2001:db8:1:1::7", "2001:db8::7"]),
    "2001:db8:0:8::/61": (["2001:db8:0:f::1"], ["2001:db8:0:10::1", "2001:db8:0:7::1"]),
    "2001:db8::4/127": (["2001:db8::5"], ["2001:db8::3", "2001:db8::6"]),
    "::/0": (["2001:db8::1", "fe80::1"], ["192.0.2.7"]),
}
FOREIGN = [b"", b"sshd: 203.0.113.99", b"# a comment that goes on \\\n", b"sshd: 203.0.113.98, \\\n 203.0.113.99 \\\n"]
SSHD = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/key
PidFile none
UsePAM no
"""
# The account and the folder of sshd's unprivileged half.
WITH_ITS_OWN = """
mount -t tmpfs none /run && mkdir /run/sshd &&
{ cat /etc/passwd; echo sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin; } >"$0/passwd" &&
mount --bind "$0/passwd" /etc/passwd && exec "$(command -v sshd)" -D -e -f "$0/config"
"""


class Host:
    """A folder whose hosts.allow and hosts.deny the TCP wrappers are asked about."""

    def __init__(self, folder: Path, form: HostsDenyForm, rule: str = "ALL: {address}") -> None:
        self.folder = folder
        self.deny, self.allow = folder / "hosts.deny", folder / "hosts.allow"
        self.allow.touch()
        self.store = HostsDenyStore(HostsDenySettings(path=self.deny, form=form, rule=rule))
        self.sequence = 0

    def apply(self, *added: str, removed: tuple[str, ...] = ()) -> None:
        self.sequence += 1
        changes = [(Action.ADD, text) for text in added] + [(Action.REMOVE, text) for text in removed]
        self.store.apply(
            [Change(store="hosts_deny", action=action, network=parse_network(n), why="test") for action, n in changes],
            Token(ledger="0123456789ab", boot="-", layout=self.store.capabilities.layout, sequence=self.sequence),
            NOW,
        )

    def denies(self, address: str, daemon: str = "sshd") -> bool:
        done = subprocess.run(
            ["tcpdmatch", "-d", daemon, address], cwd=self.folder, capture_output=True, text=True, check=True
        )
        assert done.stderr == "", "libwrap warns of what it does not understand"
        return {"denied": True, "granted": False}[done.stdout.split()[-1]]


@pytest.fixture(params=HostsDenyForm)
def form(request: pytest.FixtureRequest) -> HostsDenyForm:
    return HostsDenyForm(request.param)


@pytest.mark.parametrize("banned", KINDS)
def test_tcp_wrappers_deny_just_what_is_banned(tmp_path: Path, form: HostsDenyForm, banned: str) -> None:
    host = Host(tmp_path, form)
    inside, outside = KINDS[banned]
    host.apply("198.51.100.1", banned, "198.51.100.2", "2001:db8:ffff::1")
    for address in [*inside, "198.51.100.1", "198.51.100.2", "2001:db8:ffff::1"]:
        assert host.denies(address), address
    for address in outside:
        assert not host.denies(address), address


@pytest.mark.parametrize("before", FOREIGN)
def test_foreign_lines_and_ours_hold_side_by_side(tmp_path: Path, form: HostsDenyForm, before: bytes) -> None:
    host = Host(tmp_path, form)
    host.deny.write_bytes(before)
    host.apply("192.0.2.7", "2001:db8::/64")
    with host.deny.open("ab") as file:
        file.write(b"in.ftpd: 203.0.113.7\n")
    assert all(map(host.denies, ("192.0.2.7", "2001:db8::7")))
    assert host.denies("203.0.113.99") == before.startswith(b"sshd")
    assert host.denies("203.0.113.7", "in.ftpd")
    assert not any(map(host.denies, ("203.0.113.7", "192.0.2.8", "2001:db8:1::")))


def test_a_ban_that_was_taken_out_is_no_longer_obeyed(tmp_path: Path, form: HostsDenyForm) -> None:
    host = Host(tmp_path, form)
    host.apply("192.0.2.7", "192.0.2.8")
    host.apply(removed=("192.0.2.7",))
    assert not host.denies("192.0.2.7")
    assert host.denies("192.0.2.8")
    host.apply(removed=("192.0.2.8",))
    # Every letter and number that a token has, as a pattern of the list: nobody is meant by it.
    assert not any(map(host.denies, ("192.0.2.8", "106.98.49.58", "0.0.0.0", "2001:db8::106:98", "1.6.9.8")))


def test_a_rule_for_one_daemon_denies_that_one_alone(tmp_path: Path, form: HostsDenyForm) -> None:
    host = Host(tmp_path, form, rule="sshd, in.ftpd : {address} : DENY")
    host.apply("192.0.2.7", "2001:db8::/64")
    for address in ("192.0.2.7", "2001:db8::7"):
        assert host.denies(address)
        assert host.denies(address, "in.ftpd")
        assert not host.denies(address, "in.telnetd")


def test_hosts_allow_wins(tmp_path: Path, form: HostsDenyForm) -> None:
    host = Host(tmp_path, form)
    host.apply("192.0.2.0/24")
    host.allow.write_text("sshd: 192.0.2.7\n")
    assert not host.denies("192.0.2.7")
    assert host.denies("192.0.2.7", "in.ftpd")
    assert host.denies("192.0.2.8")


def test_a_client_of_both_forms_while_the_form_changes_is_always_denied(tmp_path: Path) -> None:
    for number, form in enumerate([*HostsDenyForm, *HostsDenyForm]):
        host = Host(tmp_path, form)
        host.sequence = number
        host.apply("192.0.2.7" if number == 0 else f"10.0.0.{number}")
        assert all(map(host.denies, ("192.0.2.7", *(f"10.0.0.{n}" for n in range(1, number + 1)))))


# what listens


@pytest.fixture
def quiet_host(own_network: Callable[[], None], tmp_path: Path) -> Wrappers:
    """A network in which nothing listens, and no inetd."""
    return Wrappers(etc=tmp_path / "etc", clock=iter(range(0, 10_000, 100)).__next__)


LISTEN = """
import ctypes, socket, sys
if len(sys.argv) > 1: ctypes.CDLL(sys.argv[1])
with socket.create_server(("127.0.0.1", 0)) as server:
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(("library", "told"), [([], None), (["libwrap.so.0"], True)])
def test_a_listener_that_has_libwrap_in_its_memory_is_seen(
    quiet_host: Wrappers, library: list[str], told: bool | None
) -> None:
    assert quiet_host.in_use() is None
    with subprocess.Popen(
        [sys.executable, "-c", LISTEN, *library], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == b"ready\n"
        assert quiet_host.in_use() is told
    assert quiet_host.in_use() is None


@pytest.mark.needs("sshd")
def test_debians_sshd_is_seen(quiet_host: Wrappers, open_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", open_folder / "key"], check=True)
    (open_folder / "config").write_text(SSHD.format(port=port, folder=open_folder))
    command = ["unshare", "--mount", "sh", "-c", WITH_ITS_OWN, str(open_folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as sshd:
        assert sshd.stderr is not None
        assert "Server listening" in sshd.stderr.readline()
        assert quiet_host.in_use() is True
        sshd.terminate()
    assert quiet_host.in_use() is None
