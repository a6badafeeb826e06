"""What a hostile outsider, a careless admin and an impatient user do to it, on real programs."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jailbridge.demo.lab import ATTACKER, HOSTS_DENY, SECOND, Lab

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

SAMPLES = Path(__file__).parents[2] / "sample-logs"
BAN = "203.0.113.7"


def line(address: str) -> str:
    return f"{int(time.time())} - 11/22/2026 06:30:59 Host: {address}/{address} Port: 23 TCP Blocked\n"


def append(lab: Lab, data: bytes) -> None:
    with lab.history.open("ab") as file:
        file.write(data)


def listed(lab: Lab) -> set[str]:
    return {row["address"] for row in json.loads(lab.jailbridge("list", "--json").out)}


def denied(lab: Lab) -> list[str]:
    text = (lab.disk / "hosts.deny").read_text(encoding="utf-8")
    return [row.removeprefix("ALL: ") for row in text.splitlines() if row.startswith("ALL: ")]


def jailed(lab: Lab) -> set[str]:
    return set(lab.fail2ban("get", "portsentry", "banip").out.split())


def agrees(lab: Lab) -> bool:
    return lab.jailbridge("plan").code == 0


def log(lab: Lab) -> str:
    return (lab.disk / "jailbridge.log").read_text(encoding="utf-8")


def look_often(lab: Lab) -> None:
    """Have the daemon compare everything every second."""
    text = lab.config.read_text(encoding="utf-8")
    lab.config.write_text(text.replace('interval = "5s"', 'interval = "1s"'), encoding="utf-8")
    assert lab.settings.reconcile.interval.total_seconds() == 1


# An impatient user


def test_what_a_killed_lab_left_is_swept_by_the_next(tmp_path: Path) -> None:
    script = (
        "import time\nfrom jailbridge.demo.lab import Lab\n"
        "with Lab() as lab: print(lab.host, lab.folder, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        namespace, folder = killed.stdout.readline().split()
        killed.kill()
    foreign = Path(tempfile.mkdtemp(prefix=f"jailbridge-lab-{killed.pid}-"))
    os.chown(foreign, 12345, 12345)
    try:
        assert Path(folder).is_dir()
        with Lab("enabled = false"):
            assert not Path(folder).exists()
            assert not Path("/run/netns", namespace).exists()
            assert foreign.is_dir(), "somebody else's folder is not ours to remove"
    finally:
        foreign.rmdir()


@pytest.mark.parametrize("arguments", [["history", "events", str(SAMPLES / "portsentry-2.log")], ["--help"]])
@pytest.mark.parametrize("output", [">&-", ">/dev/full", "2>&-"])
def test_an_output_that_cannot_be_written_is_never_a_traceback(arguments: list[str], output: str) -> None:
    command = ["sh", "-c", f'"$@" {output}', "sh", sys.executable, "-m", "jailbridge", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
    assert done.returncode == (1 if output == ">/dev/full" else 0)
    assert ("output cannot be written" in done.stderr) == (output == ">/dev/full")


def test_a_list_to_a_full_disk_is_one_line(lab: Lab) -> None:
    assert lab.jailbridge("ban", BAN).code == 0
    for arguments in (["list"], ["list", "--json"], ["status"]):
        done = lab.on_host("sh", "-c", '"$@" >/dev/full', "sh", *lab.jailbridge_argv(*arguments))
        assert done.code == 1
        assert done.err == "jailbridge: the output cannot be written: No space left on device\n"


# A careless admin


def test_a_second_daemon_with_another_ledger_does_not_take_the_control_socket(lab: Lab) -> None:
    lab.start_daemon("--without", "sensor")
    other = lab.disk / "other.toml"
    text = lab.config.read_text(encoding="utf-8")
    other.write_text(text.replace("ledger.sqlite3", "other.sqlite3"), encoding="utf-8")
    argv = [*lab.jailbridge_argv("run", "--without", "sensor")[:-1], str(other)]
    answer = lab.on_host(*argv, timeout_s=10)
    assert answer.code == 1
    assert answer.err.splitlines()[-1].endswith("is served by another daemon: stop it, or set control.socket")
    assert lab.jailbridge("list").code == 0


def test_a_fail2ban_that_was_broken_before_is_not_blamed_on_our_files(lab: Lab) -> None:
    folder = lab.disk / "fail2ban"
    folder.mkdir()
    (folder / "fail2ban.conf").write_text("[Definition]\nloglevel = INFO\n", encoding="utf-8")
    jails = "[DEFAULT]\n[sshd]\nenabled = true\nfilter =\nlogpath = /nonexistent/auth.log\n"
    (folder / "jail.conf").write_text(jails, encoding="utf-8")
    answer = lab.jailbridge("fail2ban", "install", "--into", str(folder))
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert "without our files too: mend that first" in answer.err
    assert "sshd" in answer.err
    assert not (folder / "jail.d/jailbridge.conf").exists()


def test_hosts_deny_survives_whatever_an_editor_does_to_it(lab: Lab) -> None:
    path = lab.disk / "hosts.deny"
    look_often(lab)
    lab.start_daemon("--without", "sensor")
    assert lab.jailbridge("ban", BAN, SECOND).code == 0
    old = path.read_bytes()
    assert lab.jailbridge("unban", SECOND).code == 0

    path.write_bytes(old)
    lab.wait("an old copy does not ban again", lambda: denied(lab) == [BAN])
    assert listed(lab) == {BAN}

    path.write_text(f"# top\nALL: 192.0.2.1\n{path.read_text(encoding='utf-8')}sshd: 192.0.2.2\n", encoding="utf-8")
    assert lab.jailbridge("ban", "203.0.113.8").code == 0
    assert path.read_text(encoding="utf-8").startswith(f"# top\nALL: 192.0.2.1\n{HOSTS_DENY}")
    assert path.read_text(encoding="utf-8").endswith("sshd: 192.0.2.2\n")
    assert listed(lab) == {BAN, "203.0.113.8"}

    real = path.rename(lab.disk / "real.deny")
    path.symlink_to(real)
    assert lab.jailbridge("ban", "203.0.113.9").code == 0
    assert path.is_symlink()
    assert "ALL: 203.0.113.9" in real.read_text(encoding="utf-8")

    path.unlink()
    lab.wait("the file is made anew", lambda: path.exists() and len(denied(lab)) == 3)
    assert agrees(lab)
    assert not list(lab.disk.glob(".*"))


def test_what_is_done_to_our_nft_table_is_undone(lab: Lab) -> None:
    look_often(lab)
    lab.start_daemon("--without", "sensor")
    assert lab.jailbridge("ban", BAN, SECOND).code == 0
    saved = lab.disk / "saved.nft"
    saved.write_text("flush ruleset\n" + lab.on_host("nft", "list", "ruleset").out, encoding="utf-8")
    assert lab.jailbridge("unban", SECOND).code == 0

    def rules() -> str:
        return lab.on_host("nft", "list", "ruleset").out

    assert lab.on_host("nft", "-f", str(saved)).code == 0
    assert SECOND in rules()
    lab.wait("the reloaded ruleset bans nobody anew", lambda: SECOND not in rules() and BAN in rules())
    for spoiled in ("delete table inet jailbridge", "flush set inet jailbridge hosts4"):
        assert lab.on_host("nft", *spoiled.split()).code == 0
        assert BAN not in rules()
        lab.wait(f"the ban is back after {spoiled}", lambda: BAN in rules())
    assert lab.on_host("nft", "add", "element", "inet", "jailbridge", "hosts4", "{ 192.0.2.77 }").code == 0
    lab.wait("a foreign element goes", lambda: "192.0.2.77" not in rules())
    assert listed(lab) == {BAN}


@pytest.mark.timeout(300)
def test_a_jail_that_is_changed_reloaded_or_emptied_comes_to_agreement(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    lab.start_fail2ban()
    look_often(lab)
    lab.start_daemon("--without", "sensor")
    assert lab.jailbridge("ban", BAN).code == 0
    lab.fail2ban("set", "portsentry", "banip", SECOND)
    lab.wait("a person's ban is taken over", lambda: SECOND in denied(lab) and listed(lab) == {BAN, SECOND})

    def is_held(expected: set[str]) -> bool:
        # Until our mark is there again, what is taken out is a loss.
        token = lab.fail2ban("get", "portsentry", "action", "jailbridge", "token").out
        return token.startswith("jb1:") and listed(lab) == jailed(lab) == expected and agrees(lab)

    for spoiled in (["reload"], ["restart", "portsentry"]):
        assert lab.fail2ban(*spoiled).code == 0
        lab.wait(f"both are back after {' '.join(spoiled)}", lambda: is_held({BAN, SECOND}), timeout_s=30)

    assert lab.fail2ban("set", "portsentry", "unbanip", BAN).code == 0
    # Where reading takes long (a busy machine), it is done less often.
    lab.wait("the wish is obeyed", lambda: is_held({SECOND}), timeout_s=90)
    assert BAN not in denied(lab)
    assert lab.fail2ban("unban", "--all").code == 0
    lab.wait("the other wish, too", lambda: is_held(set()), timeout_s=90)
    assert SECOND not in denied(lab)


# A hostile outsider


def test_the_sample_lines_ban_exactly_whom_they_should(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    lab.start_fail2ban()
    lab.start_daemon("--without", "sensor")
    wanted: set[str] = set()
    for dialect in ("1.2", "2"):
        told = (SAMPLES / f"portsentry-{dialect}.expected.jsonl").read_text(encoding="utf-8").splitlines()
        wanted |= {address for row in map(json.loads, told) if (address := row["fail2ban"]) is not None}
        append(lab, (SAMPLES / f"portsentry-{dialect}.log").read_bytes())
    append(lab, line(BAN).encode())
    lab.wait("the last line is read", lambda: BAN in denied(lab) and BAN in jailed(lab))
    lab.wait("agreement", lambda: agrees(lab))
    held = {address.removesuffix("/64").rstrip(":") for address in listed(lab)}
    assert len(held) > 20
    for address in held - {BAN}:
        assert any(one.startswith(address) for one in wanted), f"{address} stands in no line that bans"
    assert {row.strip("[]").partition("]")[0].rstrip(":") for row in denied(lab)} == held
    assert jailed(lab) == listed(lab)


def test_garbage_in_the_history_costs_little_and_hides_no_scan(lab: Lab) -> None:
    daemon = lab.start_daemon("--without", "sensor")
    append(lab, os.urandom(1 << 20) + b"x" * (10 << 20))
    row = f"{int(time.time())} - 11/22/2026 06:30:59 Host: a/999.1.1.1 Port: 1 TCP Blocked \x1b[31m\n"
    append(lab, b"\n" + row.encode() * 20_000 + line(ATTACKER).encode())
    lab.wait("the scan behind it is banned", lambda: ATTACKER in denied(lab), timeout_s=30)
    assert listed(lab) == {ATTACKER}
    status = Path(f"/proc/{daemon.pid}/status").read_text(encoding="ascii")
    peak_kib = next(int(row.split()[1]) for row in status.splitlines() if row.startswith("VmHWM"))
    assert peak_kib < 150 << 10
    assert len(log(lab)) < 20_000
    assert "\x1b" not in log(lab)


def test_the_control_socket_answers_beside_idle_slow_and_rude_peers(lab: Lab) -> None:
    daemon = lab.start_daemon("--without", "sensor")
    peers: list[socket.socket] = []
    try:
        for number in range(200):
            peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            peer.connect(str(lab.settings.control.socket))
            peers.append(peer)
            peer.send(
                [b"", b'{"command": "li', b"\x00\xff garbage\n", b'{"command":"list_bans","arguments":{}}\n'][
                    number % 4
                ]
            )
        assert lab.jailbridge("ban", BAN).code == 0
        assert listed(lab) == {BAN}
    finally:
        for peer in peers:
            peer.close()
    lab.wait("they are all let go", lambda: len(list(Path(f"/proc/{daemon.pid}/task").iterdir())) < 10)
    assert "Traceback" not in log(lab)


def test_a_command_waits_its_turn_where_many_ask_at_once(lab: Lab) -> None:
    daemon = lab.start_daemon("--without", "sensor")
    os.kill(daemon.pid, signal.SIGSTOP)
    peers: list[socket.socket] = []
    try:
        while True:
            peers.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            peers[-1].setblocking(False)
            try:
                peers[-1].connect(str(lab.settings.control.socket))
            except BlockingIOError:
                break
        asking = lab.spawn("status", lab.jailbridge_argv("status", "--json"))
        queue = Path(f"/proc/{asking.pid}/wchan")
        lab.wait("it waits, or has ended", lambda: asking.poll() is not None or "unix" in queue.read_text())
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
        for peer in peers:
            peer.close()
    asking.wait(30)
    assert json.loads((lab.disk / "status.log").read_text(encoding="utf-8"))["running"]


def test_a_hung_fail2ban_holds_up_the_firewall_by_one_timeout_at_most(
    make_lab: Callable[..., Lab], record_property: Callable[[str, object], None]
) -> None:
    lab = make_lab()
    server = lab.start_fail2ban()
    lab.start_daemon("--without", "sensor")
    lab.wait("agreement", lambda: agrees(lab))
    os.kill(server.pid, signal.SIGSTOP)
    append(lab, line(ATTACKER).encode())
    took: Any = lab.wait("the firewall bans", lambda: lab.connect(ATTACKER, 0.3) == "timed out")
    record_property("seconds", took)
    assert took < 7.5
    os.kill(server.pid, signal.SIGCONT)
    lab.wait("fail2ban makes up for it", lambda: ATTACKER in jailed(lab), timeout_s=45)
