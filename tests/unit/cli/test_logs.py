"""One event, one line and its fields, whatever outsiders put into it."""

import io
import logging
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jailbridge.cli import journal
from jailbridge.cli.logs import JournalHandler, OneLine

HOSTILE = "x\n<0>level=INFO part=jailbridge banned address=192.0.2.1\nJAILBRIDGE_ADDRESS=192.0.2.1\x1b[2J\udc80"
ESCAPED = r"x\n<0>level=INFO part=jailbridge banned address=192.0.2.1\nJAILBRIDGE_ADDRESS=192.0.2.1\x1b[2J\udc80"

LOGGING = """
import logging, sys
from jailbridge.cli.logs import log_to_stderr
log_to_stderr(False)
log = logging.getLogger("jailbridge.x")
log.info("seen address=%s", sys.argv[1])
"""


@pytest.fixture
def received(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], dict[str, list[str]]]]:
    """Fields and values of the next entry at a socket that stands where the journal's would."""
    monkeypatch.setattr(journal, "PATH", tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(journal.PATH))
        listening.settimeout(10)

        def receive() -> dict[str, list[str]]:
            entry, found = io.BytesIO(listening.recv(1 << 20)), dict[str, list[str]]()
            while key := entry.readline():
                (length,) = struct.unpack("<Q", entry.read(8))
                found.setdefault(key.decode().rstrip("\n"), []).append(entry.read(length).decode())
                assert entry.read(1) == b"\n"
            return found

        yield receive


def fail() -> None:
    raise ValueError(HOSTILE)


def record(level: int, template: str, *arguments: object, trace: bool = False) -> logging.LogRecord:
    info = None
    if trace:
        try:
            fail()
        except ValueError:
            info = sys.exc_info()
    return logging.LogRecord("jailbridge.x", level, "", 0, template, arguments, info)


def handler() -> JournalHandler:
    made = JournalHandler()
    made.setFormatter(OneLine("%(message)s"))
    return made


def test_an_entry_has_its_fields(received: Callable[[], dict[str, list[str]]]) -> None:
    handler().emit(record(logging.WARNING, "event=gone store=%s: %s address=%s", "fail2ban", "so", "192.0.2.7"))
    assert received() == {
        "MESSAGE": ["event=gone store=fail2ban: so address=192.0.2.7"],
        "PRIORITY": ["4"],
        "SYSLOG_IDENTIFIER": ["jailbridge"],
        "JAILBRIDGE_PART": ["jailbridge.x"],
        "JAILBRIDGE_EVENT": ["gone"],
        "JAILBRIDGE_STORE": ["fail2ban"],
        "JAILBRIDGE_ADDRESS": ["192.0.2.7"],
    }


def test_no_value_makes_a_field_or_a_line(received: Callable[[], dict[str, list[str]]]) -> None:
    handler().emit(record(logging.INFO, "seen path=%s", HOSTILE))
    entry = received()
    assert entry["JAILBRIDGE_PATH"] == [ESCAPED]
    assert entry["MESSAGE"] == [f"seen path={ESCAPED}"]
    assert "JAILBRIDGE_ADDRESS" not in entry


def test_a_trace_is_in_the_entry_and_ends_no_line_of_it(received: Callable[[], dict[str, list[str]]]) -> None:
    handler().emit(record(logging.ERROR, "broke down", trace=True))
    (message,) = received()["MESSAGE"]
    assert message.startswith("broke down\n  Traceback")
    # A trace's own lines are kept, as they are told by Python.
    assert all(line.startswith("  ") for line in message.split("\n")[1:])
    assert "\x1b" not in message


@pytest.mark.parametrize(
    ("template", "arguments", "expected"),
    [
        ("100%% of path=%s", ("/x",), [("PATH", "/x")]),
        ("%s had changes=%d of=%5.1f", ("a", 3, 2.0), [("CHANGES", "3"), ("OF", "2.0")]),
        (
            "event=lines-refused path=%s count=%d",
            ("/x", 2),
            [("EVENT", "lines-refused"), ("PATH", "/x"), ("COUNT", "2")],
        ),
        ("address=%s", (), [("ADDRESS", "")]),
        ("reason=an earlier one has it", (), []),
        ("no field %s", ("address=192.0.2.1",), []),
    ],
)
def test_fields_are_those_of_the_template(
    template: str, arguments: tuple[object, ...], expected: list[tuple[str, str]]
) -> None:
    assert list(journal.fields(template, arguments)) == [(f"JAILBRIDGE_{key}", value) for key, value in expected]


def test_a_very_long_value_is_cut(received: Callable[[], dict[str, list[str]]]) -> None:
    handler().emit(record(logging.INFO, "path=%s", "é" * 10_000_000))
    assert received()["JAILBRIDGE_PATH"] == ["é" * journal.MAX_VALUE]


def test_without_a_journals_socket_stderr_gets_each_line_with_its_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(journal, "PATH", tmp_path / "nosuch")
    handler().emit(record(logging.ERROR, "broke down path=%s", HOSTILE, trace=True))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"<3>broke down path={ESCAPED}"
    assert all(line.startswith("<3>  ") for line in lines[1:])


@pytest.mark.parametrize("stream", [None, "0:0", "the terminal's"])
def test_elsewhere_it_is_text_with_its_time(stream: str | None) -> None:
    """A JOURNAL_STREAM that is inherited, where stderr is another, means nothing."""
    environment = {key: value for key, value in os.environ.items() if key != "JOURNAL_STREAM"}
    if stream:
        environment["JOURNAL_STREAM"] = stream
    argv = [sys.executable, "-c", LOGGING, HOSTILE.replace("\udc80", "")]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.count("\n") == 1
    expected = "level=INFO part=jailbridge.x seen address=" + ESCAPED.replace(r"\udc80", "")
    assert done.stderr.partition(" ")[0].startswith("time=20")
    assert done.stderr.partition(" ")[2] == f"{expected}\n"
