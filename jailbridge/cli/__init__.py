"""The command line. `main` is where every error becomes one line and an exit code."""

import contextlib
import errno
import os
import sys
from typing import Any

# What writing to a full disk, a closed pipe or a lost terminal says.
_OUTPUT_LOST = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE}


def main() -> None:
    """Run the command. Exit codes: 0 done or agreement, 1 error, 2 drift or something left over, 130 interrupted."""
    try:
        _open_closed()
        code = _run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        if error.errno not in _OUTPUT_LOST or error.filename is not None:
            raise
        code = _output_lost(error)
    sys.exit(code if isinstance(code, int) else 0)


def _run() -> Any:
    from typer.exceptions import Abort, TyperException

    from jailbridge.cli.app import app
    from jailbridge.errors import JailBridgeError

    try:
        return app(standalone_mode=False)
    except Abort:
        return 130
    except TyperException as error:
        # Typer's own exit code for a wrong option is 2, which means drift here.
        return _fail(error.format_message())
    except JailBridgeError as error:
        return _fail(str(error))


def _open_closed() -> None:
    """Where a standard stream was closed, put the null device: else a ledger or a socket takes its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def _output_lost(error: OSError) -> int:
    """Say so, unless a reader merely left, and let nothing be written at the end again."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 1 if error.errno == errno.EPIPE else _fail(f"the output cannot be written: {error.strerror}")


def _fail(text: str) -> int:
    if text.strip():
        from jailbridge.cli import journal

        told = f"jailbridge: {text}"
        sys.stderr.write(journal.prefixed(told, journal.ERROR) if journal.reads(sys.stderr) else f"{told}\n")
    return 1
