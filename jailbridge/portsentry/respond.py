"""What PortSentry does to a source: a line in hosts.deny, KILL_ROUTE, KILL_RUN_CMD. Decides nothing.

PortSentry runs its commands with system(3) and says "has been blocked" whatever comes of them. Here a KILL_ROUTE that
fails, or takes longer than its time, is told by the error line that PortSentry has for one that cannot be started.
"""

import errno
import os
import select
import signal
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

from jailbridge import process
from jailbridge.config.portsentry_conf import Blocking, KillCommand, Mode, PortsentryConf
from jailbridge.errors import RetryLater
from jailbridge.model.event import Protocol
from jailbridge.model.network import Address
from jailbridge.portsentry import lines

HOSTS_DENY = Path("/etc/hosts.deny")
MODE = 0o644
MAX_DENY_BYTES = 16 << 20
"""TCP wrappers read the whole file for every connection, and who forges sources makes it grow."""
COMMAND_S = 10.0
"""The longest that a command may take: nobody is blocked meanwhile."""
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_MOVED = 3


class Ran(NamedTuple):
    """What came of a command: whether it came to its own end, and why it failed, "" if it did not."""

    ended: bool
    failure: str


Runner: TypeAlias = Callable[[Sequence[str]], Ran]


def run_command(argv: Sequence[str], timeout_s: float = COMMAND_S) -> Ran:
    """Run a command to its end, without input and output; what it leaves in the background goes on.

    After the time it is killed, and all that it started.
    """
    try:
        running = process.start(argv)
    except RetryLater as error:
        return Ran(False, str(error))
    ended = os.pidfd_open(running.pid)
    try:
        in_time = bool(_ready(ended, timeout_s))
    finally:
        os.close(ended)
    if not in_time:
        # It has a session of its own.
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        return Ran(False, f"{argv[0]} did not end within {timeout_s:g} s")
    code = running.wait()
    if code < 0:
        return Ran(True, f"{argv[0]} was ended by signal {-code}")
    return Ran(True, f"{argv[0]} ended with exit code {code}" if code else "")


class HostsDeny:
    """Appends lines to hosts.deny, each in one write and none twice. Raises RetryLater."""

    def __init__(self, path: Path = HOSTS_DENY) -> None:
        self.path = path
        self._known: tuple[tuple[int, ...], set[bytes]] = ((), set())

    def append(self, line: str) -> None:
        """Append the line, if it is not there."""
        data = line.encode()
        with self._explained():
            for _ in range(_MOVED):
                path = self._followed()
                descriptor = _opened(path)
                try:
                    self._write(descriptor, data)
                    # Whoever edits it puts a new file in its place: what an older one holds does not count.
                    if os.path.samestat(os.fstat(descriptor), path.lstat()):
                        return
                except FileNotFoundError:
                    continue
                finally:
                    os.close(descriptor)
            raise RetryLater(f"{self.path} is replaced all the time: end what does so")

    def _followed(self) -> Path:
        """Return the path with a symbolic link followed that is ours or root's: another's could lead anywhere."""
        try:
            status = self.path.lstat()
        except FileNotFoundError:
            return self.path
        if not stat.S_ISLNK(status.st_mode):
            return self.path
        if status.st_uid not in {0, os.geteuid()}:
            raise RetryLater(f"{self.path} is a symbolic link of user {status.st_uid}: put the file itself there")
        # Not Path.resolve(), whose error about a link to itself is another one in each Python.
        return Path(os.path.realpath(self.path, strict=True))

    def _write(self, descriptor: int, data: bytes) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RetryLater(f"{self.path} is not a regular file: put one there")
        if status.st_size > MAX_DENY_BYTES:
            raise RetryLater(f"{self.path} is over {MAX_DENY_BYTES >> 20} MiB: take out what is no longer needed")
        if data.strip() in self._lines(descriptor, status):
            return
        whole = _ending(os.pread(descriptor, 2, max(status.st_size - 2, 0))) + data + b"\n"
        written = os.write(descriptor, whole)
        after = os.fstat(descriptor)
        if written != len(whole):
            # The beginning of an address is another one, or a whole network.
            if after.st_size == status.st_size + written:
                os.ftruncate(descriptor, status.st_size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if after.st_size == status.st_size + len(whole):
            self._known[1].add(data.strip())
            self._known = _identity(after), self._known[1]

    def _lines(self, descriptor: int, status: os.stat_result) -> set[bytes]:
        """Return the lines of the file, read again only if somebody else changed it."""
        if self._known[0] != _identity(status):
            with os.fdopen(os.dup(descriptor), "rb") as file:
                file.seek(0)
                self._known = _identity(status), {line.strip() for line in file}
        return self._known[1]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RetryLater(f"{self.path} cannot be written: {error.strerror}") from None


class Response:
    """What a portsentry.conf wants done to a source."""

    def __init__(self, conf: PortsentryConf, mode: Mode, hosts_deny: HostsDeny, run: Runner = run_command) -> None:
        self._conf = conf
        self._mode = mode
        self._hosts_deny = hosts_deny
        self._run = run

    def to(self, address: Address, port: int, protocol: Protocol) -> Iterator[str]:
        """Do it, and yield PortSentry's line of each step when it is done."""
        conf, blocking = self._conf, self._conf.blocking(protocol)
        if blocking is Blocking.LOG:
            yield lines.not_blocking_1(protocol)
            return
        if conf.kill_run_cmd_first:
            yield from self._command(address, port)
        if blocking is Blocking.BLOCK:
            yield from self._deny(address, port)
            yield from self._route(address, port)
        if not conf.kill_run_cmd_first:
            yield from self._command(address, port)

    def _deny(self, address: Address, port: int) -> Iterator[str]:
        if (rule := self._conf.kill_hosts_deny) is None:
            return
        line = rule.line(address, port, self._mode)
        try:
            self._hosts_deny.append(line)
        except RetryLater as error:
            yield f"adminalert: cannot open hosts.deny file: {self._hosts_deny.path} for blocking. ({error})"
            return
        yield lines.wrapped(address, line)

    def _route(self, address: Address, port: int) -> Iterator[str]:
        if (command := self._conf.kill_route) is not None:
            ran, shown = self._ran(command, address, port)
            yield lines.route_failed(address, ran.failure) if ran.failure else lines.routed(address, shown)

    def _command(self, address: Address, port: int) -> Iterator[str]:
        if (command := self._conf.kill_run_cmd) is not None:
            ran, shown = self._ran(command, address, port)
            if ran.ended:
                yield lines.commanded(address, shown)
            if ran.failure:
                yield lines.command_failed(address, ran.failure)

    def _ran(self, command: KillCommand, address: Address, port: int) -> tuple[Ran, str]:
        ran = self._run(command.substituted(address, port, self._mode))
        return ran, command.shown(address, port, self._mode)


def _opened(path: Path) -> int:
    try:
        return os.open(path, _FLAGS)
    except FileNotFoundError:
        descriptor = os.open(path, _FLAGS | os.O_CREAT, MODE)
        # Services of any user ask it, whatever our umask is.
        os.fchmod(descriptor, MODE)
        return descriptor


def _ending(last: bytes) -> bytes:
    """Return what ends the line that a file's last two bytes belong to; a final backslash would join the next one."""
    newline = b"\n" if last and not last.endswith(b"\n") else b""
    return newline + (b"\n" if (last + newline).endswith(b"\\\n") else b"")


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _ready(descriptor: int, timeout_s: float) -> object:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return poll.poll(timeout_s * 1000)
