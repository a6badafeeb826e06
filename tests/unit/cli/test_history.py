import bz2
import contextlib
import gzip
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from jailbridge.cli.history import check, convert, event_answer, events, stats
from jailbridge.errors import GiveUp
from jailbridge.model.event import MAX_LINE, Dialect, Kind, Protocol, ScanEvent

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


@pytest.mark.parametrize("over", [0, 1, 2, 3, MAX_LINE, 10 * MAX_LINE])
def test_a_line_that_is_too_long_is_one_refused_line(path: Path, over: int, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(b"x" * (MAX_LINE + over) + b"\n" + LINE_1 + b"\n")
    events(path, True)
    shown, refused = told(capsys)
    assert [one["line"] for one in shown] == [2]
    assert len(refused) == 2
    assert (f"longer than {MAX_LINE} bytes" in refused[0]) is (over > 0)
    assert len(refused[0]) < 400


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress])
def test_a_packed_file_is_read_as_what_it_holds(
    tmp_path: Path, pack: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / f"history.1.{ {gzip.compress: 'gz', lzma.compress: 'xz'}.get(pack, 'bz2') }"
    packed.write_bytes(pack((LINE_1 + b"\n") * 3000))
    events(packed, True)
    assert [one["line"] for one in told(capsys)[0]] == list(range(1, 3001))
    packed.write_bytes(pack((LINE_1 + b"\n") * 3000)[:-20])
    with pytest.raises(GiveUp, match="cannot be read: "):
        events(packed, True)
    packed.write_bytes(b"no such thing")
    with pytest.raises(GiveUp, match="cannot be read: "):
        events(packed, True)


def test_lines_of_other_programs_in_a_system_log_are_passed_over(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = b"attackalert: TCP SYN/Normal scan from host: 192.0.2.7/192.0.2.7 to TCP port: 11"
    path.write_bytes(b"Nov 22 06:30:59 host sshd[1]: hello\nNov 22 06:30:59 host portsentry[12]: " + scan + b"\n")
    events(path, True)
    shown, refused = told(capsys)
    assert [(one["line"], one["address"], one["dialect"]) for one in shown] == [(2, "192.0.2.7", "syslog")]
    assert refused == []


def test_check_says_of_each_line_what_it_is(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = b"\x1b[2J\xff" + LINE_1
    earlier = LINE_1.replace(b"1795329128", b"1795329100")
    future = LINE_1.replace(b"1795329128", b"9999999999")
    long = b"x" * (MAX_LINE + 1)
    path.write_bytes(b"\n".join([LINE_1, LINE_2, earlier, hostile, long, future + b"\r", b"\0" + LINE_1, LINE_1]))
    assert check(path, True) == 2
    answer = json.loads(capsys.readouterr().out)
    assert (answer["lines"], answer["half_line"], answer["mixed"]) == (8, True, True)
    assert answer["accepted"] == {"1.2": {"lines": 4, "first": 1}, "2": {"lines": 1, "first": 2}}
    assert {one["reason"]: [line["line"] for line in one["examples"]] for one in answer["refused"]} == {
        f"longer than {MAX_LINE} bytes": [5],
        "not a line of PortSentry's history (either dialect)": [4, 7],
    }
    assert {name: answer[name] for name in ("nul", "carriage_return", "not_utf8", "backwards", "future")} == {
        "nul": {"lines": 1, "first": 7},
        "carriage_return": {"lines": 1, "first": 6},
        "not_utf8": {"lines": 1, "first": 4},
        "backwards": {"lines": 2, "first": 3},
        "future": {"lines": 1, "first": 6},
    }
    check(path, False)
    shown = capsys.readouterr().out
    assert all(line.isprintable() for line in shown.splitlines())
    assert "line 4: '\\x1b[2J\\xff1795329128" in shown
    assert "the last line has no end" in shown


def test_check_of_a_file_that_is_in_order_says_so_with_its_exit_code(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_bytes((LINE_1 + b"\n") * 20000)
    assert check(path, False) == 0
    shown = capsys.readouterr().out
    assert f"{path}: 20000 lines" in shown
    assert "note" not in shown
    assert check(path, False, "portsentry-2") == 2


def test_stats_counts_who_where_and_when(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(b"\n".join([*[LINE_1] * 3, LINE_2, LINE_1.replace(b"Port: 23", b"Port: 24"), b"junk", b""]))
    stats(path, True, 1)
    answer = json.loads(capsys.readouterr().out)
    assert (answer["lines"], answer["events"], answer["refused"], answer["foreign"]) == (6, 5, 1, 0)
    assert answer["sources"]["held"] == 2
    assert answer["sources"]["top"] == [{"address": "192.0.2.7", "lines": 4, "at_most": 4, "ports": 2}]
    assert answer["ports"] == [{"protocol": "tcp", "port": 23, "lines": 3}]
    assert (answer["kinds"], answer["dialects"]) == ({"unknown": 4, "udp": 1}, {"1.2": 4, "2": 1})
    assert answer["timeline"] == {
        "bucket_s": 1,
        "buckets": [{"from": "2026-11-22T06:32:08Z", "lines": 5}],
    }
    stats(path, False, 1)
    shown = capsys.readouterr().out
    assert "192.0.2.7      4      2" in shown
    assert "2026-11-22T06:32:08 5 ███" in shown


@pytest.mark.parametrize("as_json", [False, True])
def test_stats_of_no_events_is_an_answer_too(path: Path, as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(b"junk\n")
    stats(path, as_json, 10)
    assert "1" in capsys.readouterr().out


def test_convert_writes_the_lines_and_says_what_is_lost(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ignored = LINE_2.replace(b"ignored: [false]", b"ignored: [true]")
    waiting = LINE_2.replace(b"triggered: [true]", b"triggered: [false]")
    path.write_bytes(b"\n".join([LINE_2, ignored, b"junk", waiting, LINE_1, b""]))
    assert convert(path, "1.2") == 2
    out, err = capsys.readouterr()
    assert [line.partition(" Host: ")[2] for line in out.splitlines()] == [
        "2001:db8::7/2001:db8::7 Port: 53 UDP Blocked",
        "192.0.2.7/192.0.2.7 Port: 23 TCP Blocked",
    ]
    for said in (
        "5 lines read, 2 written",
        "1 left out: ignored",
        "1 left out: not triggered",
        "1 changed: kind: udp → unknown",
        "1 changed: time: milliseconds → -",
        "1 lines refused",
    ):
        assert said in err


def test_convert_of_nothing_refused_is_a_success(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(LINE_1 + b"\n")
    assert convert(path, "2") == 0
    assert "ignored: [false] triggered: [true]" in capsys.readouterr().out


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


KERNEL = (
    b"Nov 22 06:30:59 host kernel: [ 12.345678] portscan: IN=eth0 OUT= MAC= SRC=192.0.2.7 DST=198.51.100.1 LEN=44 "
    b"TOS=0x00 PREC=0x00 TTL=64 ID=1 PROTO=TCP SPT=4321 DPT=23 WINDOW=1024 RES=0x00 SYN URGP=0 \n"
)


@pytest.mark.parametrize("form", ["auto", "kernel"])
def test_the_kernel_is_believed_for_the_prefixes_that_are_named(
    path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_bytes(KERNEL + KERNEL.replace(b"portscan: ", b"other: "))
    events(path, True, form, ["portscan: "])
    shown, refused = told(capsys)
    assert [(one["line"], one["kind"], one["dialect"]) for one in shown] == [(1, "syn", "kernel")]
    assert refused == []
    assert check(path, True, form, ["portscan: "]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["foreign"] == {"lines": 1, "first": 2}


def test_a_kernel_line_is_no_line_of_1_2_and_bans_nobody_in_2(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(KERNEL)
    assert convert(path, "1.2", "auto", ["portscan: "]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "1 left out: does not tell whether it triggered" in err
    assert convert(path, "2", "auto", ["portscan: "]) == 0
    assert "ignored: [unset] triggered: [unset]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("form", "prefixes", "said"),
    [
        ("kernel", [], "reads no line without --prefix"),
        ("portsentry-1.2", ["scan: "], "leave one out"),
        ("auto", [""], "is no prefix"),
        ("auto", ["ä"], "is no prefix"),
    ],
)
@pytest.mark.parametrize("command", [events, check])
def test_prefixes_that_make_no_sense_are_an_error(
    path: Path, command: Callable[..., object], form: str, prefixes: list[str], said: str
) -> None:
    path.touch()
    with pytest.raises(GiveUp, match=said):
        command(path, True, form, prefixes)
