"""Runs a command for an event: an argument list, an environment of its own, a time limit. Never a shell."""

import logging
import os
import pwd
import select
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple

from jailbridge import process
from jailbridge.config.placeholders import HOSTNAME, filled, named
from jailbridge.config.responding import CommandSettings
from jailbridge.errors import RetryLater
from jailbridge.process import Running
from jailbridge.respond.hostname import hostname
from jailbridge.respond.queue import Command

log = logging.getLogger("jailbridge.respond")

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UMASK = 0o077
# Of a command's output so much is kept, and shown in the log.
MAX_OUTPUT = 4096
MAX_LINES = 50
# A pipe holds so much (pipe(7)).
_PART = 1 << 16
# How often it is seen whether we are to end.
_LOOK_S = 0.2
_TOLD = ("address", "port", "ports", "protocol", "mode", HOSTNAME, "reason", "until", "time")


class Ended(NamedTuple):
    """How a command ended: its exit code (of a signal N: -N), None where it was killed by us; what it printed."""

    code: int | None
    output: bytes


class Outcome(Enum):
    """What came of a command; after INTERRUPTED it is to run again."""

    DONE = auto()
    FAILED = auto()
    INTERRUPTED = auto()


def missing(commands: Iterable[CommandSettings]) -> Iterator[tuple[str, str]]:
    """Yield (key, problem) for each command whose program is not there, or cannot be run."""
    for n, command in enumerate(commands):
        program = command.run[0]
        if shutil.which(program, path=PATH) is None:
            where = "" if Path(program).is_absolute() else f" in {PATH}"
            yield f"respond.command.{n}.run", f"there is no program {program}{where} that can be run"


def environment(values: Mapping[str, str], *, blocked: bool) -> dict[str, str]:
    """Return all that a command's environment has; `values` as Event.values has them, and the hostname."""
    return {
        "PATH": PATH,
        "HOME": _home(),
        "LANG": "C.UTF-8",
        **{f"JAILBRIDGE_{name.upper()}": values[name] for name in _TOLD},
        "JAILBRIDGE_EVENT": values["what"],
        "JAILBRIDGE_BLOCKED": "yes" if blocked else "no",
    }


def respond(command: Command, stop: threading.Event, *, blocked: bool) -> Outcome:
    """Run a command for its event to the end, and tell of it in the log. Once `stop` is set it is killed."""
    event, values = command.event, {**command.event.values, HOSTNAME: ""}
    if HOSTNAME in set(named(command.words)):
        values[HOSTNAME] = hostname(event.network)
    argv = [filled(word, values) for word in command.words]
    about = argv[0], values["address"], values["what"]
    began = time.monotonic()
    try:
        ended = run(argv, environment(values, blocked=blocked), command.timeout_s, stop)
    except RetryLater as error:
        # Not tried again: what cannot be started now would hold up those behind it for ever.
        log.warning("command failed program=%s address=%s what=%s error=%s", *about, error)
        return Outcome.FAILED
    took_s = time.monotonic() - began
    for text in _lines(ended.output):
        log.info("command said program=%s address=%s what=%s: %s", *about, text)
    if ended.code == 0:
        log.info("command ended program=%s address=%s what=%s code=0 seconds=%.1f", *about, took_s)
        return Outcome.DONE
    if ended.code is not None:
        log.warning("command failed program=%s address=%s what=%s code=%d seconds=%.1f", *about, ended.code, took_s)
        return Outcome.FAILED
    if took_s < command.timeout_s:
        log.warning("command interrupted program=%s address=%s what=%s: it runs again", *about)
        return Outcome.INTERRUPTED
    log.warning("command killed program=%s address=%s what=%s seconds=%.1f: it took too long", *about, took_s)
    return Outcome.FAILED


def run(argv: Sequence[str], env: Mapping[str, str], timeout_s: float, stop: threading.Event) -> Ended:
    """Run a program to its end; after its time, or once `stop` is set, it is killed, with all of its session.

    What it leaves in the background when it ends by itself goes on, but is not listened to. Raises RetryLater.
    """
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    try:
        try:
            running = process.start(argv, log=theirs, cwd=Path("/"), env=env, umask=UMASK)
        finally:
            os.close(theirs)
        return _listen(running, ours, time.monotonic() + timeout_s, stop)
    finally:
        os.close(ours)


def _listen(running: Running, output: int, deadline_s: float, stop: threading.Event) -> Ended:
    kept = bytearray()
    # It is waited for only when it has ended or was killed: until then its number, and its session's, is its own.
    exited = os.pidfd_open(running.pid)
    try:
        waiting = select.poll()
        waiting.register(exited, select.POLLIN)
        waiting.register(output, select.POLLIN)
        while (left_s := deadline_s - time.monotonic()) > 0 and not stop.is_set():
            ready = dict(waiting.poll(min(left_s, _LOOK_S) * 1000))
            if output in ready and not _read(output, kept):
                waiting.unregister(output)
            if exited in ready:
                _read(output, kept)
                return Ended(running.wait(), bytes(kept))
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        _read(output, kept)
        return Ended(None, bytes(kept))
    finally:
        os.close(exited)


def _read(output: int, kept: bytearray) -> bool:
    """Read once what is there, and keep the beginning of it all; tell whether more may come."""
    with suppress(BlockingIOError):
        part = os.read(output, _PART)
        kept += part[: MAX_OUTPUT - len(kept)]
        return part != b""
    return True


def _lines(output: bytes) -> Iterator[str]:
    """Yield a program's lines, fit for a log of ours: it may have printed what an outsider wrote."""
    lines = [text for text in output.decode(errors="replace").splitlines() if text.strip()]
    for text in lines[:MAX_LINES]:
        yield "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    if len(lines) > MAX_LINES or len(output) == MAX_OUTPUT:
        yield "(and more)"


def _home() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return "/"
