"""The one door to other programs. Argument lists only, never a shell, always a time limit."""

import os
import select
import shutil
import subprocess
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

from jailbridge.errors import FatalError, RetryLater

Running: TypeAlias = "subprocess.Popen[bytes]"
"""A program that goes on by itself."""

# Where root's tools live, for callers (cron, a user's shell) whose PATH lacks them. Never a relative folder, nor the
# empty one that stands for the current: whoever owns that would be root.
SEARCH_PATH = os.pathsep.join(
    folder
    for folder in [
        *os.environ.get("PATH", "").split(os.pathsep),
        *("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"),
    ]
    if Path(folder).is_absolute()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a finished program left: exit code and its two outputs."""

    code: int
    out: str
    err: str

    @property
    def first_error(self) -> str:
        """The first line that says what went wrong."""
        lines = [line for line in (self.err or self.out).splitlines() if line.strip()]
        return lines[0].strip() if lines else f"exit code {self.code}"


def find(program: str, package: str) -> str:
    """Return the program's path. Raises FatalError that names the Debian package which has it."""
    path = shutil.which(program, path=SEARCH_PATH)
    if path is None:
        raise FatalError(f"{program} is not on this machine: apt install {package}")
    return path


def has(program: str) -> bool:
    """Tell whether this machine has a program."""
    return shutil.which(program, path=SEARCH_PATH) is not None


def run(
    argv: Sequence[str], *, given: str = "", timeout_s: float = 10.0, env: Mapping[str, str] | None = None
) -> Result:
    """Run a program to its end with `given` on its standard input.

    Raises RetryLater when it cannot start or is too slow.
    """
    try:
        done = subprocess.run(  # noqa: S603 - an argument list; callers pass no outsider's text as an option
            argv,
            input=given,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            env=env,
        )
    except subprocess.TimeoutExpired:
        raise RetryLater(f"{argv[0]} did not answer within {timeout_s:g} s") from None
    except OSError as error:
        raise RetryLater(f"{argv[0]} cannot be started: {error.strerror}") from None
    return Result(code=done.returncode, out=done.stdout, err=done.stderr)


def start(
    argv: Sequence[str],
    *,
    log: IO[bytes] | int = subprocess.DEVNULL,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    umask: int = -1,
) -> Running:
    """Start a program that goes on by itself, its output in `log`, in a session of its own. Raises RetryLater.

    `env` is all of its environment, and where its name is looked for; `umask` -1 is ours.
    """
    try:
        return subprocess.Popen(  # noqa: S603
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=env,
            umask=umask,
            start_new_session=True,
        )
    except OSError as error:
        raise RetryLater(f"{argv[0]} cannot be started: {error.strerror}") from None


def start_producing(argv: Sequence[str], *, errors: IO[bytes]) -> Running:
    """Start a program that goes on by itself and writes lines to its `stdout`, a pipe; its errors go to `errors`.

    Whoever reads the pipe must close it and end the program. Raises RetryLater.
    """
    try:
        return subprocess.Popen(  # noqa: S603
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True, bufsize=0
        )
    except OSError as error:
        raise RetryLater(f"{argv[0]} cannot be started: {error.strerror}") from None


class Conversation:
    """A program that goes on by itself and answers each line by one. It is ended with whoever holds this.

    Its errors are not kept: what is worth telling it must answer. Not thread-safe.
    """

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
        """Start the program. Raises RetryLater."""
        self._name = argv[0]
        try:
            self._running = subprocess.Popen(  # noqa: S603
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=env,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise RetryLater(f"{argv[0]} cannot be started: {error.strerror}") from None
        self._finalizer = weakref.finalize(self, _end, self._running)
        assert self._running.stdin is not None
        assert self._running.stdout is not None
        self._in, self._out = self._running.stdin.fileno(), self._running.stdout.fileno()
        os.set_blocking(self._in, False)

    def ask(self, line: str, *, timeout_s: float) -> str:
        """Send a line and return the answer, without its newline. Raises RetryLater; then the program is ended."""
        given, answer = line.encode() + b"\n", b""
        deadline = time.monotonic() + timeout_s
        waiting = select.poll()
        try:
            waiting.register(self._out, select.POLLIN)
            waiting.register(self._in, select.POLLOUT)
            while not answer.endswith(b"\n"):
                ready = dict(waiting.poll(max(0.0, deadline - time.monotonic()) * 1000))
                if not ready:
                    raise TimeoutError
                if self._in in ready:
                    given = given[os.write(self._in, given) :]
                    if not given:
                        waiting.unregister(self._in)
                elif not (part := os.read(self._out, 1 << 16)):
                    raise BrokenPipeError
                else:
                    answer += part
        except OSError as error:
            self.end()
            what = f"did not answer within {timeout_s:g} s" if isinstance(error, TimeoutError) else "has died"
            raise RetryLater(f"{self._name} {what}") from None
        return answer[:-1].decode(errors="replace")

    @property
    def pid(self) -> int:
        """The program's process id."""
        return self._running.pid

    def end(self) -> None:
        """End the program."""
        self._finalizer()


def _end(running: Running) -> None:
    running.kill()
    running.wait()
    for pipe in (running.stdin, running.stdout):
        if pipe is not None:
            pipe.close()
