"""How a command runs: its words, its environment, its limits."""

import logging
import os
import threading
import time
from pathlib import Path

import pytest

from jailbridge.config.responding import CommandSettings
from jailbridge.model.network import Network
from jailbridge.respond import commands
from jailbridge.respond.commands import MAX_LINES, PATH, Outcome, missing, respond, run
from jailbridge.respond.event import Event
from jailbridge.respond.queue import Command
from tests.unit.respond.events import event

GO_ON = threading.Event()
HOSTILE = "; id > /tmp/x; $(id) `id` 'a\" --option {address} \\ %s"


def command(*words: str, of: Event | None = None, timeout_s: float = 20.0) -> Command:
    return Command(words, of or event(), timeout_s, first=False)


def script(folder: Path, text: str) -> str:
    path = folder / "script"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_each_word_is_one_argument_whatever_a_value_holds(tmp_path: Path) -> None:
    program = script(tmp_path, f'printf "%s\\n" "$#" "$@" > {tmp_path}/told')
    told = event(reason=HOSTILE)
    assert respond(command(program, "{reason}", "a {address} b", "", "{{{port}}}", of=told), GO_ON, blocked=True) is (
        Outcome.DONE
    )
    assert (tmp_path / "told").read_text() == f"4\n{HOSTILE}\na 192.0.2.7 b\n\n{{23}}\n"


def test_the_environment_is_what_is_documented_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD_OF_OURS", "x")
    program = script(tmp_path, f"exec /usr/bin/env -0 > {tmp_path}/told")
    assert respond(command(program, of=event(reason=HOSTILE)), GO_ON, blocked=False) is Outcome.DONE
    told = dict(one.split("=", 1) for one in (tmp_path / "told").read_text().split("\0") if one)
    # What a shell adds by itself.
    assert told.pop("PWD") == "/"
    assert {name: value for name, value in told.items() if name not in {"OLDPWD", "SHLVL", "_"}} == {
        "PATH": PATH,
        "HOME": os.path.expanduser(f"~{os.environ.get('USER', 'root')}"),  # noqa: PTH111 - as the shell has it
        "LANG": "C.UTF-8",
        "JAILBRIDGE_ADDRESS": "192.0.2.7",
        "JAILBRIDGE_PORT": "23",
        "JAILBRIDGE_PORTS": "tcp/23 tcp/80",
        "JAILBRIDGE_PROTOCOL": "tcp",
        "JAILBRIDGE_MODE": "stealth",
        "JAILBRIDGE_HOSTNAME": "",
        "JAILBRIDGE_REASON": HOSTILE,
        "JAILBRIDGE_UNTIL": "2026-11-22T06:40:59Z",
        "JAILBRIDGE_EVENT": "ban",
        "JAILBRIDGE_TIME": "2026-11-22T06:30:59Z",
        "JAILBRIDGE_BLOCKED": "no",
    }


def test_it_has_no_input_an_own_session_and_a_mask(tmp_path: Path) -> None:
    text = 'cat; umask; readlink /proc/self/cwd; ps -o sid= -p $$ | tr -d " "; echo $$; ls /proc/$$/fd | tr "\\n" " "'
    ended = run([script(tmp_path, text)], {"PATH": PATH}, 20.0, GO_ON)
    mask, folder, session, process, files = ended.output.decode().splitlines()
    assert (ended.code, mask, folder) == (0, "0077", "/")
    assert session == process
    # The shell's own for its script.
    assert set(files.split()) <= {"0", "1", "2", "10", "255"}


def test_a_failing_one_is_told_with_its_code_and_its_output(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    program = script(tmp_path, r"printf 'so \033[31mit\r goes\nwrong\n' >&2; exit 3")
    assert respond(command(program), GO_ON, blocked=True) is Outcome.FAILED
    said, *more, failed = caplog.messages
    assert said == f"command said program={program} address=192.0.2.7 what=ban: so \N{REPLACEMENT CHARACTER}[31mit"
    assert [text.rpartition(": ")[2] for text in more] == [" goes", "wrong"]
    assert failed.startswith(f"command failed program={program} address=192.0.2.7 what=ban code=3 seconds=")


def test_one_that_cannot_be_started_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert respond(command(str(tmp_path / "no")), GO_ON, blocked=True) is Outcome.FAILED
    assert "cannot be started: No such file or directory" in caplog.text
    (tmp_path / "odd").write_text("no program")
    assert respond(command(str(tmp_path / "odd")), GO_ON, blocked=True) is Outcome.FAILED
    assert "Permission denied" in caplog.text


def test_output_is_cut_and_never_held_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    program = script(tmp_path, "yes x | head -c 10000000; exit 0")
    assert respond(command(program), GO_ON, blocked=True) is Outcome.DONE
    assert len([text for text in caplog.messages if text.endswith(": x")]) == MAX_LINES
    assert caplog.messages[-2].endswith("(and more)")


def test_after_its_time_it_is_killed_with_all_that_it_started(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = script(tmp_path, f"sleep 600 & echo $! > {tmp_path}/pid; trap '' TERM; sleep 600")
    assert respond(command(program, timeout_s=3.0), GO_ON, blocked=True) is Outcome.FAILED
    assert "command killed" in caplog.text
    child = Path("/proc", (tmp_path / "pid").read_text().strip())
    deadline = time.monotonic() + 10
    while child.exists() and "Z" not in (child / "stat").read_text().rpartition(")")[2]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_it_leaves_in_the_background_holds_up_nobody(tmp_path: Path) -> None:
    program = script(
        tmp_path, f"(while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; touch {tmp_path}/late) & echo begun"
    )
    ended = run([program], {"PATH": PATH}, 20.0, GO_ON)
    assert ended == (0, b"begun\n")
    assert not (tmp_path / "late").exists()
    (tmp_path / "go").touch()
    deadline = time.monotonic() + 20
    while not (tmp_path / "late").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_that_we_interrupt_is_to_run_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    assert respond(command(script(tmp_path, "sleep 600")), stop, blocked=True) is Outcome.INTERRUPTED
    assert "it runs again" in caplog.text


def test_a_name_is_only_looked_up_where_a_word_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Network] = []

    def named(network: Network) -> str:
        asked.append(network)
        return "host.example.net"

    monkeypatch.setattr(commands, "hostname", named)
    program = script(tmp_path, f'echo "$1 $JAILBRIDGE_HOSTNAME" > {tmp_path}/told')
    respond(command(program, "{address}"), GO_ON, blocked=True)
    assert (asked, (tmp_path / "told").read_text()) == ([], "192.0.2.7 \n")
    respond(command(program, "{hostname}"), GO_ON, blocked=True)
    assert (tmp_path / "told").read_text() == "host.example.net host.example.net\n"


def test_programs_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    programs = ["true", "/bin/true", "no-such-program-here", str(tmp_path / "no"), str(tmp_path / "plain")]
    settings = [CommandSettings(run=(program, "{address}")) for program in programs]
    assert list(missing(settings)) == [
        ("respond.command.2.run", f"there is no program no-such-program-here in {PATH} that can be run"),
        ("respond.command.3.run", f"there is no program {tmp_path}/no that can be run"),
        ("respond.command.4.run", f"there is no program {tmp_path}/plain that can be run"),
    ]
