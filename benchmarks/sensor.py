"""Measures the sensor as it is run, against storms and beside Debian's PortSentry 1.2, in own network namespaces.

    python benchmarks/sensor.py [ROW...] [--runs N] [--scale SHARE] [--json FILE]

`benchmarks/README.md` tells what the rows are; `docs/benchmarks.md` what they gave.
"""

import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import figures
from figures import Run
from ground import TICK_S, Ground, Sent, source
from runner import Rows, Sizes, main

from jailbridge import process
from jailbridge.errors import FatalError

OURS, THEIRS = "JailBridge", "PortSentry 1.2"
PORTSENTRY = shutil.which("portsentry", path=f"{process.SEARCH_PATH}:{Path(__file__).parents[1]}/.programs/usr/sbin")
"""Debian's, installed or only unpacked by packaging/prepare."""
HISTORY = "portsentry.history"
PROBED_PORT = 11
"""In the ports that PortSentry watches as Debian ships it."""
PROBES, IDLE_S = 200, 10.0
SEEN_WITHIN_S = 5.0
"""A probe not in the history by then is missed."""
GLANCE_S = 0.00005

_CONFIG = """
[sensor]
interfaces = ["eth0"]
tcp_ports = "{ports}"
trigger_ports = 1
[history]
path = "{folder}/history/portsentry.history"
[policy]
allow_files = []
max_new_bans_per_minute = 10000000
max_new_spoofable_per_minute = 10000000
[ledger]
path = "{folder}/ledger.sqlite3"
[stores.hosts_deny]
enabled = false
[stores.fail2ban]
enabled = false
[stores.blocked_files]
enabled = false
[portsentry]
conf = "{folder}/portsentry.conf"
[control]
socket = "{folder}/control.sock"
"""
# As Debian ships it, but for what it blocks, how, and where it writes.
_PORTSENTRY_CONF = """
TCP_PORTS="1,11,15,79,111,119,143,540,635,1080,1524,2000,5742,6667,12345,12346,20034,27665,31337,32771,32772,32773,\
32774,40421,49724,54320"
UDP_PORTS="1,7,9,69,161,162,513,635,640,641,700,37444,34555,31335,32770,32771,32772,32773,32774,31337,54321"
ADVANCED_PORTS_TCP="1024"
ADVANCED_PORTS_UDP="1024"
ADVANCED_EXCLUDE_TCP="113,139"
ADVANCED_EXCLUDE_UDP="520,138,137,67"
IGNORE_FILE="/etc/portsentry/portsentry.ignore"
HISTORY_FILE="{folder}/history/portsentry.history"
BLOCKED_FILE="{folder}/history/portsentry.blocked"
RESOLVE_HOST="0"
BLOCK_UDP="0"
BLOCK_TCP="{block}"
KILL_ROUTE="{iptables} -w -I INPUT -s $TARGET$ -j DROP"
SCAN_TRIGGER="0"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the programs compared: how it is started, when it is ready, and where its bans are listed."""

    argv: list[str]
    is_ready: Callable[[Ground], bool]
    rules: tuple[str, ...] = ("iptables", "-w", "-S", "INPUT")
    goes_away: bool = False  # what was started ends, and leaves the real one in the background


@contextmanager
def watching(side: Side, *, block: bool = False, ports: str = "1-1023") -> Iterator[tuple[Ground, Path]]:
    """Start a side on fresh ground; give that ground and the history that is written there."""
    with Ground() as ground:
        folder = ground.folder / "history"
        folder.mkdir()
        history = folder / HISTORY
        history.touch()
        (ground.folder / "jailbridge.toml").write_text(_CONFIG.format(folder=ground.folder, ports=ports))
        _give_portsentry_conf(ground, block=block)
        started = ground.start("side", [word.format(folder=ground.folder) for word in side.argv])
        ground.wait("it watches, or fails", lambda: side.is_ready(ground) or bool(started.poll()))
        if not side.is_ready(ground):
            raise FatalError(f"{side.argv} ended: {ground.log('side')[-500:]}")
        if side.goes_away:
            # Or its CPU time would be missing from the count afterwards.
            ground.wait("it goes into the background", lambda: started.poll() is not None)
        yield ground, history


def _give_portsentry_conf(ground: Ground, *, block: bool) -> None:
    folder = ground.etc / "portsentry"
    folder.mkdir()
    iptables = process.find("iptables", "iptables")
    text = _PORTSENTRY_CONF.format(folder=ground.folder, block=int(block), iptables=iptables)
    (folder / "portsentry.conf").write_text(text)
    for name in ("portsentry.ignore", "portsentry.ignore.static"):
        (folder / name).write_text("127.0.0.1/32\n0.0.0.0\n")


def _jailbridge(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jailbridge", *arguments]


SENSOR = Side(
    argv=_jailbridge("sensor", "--config", "{folder}/jailbridge.toml"),
    is_ready=lambda ground: "watching" in ground.log("side"),
)
WHOLE_LOOP = Side(
    argv=_jailbridge("run", "--config", "{folder}/jailbridge.toml"),
    is_ready=lambda ground: "watching" in ground.log("side"),
    rules=("nft", "list", "ruleset"),
)


def _is_active(ground: Ground) -> bool:
    return "is now active" in "".join(ground.syslog) + ground.log("side")


REAL = Side(argv=[PORTSENTRY or "portsentry", "-stcp"], is_ready=_is_active, goes_away=True)
DROP_IN = Side(argv=_jailbridge("portsentry", "-stcp"), is_ready=_is_active, goes_away=True)


# What is measured


def flood(sizes: Sizes, rate: int) -> Run:
    """1,000 sources scan for ten seconds."""
    sources, packets = sizes.of(1000), sizes.of(rate * 10)
    with watching(SENSOR) as (ground, history):
        before = ground.cpu_s()
        sent = ground.storm(sources=sources, packets=packets, rate=rate, ports="1-1000")
        ground.settle(history)
        run = {**_seen(history, sources, sent), "CPU_s": ground.cpu_s() - before, "peak memory_MiB": _peak(ground)}
        ground.stop()
        return {**run, "kernel drops_n": figures.lost(ground.log("side")), **_offered(sent, rate)}


def spoofed(sizes: Sizes) -> Run:
    """Forged sources once each, then as many others, to see whether memory still grows; after the first, one probe."""
    sources, rate = sizes.of(100_000), 50_000
    with watching(SENSOR) as (ground, history):
        before, idle = ground.cpu_s(), ground.status("VmRSS")
        sent = ground.storm(sources=sources, packets=sources, rate=rate, ports="23-23")
        answer = _answer(ground, history, source(2 * sources), 22)
        ground.settle(history)
        run = {
            **_seen(history, sources, sent),
            "next probe in the history_ms": answer,
            "CPU_s": ground.cpu_s() - before,
            "memory before_MiB": idle,
            "peak memory_MiB": _peak(ground),
        }
        ground.storm(sources=sources, packets=sources, rate=rate, ports="23-23", first=sources)
        ground.settle(history)
        run |= {"peak after as many again_MiB": _peak(ground)}
        ground.stop()
        return {**run, "kernel drops_n": figures.lost(ground.log("side")), **_offered(sent, rate)}


def blocking(sizes: Sizes, side: Side) -> Run:
    """2,000 sources, one SYN each, and every one is to be blocked."""
    sources = sizes.of(2000)
    with watching(side, block=True) as (ground, history):
        before = ground.cpu_s()
        sent = ground.storm(sources=sources, packets=sources, rate=1000, ports=f"{PROBED_PORT}-{PROBED_PORT}")
        busy = ground.settle(history) - sent.last
        among = frozenset(source(number) for number in range(sources))
        spent = ground.cpu_s() - before
        bans = figures.banned(ground.run(*side.rules), among)
        return {
            "banned_%": 100 * bans / sources,
            **_seen(history, sources, sent),
            "busy after the last packet_s": busy,
            "CPU_s": spent,
            "CPU for each ban_ms": 1000 * spent / max(bans, 1),
            **_offered(sent, 1000),
        }


def idle() -> Run:
    """Nothing comes for ten seconds."""
    with watching(SENSOR) as (ground, _):
        time.sleep(2)
        ticks, wakeups = ground.ticks(), ground.wakeups()
        time.sleep(IDLE_S)
        return {
            "CPU in 10 s_ms": (ground.ticks() - ticks) * TICK_S * 1000,
            "wakeups_per s": (ground.wakeups() - wakeups) / IDLE_S,
            "memory_MiB": ground.status("VmRSS"),
        }


def latency(sizes: Sizes, side: Side) -> Run:
    """One probe after another, each from a source of its own, at moments that no timer could know."""
    probes, chance = sizes.of(PROBES), random.Random(1)
    with watching(side) as (ground, history):
        times = []
        for number in range(probes):
            time.sleep(chance.uniform(0.005, 0.03))
            times.append(_answer(ground, history, source(number), PROBED_PORT))
        return {
            "median_ms": figures.percentile(times, 0.5),
            "p99_ms": figures.percentile(times, 0.99),
            "most_ms": max(times),
            "missed_n": sum(each >= SEEN_WITHIN_S * 1000 for each in times),
        }


def _answer(ground: Ground, history: Path, address: str, port: int) -> float:
    """Probe, and return how many milliseconds later the history names the source; SEEN_WITHIN_S if it does not."""
    wanted = f"/{address} Port: ".encode()
    with history.open("rb") as lines:
        # Before the probe: its line may be there sooner than we are.
        lines.seek(0, os.SEEK_END)
        with ground.probe(address, port) as start:
            text = lines.read()
            while wanted not in text and time.monotonic() - start < SEEN_WITHIN_S:
                time.sleep(GLANCE_S)
                text = text[-200:] + lines.read()
            return min(time.monotonic() - start, SEEN_WITHIN_S) * 1000


def _seen(history: Path, sources: int, sent: Sent) -> Run:
    named = figures.sources(history.read_text(errors="replace"))
    wanted = {source(number) for number in range(sources)}
    return {
        "sources seen_%": 100 * len(wanted.intersection(named)) / sources,
        "last line after the last packet_s": history.stat().st_mtime - sent.last,
    }


def _offered(sent: Sent, rate: int) -> Run:
    return {
        "packets sent_n": sent.packets,
        "packets arrived_n": sent.arrived,
        "true rate_per s": sent.rate,
        "of the rate asked for_%": 100 * sent.rate / rate,
    }


def _peak(ground: Ground) -> float:
    return ground.status("VmHWM")


# The rows


def rows(sizes: Sizes) -> Rows:
    """Return every row: its name, what it asks, and how each side is run once."""
    theirs = {THEIRS: REAL} if PORTSENTRY else {}
    blockers = {f"{OURS} (portsentry)": DROP_IN, f"{OURS} (run)": WHOLE_LOOP, **theirs}
    probed = {f"{OURS} (sensor)": SENSOR, f"{OURS} (portsentry)": DROP_IN, **theirs}
    return {
        "flood-20k": ("1,000 sources, 20,000 SYN/s for 10 s", {OURS: partial(flood, sizes, 20_000)}),
        "flood-100k": ("1,000 sources, 100,000 SYN/s for 10 s", {OURS: partial(flood, sizes, 100_000)}),
        "spoofed": ("100,000 forged sources once each, 50,000/s", {OURS: partial(spoofed, sizes)}),
        "blocking": (
            "2,000 sources, 1,000/s, one SYN each, every one to be blocked",
            {name: partial(blocking, sizes, side) for name, side in blockers.items()},
        ),
        "idle": ("10 s without a packet", {OURS: idle}),
        "latency": (
            "from a probe's connect() to its line in the history, log only, 200 sources one after another",
            {name: partial(latency, sizes, side) for name, side in probed.items()},
        ),
    }


if __name__ == "__main__":
    if not PORTSENTRY:
        print("PortSentry 1.2 is not here, so its side is left out: packaging/prepare test unpacks it", file=sys.stderr)
    main("Measures the sensor; needs root.", rows)
