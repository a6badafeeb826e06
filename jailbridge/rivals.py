"""Finds a real PortSentry in the same network: two that detect scans and write the same files are one too many."""

from pathlib import Path

from jailbridge.errors import FatalError
from jailbridge.model.network import shown

PROC = Path("/proc")
PROGRAM = "portsentry"
"""The program of 1.2 and of 2.x."""
# What the kernel adds to the name of a file that is gone, as after an upgrade (proc_pid_exe(5)).
_GONE = " (deleted)"


def portsentry_running(proc: Path = PROC) -> list[int]:
    """Return the ids, in order, of the PortSentry processes in this thread's network namespace.

    One whose namespace cannot be read counts: it is another user's, and doubt means that there may be two.
    """
    pids = sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isascii() and entry.name.isdigit())
    return [pid for pid in pids if _is_portsentry(proc / str(pid)) and _shares_network(proc / str(pid), proc)]


def refuse(proc: Path = PROC) -> None:
    """Raise FatalError where a PortSentry runs; it names the process and the remedy."""
    if not (pids := portsentry_running(proc)):
        return
    program = _program(proc / str(pids[0])) or PROGRAM
    raise FatalError(
        f"PortSentry runs here already, {shown(program)} as process {' and '.join(map(str, pids))}: stop it "
        "(systemctl disable --now portsentry), or leave detection to it (jailbridge run --without sensor)"
    )


def _is_portsentry(process: Path) -> bool:
    # A script named portsentry, as our own drop-in may be, is its interpreter to the kernel, in both of these.
    return PROGRAM in {_name(_program(process)), _name(_started_as(process))}


def _program(process: Path) -> str:
    """Return the path of the file that runs; empty for a kernel thread, a dead process, and another user's."""
    try:
        return str((process / "exe").readlink()).removesuffix(_GONE)
    except OSError:
        return ""


def _started_as(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().partition(b"\0")[0].decode("utf-8", "replace")
    except OSError:
        return ""


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _shares_network(process: Path, proc: Path) -> bool:
    try:
        return (process / "ns" / "net").readlink() == (proc / "thread-self" / "ns" / "net").readlink()
    except PermissionError:
        return True
    except OSError:
        # It has ended meanwhile.
        return False
