"""What the tests of real boots share: a guest with every kind of ban, and what each of its stores holds."""

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_network

from jailbridge.demo.lab import ATTACKER, ATTACKER6, HOST, HOST6, INNOCENT
from jailbridge.service_files import UNITS
from tests.e2e.guest import INNOCENT6, Guest

FAIL2BAN = "fail2ban.service"
SERVICES = (FAIL2BAN, *UNITS)
LEDGER = "/var/lib/jailbridge/ledger.sqlite3"
HISTORY = "/var/lib/portsentry/portsentry.history"
HOSTS_DENY = "/etc/hosts.deny"
FOREIGN = "sshd: 203.0.113.5"
CONFIG = f"""
[[tail]]
path = "{HISTORY}"
evidence = "handshake"
[[policy.network]]
network = "10.0.0.0/8"
ban_for = "2h"
"""

BY_HAND = ("192.0.2.7", "192.0.2.128/25", ATTACKER6, "2001:db8:2::/64", "2001:db8:3::/48")
BY_HAND_FOR_A_TIME = "192.0.2.77"
UDP, LAN = "203.0.113.20", "10.1.2.3"  # banned for a day, and as [[policy.network]] has it
BANS = {*BY_HAND, BY_HAND_FOR_A_TIME, UDP, LAN, ATTACKER}
ENDED, EXPIRED = "203.0.113.50", "203.0.113.60"

# Pings from each of its arguments some hundred times a second, also while there is no link; ends by telling the answers
PINGS = f"""
import collections, contextlib, json, signal, socket, sys, time
answers, goes_on = collections.Counter(), [True]
signal.signal(signal.SIGTERM, lambda *_: goes_on.clear())
sockets = {{}}
for source in sys.argv[1:]:
    six = ":" in source
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
    pinging = sockets[source] = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    # IP_FREEBIND and IPV6_FREEBIND (linux/in.h, linux/in6.h): the address comes with the link.
    pinging.setsockopt(*((socket.IPPROTO_IPV6, 78, 1) if six else (socket.IPPROTO_IP, 15, 1)))
    pinging.bind((source, 0))
print("pinging", flush=True)
while goes_on:
    for source, pinging in sockets.items():
        six = ":" in source
        with contextlib.suppress(OSError):
            request = bytes.fromhex("800000004a420000" if six else "0800adbd4a420000")
            pinging.sendto(request, ("{HOST6}" if six else "{HOST}", 0))
    time.sleep(0.002)
    for source, pinging in sockets.items():
        with contextlib.suppress(BlockingIOError):
            while packet := pinging.recv(2048):
                # An echo reply (RFC 792, RFC 4443).
                answers[source] += packet[0] == 129 if ":" in source else packet[20] == 0
json.dump(+answers, sys.stdout)
"""


def firewall(guest: Guest) -> list[str]:
    """Every address in our sets but the sentinels, which no packet comes from."""
    found = []
    ruleset = json.loads(guest.do("nft", "--json", "list", "ruleset"))["nftables"]
    for ours in (entry["set"] for entry in ruleset if entry.get("set", {}).get("table") == "jailbridge"):
        for element in ours.get("elem", []):
            value = element["elem"]["val"] if "elem" in element else element
            if isinstance(value, dict):
                value = f"{value['prefix']['addr']}/{value['prefix']['len']}"
            network = ip_network(f"{value}/64" if ours["name"] == "nets6" else value)
            if not network.is_multicast and network != ip_network("255.255.255.255"):
                found.append(str(network))
    return found


def fail2ban(guest: Guest) -> list[str]:
    done = guest.run("fail2ban-client", "get", "portsentry", "banip")
    # While it starts it says on its output that there is no such jail yet.
    return done.out.split() if done.code == 0 else []


def hosts_deny(guest: Guest) -> list[str]:
    lines = guest.path(HOSTS_DENY).read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("ALL: ").replace("[", "").replace("]", "") for line in lines if line.startswith("ALL:")]


def networks(found: Iterable[str]) -> list[str]:
    return sorted(str(ip_network(one)) for one in found)


def held(guest: Guest) -> dict[str, list[str]]:
    """What each store holds, so many times as it does."""
    return {store.__name__: networks(store(guest)) for store in (firewall, fail2ban, hosts_deny)}


WANTED = dict.fromkeys(("firewall", "fail2ban", "hosts_deny"), networks(BANS))


def wait_for_agreement(guest: Guest) -> None:
    """Wait until every store holds what it should, each once and nothing else, and nobody's line is lost."""
    try:
        guest.wait("every store holds every ban", lambda: held(guest) == WANTED)
    except AssertionError:
        assert held(guest) == WANTED, guest.run("journalctl", "-b", "-u", "jailbridge*").out
        raise
    lines = guest.path(HOSTS_DENY).read_text(encoding="utf-8").splitlines()
    assert FOREIGN in lines
    assert len(set(lines)) == len(lines)


def untils(guest: Guest) -> Mapping[str, object]:
    return {row["address"]: row["until"] for row in json.loads(guest.do("jailbridge", "list", "--json"))}


def show(guest: Guest, unit: str, name: str) -> str:
    return guest.do("systemctl", "show", unit, "--value", "--property", name).strip()


def said_by(guest: Guest, unit: str) -> str:
    return guest.do("journalctl", "--boot", "--unit", unit, "--output", "cat")


@contextmanager
def pinged(guest: Guest) -> Iterator[dict[str, int]]:
    """Ping the guest from every source; what was answered is known at the end."""
    answers: dict[str, int] = {}
    argv = guest.outside_argv(sys.executable, "-I", "-c", PINGS, ATTACKER, ATTACKER6, INNOCENT, INNOCENT6)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as pinging:
        try:
            assert pinging.stdout is not None
            assert pinging.stdout.readline() == "pinging\n"
            yield answers
            pinging.terminate()
            answers.update(json.loads(pinging.communicate(timeout=30)[0]))
        finally:
            pinging.kill()


def install(guest: Guest) -> None:
    """Make a guest that is off into one with our services and every kind of ban, and shut it down."""
    guest.write("/etc/jailbridge/jailbridge.toml", CONFIG)
    guest.write(HOSTS_DENY, f"{FOREIGN}\n")
    guest.start()
    guest.do("jailbridge", "install")
    guest.do("systemctl", "enable", "--now", *SERVICES, timeout_s=60)
    guest.do("jailbridge", "fail2ban", "install")
    guest.from_outside("nmap", "-n", "-Pn", "-sS", "-S", ATTACKER, "-e", "guest", "-p", "1-9", HOST)
    with guest.path(HISTORY).open("a", encoding="ascii") as history:
        for address, protocol in ((LAN, "TCP"), (UDP, "UDP")):
            day = "11/22/2026 06:30:59"
            history.write(f"{int(time.time())} - {day} Host: {address}/{address} Port: 23 {protocol} Blocked\n")
    guest.do("jailbridge", "ban", *BY_HAND, ENDED)
    guest.do("jailbridge", "ban", BY_HAND_FOR_A_TIME, "--for", "1h")
    guest.do("jailbridge", "unban", ENDED)
    wait_for_agreement(guest)
    guest.shut_down()
