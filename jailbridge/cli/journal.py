"""The journal as it is spoken to: one datagram an entry, a field a value (https://systemd.io/JOURNAL_NATIVE_PROTOCOL).

Each value goes with its length before it, so none can pretend to be another field.
"""

import logging
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

PATH = Path("/run/systemd/journal/socket")
# syslog(3).
ERROR, NOTICE = 3, 5
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: ERROR, logging.CRITICAL: 2}
# An entry of a few of these goes into one datagram (socket(7), wmem_default: some 200 KiB).
MAX_VALUE = 16 << 10
# What a message's template has: conversions, most of them behind a `key=`, and an event's name.
_PARTS = re.compile(r"\bevent=([\w-]+)|(?:\b([a-z_]+)=)?%[-#0 +]*\d*(?:\.\d+)?([a-zA-Z%])")


def reads(stream: TextIO) -> bool:
    """Tell whether this stream goes to the journal (systemd.exec(5), JOURNAL_STREAM: device and inode)."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def fields(template: object, arguments: object) -> Iterator[tuple[str, str]]:
    """Yield JAILBRIDGE_KEY and value for each `key=` of a log message that has one.

    The keys are those of the template, which is ours, never of a value, which may be anybody's.
    """
    values = iter(arguments if isinstance(arguments, tuple) else ())
    for event, key, conversion in _PARTS.findall(str(template)):
        if event:
            yield "JAILBRIDGE_EVENT", event
        elif conversion != "%":
            value = str(next(values, ""))
            if key:
                yield f"JAILBRIDGE_{key.upper()}", value


def send(entry: Iterable[tuple[str, str]]) -> None:
    """Send an entry. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.sendto(b"".join(_field(key, value) for key, value in entry), str(PATH))


def prefixed(text: str, priority: int) -> str:
    """Return lines for a stream that systemd reads, each with its priority (sd-daemon(3))."""
    return "".join(f"<{priority}>{line}\n" for line in text.split("\n"))


def _field(key: str, value: str) -> bytes:
    content = value[:MAX_VALUE].encode()
    return key.encode() + b"\n" + struct.pack("<Q", len(content)) + content + b"\n"
