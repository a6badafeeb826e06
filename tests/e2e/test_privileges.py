"""Privileges are really given up: each case is a process of its own that starts as root."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

START = """
import ctypes, json, os, socket, sys, threading
from pathlib import Path
from jailbridge import privileges
from jailbridge.errors import FatalError
from jailbridge.privileges import Account, drop

libc = ctypes.CDLL(None, use_errno=True)
NET_RAW, SETPCAP, SETUID = 1 << 13, 1 << 8, 1 << 7

def capset(effective, permitted, inheritable):
    header = (ctypes.c_uint32 * 2)(privileges.CAPABILITY_VERSION_3, 0)
    assert libc.capset(header, (ctypes.c_uint32 * 6)(effective, permitted, inheritable, 0, 0, 0)) == 0

def unprivileged_with(capabilities):
    # As a service manager does for User= and AmbientCapabilities= (capabilities(7)).
    assert libc.prctl(8, 1, 0, 0, 0) == 0  # PR_SET_KEEPCAPS
    os.setgroups([4])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    capset(capabilities, capabilities, capabilities)
    assert libc.prctl(47, 2, 13, 0, 0) == 0  # PR_CAP_AMBIENT_RAISE, CAP_NET_RAW

def status():
    lines = Path("/proc/self/status").read_text().splitlines()
    return {key: value.split() for key, _, value in (line.partition(":") for line in lines)}

def can(act):
    try:
        act()
    except OSError:
        return False
    return True

def say(**what):
    print(json.dumps(what), flush=True)

raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
ACCOUNT = Account(65533, 65532, "sensor")
"""
LEFT = """
in_thread = []
thread = threading.Thread(target=lambda: in_thread.append(Path("/proc/thread-self/status").read_text()))
thread.start(); thread.join()
say(
    status=status(),
    new_raw=can(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    root=can(lambda: os.setuid(0)) or can(lambda: os.setgid(0)) or can(lambda: os.setgroups([0])),
    sudo=os.spawnv(os.P_WAIT, SETUID_ID, [SETUID_ID, "-u"]) if (SETUID_ID := sys.argv[1]) else None,
    thread={line.partition(":")[0]: line.split()[1:] for line in in_thread[0].splitlines()},
    old_raw=can(lambda: raw.send(b"")) or raw.getsockname()[0] == "",
)
"""
NOTHING = ["0000000000000000"]


def run(script: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", START + script, *(arguments or ("",))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer | {"first": done.stdout.splitlines()[0]}


def test_root_becomes_the_account_and_keeps_nothing_but_its_sockets() -> None:
    left = run("os.setgroups([0, 4, 27])\ndrop(ACCOUNT)\n" + LEFT)
    for seen in (left["status"], left["thread"]):
        assert seen["Uid"] == ["65533"] * 4
        assert seen["Gid"] == ["65532"] * 4
        assert seen["Groups"] == []
        assert [seen[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [NOTHING] * 5
        assert seen["NoNewPrivs"] == ["1"]
    assert (left["new_raw"], left["root"], left["old_raw"]) == (False, False, True)


def test_a_program_that_makes_its_caller_root_no_longer_does(open_folder: Path) -> None:
    program = open_folder / "id"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o4755)
    left = run("drop(ACCOUNT)\n" + LEFT, str(program))
    assert (left["first"], left["sudo"]) == ("65533", 0)


def test_an_unprivileged_process_loses_its_capabilities_and_keeps_its_user() -> None:
    left = run("unprivileged_with(NET_RAW)\nassert status()['CapAmb'] == ['0000000000002000']\ndrop(ACCOUNT)\n" + LEFT)
    seen = left["status"]
    assert (seen["Uid"], seen["Gid"], seen["Groups"]) == (["65534"] * 4, ["65534"] * 4, ["4"])
    assert [seen[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [NOTHING] * 4
    assert seen["CapBnd"] != NOTHING, "only CAP_SETPCAP could take these away"
    assert seen["NoNewPrivs"] == ["1"]
    assert (left["new_raw"], left["root"]) == (False, False)


def test_an_unprivileged_process_that_could_become_root_no_longer_can() -> None:
    left = run("unprivileged_with(NET_RAW | SETUID | SETPCAP)\ndrop(ACCOUNT)\n" + LEFT)
    assert left["status"]["CapBnd"] == NOTHING
    assert left["root"] is False


def test_root_that_hides_behind_another_effective_user_is_not_taken_for_unprivileged() -> None:
    hidden = (
        "os.setresuid(0, 65534, 0)\ntry:\n    drop(ACCOUNT)\nexcept FatalError as error:\n    say(error=str(error))"
    )
    assert run(hidden)["error"].startswith("privileges cannot be dropped: the groups: Operation not permitted: ")


@pytest.mark.parametrize(
    ("missing", "step"), [("~(1 << 6)", "the groups"), ("~SETUID", "the user sensor")], ids=["SETGID", "SETUID"]
)
def test_a_failed_step_is_fatal_and_named(missing: str, step: str) -> None:
    script = f"""
every = int(status()["CapPrm"][0], 16) & {missing} & 0xFFFFFFFF
capset(every, every, 0)
try:
    drop(ACCOUNT)
except FatalError as error:
    say(error=str(error))
"""
    assert run(script)["error"] == (
        f"privileges cannot be dropped: {step}: Operation not permitted: "
        'mend that, or go on as root with sensor.user = "root"'
    )


def test_what_is_left_is_noticed() -> None:
    script = """
def noticed(to):
    try:
        privileges._verify(to)
    except FatalError as error:
        return str(error).partition("(")[2].partition(")")[0] or str(error)

told = [noticed(ACCOUNT)]
libc.prctl(38, 1, 0, 0, 0)
os.setgroups([4])
os.setresgid(65532, 65532, 0)
os.setresuid(65533, 65533, 0)
told += [noticed(ACCOUNT), noticed(None)]
say(told=told)
"""
    assert run(script)["told"] == [
        "CapPrm, CapEff, NoNewPrivs, Uid, Gid",
        "CapPrm, Uid, Gid, Groups",
        "CapPrm, Uid",
    ]


def test_a_way_back_to_root_is_noticed() -> None:
    # Without its capabilities, but with root's id kept: what setuid(2) alone leaves of a careless drop.
    script = """
capset(0, 0, 0)
libc.prctl(38, 1, 0, 0, 0)
try:
    privileges._verify(Account(0, 0, "root"))
except FatalError as error:
    say(error=str(error))
"""
    assert "root can be had again" in run(script)["error"]
