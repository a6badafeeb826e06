"""`jailbridge portsentry`: reads flags and portsentry.conf, watches as they say, and ends with a signal.

It keeps root's rights, which KILL_ROUTE, KILL_HOSTS_DENY and KILL_RUN_CMD need: what it runs stands in portsentry.conf,
and nothing of an outsider's goes there but an address that was parsed and the number of a port.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from ipaddress import IPv4Address

from jailbridge import __version__, process, rivals
from jailbridge.config import portsentry_conf
from jailbridge.config.portsentry_conf import Blocking, Mode, PortsentryConf
from jailbridge.config.values import PortRange, without
from jailbridge.errors import FatalError, JailBridgeError, RetryLater
from jailbridge.history.file import HistoryFile
from jailbridge.model.event import Protocol
from jailbridge.model.network import Address
from jailbridge.portsentry import background, flags, lines
from jailbridge.portsentry.blocked import blocked
from jailbridge.portsentry.engine import Engine
from jailbridge.portsentry.flags import ALL, ALL_BUT_LOOPBACK, ANY, Asked, Invocation, LogTarget
from jailbridge.portsentry.ignore import Ignore
from jailbridge.portsentry.output import Output, Stdout, Syslog
from jailbridge.portsentry.respond import HostsDeny, Response
from jailbridge.portsentry.sentry import Sentry, Worker
from jailbridge.sensor.decoys import Decoys
from jailbridge.sensor.listening import Listening
from jailbridge.sensor.names import Named
from jailbridge.sensor.packet import Probe
from jailbridge.sensor.sensor import Watcher
from jailbridge.sensor.stealth import Stealth

STOP_S = 0.3
"""What is left of the second in which PortSentry ends."""
COMPLAIN_S = 10.0
_INTERFACES = {ALL: "all", ANY: "all", ALL_BUT_LOOPBACK: "all-but-loopback"}


def main(argv: Sequence[str]) -> int:
    """Do what PortSentry does with these arguments (without the program's name); return the exit code."""
    # Whoever ignores the end of its children has those do so too, and then nobody learns how a command ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        invocation = flags.parse(argv)
        if isinstance(invocation, Asked):
            text = flags.HELP if invocation is Asked.HELP else f"Portsentry 2.0.7 (jailbridge {__version__})\n"
            sys.stdout.write(text)
            return 0
        output: Output = Syslog() if invocation.log is LogTarget.SYSLOG else Stdout()
        try:
            conf = portsentry_conf.load(invocation.config, invocation.mode)
        except JailBridgeError as error:
            for line in str(error).splitlines():
                output.line(f"adminalert: ERROR: {line}")
            raise
        if invocation.daemonize:
            return background.run(lambda ready: _serve(invocation, conf, output, ready))
        return _serve(invocation, conf, output, lambda: None)
    except JailBridgeError as error:
        sys.stderr.write(f"jailbridge portsentry: {error}\n")
        return 1


def _serve(invocation: Invocation, conf: PortsentryConf, output: Output, ready: Callable[[], None]) -> int:
    """Watch until a signal ends it; `ready` is called when everything is open. Raises JailBridgeError."""
    # Commands inherit it, and nothing of it is PortSentry's.
    for name in set(os.environ) - {"TZ"}:
        del os.environ[name]
    os.environ["PATH"] = process.SEARCH_PATH
    logging.basicConfig(level=logging.INFO if invocation.debug else logging.WARNING, handlers=[_Lines(output)])
    stop = threading.Event()
    first = invocation.version == 1
    if first:
        output.line(lines.STARTING_1)
    try:
        _Daemon(invocation, conf, output, stop).run(ready)
    except Exception as error:
        output.line(f"adminalert: ERROR: {error if isinstance(error, JailBridgeError) else repr(error)}")
        raise
    finally:
        for line in lines.STOPPING_1 if first else lines.STOPPING_2:
            output.line(line)
    return 0


def _live() -> Mapping[Protocol, Collection[int]]:
    """Return the ports with a service; to be asked before our own decoys take some."""
    listening = Listening()
    listening.refresh(time.monotonic())
    return {Protocol.TCP: listening.tcp, Protocol.UDP: listening.udp}


class _Lines(logging.Handler):
    """Our own parts' log messages as PortSentry's lines."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        kind = "adminalert" if record.levelno >= logging.WARNING else "debug"
        self._output.line(f"{kind}: {record.getMessage()}")


class _Daemon:
    def __init__(self, invocation: Invocation, conf: PortsentryConf, output: Output, stop: threading.Event) -> None:
        self._invocation = invocation
        self._conf = conf
        self._mode = invocation.mode
        self._output = output
        self._stop = stop
        self._blocked = blocked(conf, self._mode)
        self._history = HistoryFile(conf.history_file, "HISTORY_FILE") if conf.history_file is not None else None
        self._ignore = Ignore(conf.ignore_file)
        self._ignore_problem = ""
        self._complained_at = float("-inf")
        self._sentry = Sentry(
            conf,
            self._mode,
            response=Response(conf, self._mode, HostsDeny()),
            blocked=self._blocked,
            history=self._history,
            output=output,
            verbose=invocation.verbose,
        )
        self._engine = Engine(
            conf.scan_trigger,
            {p: self._mode.version == 1 or conf.blocking(p) is not Blocking.LOG for p in Protocol},
            self._is_ignored,
            self._sentry.is_blocked if conf.blocked_path(self._mode) is not None else None,
        )
        self._worker = Worker(self._sentry.take, self._engine.settled, failed=stop.set)
        self._report = self._worker.report

    def run(self, ready: Callable[[], None]) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        rivals.refuse()
        if self._history is not None:
            self._history.claim(self._mode.protocols)
        with ExitStack() as stack:
            watched = {protocol: self._conf.watched(protocol, self._mode) for protocol in Protocol}
            live = _live()
            opening = list(self._opening(watched, live))
            watcher = stack.enter_context(self._watcher(watched, live))
            self._blocked.start()
            self._worker.start()
            if self._conf.resolve_host:
                self._report = stack.enter_context(closing(Named(self._worker.report))).report
            for line in (*opening, *self._shells()):
                self._output.line(line)
            self._is_ignored(IPv4Address(0), time.monotonic())
            # What the commands write is nobody else's business, as with PortSentry.
            os.umask(0o077)
            # From here on no packet is missed: the sockets are open.
            self._output.line(lines.ACTIVE_1 if self._mode.version == 1 else lines.ACTIVE_2)
            ready()
            watcher.run(self._stop, self._take)
        self._worker.stop(STOP_S)
        if self._worker.failure is not None:
            raise FatalError(f"the responses ended: {self._worker.failure!r}") from self._worker.failure
        if self._engine.due:
            self._output.line(f"adminalert: {self._engine.due} hosts were still to be blocked")

    def _watcher(
        self, watched: Mapping[Protocol, Sequence[PortRange]], live: Mapping[Protocol, Collection[int]]
    ) -> Watcher:
        interfaces = [_INTERFACES.get(name, name) for name in self._invocation.interfaces]
        tcp, udp = watched[Protocol.TCP], watched[Protocol.UDP]
        if self._mode in {Mode.TCP, Mode.UDP, Mode.CONNECT}:
            return Decoys(
                tcp, udp, banner=self._conf.port_banner, interfaces=interfaces, skip_own=self._invocation.local_check
            )
        if self._mode.version == 1:
            # For good, as in 1.2: when such a service is restarted, its clients are no scanners.
            tcp, udp = (without(watched[p], [(port, port) for port in sorted(live[p])]) for p in Protocol)
        return Stealth(
            tcp,
            udp,
            interfaces=interfaces,
            skip_own=self._invocation.local_check,
            skip_live=self._invocation.service_check,
        )

    def _opening(
        self, watched: Mapping[Protocol, Sequence[PortRange]], live: Mapping[Protocol, Collection[int]]
    ) -> Iterator[str]:
        """Yield what is told of the ports."""
        for protocol in self._mode.protocols:
            ports = list(lines.numbers(watched[protocol]))
            in_use = sorted(set(live[protocol]).intersection(ports))
            if self._mode.is_advanced:
                is_tcp = protocol is Protocol.TCP
                below = self._conf.advanced_tcp if is_tcp else self._conf.advanced_udp
                excluded = list(lines.numbers(self._conf.exclude_tcp if is_tcp else self._conf.exclude_udp))
                yield from lines.advanced_1(below, excluded, in_use, protocol)
            elif self._mode.version == 1:
                stealth = self._mode in {Mode.STCP, Mode.SUDP}
                yield from lines.listening_1(ports, in_use, protocol, stealth=stealth)
            elif self._mode is Mode.CONNECT:
                yield from lines.listening_2((port for port in ports if port not in in_use), protocol)

    def _shells(self) -> Iterator[str]:
        for name, command in (("KILL_ROUTE", self._conf.kill_route), ("KILL_RUN_CMD", self._conf.kill_run_cmd)):
            if command is not None and command.shell:
                yield f"adminalert: {name} has shell syntax and is run by /bin/sh -c: {command.text}"

    def _take(self, probes: Sequence[Probe], now: float) -> None:
        for probe in probes:
            decision = self._engine.decide(probe, now)
            if decision is None or (report := self._sentry.report_of(decision)) is None:
                continue
            try:
                self._report([report])
            except RetryLater as error:
                self._engine.take_back(decision)
                if now - self._complained_at >= COMPLAIN_S:
                    self._complained_at = now
                    self._output.line(f"adminalert: ERROR: scans wait for their next packet: {error}")

    def _is_ignored(self, address: Address, now: float) -> bool:
        try:
            holds = self._ignore.holds(address, now)
        except RetryLater as error:
            if (problem := str(error)) != self._ignore_problem:
                self._ignore_problem = problem
                self._output.line(f"adminalert: ERROR: {problem}")
            return True
        self._ignore_problem = ""
        return holds
