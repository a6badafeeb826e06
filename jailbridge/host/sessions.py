"""Who is logged in from elsewhere over SSH: addresses that have proven who they are, never mere sockets.

Two records, both made only after authentication: utmp, by sshd for sessions with a terminal, and logind's, by PAM for
all (scp and forwarding too). Neither is everywhere: Debian 13 has no utmp, a container often no logind. Who is in group
`utmp` can forge a record of the first, and so keep an address from being banned for as long as some session is there
whose number the record gives. A name in an address's place is not looked up.
"""

import ctypes
import os
import re
import struct
from functools import cache
from pathlib import Path
from typing import Any

from jailbridge.errors import ParseError, RetryLater
from jailbridge.host.files import content
from jailbridge.model.network import Address, parse_address, shown

UTMP = Path("/run/utmp")
LOGIND = Path("/run/systemd/sessions")

# utmp(5), glibc's bits/utmp.h: type, pid, line, id, user, host, exit, session, time, address, unused. Session and time
# have 32 bits wherever 32-bit programs write the same file, which is everywhere but on the newer 64-bit machines.
_IS_WIDE = os.uname().machine in {"aarch64", "riscv64", "loongarch64"}
RECORD = struct.Struct("=hxxi32x4x32s256s4x8x16x16s24x" if _IS_WIDE else "=hxxi32x4x32s256s4x4x8x16s20x")
_USER_PROCESS = 7
# What a server's processes are called (proc(5), comm): OpenSSH, OpenSSH from 9.8 on, dropbear.
_SERVERS = {b"sshd", b"sshd-session", b"dropbear"}
# The name that sshd gives to PAM, and the states of a session whose connection may still be there (sd-login(3)).
_SERVICE = "sshd"
_PRESENT = {"opening", "online", "active"}


def in_utmp(utmp: Path = UTMP) -> list[tuple[Address, str]]:
    """Return the source of each SSH session in utmp with what tells of it; no file has none. Raises RetryLater."""
    try:
        data = content(utmp) or b""
    except RetryLater as error:
        raise _unknown(error) from None
    # A record that is being added may be cut off: the next look has it.
    records = RECORD.iter_unpack(data[: len(data) - len(data) % RECORD.size])
    return [
        (source, _why(_word(user), source, "utmp"))
        for kind, pid, user, host, address in records
        if kind == _USER_PROCESS and (source := _source(address, host)) is not None and _is_session(pid)
    ]


def in_logind() -> list[tuple[Address, str]]:
    """Return the source of each SSH session of logind with what tells of it; no logind has none. Raises RetryLater.

    Read through libsystemd, whose functions are stable; the files that they read are not meant for others. `LOGIND`
    changes with them. A session takes some 0.2 ms.
    """
    if (login := _libsystemd()) is None:
        return []
    listed = ctypes.POINTER(ctypes.c_void_p)()
    count = login.sd_get_sessions(ctypes.byref(listed))
    if count < 0:
        raise _unknown(f"logind: {os.strerror(-count)}")
    names = [_taken(listed[n]) for n in range(count)]
    _free(listed)
    return [found for name in names if (found := _ssh(login, name)) is not None]


def _unknown(why: object) -> RetryLater:
    return RetryLater(f"SSH sessions are unknown: {why}; nobody new is banned until it is mended")


def _source(address: bytes, host: bytes) -> Address | None:
    """Return where a session comes from: ut_addr_v6 is the socket's own peer, ut_host may be its name in the DNS."""
    if any(address):
        # An IPv4 address stands in the first of the four words alone.
        text = ".".join(map(str, address[:4])) if not any(address[4:]) else ":".join(re.findall("....", address.hex()))
    else:
        text = _word(host)
    try:
        return parse_address(text)
    except ParseError:
        return None


def _is_session(pid: int) -> bool:
    """Tell whether the session is there: a record outlives a server that was killed.

    Its number is that of the server's part for a user; root has none, so there it is the shell that the server started.
    """
    name, parent = _process(pid)
    return name in _SERVERS or _process(parent)[0] in _SERVERS


def _process(pid: int) -> tuple[bytes, int]:
    """Return the name of a process and the number of its parent (proc(5), stat); nothing and 0 where there is none."""
    try:
        _, _, stat = Path(f"/proc/{pid}/stat").read_bytes().partition(b"(")
    except OSError:
        return b"", 0
    # A name may hold brackets itself.
    name, _, fields = stat.rpartition(b")")
    return name, int(fields.split()[1])


def _word(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def _why(user: str, source: Address, record: str) -> str:
    name = user if re.fullmatch(r"[A-Za-z0-9_.@$-]{1,32}", user) else shown(user, 32)
    return f"session of {name} from {source} ({record})"


def _ssh(login: ctypes.CDLL, session: bytes) -> tuple[Address, str] | None:
    if login.sd_session_is_remote(session) <= 0 or _said(login.sd_session_get_service, session) != _SERVICE:
        return None
    if _said(login.sd_session_get_state, session) not in _PRESENT:
        return None
    try:
        source = parse_address(_said(login.sd_session_get_remote_host, session))
    except ParseError:
        return None
    return source, _why(_user(login, session), source, "logind")


def _user(login: ctypes.CDLL, session: bytes) -> str:
    uid = ctypes.c_uint32()
    if login.sd_session_get_uid(session, ctypes.byref(uid)) < 0:
        return "nobody known"
    # Not looked up: an account's name may be a directory server's to tell, at its own pace.
    return "root" if uid.value == 0 else f"uid-{uid.value}"


def _said(ask: Any, session: bytes) -> str:
    """Return what libsystemd says of a session, empty where it says nothing: it may have just ended."""
    text = ctypes.c_void_p()
    return _taken(text.value).decode("utf-8", "replace") if ask(session, ctypes.byref(text)) >= 0 else ""


def _taken(text: int | None) -> bytes:
    """Return a C text that was allocated for us, and free it."""
    if text is None:
        return b""
    value = ctypes.string_at(text)
    _free(ctypes.c_void_p(text))
    return value


def _free(memory: Any) -> None:
    ctypes.CDLL(None).free(memory)


@cache
def _libsystemd() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libsystemd.so.0")
    except OSError:
        return None
