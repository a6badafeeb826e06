import os
import resource
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from jailbridge.config.portsentry_conf import Mode, PortsentryConf, parse
from jailbridge.errors import RetryLater
from jailbridge.model.event import Protocol
from jailbridge.portsentry.respond import MAX_DENY_BYTES, HostsDeny, Ran, Response, run_command

V4, V6 = ip_address("192.0.2.7"), ip_address("2001:db8::7")
CONF = """
TCP_PORTS="1"
IGNORE_FILE="/i"
HISTORY_FILE="/h"
BLOCKED_FILE="/b"
BLOCK_TCP="{block}"
KILL_ROUTE="/sbin/iptables -I INPUT -s $TARGET$ -j DROP"
KILL_HOSTS_DENY="ALL: $TARGET$ : DENY"
KILL_RUN_CMD="/bin/notify $TARGET$ $PORT$ $MODE$"
KILL_RUN_CMD_FIRST="{first}"
"""
WRAPPED = 'attackalert: Host 192.0.2.7 has been blocked via wrappers with string: "ALL: 192.0.2.7 : DENY"'
ROUTED = (
    "attackalert: Host 192.0.2.7 has been blocked via dropped route using command: "
    '"/sbin/iptables -I INPUT -s 192.0.2.7 -j DROP"'
)
COMMANDED = 'attackalert: External command run for host: 192.0.2.7 using command: "/bin/notify 192.0.2.7 11 stcp"'


def conf(block: int = 1, first: int = 0) -> PortsentryConf:
    return parse(CONF.format(block=block, first=first), "portsentry.conf", Mode.STCP)


class Runs:
    def __init__(self, outcome: Ran = Ran(True, "")) -> None:  # noqa: B008
        self.argvs: list[Sequence[str]] = []
        self._outcome = outcome

    def __call__(self, argv: Sequence[str]) -> Ran:
        self.argvs.append(argv)
        return self._outcome


def respond(conf: PortsentryConf, deny: Path, run: Runs) -> list[str]:
    return list(Response(conf, Mode.STCP, HostsDeny(deny), run).to(V4, 11, Protocol.TCP))


def test_blocking_denies_routes_and_commands_in_this_order(tmp_path: Path) -> None:
    run = Runs()
    assert respond(conf(), tmp_path / "hosts.deny", run) == [WRAPPED, ROUTED, COMMANDED]
    assert run.argvs == [
        ("/sbin/iptables", "-I", "INPUT", "-s", "192.0.2.7", "-j", "DROP"),
        ("/bin/notify", "192.0.2.7", "11", "stcp"),
    ]
    assert (tmp_path / "hosts.deny").read_text() == "ALL: 192.0.2.7 : DENY\n"


def test_the_command_goes_first_if_asked(tmp_path: Path) -> None:
    assert respond(conf(first=1), tmp_path / "hosts.deny", Runs()) == [COMMANDED, WRAPPED, ROUTED]


def test_two_runs_the_command_only(tmp_path: Path) -> None:
    assert respond(conf(block=2), tmp_path / "hosts.deny", Runs()) == [COMMANDED]
    assert not (tmp_path / "hosts.deny").exists()


def test_zero_does_nothing(tmp_path: Path) -> None:
    run = Runs()
    told = ["attackalert: Ignoring TCP response per configuration file setting."]
    assert respond(conf(block=0), tmp_path / "hosts.deny", run) == told
    assert run.argvs == []


def test_a_route_that_failed_is_not_said_to_block_and_a_command_is_said_to_have_run(tmp_path: Path) -> None:
    told = respond(conf(), tmp_path / "hosts.deny", Runs(Ran(True, "x ended with exit code 2")))
    assert told == [
        WRAPPED,
        "adminalert: ERROR: There was an error trying to block host (exec fail) 192.0.2.7: x ended with exit code 2",
        COMMANDED,
        "adminalert: ERROR: There was an error trying to run command (exec fail) 192.0.2.7: x ended with exit code 2",
    ]


def test_a_command_that_could_not_be_started_is_not_said_to_have_run(tmp_path: Path) -> None:
    told = respond(conf(block=2), tmp_path / "hosts.deny", Runs(Ran(False, "x cannot be started")))
    assert told == [
        "adminalert: ERROR: There was an error trying to run command (exec fail) 192.0.2.7: x cannot be started"
    ]


def test_hosts_deny_that_cannot_be_written_is_told_and_the_rest_is_done(tmp_path: Path) -> None:
    (tmp_path / "hosts.deny").mkdir()
    first, *rest = respond(conf(), tmp_path / "hosts.deny", Runs())
    assert first.startswith(f"adminalert: cannot open hosts.deny file: {tmp_path}/hosts.deny for blocking.")
    assert rest == [ROUTED, COMMANDED]


def test_an_ipv6_address_stands_in_brackets(tmp_path: Path) -> None:
    list(Response(conf(), Mode.STCP, HostsDeny(tmp_path / "deny"), Runs()).to(V6, 11, Protocol.TCP))
    assert (tmp_path / "deny").read_text() == "ALL: [2001:db8::7] : DENY\n"


def test_a_line_is_appended_after_an_unfinished_one_and_never_twice(tmp_path: Path) -> None:
    path = tmp_path / "hosts.deny"
    path.write_text("# mine\nsshd: 192.0.2.1")
    deny = HostsDeny(path)
    for line in ("ALL: 192.0.2.7 ", "ALL: 192.0.2.8", "ALL: 192.0.2.7 ", "sshd: 192.0.2.1"):
        deny.append(line)
    assert path.read_text() == "# mine\nsshd: 192.0.2.1\nALL: 192.0.2.7 \nALL: 192.0.2.8\n"


def test_a_line_that_the_disk_has_no_room_for_leaves_no_beginning_that_names_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "hosts.deny"
    path.write_text("# mine")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len("# mine\nALL: 192.0.2."), before[1]))
    try:
        with pytest.raises(RetryLater, match="No space left"):
            HostsDeny(path).append("ALL: 192.0.2.7")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "# mine"


@pytest.mark.parametrize("end", ["\\", "\\\n"])
def test_a_line_does_not_become_part_of_one_that_goes_on(tmp_path: Path, end: str) -> None:
    path = tmp_path / "hosts.deny"
    path.write_text(f"# mine {end}")
    HostsDeny(path).append("ALL: 192.0.2.7")
    assert path.read_text() == "# mine \\\n\nALL: 192.0.2.7\n"


def test_a_file_that_strangers_have_filled_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "hosts.deny"
    path.touch()
    os.truncate(path, MAX_DENY_BYTES + 1)
    with pytest.raises(RetryLater, match="over 16 MiB"):
        HostsDeny(path).append("ALL: 192.0.2.7")


def test_a_line_that_somebody_took_out_is_appended_again(tmp_path: Path) -> None:
    path = tmp_path / "hosts.deny"
    deny = HostsDeny(path)
    deny.append("ALL: 192.0.2.7")
    new = tmp_path / "new"
    new.write_text("# none\n")
    new.rename(path)
    deny.append("ALL: 192.0.2.7")
    assert path.read_text() == "# none\nALL: 192.0.2.7\n"


def test_a_new_file_can_be_read_by_every_service(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        HostsDeny(tmp_path / "hosts.deny").append("ALL: 192.0.2.7")
    finally:
        os.umask(before)
    assert (tmp_path / "hosts.deny").stat().st_mode & 0o777 == 0o644


def test_a_symbolic_link_of_ours_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").touch()
    (tmp_path / "hosts.deny").symlink_to("real")
    HostsDeny(tmp_path / "hosts.deny").append("ALL: 192.0.2.7")
    assert (tmp_path / "real").read_text() == "ALL: 192.0.2.7\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another's link")
def test_a_symbolic_link_of_another_user_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").touch()
    (tmp_path / "hosts.deny").symlink_to("victim")
    os.chown(tmp_path / "hosts.deny", 65534, 65534, follow_symlinks=False)
    with pytest.raises(RetryLater, match="symbolic link of user 65534"):
        HostsDeny(tmp_path / "hosts.deny").append("ALL: 192.0.2.7")
    assert (tmp_path / "victim").read_text() == ""


def test_a_symbolic_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hosts.deny").symlink_to("hosts.deny")
    with pytest.raises(RetryLater, match=r"cannot be written: .*symbolic links"):
        HostsDeny(tmp_path / "hosts.deny").append("ALL: 192.0.2.7")


def test_a_pipe_in_its_place_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hosts.deny")
    with pytest.raises(RetryLater, match="not a regular file"):
        HostsDeny(tmp_path / "hosts.deny").append("ALL: 192.0.2.7")


def test_commands_tell_how_they_ended() -> None:
    assert run_command(["/bin/true"]) == Ran(True, "")
    assert run_command(["/bin/sh", "-c", "exit 3"]) == Ran(True, "/bin/sh ended with exit code 3")
    assert run_command(["/bin/sh", "-c", "kill -9 $$"]) == Ran(True, "/bin/sh was ended by signal 9")
    assert run_command(["/no/such"]) == Ran(False, "/no/such cannot be started: No such file or directory")


def test_a_command_that_takes_too_long_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    began = time.monotonic()
    script = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
    assert run_command(["/bin/sh", "-c", script], 0.5) == Ran(False, "/bin/sh did not end within 0.5 s")
    assert time.monotonic() - began < 5.0
    child = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    deadline = time.monotonic() + 5.0
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_command_leaves_in_the_background_is_not_waited_for() -> None:
    began = time.monotonic()
    assert run_command(["/bin/sh", "-c", "sleep 2 & exit 0"], 10.0) == Ran(True, "")
    assert time.monotonic() - began < 1.5
