"""Measures how bans come into the stores, all at once and one beside many; beside the plain programs.

    python benchmarks/stores.py [ROW...] [--runs N] [--scale SHARE] [--json FILE]

`benchmarks/README.md` tells what the rows are; `docs/benchmarks.md` what they gave.
"""

import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from typing import TypeAlias

import figures
from crowd import bans, crowd, hosts_deny, ipset_load, line, nft_load
from figures import Run
from ground import Ground, source, write_settings
from runner import Rows, Sizes, main

from jailbridge import process
from jailbridge.daemon.control import call
from jailbridge.errors import FatalError
from jailbridge.ledger import Ledger
from jailbridge.model.network import Network

OURS = "JailBridge"
JAILBRIDGE = (sys.executable, "-m", "jailbridge")
BANS, SOME, FEW, SAMPLES = 100_000, 1000, 100, 60
DENY_MAX = 200_000
RULE = ("-m", "set", "--match-set", "jailbridge4", "src", "-j", "DROP")
SLOW_S = 120.0
DROPPED_WITHIN_S = 5.0
PACE_S, IN_VAIN = 0.00005, 200
"""Between two packets, the time to send one besides (10,000/s in all); so many without an arrival are all dropped."""


class Backend(StrEnum):
    """What holds the bans: the backend as our configuration names it."""

    NFTABLES = "nftables"
    IPSET = "ipset"

    @property
    def listing(self) -> tuple[str, ...]:
        """The command that lists every element."""
        return ("nft", "list", "table", "inet", "jailbridge") if self is Backend.NFTABLES else ("ipset", "save")

    def load(self, networks: dict[Network, datetime | None]) -> str:
        """Return what the plain program loads them from, with timeouts as ours."""
        return (nft_load if self is Backend.NFTABLES else ipset_load)(networks, utc_now())

    def loading(self, file: Path) -> tuple[str, ...]:
        """Return the command that does so."""
        return ("nft", "-f", str(file)) if self is Backend.NFTABLES else ("ipset", "restore", "-file", str(file))

    def adding(self, address: str) -> tuple[str, ...]:
        """Return the command that bans one more for a day."""
        if self is Backend.NFTABLES:
            return ("nft", "add", "element", "inet", "jailbridge", "hosts4", f"{{ {address} timeout 86460s }}")
        return ("ipset", "add", "jailbridge4", address, "timeout", "86460")


def utc_now() -> datetime:
    """Return the time, aware and UTC."""
    return datetime.now(UTC)


@cache
def ledger(number: int) -> bytes:
    """Return a ledger with so many bans, none of them placed anywhere yet."""
    with tempfile.TemporaryDirectory(prefix="jailbridge-bench-") as folder:
        path, now = Path(folder) / "ledger.sqlite3", utc_now()
        with Ledger(path) as new:
            new.record(bans(crowd(number, now), now, "/var/lib/portsentry/portsentry.history"), now=now)
        return path.read_bytes()


def configured(ground: Ground, backend: Backend, content: bytes, deny: str = "enabled = false") -> tuple[str, ...]:
    """Give the ground a configuration and a ledger; return the option that names it."""
    (ground.folder / "ledger.sqlite3").write_bytes(content)
    return ("--config", str(write_settings(ground.folder, backend=backend, deny=deny)))


def timed(act: Callable[[], object]) -> float:
    """Return how many seconds something takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def held(text: str, networks: Iterable[Network]) -> float:
    """Return the share (%) of networks that a listing names."""
    wanted = frozenset(str(network.network_address) for network in networks)
    return 100 * figures.banned(text, wanted) / len(wanted)


# All at once


def restore(sizes: Sizes, backend: Backend, ours: bool, number: int = BANS) -> Run:
    """Fill an empty firewall: from a ledger that has never done so, and once more, as after a reboot."""
    networks = crowd(sizes.of(number), utc_now())
    content, run = ledger(len(networks)), {}
    for which in ("first", "after a reboot"):
        with Ground() as ground:
            command = (*JAILBRIDGE, "restore", *configured(ground, backend, content))
            if not ours:
                (load := ground.folder / "load").write_text(backend.load(networks))
                command = backend.loading(load)
            run[f"{which}_s"] = timed(partial(ground.run, *command, timeout_s=SLOW_S))
            run[f"held, {which}_%"] = held(ground.run(*backend.listing, timeout_s=SLOW_S), networks)
            content = (ground.folder / "ledger.sqlite3").read_bytes()
    return run


def reconcile(sizes: Sizes, ours: bool, again: bool) -> Run:
    """Bring nftables and hosts.deny in line, from empty or where there is nothing to do."""
    networks = crowd(sizes.of(BANS), utc_now())
    with Ground() as ground:
        deny, table = ground.folder / "hosts.deny", Backend.NFTABLES
        config = configured(ground, table, ledger(len(networks)), f"max = {DENY_MAX}")
        (load := ground.folder / "load").write_text(table.load(networks))

        def settle() -> None:
            ground.run(*JAILBRIDGE, "reconcile", *config, timeout_s=SLOW_S)

        def write() -> None:
            ground.run(*table.loading(load), timeout_s=SLOW_S)
            deny.write_text(hosts_deny(networks))

        def read() -> None:
            ground.run("nft", "--json", *table.listing[1:], timeout_s=SLOW_S)
            deny.read_text()

        seconds = timed(settle if ours else write)
        if again:
            seconds = timed(settle if ours else read)
        return {
            "seconds_s": seconds,
            "in nftables_%": held(ground.run(*table.listing, timeout_s=SLOW_S), networks),
            "in hosts.deny_%": held(deny.read_text(), networks),
        }


def reconcile_again_by_daemon(sizes: Sizes) -> Run:
    """Ask a running daemon for the same, where there is nothing to do."""
    networks = crowd(sizes.of(BANS), utc_now())
    with _holding(len(networks), Backend.NFTABLES, ours=True, deny=f"max = {DENY_MAX}") as ground:
        command = (*JAILBRIDGE, "reconcile", "--config", str(ground.folder / "jailbridge.toml"))
        return {
            "seconds_s": timed(partial(ground.run, *command, timeout_s=SLOW_S)),
            "in nftables_%": held(ground.run(*Backend.NFTABLES.listing, timeout_s=SLOW_S), networks),
            "in hosts.deny_%": held((ground.folder / "hosts.deny").read_text(), networks),
        }


# One more

Way: TypeAlias = Callable[[Ground, str], float]
"""Has an address banned; returns when that began (monotonic seconds)."""


def by_line(ground: Ground, address: str) -> float:
    """A line of the history that the daemon follows."""
    text = line(address, utc_now()).encode()
    with (ground.folder / "portsentry.history").open("ab", buffering=0) as history:
        start = time.monotonic()
        history.write(text)
    return start


def by_command(ground: Ground, address: str) -> float:
    """`jailbridge ban`, but for the start of its process: what it says to the daemon."""
    start = time.monotonic()
    call(ground.folder / "control.sock", "ban", {"addresses": [address], "duration": "1d"})
    return start


def by_program(backend: Backend, ground: Ground, address: str) -> float:
    """The plain program."""
    program, *words = backend.adding(address)
    with ground.on_network():
        path = process.find(program, program)
        start = time.monotonic()
        if (result := process.run([path, *words])).code != 0:
            raise FatalError(f"{program}: {result.first_error}")
    return start


def one_more(sizes: Sizes, backend: Backend, way: Way, ours: bool) -> Run:
    """Ban one after another, in turn where few and where many are held, and see when their packets stop."""
    chance = random.Random(1)
    many = sizes.of(BANS)
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        grounds = {number: stack.enter_context(_holding(number, backend, ours)) for number in (FEW, many)}
        times: dict[int, list[float]] = {number: [] for number in grounds}
        for sample in range(sizes.of(SAMPLES)):
            for number, ground in grounds.items():
                time.sleep(chance.uniform(0.02, 0.08))
                times[number].append(_dropped(ground, source(sample), way, pool))
    run = {}
    for number, each in times.items():
        run[f"{number:,} held, median_ms"] = figures.percentile(each, 0.5)
        run[f"{number:,} held, p99_ms"] = figures.percentile(each, 0.99)
        run[f"{number:,} held, missed_n"] = sum(one >= DROPPED_WITHIN_S * 1000 for one in each)
    run["many : few, median_n"] = figures.percentile(times[many], 0.5) / figures.percentile(times[FEW], 0.5)
    return run


@contextmanager
def _holding(number: int, backend: Backend, ours: bool, deny: str = "") -> Iterator[Ground]:
    """A host that drops the packets of so many networks: our daemon's, or only what the plain program loaded."""
    networks = crowd(number, utc_now())
    with Ground() as ground:
        config = configured(ground, backend, ledger(number), deny)
        if ours:
            daemon = ground.start("daemon", [*JAILBRIDGE, "run", "--without", "sensor", *config])
            control = ground.folder / "control.sock"
            ground.wait("the daemon listens, or ended", lambda: control.exists() or daemon.poll() is not None)
            ground.settle(ground.folder / "hosts.deny")
        else:
            (load := ground.folder / "load").write_text(backend.load(networks))
            ground.run(*backend.loading(load))
            if backend is Backend.IPSET:
                ground.run("iptables", "-A", "INPUT", *RULE)
        if (share := held(ground.run(*backend.listing, timeout_s=SLOW_S), networks)) < 100:
            raise FatalError(f"{share:.3g} % of the bans are there: {ground.log('daemon')[-500:] if ours else ''}")
        yield ground


def _dropped(ground: Ground, address: str, way: Way, pool: ThreadPoolExecutor) -> float:
    """Ban an address that sends all the time; return after how many ms the first packet was sent that is dropped."""
    with ground.receiver() as receiver, ground.sender(address) as sender:

        def comes_through() -> bool:
            """Send one more packet; tell whether it, or one that was under way, has come through."""
            sender.send(b"?")
            time.sleep(PACE_S)
            arrived = False
            with suppress(BlockingIOError):
                while receiver.recv(64):
                    arrived = True
            return arrived

        if not comes_through():
            raise FatalError(f"no packet of {address} comes through, though it is not banned")
        begun = pool.submit(way, ground, address)
        dropped, in_vain, end = 0.0, 0, time.monotonic() + DROPPED_WITHIN_S
        while in_vain < IN_VAIN and (now := time.monotonic()) < end:
            in_vain, dropped = (0, now) if comes_through() else (in_vain + 1, dropped if in_vain else now)
        start = begun.result()
        return (DROPPED_WITHIN_S if in_vain < IN_VAIN else dropped - start) * 1000


def memory(sizes: Sizes) -> Run:
    """What the daemon takes with few bans and with many, in nftables and hosts.deny, when it has nothing to do."""
    run: dict[str, float] = {}
    few, many = sizes.of(SOME), sizes.of(BANS)
    shares = {}
    for number in (few, many):
        with _holding(number, Backend.NFTABLES, ours=True, deny=f"max = {DENY_MAX}") as ground:
            shares[number] = ground.status("Pss", "smaps_rollup")
            run[f"{number:,} bans_MiB"] = shares[number]
            run[f"{number:,} bans, RSS_MiB"] = ground.status("VmRSS")
            run[f"{number:,} bans, peak_MiB"] = ground.status("VmHWM")
    run["a ban_bytes"] = (shares[many] - shares[few]) * 2**20 / (many - few)
    return run


# The rows


def rows(sizes: Sizes) -> Rows:
    """Return every row: its name, what it asks, and how each side is run once."""
    plain = {Backend.NFTABLES: "nft -f", Backend.IPSET: "ipset restore"}
    floor = "nft and a file"
    return {
        **{
            f"restore-{backend}": (
                f"100,000 bans into an empty {backend}, as whole processes",
                {OURS: partial(restore, sizes, backend, True), theirs: partial(restore, sizes, backend, False)},
            )
            for backend, theirs in plain.items()
        },
        "reconcile-first": (
            "100,000 bans into nftables and hosts.deny, both empty",
            {OURS: partial(reconcile, sizes, True, False), floor: partial(reconcile, sizes, False, False)},
        ),
        "reconcile-again": (
            "the same once more, with nothing to do; beside it, reading alone",
            {
                OURS: partial(reconcile, sizes, True, True),
                f"{OURS}, by its daemon": partial(reconcile_again_by_daemon, sizes),
                floor: partial(reconcile, sizes, False, True),
            },
        ),
        **{
            f"one-more-{backend}": (
                f"from a line or command to the first packet that is dropped, {SAMPLES} sources one after another",
                {
                    f"{OURS} (line)": partial(one_more, sizes, backend, by_line, True),
                    f"{OURS} (command)": partial(one_more, sizes, backend, by_command, True),
                    theirs.split()[0]: partial(one_more, sizes, backend, partial(by_program, backend), False),
                },
            )
            for backend, theirs in plain.items()
        },
        "memory-100k": ("the daemon with bans in nftables and hosts.deny", {OURS: partial(memory, sizes)}),
    }


if __name__ == "__main__":
    main("Measures the stores; needs root.", rows)
