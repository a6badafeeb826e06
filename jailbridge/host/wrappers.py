"""Whether anything here that takes connections asks the TCP wrappers, and so obeys hosts.deny.

Only a yes can be told: what is started by systemd for each connection, say, is not there while nobody comes.
Forms: Documentation/networking/proc_net_tcp.rst, proc(5), inetd.conf(5), xinetd.conf(5), tcpd(8).
"""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

PROC = Path("/proc")
ETC = Path("/etc")
# 300 processes take some 10 ms.
REFRESH_S = 60.0
_LISTEN = "0A"
_LIBRARY = re.compile(rb"/libwrap\.so[.\d]*(?: \(deleted\))?$", re.MULTILINE)
_INETD = re.compile(rb"^[^#\n]*[ \t/]tcpd(?:[ \t]|$)", re.MULTILINE)
_XINETD = re.compile(rb"^[ \t]*server[ \t]*\+?=[ \t]*[^#\n]*/tcpd[ \t]*$", re.MULTILINE)


class Wrappers:
    """Looks at this host, at most once in REFRESH_S. `clock` gives monotonic seconds."""

    def __init__(self, proc: Path = PROC, etc: Path = ETC, clock: Callable[[], float] = time.monotonic) -> None:
        self._proc = proc
        self._etc = etc
        self._clock = clock
        self._asked_at: float | None = None
        self._in_use = False

    def in_use(self) -> bool | None:
        """Tell whether something that listens asks them: True, or None for not known. Never raises."""
        now = self._clock()
        if self._asked_at is None or now - self._asked_at >= REFRESH_S:
            self._in_use = _is_listening(self._proc) or _is_configured(self._etc)
            self._asked_at = now
        return self._in_use or None


def _is_listening(proc: Path) -> bool:
    """Tell whether a process with a listening TCP socket, in this thread's network, has libwrap in its memory."""
    sockets = {f"socket:[{inode}]" for inode in _listeners(proc)}
    return bool(sockets) and any(
        _has(process / "fd", sockets) and _LIBRARY.search(_content(process / "maps"))
        for process in _entries(proc)
        if process.name.isascii() and process.name.isdigit()
    )


def _is_configured(etc: Path) -> bool:
    """Tell whether inetd or xinetd starts something by way of tcpd."""
    xinetd = [etc / "xinetd.conf", *_entries(etc / "xinetd.d")]
    return bool(_INETD.search(_content(etc / "inetd.conf"))) or any(_XINETD.search(_content(file)) for file in xinetd)


def _listeners(proc: Path) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        # Listening sockets stand first, but a large table is rare and this is seldom asked.
        for line in _content(proc / "thread-self" / "net" / name).decode("ascii", "replace").splitlines()[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == _LISTEN:
                yield fields[9]


def _has(folder: Path, sockets: Iterable[str]) -> bool:
    for entry in _entries(folder):
        try:
            if os.readlink(entry) in sockets:  # noqa: PTH115 - a third of the time, and there are many
                return True
        except OSError:
            # Closed meanwhile.
            continue
    return False


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
