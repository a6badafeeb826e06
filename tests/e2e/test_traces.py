"""PortSentry's own marks: its rules and routes in a network of the test's own, and all that Debian's 1.2 leaves."""

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jailbridge import process
from jailbridge.config.portsentry_conf import parse
from jailbridge.config.settings import Settings
from jailbridge.errors import RetryLater
from jailbridge.model.network import Network, parse_network
from jailbridge.model.plan import Action, Change
from jailbridge.model.token import Token
from jailbridge.stores.hosts_deny import HostsDenyStore
from jailbridge.stores.kill_commands import undoable
from jailbridge.stores.protocol import Traces
from jailbridge.stores.traces import RouteRules, portsentry_traces

pytestmark = pytest.mark.e2e

PATIENCE_S = 30.0
SEVEN, EIGHT, SIX = "192.0.2.7", "192.0.2.8", "2001:db8::7"


def done(*argv: str) -> str:
    result = process.run(argv, timeout_s=PATIENCE_S)
    assert result.code == 0, f"{argv}: {result.err or result.out}"
    return result.out


def nets(*texts: str) -> set[Network]:
    return {parse_network(text) for text in texts}


def rules_of(command: str) -> RouteRules:
    kill_route = parse(f'KILL_ROUTE="{command}"\n', "f").kill_route
    assert kill_route is not None
    undone = undoable(kill_route)
    assert undone is not None
    return RouteRules(undone)


def killed(command: str, address: str) -> None:
    done(*command.replace("$TARGET$", address).split())


# rules and routes


@pytest.mark.parametrize(
    ("command", "hosts", "foreign"),
    [
        ("iptables -I INPUT -s $TARGET$ -j DROP", [SEVEN, EIGHT], "iptables -A INPUT -s $TARGET$ -p tcp -j DROP"),
        ("iptables -w -A INPUT -j REJECT -s $TARGET$", [SEVEN, EIGHT], "iptables -A INPUT -s $TARGET$ -j DROP"),
        ("iptables -I INPUT 1 -p tcp --dport 1:1023 -s $TARGET$ -j DROP", [SEVEN], "iptables -A INPUT -s $TARGET$"),
        ("iptables-legacy -I INPUT -s $TARGET$ -j DROP", [SEVEN, EIGHT], "iptables-nft -A INPUT -s $TARGET$ -j DROP"),
        ("ip6tables -I INPUT -s $TARGET$ -j DROP", [SIX], "ip6tables -A FORWARD -s $TARGET$ -j DROP"),
        ("ip route add blackhole $TARGET$", [SEVEN, SIX], "ip route add unreachable $TARGET$ metric 7"),
        ("ip route add unreachable $TARGET$", [SEVEN, SIX], "ip route add blackhole $TARGET$ metric 7"),
    ],
)
def test_just_the_configured_rules_are_found_and_taken_out(
    own_network: Callable[[], None], command: str, hosts: list[str], foreign: str
) -> None:
    trace = rules_of(command)
    assert not trace.observe()
    for host in hosts:
        killed(foreign, host)
    before = everything()
    for host in hosts:
        for _ in range(1 if command.startswith("ip route") else 2):
            killed(command, host)
    assert set(trace.observe()) == nets(*hosts)
    trace.remove(nets(hosts[0], "198.51.100.1"))
    assert set(trace.observe()) == nets(*hosts[1:])
    trace.remove(nets(*hosts))
    assert not trace.observe()
    assert everything() == before


def everything() -> list[str]:
    """All rules and routes of this network."""
    commands = ["iptables-nft -S", "iptables-legacy -S", "ip6tables -S", "ip -4 route", "ip -6 route"]
    return [line for command in commands for line in done(*command.split()).splitlines()]


def test_what_routes_command_makes_is_found_and_taken_out(own_network: Callable[[], None]) -> None:
    # net-tools is not everywhere; `ip` makes the same route.
    reject = "route add -host $TARGET$ reject" if shutil.which("route") else "ip route add unreachable $TARGET$"
    via = "route add -host $TARGET$ gw 127.0.0.9" if shutil.which("route") else "ip route add $TARGET$ via 127.0.0.9"
    done("ip", "route", "add", "198.51.100.1", "via", "127.0.0.8")
    for made, configured in ((reject, "reject"), (via, "gw 127.0.0.9")):
        trace = rules_of(f"/sbin/route add -host $TARGET$ {configured}")
        killed(made, SEVEN)
        assert set(trace.observe()) == nets(SEVEN)
        trace.remove(nets(SEVEN, "198.51.100.1"))
        assert not trace.observe()
    assert "198.51.100.1" in done("ip", "route")


def test_a_program_that_is_not_here_has_made_nothing(own_network: Callable[[], None]) -> None:
    trace = rules_of("/nowhere/iptables -I INPUT -s $TARGET$ -j DROP")
    assert not trace.observe()
    trace.remove(nets(SEVEN))


def test_a_rule_that_stays_is_told_in_one_line(own_network: Callable[[], None], tmp_path: Path) -> None:
    for name, text in (
        ("iptables-save", "echo '-A INPUT -s 192.0.2.7/32 -j DROP'"),
        ("iptables", "echo 'Another app is holding the lock' >&2; exit 4"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    trace = rules_of(f"{tmp_path}/iptables -I INPUT -s $TARGET$ -j DROP")
    with pytest.raises(
        RetryLater, match=r"^KILL_ROUTE's mark of 192\.0\.2\.7 [^\n]*: Another app is holding the lock$"
    ):
        trace.remove(nets(SEVEN))


# Debian's PortSentry 1.2

HOST, SOURCE, OTHER = "10.98.0.1", "10.98.0.10", "10.98.0.11"
CONF = """
TCP_PORTS="11,15"
UDP_PORTS="7"
ADVANCED_PORTS_TCP="1024"
ADVANCED_PORTS_UDP="1024"
IGNORE_FILE="/etc/portsentry/portsentry.ignore"
HISTORY_FILE="/var/lib/portsentry/portsentry.history"
BLOCKED_FILE="/var/lib/portsentry/portsentry.blocked"
RESOLVE_HOST="0"
BLOCK_UDP="1"
BLOCK_TCP="1"
KILL_ROUTE="/usr/sbin/iptables -I INPUT -s $TARGET$ -j DROP"
KILL_HOSTS_DENY="ALL: $TARGET$ : DENY"
SCAN_TRIGGER="0"
"""
# Its own /etc, /var/lib and /dev, without a log.
ENTER = """
set -e
cd "$1"
touch dev/null && mount --bind /dev/null dev/null
mount --rbind dev /dev
mount --bind etc /etc
mount --bind lib /var/lib
exec portsentry "$2"
"""


class Sentry:
    """A host of its own with the real PortSentry, and an outside that scans it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host, self.outside = (f"jbd{os.getpid()}{side}" for side in "ho")
        for part in ("dev", "etc/portsentry", "lib/portsentry"):
            (folder / part).mkdir(parents=True)
        for part in ("passwd", "group", "protocols", "services", "ld.so.cache", "nsswitch.conf"):
            if (source := Path("/etc") / part).exists():
                shutil.copy(source, folder / "etc" / part)
        if Path("/etc/alternatives").is_dir():
            shutil.copytree("/etc/alternatives", folder / "etc" / "alternatives", symlinks=True)
        (folder / "etc" / "portsentry" / "portsentry.conf").write_text(CONF)
        (folder / "etc" / "portsentry" / "portsentry.ignore").write_text(f"127.0.0.1\n{HOST}\n")
        self.deny.write_text("# by hand\nsshd: 203.0.113.5\n")

    @property
    def deny(self) -> Path:
        return self.folder / "etc" / "hosts.deny"

    @property
    def kept(self) -> Path:
        return self.folder / "lib" / "portsentry"

    @property
    def settings(self) -> Settings:
        return Settings.model_validate(
            {
                "stores": {
                    "hosts_deny": {"path": str(self.deny)},
                    "blocked_files": {"paths": [str(self.kept / "portsentry.blocked.*")]},
                },
                "portsentry": {"conf": str(self.folder / "etc" / "portsentry" / "portsentry.conf")},
            }
        )

    def scan(self, source: str, times: int) -> None:
        """Send one probe, and wait until the history has `times` lines of this source."""
        argv = ["ip", "netns", "exec", self.outside, "nmap", "-sS", "-n", "-Pn", "--disable-arp-ping"]
        done(*argv, "--max-retries", "0", "-e", "eth0", "-S", source, "-p", "11", HOST)
        until(lambda: (self.kept / "portsentry.history").read_text().count(f"/{source} ") == times)
        until(lambda: f"/{source} " in (self.kept / "portsentry.blocked.stcp").read_text())
        until(lambda: f"{source} : DENY" in self.deny.read_text())

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Have this thread, and what it starts, in the host's network."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net", "rb") as before, open(f"/run/netns/{self.host}", "rb") as there:  # noqa: PTH123
            assert libc.setns(there.fileno(), 0) == 0
            try:
                yield
            finally:
                assert libc.setns(before.fileno(), 0) == 0


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


@pytest.fixture
def sentry(open_folder: Path) -> Iterator[Sentry]:
    made = Sentry(open_folder)
    with ExitStack() as stack:
        for name in (made.host, made.outside):
            done("ip", "netns", "add", name)
            stack.callback(process.run, ["ip", "netns", "delete", name])
            done("ip", "-n", name, "link", "set", "lo", "up")
        done("ip", "link", "add", "eth0", "netns", made.host, "type", "veth", "peer", "eth0", "netns", made.outside)
        for name, addresses in ((made.host, [HOST]), (made.outside, [SOURCE, OTHER])):
            for address in addresses:
                done("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            done("ip", "-n", name, "link", "set", "eth0", "up")
        stack.callback(end_all_in, made.host)
        command = ["ip", "netns", "exec", made.host, "sh", "-c", ENTER, "sh", str(open_folder), "-stcp"]
        subprocess.run(command, check=True, timeout=PATIENCE_S, stdout=subprocess.DEVNULL)
        # Its raw socket: from now on it sees.
        until(lambda: done("ip", "netns", "exec", made.host, "ss", "-Hwna").strip())
        yield made


def end_all_in(namespace: str) -> None:
    for pid in done("ip", "netns", "pids", namespace).split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    until(lambda: not done("ip", "netns", "pids", namespace).strip())


@pytest.mark.needs("portsentry")
def test_whom_portsentry_has_blocked_is_found_cleared_and_noticed_again(sentry: Sentry) -> None:
    store = HostsDenyStore(sentry.settings.stores.hosts_deny)
    ban = Change(store="hosts_deny", action=Action.ADD, network=parse_network(SOURCE), why="test")
    token = Token(ledger="0123456789ab", boot="-", layout=1, sequence=1)
    store.apply([ban], token, datetime.now(UTC))
    traces = portsentry_traces(sentry.settings)
    assert [trace.name for trace in traces] == ["portsentry_route", "portsentry_hosts_deny", "blocked_files"]
    sentry.scan(OTHER, 1)
    for times in (1, 2, 3):
        sentry.scan(SOURCE, times)
        with sentry.inside():
            until(lambda: marked(traces) == [nets(SOURCE, OTHER)] * 3)
            for trace in traces:
                trace.remove(nets(SOURCE))
            assert marked(traces) == [nets(OTHER)] * 3
    text = sentry.deny.read_text()
    assert text.startswith("# by hand\nsshd: 203.0.113.5\n")
    assert text.count(f"ALL: {SOURCE}\n") == 1, "our own ban is not PortSentry's line"
    assert store.observe(datetime.now(UTC)).token == str(token)
    assert text.count(f"ALL: {OTHER} : DENY\n") == 1


def marked(traces: Sequence[Traces]) -> list[set[Network]]:
    return [set(trace.observe()) for trace in traces]
