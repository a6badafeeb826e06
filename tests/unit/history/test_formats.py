"""Which grammar reads a line: by the setting, or told from the line itself."""

from datetime import UTC, datetime

import pytest

from jailbridge.errors import ParseError
from jailbridge.history.formats import reader
from jailbridge.model.event import Dialect, TailFormat

NOW = datetime(2026, 11, 22, 18, tzinfo=UTC)
HISTORY_1 = b"1795329073 - 11/22/2026 06:31:13 Host: x/192.0.2.7 Port: 15 TCP Blocked"
SAID_2 = (
    b"Scan from: [192.0.2.7] (x) protocol: [TCP] port: [15] type: [Connect] IP opts: [unknown] "
    b"ignored: [false] triggered: [true] noblock: [false] blocked: [true]"
)
HISTORY_2 = b"2026-11-22T06:31:13.775+0000 " + SAID_2
SYSLOG = b"Nov 22 06:31:13 host portsentry[1]: " + SAID_2
PACKET = (
    b"P: IN=eth0 OUT= MAC= SRC=192.0.2.7 DST=198.51.100.1 LEN=44 TOS=0x00 PREC=0x00 TTL=51 ID=1 "
    b"PROTO=TCP SPT=4321 DPT=15 WINDOW=1024 RES=0x00 SYN URGP=0 "
)
KERNEL = b"Nov 22 06:31:13 host kernel: " + PACKET
JOURNAL = (
    b'{"SYSLOG_IDENTIFIER":"%b","_UID":"0","_TRANSPORT":"%b","__REALTIME_TIMESTAMP":"1795329073500000","MESSAGE":"%b"}'
)
LINES = {
    HISTORY_1: Dialect.PORTSENTRY_1,
    HISTORY_2: Dialect.PORTSENTRY_2,
    SYSLOG: Dialect.SYSLOG,
    KERNEL: Dialect.KERNEL,
    JOURNAL % (b"portsentry", b"syslog", SAID_2): Dialect.SYSLOG,
    JOURNAL % (b"kernel", b"kernel", PACKET): Dialect.KERNEL,
}
READ = {
    TailFormat.AUTO: set(Dialect),
    TailFormat.PORTSENTRY_1: {Dialect.PORTSENTRY_1},
    TailFormat.PORTSENTRY_2: {Dialect.PORTSENTRY_2},
    TailFormat.SYSLOG: {Dialect.SYSLOG},
    TailFormat.KERNEL: {Dialect.KERNEL},
}
FOREIGN = [
    b"Nov 22 06:31:13 host CRON[77]: (root) CMD (true)",
    b"Nov 22 06:31:13 host portsentry[1]: adminalert: PortSentry is now active and listening.",
    b"2026-11-22T06:31:13.123456+00:00 host sshd[5]: " + HISTORY_1,
    JOURNAL % (b"sshd", b"syslog", b"x"),
]


@pytest.mark.parametrize("form", TailFormat)
@pytest.mark.parametrize("line", LINES)
def test_a_format_reads_its_own_lines_and_no_others(form: TailFormat, line: bytes) -> None:
    try:
        told = reader(form, ["P: "])(line, NOW)
    except ParseError:
        told = None
    if LINES[line] in READ[form]:
        assert told is not None
        event, dialect = told
        assert dialect is LINES[line]
        assert (str(event.address), event.port) == ("192.0.2.7", 15)
    else:
        assert told is None


@pytest.mark.parametrize("form", [TailFormat.AUTO, TailFormat.SYSLOG, TailFormat.KERNEL])
@pytest.mark.parametrize("line", FOREIGN)
def test_what_a_system_log_says_besides_is_passed_over(form: TailFormat, line: bytes) -> None:
    assert reader(form, ["P: "])(line, NOW) is None


@pytest.mark.parametrize("form", [TailFormat.PORTSENTRY_1, TailFormat.PORTSENTRY_2])
@pytest.mark.parametrize("line", FOREIGN)
def test_in_a_history_it_is_refused(form: TailFormat, line: bytes) -> None:
    with pytest.raises(ParseError):
        reader(form)(line, NOW)


@pytest.mark.parametrize("form", TailFormat)
@pytest.mark.parametrize(
    "line",
    [b"", b"\0", b"x", HISTORY_1[:-1], HISTORY_1[1:], HISTORY_2[:-1], HISTORY_2[1:],
     HISTORY_2.replace(b"(x)", b"(x y)"), HISTORY_1.replace(b"192.0.2.7", b"192.0.2.256"), SAID_2, PACKET],
)  # fmt: skip
def test_what_is_damaged_or_of_no_format_is_refused_by_every_one(form: TailFormat, line: bytes) -> None:
    with pytest.raises(ParseError):
        reader(form, ["P: "])(line, NOW)


def test_a_damaged_line_of_the_history_is_told_as_one() -> None:
    with pytest.raises(ParseError, match=r"'192\.0\.2\.256' is not an IP address"):
        reader(TailFormat.AUTO)(HISTORY_1.replace(b"192.0.2.7", b"192.0.2.256"), NOW)


@pytest.mark.parametrize("form", [TailFormat.AUTO, TailFormat.KERNEL])
def test_without_prefixes_the_kernel_is_not_believed(form: TailFormat) -> None:
    for line in (KERNEL, JOURNAL % (b"kernel", b"kernel", PACKET)):
        assert reader(form)(line, NOW) is None
        assert reader(form, ["Q: "])(line, NOW) is None


def test_a_history_that_is_logged_as_a_message_is_no_history() -> None:
    for line in (HISTORY_1, HISTORY_2):
        assert reader(TailFormat.AUTO)(b"Nov 22 06:31:13 host portsentry[1]: " + line, NOW) is None
