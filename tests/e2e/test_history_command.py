"""The history commands as processes, on the sample logs and on what is no log."""

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

SAMPLES = Path(__file__).parents[2] / "sample-logs"
COMMANDS = [["events"], ["check"], ["stats"], ["convert", "--to", "2"]]


def command(*argv: object) -> list[str]:
    return [sys.executable, "-m", "jailbridge", "history", *map(str, argv)]


def run(*argv: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(*argv), input=stdin, capture_output=True, check=False, timeout=60)


@pytest.mark.parametrize("name", ["portsentry-1.2", "portsentry-2"])
def test_check_counts_the_samples_as_their_expectations_do(name: str) -> None:
    rows = (SAMPLES / f"{name}.expected.jsonl").read_text().splitlines()
    refused = [number for number, row in enumerate(rows, 1) if "refused" in json.loads(row)]
    done = run("check", SAMPLES / f"{name}.log", "--json", "--format", name)
    answer = json.loads(done.stdout)
    assert done.returncode == 2
    assert answer["lines"] == len(rows)
    assert sum(one["lines"] for one in answer["refused"]) == len(refused)
    assert {line["line"] for one in answer["refused"] for line in one["examples"]} <= set(refused)


def test_a_converted_history_tells_the_same_sources(tmp_path: Path) -> None:
    old, new = tmp_path / "1.2", tmp_path / "2"
    old.write_bytes(
        b"1795329073 - 11/22/2026 06:31:13 Host: x.example/10.98.0.14 Port: 15 TCP Blocked\n"
        b"1795329093 - 11/22/2026 06:31:33 Host: 10.98.0.15/10.98.0.15 Port: 7 UDP Blocked\n"
    )
    done = run("convert", old, "--to", "2")
    new.write_bytes(done.stdout)
    assert (done.returncode, run("check", new).returncode) == (0, 0)
    told = [json.loads(line) for path in (old, new) for line in run("events", path, "--json").stdout.splitlines()]
    fields = [(one["time"], one["address"], one["port"], one["protocol"]) for one in told]
    assert fields[:2] == fields[2:]
    assert run("convert", new, "--to", "1.2").stdout.splitlines()[1].startswith(b"1795329093 - ")


@pytest.mark.parametrize("argv", COMMANDS)
def test_the_standard_input_and_packed_files_are_read(argv: list[str], tmp_path: Path) -> None:
    log = SAMPLES / "portsentry-1.2.log"
    packed = tmp_path / "log.1.gz"
    packed.write_bytes(gzip.compress(log.read_bytes()))
    plain, piped, unpacked = run(*argv, log), run(*argv, "-", stdin=log.read_bytes()), run(*argv, packed)
    named = [
        done.stdout.replace(str(name).encode(), b"LOG")
        for done, name in ((plain, log), (piped, "standard input"), (unpacked, packed))
    ]
    assert plain.stdout
    assert named[0] == named[1] == named[2]
    assert plain.returncode == piped.returncode == unpacked.returncode


@pytest.mark.parametrize("argv", COMMANDS)
def test_what_cannot_be_read_is_one_line_and_an_error(argv: list[str], tmp_path: Path) -> None:
    for path, reason in ((tmp_path, b"Is a directory"), (tmp_path / "none", b"No such file or directory")):
        done = run(*argv, path)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr == b"jailbridge: %b cannot be read: %b\n" % (os.fsencode(path), reason)


@pytest.mark.parametrize("argv", COMMANDS)
def test_an_interrupt_ends_quietly(argv: list[str], tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = subprocess.Popen(command(*argv, fifo), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # Opens when the command has opened it too.
    with fifo.open("wb"):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize("argv", COMMANDS)
def test_a_reader_that_has_left_ends_quietly(argv: list[str]) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        command(*argv, SAMPLES / "portsentry-1.2.log"), stdout=theirs, stderr=subprocess.PIPE, check=False, timeout=60
    )
    os.close(theirs)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"Broken pipe" not in done.stderr


def test_a_line_without_end_takes_no_memory(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(400_000_000)
    argv = ["prlimit", "--as=300000000", *command("check", log, "--json")]
    done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["refused"][0]["reason"] == "longer than 4096 bytes"
