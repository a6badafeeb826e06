import subprocess
import sys
from pathlib import Path

import pytest

from jailbridge.errors import FatalError
from jailbridge.rivals import portsentry_running, refuse

OURS, OTHER = "net:[4026531840]", "net:[4026532000]"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "thread-self" / "ns").mkdir(parents=True)
    (tmp_path / "thread-self" / "ns" / "net").symlink_to(OURS)
    (tmp_path / "self").symlink_to("thread-self")
    (tmp_path / "meminfo").touch()
    return tmp_path


def process(proc: Path, pid: int, exe: str | None, *argv: str, network: str | None = OURS) -> Path:
    """A process as /proc shows it; without `exe` a kernel thread or a dead one, without `network` one that is gone."""
    folder = proc / str(pid)
    (folder / "ns").mkdir(parents=True)
    (folder / "cmdline").write_bytes(b"".join(argument.encode() + b"\0" for argument in argv))
    if exe is not None:
        (folder / "exe").symlink_to(exe)
    if network is not None:
        (folder / "ns" / "net").symlink_to(network)
    return folder


@pytest.mark.parametrize(
    ("exe", "argv0"),
    [
        ("/usr/sbin/portsentry", "/usr/sbin/portsentry"),
        ("/usr/sbin/portsentry", "anything"),
        ("/usr/sbin/portsentry (deleted)", "-"),
        ("/opt/portsentry-2.0.7", "portsentry"),
        (None, "/usr/local/sbin/portsentry"),
    ],
)
def test_portsentry_is_known_by_its_program_or_what_it_was_started_as(proc: Path, exe: str | None, argv0: str) -> None:
    process(proc, 7, exe, argv0, "-tcp")
    assert portsentry_running(proc) == [7]


@pytest.mark.parametrize(
    ("exe", "argv"),
    [
        ("/usr/bin/python3.11", ["/usr/bin/python3", "/usr/sbin/portsentry", "-tcp"]),
        ("/usr/bin/python3.11", ["/usr/bin/python3", "-m", "jailbridge", "portsentry", "-tcp"]),
        ("/usr/bin/dash", ["/bin/sh", "/etc/init.d/portsentry", "start"]),
        ("/usr/bin/vim", ["vim", "portsentry"]),
        ("/usr/sbin/portsentry-report", ["portsentry-report"]),
        (None, []),
    ],
)
def test_our_drop_in_and_others_that_name_it_are_not_portsentry(proc: Path, exe: str | None, argv: list[str]) -> None:
    process(proc, 7, exe, *argv)
    assert portsentry_running(proc) == []
    refuse(proc)


def test_one_in_another_network_is_none_of_ours(proc: Path) -> None:
    process(proc, 7, "/usr/sbin/portsentry", "portsentry", network=OTHER)
    process(proc, 8, "/usr/sbin/portsentry", "portsentry")
    assert portsentry_running(proc) == [8]


def test_one_that_ends_meanwhile_does_not_count(proc: Path) -> None:
    process(proc, 7, "/usr/sbin/portsentry", "portsentry", network=None)
    (proc / "9").mkdir()
    assert portsentry_running(proc) == []


def test_all_are_named_with_the_remedy(proc: Path) -> None:
    process(proc, 12, "/usr/sbin/portsentry", "portsentry", "-udp")
    process(proc, 9, "/usr/sbin/port\x1b[2J/portsentry", "portsentry", "-tcp")
    assert portsentry_running(proc) == [9, 12]
    with pytest.raises(FatalError) as error:
        refuse(proc)
    assert str(error.value) == (
        "PortSentry runs here already, '/usr/sbin/port\\x1b[2J/portsentry' as process 9 and 12: stop it "
        "(systemctl disable --now portsentry), or leave detection to it (jailbridge run --without sensor)"
    )


def test_a_process_of_ours_that_only_bears_the_name_does_not_count(tmp_path: Path) -> None:
    script = tmp_path / "portsentry"
    script.write_text(f"#!{sys.executable}\nimport sys\nprint(flush=True)\nsys.stdin.read()\n")
    script.chmod(0o755)
    with subprocess.Popen([script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as ours:
        assert ours.stdout is not None
        ours.stdout.readline()
        assert (Path("/proc") / str(ours.pid) / "comm").read_text() == "portsentry\n"
        assert ours.pid not in portsentry_running()
        ours.communicate()
