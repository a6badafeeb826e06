import contextlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from jailbridge.cli.history import MAX_LINE, event_answer, events
from jailbridge.errors import GiveUp
from jailbridge.model.event import Dialect, Kind, Protocol, ScanEvent
from jailbridge.tailer import opened

LINE_1 = b"1795329128 - 11/22/2026 06:32:08 Host: scanner.example/192.0.2.7 Port: 23 TCP Blocked"
LINE_2 = (
    b"2026-11-22T06:32:08.215+0000 Scan from: [2001:db8::7] (x) protocol: [UDP] port: [53] type: [UDP] "
    b"IP opts: [not set] ignored: [false] triggered: [true] noblock: [true] blocked: [false]"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "portsentry.history"


def told(capsys: pytest.CaptureFixture[str]) -> tuple[list[dict[str, Any]], list[str]]:
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err.splitlines()


def test_an_event_is_one_object_with_every_key() -> None:
    event = ScanEvent(
        time=datetime(2026, 11, 22, 6, 32, 8, tzinfo=UTC),
        address=ip_address("192.0.2.7"),
        port=23,
        protocol=Protocol.TCP,
        kind=Kind.UNKNOWN,
    )
    assert event_answer(7, event, Dialect.PORTSENTRY_1) == {
        "line": 7,
        "time": "2026-11-22T06:32:08Z",
        "address": "192.0.2.7",
        "port": 23,
        "protocol": "tcp",
        "kind": "unknown",
        "flags": None,
        "ignored": None,
        "triggered": None,
        "dialect": "1.2",
    }


def test_accepted_lines_are_shown_and_refused_ones_named_on_stderr(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_bytes(LINE_1 + b"\n\x1b[2Jjunk\xff\n" + LINE_2 + b"\r\n\n")
    events(path, True)
    shown, refused = told(capsys)
    assert [(one["line"], one["address"], one["time"], one["triggered"], one["dialect"]) for one in shown] == [
        (1, "192.0.2.7", "2026-11-22T06:32:08Z", None, "1.2"),
        (3, "2001:db8::7", "2026-11-22T06:32:08.215Z", True, "2"),
    ]
    assert [line.partition(": ")[0] for line in refused] == [f"{path}:2", f"{path}:4", str(path)]
    assert refused[-1] == f"{path}: 2 lines refused"
    assert all(line.isprintable() for line in refused)


def test_text_has_one_line_an_event(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(LINE_1 + b"\n" + LINE_2 + b"\n")
    events(path, False)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["2026-11-22T06:32:08Z", "192.0.2.7", "tcp/23", "unknown"],
        ["2026-11-22T06:32:08.215Z", "2001:db8::7", "udp/53", "udp", "triggered"],
    ]


def test_a_last_line_without_an_end_is_read_too(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(LINE_1 + b"\n" + LINE_1)
    events(path, True)
    assert [one["line"] for one in told(capsys)[0]] == [1, 2]


def test_the_longest_line_is_what_the_tailer_takes() -> None:
    assert MAX_LINE == opened.MAX_LINE


@pytest.mark.parametrize("over", [0, 1, 2, 3, MAX_LINE, 10 * MAX_LINE])
def test_a_line_that_is_too_long_is_one_refused_line(path: Path, over: int, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(b"x" * (MAX_LINE + over) + b"\n" + LINE_1 + b"\n")
    events(path, True)
    shown, refused = told(capsys)
    assert [one["line"] for one in shown] == [2]
    assert len(refused) == 2
    assert (f"longer than {MAX_LINE} bytes" in refused[0]) is (over > 0)
    assert len(refused[0]) < 400


def test_an_empty_file_has_no_events(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.touch()
    events(path, True)
    assert told(capsys) == ([], [])


def test_what_cannot_be_read_is_an_error(tmp_path: Path, path: Path) -> None:
    with pytest.raises(GiveUp, match=r"portsentry\.history cannot be read: No such file or directory"):
        events(path, True)
    with pytest.raises(GiveUp, match="cannot be read: Is a directory"):
        events(tmp_path, True)


@pytest.mark.parametrize("lines", [1, 1000])
def test_output_that_cannot_be_written_is_told_as_that(path: Path, lines: int) -> None:
    path.write_bytes((LINE_1 + b"\n") * lines)
    argv = [sys.executable, "-m", "jailbridge", "history", "events", str(path)]
    with Path("/dev/full").open("wb") as full:
        process = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, check=False, timeout=60)
    assert process.stderr.splitlines()[0] == b"jailbridge: the output cannot be written: No space left on device"
    assert process.returncode != 0


def run_at_terminal(path: Path, terminal: str) -> tuple[bytes, bytes]:
    """Run the command with one output at a terminal and return what came to the pipe and to the terminal."""
    ours, theirs = os.openpty()
    argv = [sys.executable, "-m", "jailbridge", "history", "events", str(path), "--json"]
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, terminal: theirs}
    environment = {**os.environ, "COLUMNS": "60", "TERM": "xterm"}
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=outputs["stdout"], stderr=outputs["stderr"], env=environment
    )
    os.close(theirs)
    seen = b""
    # Linux answers EIO once nobody holds the other side any more (pty(7)).
    with contextlib.suppress(OSError):
        while chunk := os.read(ours, 65536):
            seen += chunk
    os.close(ours)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    return (err if terminal == "stdout" else out), seen


def test_a_progress_bar_at_the_terminal_leaves_the_json_in_the_pipe_alone(path: Path) -> None:
    path.write_bytes((LINE_1 + b"\n") * 300)
    piped, _ = run_at_terminal(path, "stderr")
    assert [json.loads(line)["line"] for line in piped.splitlines()] == list(range(1, 301))


def test_json_at_a_terminal_is_whole_lines(path: Path) -> None:
    path.write_bytes((LINE_1 + b"\n") * 300)
    _, seen = run_at_terminal(path, "stdout")
    assert [json.loads(line)["line"] for line in seen.splitlines()] == list(range(1, 301))
