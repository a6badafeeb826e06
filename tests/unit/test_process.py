"""The door to other programs."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from jailbridge import process
from jailbridge.errors import FatalError, RetryLater


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-c", code]


def test_a_program_gets_its_input_and_leaves_its_outputs_and_code() -> None:
    code = "import sys; print(sys.stdin.read()); print('so it is', file=sys.stderr); sys.exit(3)"
    result = process.run(python(code), given="ä" * 100_000)
    assert (result.code, result.out, result.err) == (3, "ä" * 100_000 + "\n", "so it is\n")


def test_the_first_error_is_one_line_whatever_was_printed() -> None:
    assert process.Result(code=1, out="", err="\n  Error: no\n ^^^\n").first_error == "Error: no"
    assert process.Result(code=1, out="said here\n", err="").first_error == "said here"
    assert process.Result(code=9, out="\n", err=" \n").first_error == "exit code 9"


def test_output_that_is_not_text_is_no_error() -> None:
    assert process.run(python("import sys; sys.stdout.buffer.write(b'\\xff!')")).out == "\ufffd!"


def test_a_program_that_is_too_slow_is_ended_and_tried_later() -> None:
    start = time.monotonic()
    with pytest.raises(RetryLater, match=r"did not answer within 0\.2 s"):
        process.run(python("import time; time.sleep(60)"), timeout_s=0.2)
    assert time.monotonic() - start < 30


def test_a_program_that_cannot_start_is_tried_later(tmp_path: Path) -> None:
    (tmp_path / "not-a-program").write_text("")
    for path in (tmp_path / "absent", tmp_path / "not-a-program"):
        with pytest.raises(RetryLater, match=f"{path} cannot be started: "):
            process.run([str(path)])
        with pytest.raises(RetryLater, match=f"{path} cannot be started: "):
            process.start([str(path)])


def test_a_missing_program_is_named_with_its_package() -> None:
    with pytest.raises(FatalError, match=r"^no-such-program is not on this machine: apt install a-package$"):
        process.find("no-such-program", "a-package")


def test_roots_tools_are_found_whatever_the_path_says() -> None:
    for path in ("", "/nowhere"):
        done = subprocess.run(
            python("from jailbridge import process; print(process.find('ip', 'iproute2'))"),
            env={"PATH": path}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.startswith("/")


@pytest.mark.parametrize("path", ["", ".", ":/usr/bin"])
def test_no_program_is_ever_taken_from_the_current_folder(tmp_path: Path, path: str) -> None:
    planted = tmp_path / "ip"
    planted.write_text("#!/bin/sh\n")
    planted.chmod(0o755)
    done = subprocess.run(
        python("from jailbridge import process; print(process.find('ip', 'iproute2'))"),
        env={"PATH": path}, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = Path(done.stdout.strip())
    assert found.is_absolute()
    assert found != planted


def test_a_started_program_goes_on_in_a_session_of_its_own(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        running = process.start(
            python("import os; print(os.getsid(0) == os.getpid(), os.getcwd())"), log=log, cwd=tmp_path
        )
    assert running.wait(30) == 0
    assert (tmp_path / "log").read_text() == f"True {tmp_path}\n"


ECHO = "import sys\nfor line in sys.stdin: print(line.strip() * {times}, flush=True)"


def test_a_conversation_goes_line_by_line_however_long_they_are() -> None:
    talk = process.Conversation(python(ECHO.format(times=2)))
    for line in ("a", "", "ä" * 200_000, "b"):
        assert talk.ask(line, timeout_s=30) == line * 2
    pid = talk.pid
    talk.end()
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(RetryLater):
        talk.ask("c", timeout_s=30)


def test_a_conversation_ends_with_whoever_holds_it() -> None:
    talk = process.Conversation(python(ECHO.format(times=1)))
    pid = talk.pid
    del talk
    assert not Path(f"/proc/{pid}").exists()


def test_a_conversation_with_who_died_or_is_silent_is_tried_later() -> None:
    talk = process.Conversation(python("import sys; sys.stdin.readline()"))
    with pytest.raises(RetryLater, match="has died"):
        talk.ask("a", timeout_s=30)
    talk = process.Conversation(python("import time; time.sleep(60)"))
    with pytest.raises(RetryLater, match=r"did not answer within 0\.2 s"):
        talk.ask("a" * 1_000_000, timeout_s=0.2)
    assert not Path(f"/proc/{talk.pid}").exists()
    with pytest.raises(RetryLater, match="cannot be started"):
        process.Conversation(["/nowhere/program"])


def test_a_program_is_there_or_not() -> None:
    assert process.has("sh")
    assert not process.has("jailbridge-no-such-program")
