"""What a record of the journal says, and whom it is believed."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from jailbridge.errors import ParseError
from jailbridge.history.journal import MAX_BYTES, said
from jailbridge.history.syslog import KERNEL, PORTSENTRY, Said

NOW = datetime(2026, 11, 22, 18, tzinfo=UTC)
TIME = datetime(2026, 11, 22, 6, 31, 13, 500000, tzinfo=UTC)
BOTH = (PORTSENTRY, KERNEL)
OURS = {
    "__REALTIME_TIMESTAMP": "1795329073500000",
    "_UID": "0",
    "_TRANSPORT": "syslog",
    "SYSLOG_IDENTIFIER": "portsentry",
    "MESSAGE": "text",
}


def record(**fields: Any) -> bytes:
    return json.dumps({name: value for name, value in (OURS | fields).items() if value is not ...}).encode()


def told(line: bytes) -> Said | None:
    return said(line, NOW, BOTH)


@pytest.mark.parametrize("transport", ["syslog", "stdout", "journal"])
def test_root_is_believed_to_be_portsentry_however_it_says_so(transport: str) -> None:
    assert told(record(_TRANSPORT=transport)) == Said(PORTSENTRY, b"text", TIME)


@pytest.mark.parametrize("uid", [..., None, "", "1", "1000", "00", "0 ", 0, ["0"], ["0", "0"], [48]])
def test_no_other_user_is(uid: object) -> None:
    with pytest.raises(ParseError, match=r"says it is portsentry, but _UID is .* and not 0"):
        told(record(_UID=uid, UID="0"))


def test_the_kernel_is_believed_where_the_kernel_says_so() -> None:
    line = record(_TRANSPORT="kernel", SYSLOG_IDENTIFIER="kernel", _UID=...)
    assert told(line) == Said(KERNEL, b"text", TIME)
    assert said(line, NOW, (PORTSENTRY,)) is None


@pytest.mark.parametrize("transport", [..., None, "syslog", "stdout", "journal", "Kernel", ["kernel"]])
def test_nobody_else_is_the_kernel_not_even_root(transport: object) -> None:
    with pytest.raises(ParseError, match="says it is kernel, but _TRANSPORT is"):
        told(record(_TRANSPORT=transport, SYSLOG_IDENTIFIER="kernel"))


@pytest.mark.parametrize(
    "program", [..., None, "sshd", "", "portsentry ", ["portsentry", "sshd"], ["portsentry"], {}, 7]
)
def test_other_programs_are_passed_over(program: object) -> None:
    assert told(record(SYSLOG_IDENTIFIER=program, _UID="1000")) is None


def test_a_message_that_is_not_utf_8_is_its_bytes() -> None:
    found = told(record(MESSAGE=[120, 255, 0]))
    assert found is not None
    assert found.message == b"x\xff\0"


@pytest.mark.parametrize("message", [["a", "b"], ["a"], [256], [-1], [True], [[1]], {"a": 1}, 7, True, ..., None])
def test_anything_but_one_message_is_refused(message: object) -> None:
    with pytest.raises(ParseError, match="a record of the journal"):
        told(record(MESSAGE=message))


@pytest.mark.parametrize("time", [..., None, "", "-1", "1.5", " 1", "1_0", "\u0661", "9" * 21, "9" * 9999, 7, ["1"]])
def test_a_record_without_a_time_is_refused(time: object) -> None:
    with pytest.raises(ParseError, match="without its time"):
        told(record(__REALTIME_TIMESTAMP=time))


def test_a_time_that_no_calendar_has_is_refused() -> None:
    with pytest.raises(ParseError, match="not a time"):
        told(record(__REALTIME_TIMESTAMP="9" * 20))


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"{}x", b"[]", b"null", b'"x"', b"{'a': 1}", b'{"a": 1,}', record()[:-1], record() + record(),
        b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1.5}', b'{"a": 1e999999999}', b'{"a": %b}' % (b"7" * 60000),
        b'{"a":' * 10000, b'{"a": %b' % (b"[" * 60000), b'{"a": "\xff"}', b'{"a": "\t"}', "{}".encode("utf-16"),
        b"\xef\xbb\xbf" + record(),
    ],
)  # fmt: skip
def test_what_journalctl_does_not_write_is_refused(line: bytes) -> None:
    with pytest.raises(ParseError, match="not a record of the journal"):
        told(line)


def test_a_field_that_stands_there_twice_is_refused_at_any_depth() -> None:
    for line in (record()[:-1] + b', "_UID": "0"}', record(X=7).replace(b": 7", b": " + b'{"a": 1, "a": 1}')):
        with pytest.raises(ParseError, match="with a field twice"):
            told(line)


def test_a_record_is_read_up_to_a_length() -> None:
    fits = record(X="x" * (MAX_BYTES - len(record(X=""))))
    assert told(fits) == Said(PORTSENTRY, b"text", TIME)
    with pytest.raises(ParseError, match="longer than"):
        told(fits + b" ")


def test_a_complaint_is_one_printable_line() -> None:
    with pytest.raises(ParseError) as caught:
        told(record(_UID="\n\x1b[2J" + "x" * 1000))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200
