"""Our lines in the system log: what they say, how they get there, and that they are nobody's evidence."""

import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jailbridge.config.responding import Facility, On, SyslogSettings
from jailbridge.errors import ParseError, RetryLater
from jailbridge.history import dialects, syslog
from jailbridge.model.event import Dialect
from jailbridge.respond.event import Event
from jailbridge.respond.syslog import SystemLog, line
from tests.unit.respond.events import NOW, event

HOSTILE = "x\nattackalert: TCP SYN/Normal scan from host: y/192.0.2.66 to TCP port: 11"
EVENTS = [
    event(),
    event("2001:db8::/64", minutes=None),
    event(what=On.UNBAN),
    event(reason="attackalert: TCP SYN/Normal scan from host: y/192.0.2.66 to TCP port: 11"),
    event(reason="1763793059 - 11/22/2026 06:30:59 Host: y/192.0.2.66 Port: 23 TCP Blocked"),
    event(reason="Scan from: [192.0.2.66] (y) protocol: [TCP] port: [11] type: [Connect] ignored: [false]"),
]


def received(tmp_path: Path, one: Event, settings: SyslogSettings, now: datetime = NOW) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))
        SystemLog(settings, tmp_path / "log").write(one, now)
        return log.recv(4096)


def write_all(log: SystemLog, times: int) -> None:
    for _ in range(times):
        log.write(event(), NOW)


def test_the_lines_are_portsentrys() -> None:
    assert line(event()) == (
        "attackalert: Host 192.0.2.7 has been blocked until 2026-11-22T06:40:59Z (syn scan of tcp/23)"
    )
    assert line(event("192.0.2.0/24", minutes=None, reason="by hand")) == (
        "attackalert: Host 192.0.2.0/24 has been blocked until permanent (by hand)"
    )
    assert line(event(what=On.UNBAN)) == "Removed the ban for IP: 192.0.2.7"


def test_facility_tag_and_time_stand_as_syslog_has_them(tmp_path: Path) -> None:
    settings = SyslogSettings(facility=Facility.LOCAL3, tag="bans")
    when = datetime(2026, 11, 2, 6, 3, 5, tzinfo=UTC)
    said = received(tmp_path, event(what=On.UNBAN), settings, when)
    assert said == b"<157>Nov  2 06:03:05 bans: Removed the ban for IP: 192.0.2.7"


@pytest.mark.parametrize(
    ("facility", "priority"), [(Facility.DAEMON, 29), (Facility.AUTHPRIV, 85), (Facility.USER, 13)]
)
def test_it_is_a_notice(tmp_path: Path, facility: Facility, priority: int) -> None:
    assert received(tmp_path, event(), SyslogSettings(facility=facility)).startswith(b"<%d>" % priority)


def test_every_facility_has_its_number(tmp_path: Path) -> None:
    logs = [SystemLog(SyslogSettings(facility=facility)) for facility in Facility]
    assert len({log._priority for log in logs}) == len(Facility)
    assert max(log._priority for log in logs) == 23 * 8 + 5


@pytest.mark.parametrize("one", EVENTS)
def test_no_reader_of_ours_takes_them_for_evidence(tmp_path: Path, one: Event) -> None:
    """Whatever a reason says: as sent, as written to a file, and as what follows the tag."""
    sent = received(tmp_path, one, SyslogSettings())
    message = line(one).encode()
    for text in (
        sent,
        b"Nov 22 06:30:59 host portsentry: " + message,
        b"Nov 22 06:30:59 host portsentry[5]: " + message,
    ):
        told = syslog.said(text, NOW, (syslog.PORTSENTRY, syslog.KERNEL))
        assert told is not None
        assert told.program == syslog.PORTSENTRY
        assert syslog.scan(told.message, told.time) is None
    for dialect in (Dialect.PORTSENTRY_1, Dialect.PORTSENTRY_2):
        with pytest.raises(ParseError):
            dialects.parse(message, dialect)


def test_a_log_that_is_not_there_or_takes_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RetryLater, match="No such file"):
        SystemLog(SyslogSettings(), tmp_path / "log").write(event(), NOW)
    monkeypatch.setattr("jailbridge.respond.syslog.TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))
        full = SystemLog(SyslogSettings(), tmp_path / "log")
        with pytest.raises(RetryLater, match="timed out"):
            write_all(full, 10_000)
