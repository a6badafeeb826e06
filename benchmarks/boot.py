"""Measures what putting the bans back costs a boot, in a systemd guest; beside fail2ban's own restoring at its start.

    python benchmarks/boot.py [ROW...] [--runs N] [--scale SHARE] [--json FILE]

`benchmarks/README.md` tells what the rows are; `docs/benchmarks.md` what they gave.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import figures
from crowd import crowd
from figures import Run
from ground import source
from runner import Rows, Sizes, main
from stores import ledger, utc_now

from jailbridge.errors import FatalError
from jailbridge.service_files import RESTORE
from tests.e2e.guest import Guest, why_not

OURS = "JailBridge"
MANY, FEW = 100_000, 1000
SLOW_S, GLANCE_S = 300.0, 0.1
FAIL2BAN, NETWORK = "fail2ban.service", "guest-network.service"
"""The guest's network comes up in the latter, after network-pre.target."""
LEDGER = "/var/lib/jailbridge/ledger.sqlite3"
HISTORY = "/var/lib/portsentry/portsentry.history"
LISTING = {
    "nftables": ("nft", "list", "ruleset"),
    "iptables-ipset": ("ipset", "save"),
}
ACTION = {
    "": "",
    "nftables": "nftables[type=allports, name=portsentry]",
    "iptables-ipset": 'iptables-ipset-proto6-allports[name=portsentry, bantime="%(bantime)s"]',
}
"""fail2ban's own; the one that does nothing fills the database that a boot reads."""
_CONFIG = "[stores.fail2ban]\nenabled = false\n"
_JAIL = f"""
[DEFAULT]
bantime = 1d
[sshd]
enabled = false
[portsentry]
enabled = true
backend = polling
logpath = {HISTORY}
action = """


@contextmanager
def guest() -> Iterator[Guest]:
    """Give a guest that is off."""
    if reason := why_not():
        raise FatalError(f"a guest needs {reason}")
    with Guest() as machine:
        yield machine


def moment(machine: Guest, unit: str, name: str) -> float:
    """Return when something was so, in seconds since systemd began to boot."""
    asked = ("systemctl", "show", "--value", "--property")
    began = machine.do(*asked, "UserspaceTimestampMonotonic")
    return (int(machine.do(*asked, f"{name}Monotonic", unit)) - int(began)) / 1e6


def boot(machine: Guest) -> Run:
    """Boot it; return how far it was when."""
    machine.start(SLOW_S)
    return {
        "until network-pre.target_s": moment(machine, "network-pre.target", "ActiveEnterTimestamp"),
        "until the network is up_s": moment(machine, NETWORK, "ActiveEnterTimestamp"),
        "until multi-user.target_s": moment(machine, "multi-user.target", "ActiveEnterTimestamp"),
    }


def took(machine: Guest, unit: str) -> float:
    """Return how many seconds systemd saw a unit start."""
    return moment(machine, unit, "ActiveEnterTimestamp") - moment(machine, unit, "InactiveExitTimestamp")


def with_restore(machine: Guest, number: int) -> None:
    """Leave a guest off that restores so many bans whenever it boots."""
    machine.write("/etc/jailbridge/jailbridge.toml", _CONFIG)
    machine.start()
    machine.do("jailbridge", "install")
    machine.shut_down()
    machine.write(LEDGER, "", 0o600)
    machine.path(LEDGER).write_bytes(ledger(number))
    machine.enable(RESTORE)


def ours(sizes: Sizes, number: int, *, again: bool) -> Run:
    """Boot with the unit enabled; `again`: not for the first time."""
    networks = crowd(sizes.of(number), utc_now())
    wanted = frozenset(str(network.network_address) for network in networks)
    with guest() as machine:
        with_restore(machine, len(networks))
        run = boot(machine)
        if again:
            machine.shut_down()
            run = boot(machine)
        seconds = took(machine, RESTORE)
        held = 100 * figures.banned(machine.do(*LISTING["nftables"]), wanted) / len(wanted)
        ready = moment(machine, RESTORE, "ActiveEnterTimestamp")
        return {
            "from its start to all back_s": seconds,
            "on the network without them_s": max(0.0, ready - run["until the network is up_s"]),
            **run,
            "CPU_s": int(machine.do("systemctl", "show", "--value", "--property", "CPUUsageNSec", RESTORE)) / 1e9,
            "held_%": held,
        }


def without(_: Sizes) -> Run:
    """Boot without any of it, as `again` does: not for the first time."""
    with guest() as machine:
        machine.start()
        machine.shut_down()
        return boot(machine)


def theirs(sizes: Sizes, action: str, number: int) -> Run:
    """Boot with a fail2ban that has so many in its database."""
    addresses = [source(one) for one in range(sizes.of(number))]
    with guest() as machine:
        machine.write(HISTORY, "")
        machine.write("/etc/fail2ban/jail.local", f"{_JAIL}{ACTION['']}\n")
        machine.enable(FAIL2BAN)
        machine.start()
        machine.wait("it has its jail", lambda: machine.run("fail2ban-client", "status", "portsentry").code == 0)
        for first in range(0, len(addresses), 500):
            machine.do(
                "fail2ban-client", "set", "portsentry", "banip", *addresses[first : first + 500], timeout_s=SLOW_S
            )
        machine.shut_down()
        machine.write("/etc/fail2ban/jail.local", f"{_JAIL}{ACTION[action]}\n")
        run = boot(machine)
        back = all_back(machine, LISTING[action], addresses)
        return {
            "from its start to all back_s": back - moment(machine, FAIL2BAN, "InactiveExitTimestamp"),
            "on the network without them_s": max(0.0, back - run["until the network is up_s"]),
            **run,
            "held_%": 100,
        }


def all_back(machine: Guest, listing: Sequence[str], addresses: Sequence[str]) -> float:
    """Wait until the kernel holds them all; return when, as `moment` does."""
    wanted = frozenset(addresses)
    end = time.monotonic() + SLOW_S
    while figures.banned(machine.run(*listing).out, wanted) < len(wanted):
        if time.monotonic() > end:
            raise FatalError("fail2ban did not bring its bans back")
        time.sleep(GLANCE_S)
    began = int(machine.do("systemctl", "show", "--value", "--property", "UserspaceTimestampMonotonic")) / 1e6
    return float(machine.do("cat", "/proc/uptime").split()[0]) - began


def rows(sizes: Sizes) -> Rows:
    """Return every row: its name, what it asks, and how each side is run once."""
    return {
        "boot-100k": (
            "a boot that puts 100,000 bans back before the network is up, and one that puts none back",
            {
                OURS: partial(ours, sizes, MANY, again=True),
                f"{OURS} (first)": partial(ours, sizes, MANY, again=False),
                "without": partial(without, sizes),
            },
        ),
        "boot-1k": (
            "1,000 bans, put back before the network is up, and by fail2ban at its start",
            {
                OURS: partial(ours, sizes, FEW, again=True),
                **{action: partial(theirs, sizes, action, FEW) for action in LISTING},
            },
        ),
    }


if __name__ == "__main__":
    main("Measures what putting bans back costs a boot; needs root.", rows)
