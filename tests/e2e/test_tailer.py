"""The real logrotate, in each of its ways, around the tailer: every line once; and the tailer killed at any moment."""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from jailbridge import process
from jailbridge.config.settings import TailSettings, Watch
from jailbridge.model.event import TailPosition
from jailbridge.tailer import Tailer

pytestmark = [pytest.mark.e2e, pytest.mark.needs("logrotate")]

ROTATIONS = {
    "numbered": "create",
    "nocreate": "nocreate",
    "gzip": "create\ncompress",
    "gzip, nocreate": "nocreate\ncompress",
    "gzip, the last one plain": "create\ncompress\ndelaycompress",
    "xz": "create\ncompress\ncompresscmd /usr/bin/xz\ncompressext .xz",
    "bzip2": "create\ncompress\ncompresscmd /usr/bin/bzip2\ncompressext .bz2",
    "extension": "create\nextension .history",
    "extension and gzip": "create\nextension .history\ncompress",
    "dated": "create\ndateext\ndateformat -%Y%m%d-%H%M%S",
    "dated, day first": "create\ndateext\ndateformat -%d%m%Y%H%M%S",
    "dated by seconds": "create\ndateext\ndateformat -%s",
    "dated and gzip": "create\ndateext\ndateformat .%Y-%m-%d_%H%M%S\ncompress",
    "dated, extension and gzip": "create\ndateext\ndateformat -%s\nextension .history\ncompress",
    "olddir": "create\nolddir old",
    "olddir and gzip": "create\nolddir old\ncompress",
    "olddir, dated and xz": (
        "create\nolddir old\ndateext\ndateformat -%s\ncompress\ncompresscmd /usr/bin/xz\ncompressext .xz"
    ),
    "copytruncate": "copytruncate",
    "copytruncate and gzip": "copytruncate\ncompress",
    "copytruncate, dated and gzip": "copytruncate\ndateext\ndateformat -%s\ncompress",
    "copytruncate, olddir and gzip": "copytruncate\nolddir old\ncompress",
}


class Log:
    """A log in a folder of its own, with numbered lines, and logrotate for it."""

    def __init__(self, folder: Path, how: str) -> None:
        # It may be only unpacked.
        found = shutil.which("logrotate", path=f"{process.SEARCH_PATH}{os.pathsep}{os.environ['PATH']}")
        assert found is not None
        self.logrotate = found
        self.folder = folder / "log"
        (self.folder / "old").mkdir(parents=True)
        self.path = self.folder / "portsentry.history"
        self.rules, self.state = folder / "rules", folder / "state"
        self.rules.write_text(f"{self.path} {{\nrotate 9\nmissingok\nifempty\n{how}\n}}\n")
        self.is_dated, self.rotated_at = "dateext" in how, 0
        self.written: list[bytes] = []

    def write(self, count: int) -> None:
        with self.path.open("ab") as file:
            for _ in range(count):
                line = b"line %d %s" % (len(self.written), b"." * (len(self.written) * 37 % 90))
                file.write(line + b"\n")
                self.written.append(line)

    def rotate(self) -> None:
        # Names are told apart by their second, and the clock that logrotate reads may be late by a tick.
        while self.is_dated and int(time.time() - 0.1) <= self.rotated_at:
            time.sleep(0.02)
        done = process.run([self.logrotate, "--force", "--state", str(self.state), str(self.rules)])
        assert done.code == 0, done.err
        self.rotated_at = int(time.time())


def tailer(tail: TailSettings, positions: dict[str, TailPosition]) -> Tailer:
    return Tailer([tail], positions, wake=lambda: None)


def drain(one: Tailer, limit: int = 7) -> list[bytes]:
    lines: list[bytes] = []
    while (batch := one.read(limit)) is not None:
        lines += [line.text for line in batch.lines]
        one.commit(batch)
    return lines


@pytest.fixture(params=ROTATIONS)
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Log:
    return Log(tmp_path, ROTATIONS[request.param])


@pytest.fixture(params=["path", "pattern"])
def tail(request: pytest.FixtureRequest, log: Log) -> TailSettings:
    name = "portsentry*history*" if request.param == "pattern" else log.path.name
    return TailSettings(path=log.folder / name, watch=Watch.POLL)


def test_two_rotations_while_nobody_reads_lose_no_line_and_give_none_twice(log: Log, tail: TailSettings) -> None:
    log.write(5)
    one = tailer(tail, {})
    log.write(20)
    got = drain(one)
    positions = dict(one.positions())
    one.stop()
    for _ in range(2):
        log.write(20)
        log.rotate()
    log.write(20)
    one = tailer(tail, positions)
    # Stopped once more, in the middle of a rotated file.
    batch = one.read(30)
    assert batch is not None
    got += [line.text for line in batch.lines]
    one.commit(batch)
    positions = dict(one.positions())
    one.stop()
    log.rotate()
    log.write(20)
    one = tailer(tail, positions)
    got += drain(one)
    log.write(1)
    got += drain(one)
    one.stop()
    assert got == log.written[5:]


def test_rotations_while_we_run_lose_no_line_and_give_none_twice(log: Log, tail: TailSettings) -> None:
    log.write(5)
    one = tailer(tail, {})
    got: list[bytes] = []
    for between in (True, False, False, True, True):
        log.write(20)
        got += drain(one) if between else []
        log.write(10)
        log.rotate()
        got += drain(one) if between else []
    log.write(1)
    got += drain(one)
    one.stop()
    assert got == log.written[5:]


def test_a_rotation_while_the_file_has_no_line_yet(log: Log, tail: TailSettings) -> None:
    log.write(20)
    one = tailer(tail, {})
    log.write(1)
    drain(one)
    log.rotate()
    assert drain(one) == []
    positions = dict(one.positions())
    one.stop()
    log.write(20)
    log.rotate()
    log.write(20)
    one = tailer(tail, positions)
    assert drain(one) == log.written[21:]
    one.stop()


@pytest.mark.parametrize("log", ["numbered", "gzip", "xz", "olddir and gzip", "dated and gzip"], indirect=True)
def test_a_writer_that_keeps_the_old_file_open_is_read_to_its_last_line(log: Log, tail: TailSettings) -> None:
    log.write(1)
    one = tailer(tail, {})
    got: list[bytes] = []
    with log.path.open("ab", buffering=0) as writer:
        for _ in range(5):
            log.written.append(b"early %d" % len(log.written))
            writer.write(log.written[-1] + b"\n")
        got += drain(one)
        log.written.append(b"unread")
        writer.write(b"unread\n")
        log.rotate()
        log.written.append(b"late")
        writer.write(b"late\n")
        got += drain(one)
    log.write(3)
    got += drain(one)
    one.stop()
    assert got == log.written[1:]


READER = """
import json, os, sys
from pathlib import Path
from jailbridge.config.settings import TailSettings, Watch
from jailbridge.model.event import TailPosition
from jailbridge.tailer import Tailer

path, kept = Path(sys.argv[1]), Path(sys.argv[2])
state = json.loads(kept.read_text()) if kept.exists() else {"positions": {}, "lines": []}
positions = {name: TailPosition(**place) for name, place in state["positions"].items()}
one = Tailer([TailSettings(path=path, watch=Watch.POLL)], positions, wake=lambda: None)
while True:
    batch = one.read(20)
    if batch is not None:
        state["lines"] += [line.text.decode() for line in batch.lines]
        places = {**one.positions(), batch.position.path: batch.position}
    else:
        places = one.positions()
    state["positions"] = {
        name: {key: getattr(place, key) for key in ("path", "device", "inode", "offset", "head")}
        for name, place in places.items()
    }
    kept.with_suffix(".new").write_text(json.dumps(state))
    os.rename(kept.with_suffix(".new"), kept)
    if batch is not None:
        one.commit(batch)
    print(flush=True)
"""


@pytest.mark.parametrize("log", ["gzip", "copytruncate"], indirect=True)
def test_killed_at_any_moment_among_rotations_each_line_counts_once(
    log: Log, tail: TailSettings, tmp_path: Path
) -> None:
    chance = random.Random(4)
    program, kept = tmp_path / "reader.py", tmp_path / "kept"
    program.write_text(READER)
    log.write(1)

    def lines() -> list[bytes]:
        return [line.encode() for line in json.loads(kept.read_text())["lines"]]

    assert tail.path is not None
    for _ in range(8):
        with (tmp_path / "errors").open("wb") as errors:
            running = process.start_producing([sys.executable, str(program), str(tail.path), str(kept)], errors=errors)
        assert running.stdout is not None
        assert running.stdout.readline() == b"\n", (tmp_path / "errors").read_text()
        for _ in range(chance.randint(0, 3)):
            log.write(chance.randint(1, 200))
            if chance.random() < 0.5:
                log.rotate()
            running.stdout.readline()
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        running.stdout.close()
        log.write(chance.randint(0, 50))
        if chance.random() < 0.5:
            log.rotate()
        log.write(chance.randint(1, 50))
    positions = {name: TailPosition(**place) for name, place in json.loads(kept.read_text())["positions"].items()}
    one = tailer(tail, positions)
    got = lines() + drain(one, 1000)
    one.stop()
    assert got == log.written[1:]
