"""Gives up root and every capability, for good, and proves it. Knows Linux's rules for that, and no one who needs it.

Capabilities are each thread's own, and capset(2) and prctl(2) change the calling thread's alone; of the calls made
here, libc carries only those that set users and groups over to all threads (nptl(7)). So everything is given up while
there is one thread: threads that are started later inherit what it is then.
"""

import ctypes
import errno
import logging
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jailbridge.errors import FatalError

log = logging.getLogger("jailbridge.privileges")

OWN_ACCOUNT, FALLBACK = "jailbridge-sensor", "nobody"
THREADS = Path("/proc/self/task")
_REMEDY = 'mend that, or go on as root with sensor.user = "root"'

# linux/prctl.h, linux/capability.h
PR_CAPBSET_READ, PR_CAPBSET_DROP = 23, 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
CAPABILITY_VERSION_3 = 0x20080522
MAX_CAPABILITY = 63

_libc = ctypes.CDLL(None, use_errno=True)


class Account(NamedTuple):
    """Whom the process becomes."""

    uid: int
    gid: int
    name: str


def account(name: str) -> Account | None:
    """Return the account that `sensor.user` names, None for "root": nothing is to be dropped.

    "auto" is the account made for it where there is one, else nobody, with a line in the log. Raises FatalError.
    """
    if name == "root":
        return None
    found = _find(OWN_ACCOUNT if name == "auto" else name)
    if found is None and name == "auto":
        found = _find(FALLBACK)
        if found is not None and os.geteuid() == 0:
            log.info(
                "the sensor runs as %s, which other programs may be too: for an account of its own, "
                "useradd --system --no-create-home --shell /usr/sbin/nologin %s",
                FALLBACK,
                OWN_ACCOUNT,
            )
    if found is None:
        raise FatalError(f'sensor.user: there is no account "{name}": make it (useradd --system), or name another')
    if found.uid == 0:
        raise FatalError(
            f'sensor.user: "{name}" is root by another name: name another account, or "root" if it is meant'
        )
    return found


def drop(to: Account | None) -> None:
    """Become this account with no group but its own, no capability, and no way back; None changes nothing.

    A process that is not root keeps user and groups, and loses its capabilities (systemd's AmbientCapabilities=).
    Raises FatalError that names the failed step: then nothing may go on.
    """
    if to is None:
        return
    if (threads := len(os.listdir(THREADS))) != 1:  # noqa: PTH208 - as many entries as threads, nothing else
        raise FatalError(f"privileges cannot be dropped: {threads} threads run already, each with its own")
    was_root = 0 in os.getresuid()
    # First what takes privileges to do.
    _step("the capabilities' bounding set", _drop_bounding_set)
    if was_root:
        _step("the groups", lambda: os.setgroups([]))
        _step(f"the group of {to.name}", lambda: os.setresgid(to.gid, to.gid, to.gid))
        _step(f"the user {to.name}", lambda: os.setresuid(to.uid, to.uid, to.uid))
    _step("the ambient capabilities", lambda: _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL))
    _step("the capabilities", _drop_capabilities)
    _step("no_new_privs", lambda: _prctl(PR_SET_NO_NEW_PRIVS, 1))
    _step("looking at what is left", lambda: _verify(to if was_root else None))


def _find(name: str) -> Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(entry.pw_uid, entry.pw_gid, name)


def _step(name: str, act: Callable[[], object]) -> None:
    try:
        act()
    except OSError as error:
        raise FatalError(f"privileges cannot be dropped: {name}: {error.strerror}: {_REMEDY}") from None


def _prctl(option: int, argument: int, further: int = 0) -> int:
    result: int = _libc.prctl(
        option, ctypes.c_ulong(argument), ctypes.c_ulong(further), ctypes.c_ulong(0), ctypes.c_ulong(0)
    )
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _drop_bounding_set() -> None:
    for capability in range(MAX_CAPABILITY + 1):
        try:
            if _prctl(PR_CAPBSET_READ, capability):
                _prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:
            # EINVAL: beyond the last that this kernel knows. EPERM: no CAP_SETPCAP; no_new_privs does what it can.
            if error.errno in {errno.EINVAL, errno.EPERM}:
                return
            raise


def _drop_capabilities() -> None:
    # struct __user_cap_header_struct: version, pid (0: this thread); two __user_cap_data_struct of three sets each.
    header, nothing = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if _libc.capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _verify(to: Account | None) -> None:
    """Look at every thread; `to` is None where the user was not root before. Raises OSError, FatalError."""
    for thread in THREADS.iterdir():
        lines = (thread / "status").read_text(encoding="utf-8", errors="replace").splitlines()
        status = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
        left = [key for key in ("CapInh", "CapPrm", "CapEff", "CapAmb") if int(status[key][0], 16)]
        left += ["NoNewPrivs"] * (status.get("NoNewPrivs", ["1"]) != ["1"])
        left += ["Uid"] * ("0" in status["Uid"] if to is None else status["Uid"] != [str(to.uid)] * 4)
        if to is not None:
            left += ["Gid"] * (status["Gid"] != [str(to.gid)] * 4) + ["Groups"] * bool(status["Groups"])
        if left:
            raise FatalError(f"privileges cannot be dropped: some are left ({', '.join(left)}): {_REMEDY}")
    try:
        os.setresuid(0, 0, 0)
    except OSError:
        return
    raise FatalError(f"privileges cannot be dropped: root can be had again: {_REMEDY}")
