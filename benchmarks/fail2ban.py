"""Measures fail2ban with our action in its jail, beside the actions that it comes with: new bans, and a restart.

    python benchmarks/fail2ban.py [ROW...] [--runs N] [--scale SHARE] [--json FILE]

`benchmarks/README.md` tells what the rows are; `docs/benchmarks.md` what they gave.
"""

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import figures
from figures import Run
from ground import Ground, source, write_settings
from runner import Rows, Sizes, main
from stores import Backend, restore, timed

from jailbridge.errors import FatalError, JailBridgeError
from jailbridge.process import Running
from jailbridge.stores.fail2ban_socket import Fail2banSocket

OURS = "JailBridge"
JAILBRIDGE = (sys.executable, "-m", "jailbridge")
JAIL = "portsentry"
AT_ONCE = 20
"""Addresses a command, as our daemon bans."""
FEW, MANY = 1000, 10_000
SLOW_S, GLANCE_S, PING_S = 900.0, 0.1, 0.001

# fail2ban's own, but for where it reads and that it bans for a day.
_STOCK_JAIL = """
[DEFAULT]
bantime = 1d
[sshd]
enabled = false
[portsentry]
enabled = true
backend = polling
logpath = {folder}/portsentry.history
action = {action}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What is in the jail, and the command that lists what the kernel holds of it, if anything."""

    action: str | None = None  # fail2ban's own; None is our jail
    daemon: bool = False  # ours, which holds the bans in its firewall store
    listing: tuple[str, ...] = ()


ACTION = Side()
LOOP = Side(daemon=True, listing=Backend.NFTABLES.listing)
NO_ACTION = Side(action="")
"""Fills the database that a restart reads: with an action 10,000 bans take minutes, and are the same there."""
IPSET = Side(
    action=f'iptables-ipset-proto6-allports[name={JAIL}, bantime="%(bantime)s"]', listing=Backend.IPSET.listing
)
NFTABLES = Side(action=f"nftables[type=allports, name={JAIL}]", listing=("nft", "list", "ruleset"))


class Server:
    """A fail2ban with Debian's configuration on the host, in a process namespace that counts what it starts."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._config = ground.folder / "fail2ban"
        self._running: Running | None = None
        self.socket = ground.folder / "fail2ban.sock"
        shutil.copytree("/etc/fail2ban", self._config, ignore=shutil.ignore_patterns("*.local"))
        (self._config / "fail2ban.local").write_text(
            f"[Definition]\nsocket = {self.socket}\npidfile = {ground.folder}/fail2ban.pid\n"
            f"dbfile = {ground.folder}/fail2ban.sqlite3\nlogtarget = {ground.folder}/fail2ban.log\n"
        )

    def configure(self, side: Side) -> None:
        """Write the jail of a side, for the next start."""
        folder, local = self._ground.folder, self._config / "jail.local"
        if side.action is None:
            local.write_text("[sshd]\nenabled = false\n")
            config = ("--config", str(folder / "jailbridge.toml"))
            self._ground.run(*JAILBRIDGE, "fail2ban", "render", str(self._config), *config)
        else:
            local.write_text(_STOCK_JAIL.format(folder=folder, action=side.action))

    def start(self) -> None:
        """Start it, until it has its jail."""
        own = ["unshare", "--pid", "--fork", "--mount-proc"]
        self._running = running = self._ground.start(
            "fail2ban", [*own, "fail2ban-server", "-c", str(self._config), "-f", "start"]
        )
        self._ground.wait("fail2ban has its jail", lambda: running.poll() is not None or self._answers(), SLOW_S)
        if running.poll() is not None:
            raise FatalError(f"fail2ban ended: {self._ground.log('fail2ban')[-500:]}")

    def stop(self) -> None:
        """Stop it, to the end of its process."""
        assert self._running is not None
        self.ask("stop")
        self._running.wait(timeout=SLOW_S)

    def ask(self, *words: str) -> object:
        """Say something to it; return the answer."""
        with Fail2banSocket(self.socket, timeout_s=SLOW_S) as connection:
            return connection.ask(*words)

    def ban(self, addresses: Sequence[str]) -> None:
        """Ban them, so many with a command."""
        with Fail2banSocket(self.socket, timeout_s=SLOW_S) as connection:
            for first in range(0, len(addresses), AT_ONCE):
                connection.ask("set", JAIL, "banip", *addresses[first : first + AT_ONCE])

    def banned(self) -> int:
        """Return how many its jail holds."""
        answer = self.ask("get", JAIL, "banip")
        assert isinstance(answer, list)
        return len(answer)

    def tasks(self) -> int:
        """Return how many processes and threads there have been since its start, itself one of them.

        The kernel numbers them one by one, also the one that is started here to see its number.
        """
        assert self._running is not None
        into = f"--pid=/proc/{self._running.pid}/ns/pid_for_children"
        return int(self._ground.run("nsenter", into, "sh", "-c", "echo $$")) - 1

    def _answers(self) -> bool:
        try:
            return self.ask("get", JAIL, "actions") is not None
        except JailBridgeError:
            return False


@contextmanager
def prepared(side: Side, addresses: Sequence[str]) -> Iterator[tuple[Ground, Server, Callable[[], float]]]:
    """Give a host, its fail2ban, not started yet, and what tells the share (%) of addresses that the kernel holds."""
    with Ground() as ground:
        write_settings(ground.folder, backend=Backend.NFTABLES, deny="enabled = false", fail2ban=True)
        wanted = frozenset(addresses)

        def blocked() -> float:
            return 100 * figures.banned(ground.run(*side.listing, timeout_s=SLOW_S), wanted) / len(wanted)

        yield ground, Server(ground), blocked


def start_daemon(ground: Ground) -> None:
    """Start ours, and let it find fail2ban's jail as it is."""
    config = ("--config", str(ground.folder / "jailbridge.toml"))
    daemon = ground.start("daemon", [*JAILBRIDGE, "run", "--without", "sensor", *config])
    control = ground.folder / "control.sock"
    ground.wait("the daemon listens, or ended", lambda: control.exists() or daemon.poll() is not None)
    ground.settle(ground.folder / "portsentry.history")
    if daemon.poll() is not None:
        raise FatalError(f"the daemon ended: {ground.log('daemon')[-500:]}")


def longest_ping(server: Server, done: threading.Event) -> float:
    """Ping all the time until it is done; return how many seconds the slowest answer took."""
    longest = 0.0
    with Fail2banSocket(server.socket, timeout_s=SLOW_S) as connection:
        while not done.wait(PING_S):
            longest = max(longest, timed(partial(connection.ask, "ping")))
    return longest


def new_bans(sizes: Sizes, side: Side) -> Run:
    """Ban one command after another, while somebody else pings."""
    addresses = [source(number) for number in range(sizes.of(FEW))]
    with prepared(side, addresses) as (ground, server, blocked), ThreadPoolExecutor(1) as pool:
        server.configure(side)
        server.start()
        if side.daemon:
            start_daemon(ground)
        tasks, done = server.tasks(), threading.Event()
        longest = pool.submit(longest_ping, server, done)
        start = time.perf_counter()
        try:
            server.ban(addresses)
            answered = time.perf_counter() - start
            # Our daemon carries a wish when fail2ban has answered already.
            ground.wait("all are blocked", lambda: not side.listing or blocked() == 100, SLOW_S, GLANCE_S)
            carried = time.perf_counter() - start
        finally:
            done.set()
        return {
            "banned by fail2ban_per s": len(addresses) / answered,
            **({"all blocked after_s": carried} if side.listing else {}),
            "longest wait for ping_ms": 1000 * longest.result(),
            "processes and threads for a ban_n": (server.tasks() - tasks - 1) / len(addresses),
        }


def restart(sizes: Sizes, side: Side, number: int) -> Run:
    """Stop fail2ban and start it again with what its database holds."""
    addresses = [source(one) for one in range(sizes.of(number))]
    with prepared(side, addresses) as (ground, server, blocked):
        server.configure(side if side.daemon else NO_ACTION)
        server.start()
        if side.daemon:
            start_daemon(ground)
        server.ban(addresses)
        if side.daemon:
            ground.wait("all are blocked", lambda: blocked() == 100, SLOW_S, GLANCE_S)
        server.stop()
        server.configure(side)

        def is_back() -> bool:
            return server.banned() == len(addresses) and blocked() == 100

        def start() -> None:
            server.start()
            ground.wait("all are back", is_back, SLOW_S, GLANCE_S)

        seconds, tasks = timed(start), server.tasks()
        stopping = timed(server.stop)
        return {
            "all back_s": seconds,
            "processes and threads_n": tasks,
            "the stop_s": stopping,
            "blocked while it is stopped_%": blocked(),
        }


def restored(sizes: Sizes, number: int) -> Run:
    """Put as many back in an ipset by `jailbridge restore`, as after a reboot."""
    run = restore(sizes, Backend.IPSET, True, number)
    return {"all back_s": run["after a reboot_s"]}


# The rows


def rows(sizes: Sizes) -> Rows:
    """Return every row: its name, what it asks, and how each side is run once."""
    loop = f"{OURS} (run)"
    stock = {"iptables-ipset": IPSET, "nftables": NFTABLES}
    return {
        "bans-1k": (
            f"1,000 addresses, {AT_ONCE} with each `banip`",
            {
                name: partial(new_bans, sizes, side)
                for name, side in {loop: LOOP, f"{OURS} (action)": ACTION, **stock}.items()
            },
        ),
        **{
            f"restart-{number // 1000}k": (
                f"fail2ban started again with {number:,} bans in its database",
                {
                    loop: partial(restart, sizes, LOOP, number),
                    f"{OURS} (restore)": partial(restored, sizes, number),
                    **{name: partial(restart, sizes, side, number) for name, side in stock.items()},
                },
            )
            for number in (FEW, MANY)
        },
    }


if __name__ == "__main__":
    main("Measures fail2ban with our action and its own; needs root.", rows)
