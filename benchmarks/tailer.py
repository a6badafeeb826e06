"""Measures how a history is read and acted upon, beside fail2ban on the same lines.

    python benchmarks/tailer.py [ROW...] [--runs N] [--scale SHARE] [--json FILE]

`benchmarks/README.md` tells what the rows are; `docs/benchmarks.md` what they gave.
"""

import contextlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import figures
from figures import Run
from ground import source, write_settings
from runner import Rows, Sizes, main

from jailbridge import process
from jailbridge.config.settings import TailSettings
from jailbridge.daemon.operations import look_for_garbage_seldom
from jailbridge.errors import FatalError, ParseError
from jailbridge.history.dialects import format_1, format_2
from jailbridge.history.formats import reader
from jailbridge.model.event import Kind, Protocol, ScanEvent, TailFormat
from jailbridge.process import Running
from jailbridge.tailer.follower import Follower

OURS, REGEX, FAIL2BAN = "JailBridge", "fail2ban-regex", "fail2ban"
JAILBRIDGE = [sys.executable, "-m", "jailbridge"]
LINES, FEW, SPACING_S = 100_000, 2000, 0.3
BATCH = 5000
"""Lines at once, as the daemon reads them."""
STOCK_FILTER = Path("/etc/fail2ban/filter.d/portsentry.conf")
HOSTS_DENY_MAX = 10_000
ALL_WITHIN_S = 600.0
GLANCE_S = 0.1
READ = "--read"
"""The benchmark itself, as the program that reads a history and no more."""

# fail2ban's own jail, but for where it reads and that it bans in nftables, on all ports.
_JAIL = """
[DEFAULT]
allowipv6 = no
banaction = nftables[type=allports]
banaction_allports = nftables[type=allports]
[sshd]
enabled = false
[portsentry]
enabled = true
backend = polling
logpath = {folder}/portsentry.history
"""


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """Give a folder of its own, and take it away."""
    with tempfile.TemporaryDirectory(prefix="jailbridge-bench-") as folder:
        yield Path(folder)


def write_history(path: Path, addresses: list[str], form: TailFormat, begin: datetime, spacing_s: float) -> None:
    """Write one line for each address, so far apart in time, each of a random port and protocol."""
    chance = random.Random(1)
    with path.open("w") as file:
        for number, address in enumerate(addresses):
            protocol = chance.choice([Protocol.TCP, Protocol.UDP])
            event = ScanEvent(
                time=begin + timedelta(seconds=number * spacing_s),
                address=IPv4Address(address),
                port=chance.randrange(1, 1024),
                protocol=protocol,
                kind=Kind.SYN if protocol is Protocol.TCP else Kind.UDP,
                ignored=False,
                triggered=True,
                ip_options=False,
            )
            line = format_1 if form is TailFormat.PORTSENTRY_1 else format_2
            file.write(line(event, event.time) + "\n")


def random_sources(lines: int, distinct: int) -> list[str]:
    """Return the source of each line, chosen from so many; each is there once where there are as many as lines."""
    chance = random.Random(1)
    known = chance.sample(range(1 << 24, 223 << 24), distinct)
    return [str(IPv4Address(each)) for each in (known if distinct == lines else chance.choices(known, k=lines))]


# Reading


def read(sizes: Sizes, form: TailFormat, distinct: int | None, ours: bool) -> Run:
    """Read a history as a program of its own; net of start-up too."""
    lines = sizes.of(LINES)
    with workspace() as folder:
        history = folder / "history.log"
        sources = random_sources(lines, min(distinct or lines, lines))
        write_history(history, sources, form, datetime.now(UTC) - timedelta(days=1), SPACING_S)
        if not ours:
            seconds, out = finished([REGEX, str(history), filter_of(form, folder)])
            accepted, inside = figures.matched(out)
            tailed = inside
        else:
            check = [*JAILBRIDGE, "history", "check", "--format", form]
            seconds, out = finished([*check, str(history)])
            inside = seconds - finished([*check, os.devnull])[0]
            events = json.loads(finished([sys.executable, __file__, READ, str(history), form])[1])
            accepted, tailed = events["accepted"], events["seconds"]
        if accepted != lines:
            raise FatalError(f"{accepted} of {lines} lines were read: {out[-300:]}")
        return {
            "net of start-up_lines/s": lines / inside,
            "whole process_lines/s": lines / seconds,
            "tailed, to events_lines/s": lines / tailed,
        }


def memory(sizes: Sizes, ours: bool) -> Run:
    """The most memory that reading takes, of a history and of one ten times as long."""
    run = {}
    for lines in (sizes.of(LINES), 10 * sizes.of(LINES)):
        with workspace() as folder:
            history = folder / "history.log"
            write_history(
                history,
                random_sources(lines, lines),
                TailFormat.PORTSENTRY_1,
                datetime.now(UTC) - timedelta(days=7),
                SPACING_S,
            )
            form = TailFormat.PORTSENTRY_1
            own = [sys.executable, __file__, READ, str(history), form]
            argv = own if ours else [REGEX, str(history), filter_of(form, folder)]
            run[f"peak at {lines:,} lines_MiB"] = peak_of(argv)
    return run


def filter_of(form: TailFormat, folder: Path) -> str:
    """Return the filter that fail2ban reads a dialect with: its own for 1.2; for 2.x it has none, so ours."""
    if form is TailFormat.PORTSENTRY_1:
        return str(STOCK_FILTER)
    finished([*JAILBRIDGE, "fail2ban", "render", str(folder / "definitions")])
    return str(folder / "definitions" / "filter.d" / "jailbridge-portsentry.conf")


def read_here(path: Path, form: TailFormat) -> None:
    """Read a history in this process, as the daemon does; print the seconds and what the lines were."""
    look_for_garbage_seldom()
    parse, now = reader(form), datetime.now(UTC)
    follower = Follower(TailSettings(path=path, format=form), path, None, from_end=False)
    accepted = refused = 0
    start = time.perf_counter()
    while (batch := follower.read(BATCH)) is not None:
        for line in batch.lines:
            try:
                parse(line.text, now)
                accepted += 1
            except ParseError:
                refused += 1
        follower.commit(batch)
    seconds = time.perf_counter() - start
    follower.close()
    print(json.dumps({"seconds": seconds, "accepted": accepted, "refused": refused}))


def finished(argv: list[str]) -> tuple[float, str]:
    """Run a program to its end; return its seconds and its output. Raises FatalError."""
    with tempfile.TemporaryFile() as out:
        start = time.perf_counter()
        code = process.start([process.find(argv[0], FAIL2BAN), *argv[1:]], log=out).wait()
        seconds = time.perf_counter() - start
        out.seek(0)
        text = out.read().decode(errors="replace")
    if code != 0:
        raise FatalError(f"{' '.join(argv)}: {text[-300:]}")
    return seconds, text


def peak_of(argv: list[str]) -> float:
    """Run a program to its end; return the most memory that it had, in MiB, looked at every 20 ms (proc(5), VmHWM).

    getrusage(2) would count this process too, from which it was forked.
    """
    running = process.start([process.find(argv[0], FAIL2BAN), *argv[1:]])
    peak = 0
    while running.poll() is None:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{running.pid}/status").read_text()
            peak = max([peak, *(int(kib) for kib in re.findall(r"VmHWM:\s+(\d+) kB", status))])
        time.sleep(0.02)
    if running.returncode != 0:
        raise FatalError(f"{' '.join(argv)}: exit code {running.returncode}")
    return peak / 1024


# Acting


def burst(sizes: Sizes, sources: int, lines: int) -> Run:
    """Append the lines of so many sources at once to a history that the daemon follows."""
    number = sizes.of(sources)
    with workspace() as folder, _running(folder, _daemon(folder)) as running:
        inside = ["nsenter", "-t", str(running.pid), "-n"]
        seconds = appended(folder, number, sizes.of(lines))
        last = source(number - 1)
        until(
            "the last ban is in nftables",
            lambda: quiet([*inside, "nft", "get", "element", "inet", "jailbridge", "hosts4", f"{{ {last} }}"]),
        )
        banned = seconds()
        most = min(number, HOSTS_DENY_MAX)
        until("hosts.deny holds its share", lambda: (folder / "hosts.deny").read_text().count("\nALL: ") >= most)
        denied = seconds()
        plan = [*JAILBRIDGE, "plan", "--config", str(folder / "jailbridge.toml")]
        until("the stores agree", lambda: quiet([*inside, *plan]))
        agreed = seconds()
        rules = finished([*inside, "nft", "list", "set", "inet", "jailbridge", "hosts4"])[1]
        held = figures.banned(rules, frozenset(map(source, range(number))))
        return {
            "last ban in nftables_s": banned,
            "hosts.deny full_s": denied,
            "agreement_s": agreed,
            "for 1,000 bans_s": banned * 1000 / number,
            "banned_%": 100 * held / number,
        }


def burst_fail2ban(sizes: Sizes, lines: int) -> Run:
    """The same with fail2ban's own portsentry jail, and nftables."""
    number = sizes.of(lines)
    wanted = frozenset(map(source, range(number)))
    with workspace() as folder, _running(folder, _fail2ban(folder)) as running:
        listing = ["nsenter", "-t", str(running.pid), "-n", "nft", "list", "ruleset"]
        seconds = appended(folder, number, number)
        until("all are banned", lambda: figures.banned(finished(listing)[1], wanted) == number)
        banned = seconds()
        return {"last ban in nftables_s": banned, "for 1,000 bans_s": banned * 1000 / number, "banned_%": 100.0}


def appended(folder: Path, number: int, lines: int) -> Callable[[], float]:
    """Append so many lines of these sources, in turn, in one piece; return what tells the seconds since."""
    storm = folder / "storm"
    sources = [source(line % number) for line in range(lines)]
    write_history(storm, sources, TailFormat.PORTSENTRY_1, datetime.now(UTC), 0)
    with (folder / "portsentry.history").open("ab") as file:
        file.write(storm.read_bytes())
    start = time.perf_counter()
    return lambda: time.perf_counter() - start


@contextlib.contextmanager
def _running(folder: Path, start: tuple[list[str], Callable[[], bool]]) -> Iterator[Running]:
    """Run a program in a network namespace of its own, with a history to follow; end it."""
    argv, is_ready = start
    (folder / "portsentry.history").touch()
    with (folder / "log").open("wb") as log:
        running = process.start([process.find("unshare", "util-linux"), "-n", *argv], log=log)
    try:
        until("it is ready, or ended", lambda: is_ready() or running.poll() is not None)
        if running.poll() is not None:
            raise FatalError(f"{argv[0]} ended: {(folder / 'log').read_text()[-500:]}")
        yield running
    finally:
        running.terminate()
        running.wait(timeout=30)


def _daemon(folder: Path) -> tuple[list[str], Callable[[], bool]]:
    config = write_settings(folder, deny=f"max = {HOSTS_DENY_MAX}")
    status = [*JAILBRIDGE, "plan", "--config", str(config)]
    return [*JAILBRIDGE, "run", "--without", "sensor", "--config", str(config)], (
        lambda: (folder / "control.sock").exists() and quiet(status)
    )


def _fail2ban(folder: Path) -> tuple[list[str], Callable[[], bool]]:
    config = folder / "fail2ban"
    shutil.copytree("/etc/fail2ban", config)
    (config / "jail.local").write_text(_JAIL.format(folder=folder))
    # fmt: off
    paths = ["-c", str(config), "-s", str(folder / "socket"), "-p", str(folder / "pid")]
    server = ["fail2ban-server", "-f", *paths, "--loglevel", "NOTICE", "--logtarget", "STDOUT"]
    # fmt: on
    (config / "fail2ban.local").write_text(f"[Definition]\ndbfile = {folder}/fail2ban.sqlite3\n")
    return server, lambda: quiet(["fail2ban-client", *paths, "status", "portsentry"])


def quiet(argv: list[str]) -> bool:
    """Tell whether a program ends well."""
    return process.run([process.find(argv[0], argv[0]), *argv[1:]], timeout_s=120).code == 0


def until(what: str, holds: Callable[[], bool]) -> None:
    """Wait until something holds. Raises FatalError."""
    end = time.monotonic() + ALL_WITHIN_S
    while not holds():
        if time.monotonic() > end:
            raise FatalError(f"not within {ALL_WITHIN_S:g} s: {what}")
        time.sleep(GLANCE_S)


# The rows


def rows(sizes: Sizes) -> Rows:
    """Return every row: its name, what it asks, and how each side is run once."""

    def reading(form: TailFormat, distinct: int | None) -> dict[str, Callable[[], Run]]:
        return {side: partial(read, sizes, form, distinct, side == OURS) for side in (OURS, REGEX)}

    one, two = TailFormat.PORTSENTRY_1, TailFormat.PORTSENTRY_2
    return {
        "read-1.2": ("100,000 lines of 1.2, 2,000 sources; fail2ban's filter", reading(one, FEW)),
        "read-1.2-distinct": ("100,000 lines of 1.2, as many sources; fail2ban's filter", reading(one, None)),
        "read-2": ("100,000 lines of 2.x, 2,000 sources; our filter", reading(two, FEW)),
        "read-2-distinct": ("100,000 lines of 2.x, as many sources; our filter", reading(two, None)),
        "memory": (
            "the most that reading 1.2 takes, every source once",
            {side: partial(memory, sizes, side == OURS) for side in (OURS, REGEX)},
        ),
        "burst": ("100,000 lines of as many sources appended at once", {OURS: partial(burst, sizes, LINES, LINES)}),
        "burst-lines": ("100,000 lines of 2,000 sources appended at once", {OURS: partial(burst, sizes, FEW, LINES)}),
        "burst-2k": (
            "2,000 lines of as many sources appended at once",
            {OURS: partial(burst, sizes, FEW, FEW), FAIL2BAN: partial(burst_fail2ban, sizes, FEW)},
        ),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == [READ]:
        read_here(Path(sys.argv[2]), TailFormat(sys.argv[3]))
    else:
        main("Measures the tailer; bursts need root.", rows)
