"""Lines in the system log for bans made and ended, in PortSentry's name: scripts of twenty years wait for them.

They tell of no scan: whoever reads PortSentry's messages for evidence (`history.syslog`) passes them over.
"""

import socket
from datetime import datetime
from pathlib import Path

from jailbridge.config.responding import Facility, On, SyslogSettings
from jailbridge.errors import RetryLater
from jailbridge.model.network import network_text
from jailbridge.respond.event import PERMANENT, Event, time_text

DEV_LOG = Path("/dev/log")
# RFC 3164, 4.1.1. PortSentry's own lines are notices too.
_CODES = {Facility.USER: 1, Facility.DAEMON: 3, Facility.AUTH: 4, Facility.AUTHPRIV: 10}
_CODES |= {facility: 16 + n for n, facility in enumerate(f for f in Facility if f.startswith("local"))}
_NOTICE = 5
# A log that takes nothing must not hold up commands and mail.
TIMEOUT_S = 2.0


def line(event: Event) -> str:
    """Return what is said of an event."""
    host = network_text(event.network)
    if event.what is On.UNBAN:
        return f"Removed the ban for IP: {host}"
    until = PERMANENT if event.until is None else time_text(event.until)
    return f"attackalert: Host {host} has been blocked until {until} ({event.reason})"


class SystemLog:
    """The system log, as [respond.syslog] has it. Not logging's SysLogHandler, which waits for ever and ends in NUL."""

    def __init__(self, settings: SyslogSettings, path: Path = DEV_LOG) -> None:
        self._priority = _CODES[settings.facility] * 8 + _NOTICE
        self._tag = settings.tag
        self._path = path

    def write(self, event: Event, now: datetime) -> None:
        """Write the line of an event; `now` is a local time. Raises RetryLater."""
        # As glibc's syslog(3) has it, which every daemon reads: the month's day fills two columns.
        stamp = f"{now:%b} {now.day:2d} {now:%H:%M:%S}"
        data = f"<{self._priority}>{stamp} {self._tag}: {line(event)}".encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
                log.settimeout(TIMEOUT_S)
                log.connect(str(self._path))
                log.send(data)
        except OSError as error:
            raise RetryLater(f"{self._path}: {error.strerror or error}") from None
