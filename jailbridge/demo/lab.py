"""A small lab: a host and an outside network, each a network namespace, and a folder that stands for the host's disk.

Nothing of the machine itself is touched: no rule, no file outside the folder, no process but those started here.
Addresses are from TEST-NET-2 (RFC 5737) and 2001:db8::/32 (RFC 3849); no packet leaves the two namespaces.
"""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from jailbridge import process
from jailbridge.config import Settings, parse
from jailbridge.errors import FatalError
from jailbridge.process import Running

HOST, HOST6 = "198.51.100.1", "2001:db8:1::1"
ATTACKER, ATTACKER6 = "198.51.100.66", "2001:db8:1::66"
INNOCENT = "198.51.100.20"
SECOND = "198.51.100.99"
OUTSIDE = (ATTACKER, INNOCENT, SECOND)
SERVICE_PORT = 80
TOOLS = {  # and the Debian package that has each
    "ip": "iproute2",
    "nft": "nftables",
    "nmap": "nmap",
    "fail2ban-server": "fail2ban",
    "fail2ban-client": "fail2ban",
}

_SERVICE = f"""
import socketserver, sys
class Greet(socketserver.BaseRequestHandler):
    def handle(self): self.request.sendall(b"hello\\n")
class Server(socketserver.ThreadingTCPServer): allow_reuse_address = daemon_threads = True
Server(("{HOST}", {SERVICE_PORT}), Greet).serve_forever()
"""
_CONNECT = f"""
import socket, sys
try:
    with socket.create_connection(("{HOST}", {SERVICE_PORT}), float(sys.argv[2]), (sys.argv[1], 0)) as peer:
        print("connected" if peer.recv(5) == b"hello" else "strange")
except TimeoutError: print("timed out")
except OSError as error: print(error.strerror)
"""
_CONFIG = """
[sensor]
tcp_ports = "1-1023"
[history]
path = "{disk}/portsentry.history"
[policy]
allow_files = [{allow_files}]
{policy}
[ledger]
path = "{disk}/ledger.sqlite3"
[stores.hosts_deny]
path = "{disk}/hosts.deny"
[stores.blocked_files]
paths = ["{disk}/portsentry.blocked.*"]
[portsentry]
conf = "{disk}/portsentry.conf"
[control]
socket = "{run}/control.sock"
[reconcile]
interval = "5s"
[respond]
queue = "{disk}/respond.sqlite3"
[stores.fail2ban]
socket = "{run}/fail2ban.sock"
{extra}
"""
_FAIL2BAN = """
[Definition]
loglevel = INFO
logtarget = {disk}/fail2ban.log
syslogsocket = auto
socket = {run}/fail2ban.sock
pidfile = {run}/fail2ban.pid
dbfile = {disk}/fail2ban.sqlite3
dbpurgeage = 1d
dbmaxmatches = 10
allowipv6 = auto
"""
_FOLDER = "jailbridge-lab-"
HOSTS_DENY = "# /etc/hosts.deny of the lab's host\nsshd: 203.0.113.5\n"


class Failed(FatalError):
    """Something in the lab did not come about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command in the lab printed, and its exit code."""

    code: int
    out: str
    err: str


def missing() -> list[str]:
    """Return the reasons why no lab can be made here; none is the empty list."""
    if os.geteuid() != 0:
        return ["root (network namespaces, raw sockets, firewall rules): run it with sudo"]
    return [
        f"{tool} (apt install {package})"
        for tool, package in TOOLS.items()
        if shutil.which(tool, path=process.SEARCH_PATH) is None
    ]


class Lab:
    """`with Lab() as lab:` - a host that can lose its power, and hosts outside that can scan it."""

    def __init__(self, extra: str = "", *, policy: str = "", allow_files: Sequence[str] = ()) -> None:
        """`extra` goes on after the last table, which is [stores.fail2ban]; `policy` is more of [policy]."""
        reasons = missing()
        if reasons:
            raise FatalError(f"this needs {'; '.join(reasons)}")
        _sweep()
        self.tag = f"jb-{os.getpid()}-{os.urandom(2).hex()}"
        self.host, self.outside = f"{self.tag}-host", f"{self.tag}-out"
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))
        self.disk, self.run_folder = self.folder / "disk", self.folder / "run"
        self.config = self.disk / "jailbridge.toml"
        self._extra, self._policy = extra, policy
        self._allow_files = ", ".join(f'"{path}"' for path in allow_files)
        self._processes: list[Running] = []

    def __enter__(self) -> Self:
        try:
            # The sensor reaches its history as an unprivileged user.
            self.folder.chmod(0o755)
            self.disk.mkdir()
            text = _CONFIG.format(
                disk=self.disk,
                run=self.run_folder,
                extra=self._extra,
                policy=self._policy,
                allow_files=self._allow_files,
            )
            self.config.write_text(text, encoding="utf-8")
            (self.disk / "hosts.deny").write_text(HOSTS_DENY, encoding="utf-8")
            self.history.touch()
            self._do("ip", "netns", "add", self.outside)
            self._do("ip", "-n", self.outside, "link", "set", "lo", "up")
            self.power_on()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def settings(self) -> Settings:
        """The configuration that every jailbridge in the lab reads."""
        return parse(self.config.read_text(encoding="utf-8"), str(self.config))

    @property
    def history(self) -> Path:
        """The history file."""
        return self.disk / "portsentry.history"

    # Power

    def power_on(self) -> None:
        """Make the host's network anew, with no rule in it, and the folder that a boot empties; start its service."""
        self.run_folder.mkdir()
        self._do("ip", "netns", "add", self.host)
        self._do("ip", "link", "add", "eth0", "netns", self.host, "type", "veth", "peer", "eth0", "netns", self.outside)
        for namespace, addresses in ((self.host, (HOST, HOST6)), (self.outside, (*OUTSIDE, ATTACKER6))):
            self._do("ip", "-n", namespace, "link", "set", "lo", "up")
            for address in addresses:
                size = "64" if ":" in address else "24"
                extra = ("nodad",) if ":" in address else ()
                self._do("ip", "-n", namespace, "address", "add", f"{address}/{size}", "dev", "eth0", *extra)
            self._do("ip", "-n", namespace, "link", "set", "eth0", "up")
        self.spawn("service", [sys.executable, "-I", "-c", _SERVICE])
        self.wait("the service answers", lambda: self.connect(INNOCENT) == "connected")

    def cut_power(self) -> None:
        """End every process of the host without notice and take its network away; the disk stays."""
        for running in self._processes:
            running.kill()
        for running in self._processes:
            running.wait()
        self._processes.clear()
        self._empty(self.host)
        self._try("ip", "-n", self.host, "link", "delete", "eth0")
        self._do("ip", "netns", "delete", self.host)
        shutil.rmtree(self.run_folder)

    def close(self) -> None:
        """End and remove everything that was made here, whatever state it is in."""
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for running in self._processes:
                with contextlib.suppress(ProcessLookupError):
                    running.kill()
                running.wait()
            for namespace in (self.host, self.outside):
                self._empty(namespace)
                self._try("ip", "netns", "delete", namespace)
            shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # Programs

    def spawn(self, name: str, argv: Sequence[str]) -> Running:
        """Start a program on the host, its output in NAME.log on the disk."""
        with (self.disk / f"{name}.log").open("ab") as log:
            started = process.start(self._within(self.host, argv), log=log)
        self._processes.append(started)
        return started

    def kill(self, running: Running) -> None:
        """End a program that `spawn` started, without notice."""
        running.kill()
        running.wait()
        self._processes.remove(running)

    def on_host(self, *argv: str, timeout_s: float = 30.0) -> Answer:
        """Run a program on the host to its end."""
        return self._in(self.host, argv, timeout_s)

    def from_outside(self, *argv: str, timeout_s: float = 60.0) -> Answer:
        """Run a program outside to its end."""
        return self._in(self.outside, argv, timeout_s)

    def jailbridge(self, *arguments: str) -> Answer:
        """Run a jailbridge command on the host."""
        return self.on_host(*self.jailbridge_argv(*arguments))

    def jailbridge_argv(self, *arguments: str) -> list[str]:
        """Return the argument list of a jailbridge command with the lab's configuration."""
        return [sys.executable, "-m", "jailbridge", *arguments, "--config", str(self.config)]

    def start_daemon(self, *arguments: str) -> Running:
        """Start `jailbridge run` and wait until it answers."""
        daemon = self.spawn("jailbridge", self.jailbridge_argv("run", *arguments))
        self.wait(
            "jailbridge run answers",
            lambda: daemon.poll() is not None or self.settings.control.socket.is_socket(),
        )
        if daemon.poll() is not None:
            raise Failed(f"jailbridge run ended: {self.tail('jailbridge')}")
        return daemon

    def start_fail2ban(self) -> Running:
        """Start a fail2ban server of the lab's own, with the jail that we ship, and wait until it answers."""
        folder = self.disk / "fail2ban"
        folder.mkdir(exist_ok=True)
        text = _FAIL2BAN.format(disk=self.disk, run=self.run_folder)
        (folder / "fail2ban.conf").write_text(text, encoding="utf-8")
        (folder / "jail.conf").write_text("[DEFAULT]\n", encoding="utf-8")
        answer = self.jailbridge("fail2ban", "render", str(folder))
        if answer.code != 0:
            raise Failed(f"fail2ban render failed: {answer.err}")
        server = self.spawn("fail2ban-server", ["fail2ban-server", "-f", "-x", "-c", str(folder), "start"])
        self.wait("fail2ban answers", lambda: server.poll() is not None or self.fail2ban("ping").code == 0)
        if server.poll() is not None:
            raise Failed(f"fail2ban ended: {self.tail('fail2ban-server')}")
        return server

    def fail2ban(self, *arguments: str) -> Answer:
        """Run fail2ban-client against the lab's own server."""
        folder = str(self.disk / "fail2ban")
        return self.on_host("fail2ban-client", "-c", folder, "-s", str(self.run_folder / "fail2ban.sock"), *arguments)

    def scan(self, source: str, ports: str = "1-40", *options: str) -> Answer:
        """Scan the host's ports with nmap from one of the outside addresses."""
        target = HOST6 if ":" in source else HOST
        family = ("-6",) if ":" in source else ()
        kind = options or ("-sS",)
        # fmt: off
        return self.from_outside(
            "nmap", *family, *kind, "-n", "-Pn", "-T4", "--max-retries", "0", "--host-timeout", "20s",
            "-S", source, "-e", "eth0", "-p", ports, target,
        )
        # fmt: on

    def connect(self, source: str, timeout_s: float = 1.0) -> str:
        """Try the host's service from an outside address: `connected`, `timed out`, or the reason why not."""
        answer = self.from_outside(sys.executable, "-I", "-c", _CONNECT, source, str(timeout_s))
        return answer.out.strip() or answer.err.strip()

    def wait(self, what: str, holds: Callable[[], bool], timeout_s: float = 15.0) -> float:
        """Wait until something holds; return how long it took, in seconds. Raises Failed."""
        start = time.monotonic()
        while not holds():
            if time.monotonic() - start > timeout_s:
                raise Failed(f"not within {timeout_s:g} s: {what}")
            time.sleep(0.05)
        return time.monotonic() - start

    def tail(self, name: str, lines: int = 5) -> str:
        """Return the last lines of a program's output."""
        path = self.disk / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def _in(self, namespace: str, argv: Sequence[str], timeout_s: float) -> Answer:
        result = process.run(self._within(namespace, argv), timeout_s=timeout_s)
        return Answer(code=result.code, out=result.out, err=result.err)

    def _within(self, namespace: str, argv: Sequence[str]) -> list[str]:
        return [process.find("ip", "iproute2"), "netns", "exec", namespace, *argv]

    def _empty(self, namespace: str) -> None:
        """End what still runs in a namespace of ours (a server's own children)."""
        with contextlib.suppress(Failed):
            for pid in self._do("ip", "netns", "pids", namespace).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)

    def _do(self, *argv: str) -> str:
        result = process.run([process.find(argv[0], TOOLS[argv[0]]), *argv[1:]])
        if result.code != 0:
            raise Failed(f"{' '.join(argv)}: {result.first_error}")
        return result.out

    def _try(self, *argv: str) -> None:
        with contextlib.suppress(Failed):
            self._do(*argv)


def _sweep() -> None:
    """Remove the namespaces and folders of labs whose process is gone (killed before it could clean up)."""
    for name in _namespaces():
        owner = name.split("-")[1]
        if not Path(f"/proc/{owner}").exists():
            for pid in process.run(["ip", "netns", "pids", name]).out.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            process.run(["ip", "netns", "delete", name])
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*-*"):
        owner = folder.name.removeprefix(_FOLDER).split("-")[0]
        # Anybody may make such a name in /tmp: only what is ours is removed.
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and folder.lstat().st_uid == os.geteuid():
            shutil.rmtree(folder, ignore_errors=True)


def _namespaces() -> Iterator[str]:
    for line in process.run([process.find("ip", "iproute2"), "netns", "list"]).out.splitlines():
        name = line.split()[0] if line.strip() else ""
        if name.startswith("jb-") and name.split("-")[1].isdigit() and name.endswith(("-host", "-out")):
            yield name
