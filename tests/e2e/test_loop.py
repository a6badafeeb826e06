"""The whole loop on real programs: nmap, nft, fail2ban, in a lab of its own."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jailbridge.demo.lab import ATTACKER, ATTACKER6, HOSTS_DENY, INNOCENT, SECOND, Lab

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

WITHOUT_FAIL2BAN = "enabled = false"
DEMO = [sys.executable, "-m", "jailbridge", "demo"]
STORES = {"firewall", "fail2ban", "hosts_deny"}


def line(address: str, port: int = 23) -> str:
    now = int(time.time())
    return f"{now} - 11/22/2026 06:30:59 Host: {address}/{address} Port: {port} TCP Blocked\n"


def append(lab: Lab, text: str) -> None:
    with lab.history.open("a", encoding="ascii") as file:
        file.write(text)


def listed(lab: Lab) -> dict[str, dict[str, str]]:
    return {row["address"]: row["stores"] for row in json.loads(lab.jailbridge("list", "--json").out)}


def plan(lab: Lab) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(lab.jailbridge("plan", "--json").out)
    return answer


def is_everywhere(lab: Lab, address: str) -> bool:
    states = listed(lab).get(address)
    return states is not None and set(states.values()) <= {"present", "covered", "disabled"}


def agrees(lab: Lab) -> bool:
    return lab.jailbridge("plan").code == 0


def deny(lab: Lab) -> str:
    return (lab.disk / "hosts.deny").read_text(encoding="utf-8")


def test_the_demo_holds_and_leaves_nothing_behind() -> None:
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        told, _ = demo.communicate(timeout=120)
    assert demo.returncode == 0, told
    assert "statements was checked and held" in told
    assert left_by(demo.pid) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(number: signal.Signals) -> None:
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        for shown in demo.stdout:
            if "jailbridge runs" in shown:
                break
        assert left_by(demo.pid) != []
        demo.send_signal(number)
        assert demo.wait(30) == 130
    assert left_by(demo.pid) == []


def left_by(pid: int) -> list[str]:
    listing = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    folders = [str(path) for path in Path(tempfile.gettempdir()).glob(f"jailbridge-lab-{pid}-*")]
    return [row for row in listing.splitlines() if row.startswith(f"jb-{pid}-")] + folders


def test_an_ipv6_scanner_is_banned_as_a_host_where_its_network_is_our_own(lab: Lab) -> None:
    lab.start_daemon()
    lab.scan(ATTACKER6)
    lab.wait("the ban", lambda: is_everywhere(lab, ATTACKER6))
    assert f"ALL: [{ATTACKER6}]" in deny(lab)
    assert INNOCENT not in deny(lab)


def test_a_udp_scan_is_a_scan(lab: Lab) -> None:
    lab.start_daemon()
    lab.scan(SECOND, "1-20", "-sU")
    lab.wait("the ban", lambda: is_everywhere(lab, SECOND))
    assert " UDP Blocked" in lab.history.read_text(encoding="ascii")


def test_a_handshake_with_a_decoy_is_banned_for_ever_and_a_datagram_to_one_for_a_day(
    make_lab: Callable[..., Lab],
) -> None:
    lab = make_lab(WITHOUT_FAIL2BAN)
    text = lab.config.read_text()
    text = text.replace('tcp_ports = "1-1023"', 'tcp_ports = "1-100"\nudp_ports = "1-100"\nmode = "connect"')
    lab.config.write_text(text)
    lab.start_daemon()
    lab.scan(ATTACKER, "20-30", "-sT")
    lab.scan(SECOND, "20-30", "-sU")
    lab.wait("both are banned", lambda: {ATTACKER, SECOND} <= listed(lab).keys())
    untils = {row["address"]: row["until"] for row in json.loads(lab.jailbridge("list", "--json").out)}
    assert untils[ATTACKER] is None
    assert untils[SECOND] is not None
    assert lab.connect(ATTACKER) == "timed out"
    assert lab.connect(INNOCENT) == "connected"


def test_one_history_line_per_source_until_its_ban_ends(lab: Lab) -> None:
    lab.start_daemon()
    lab.scan(ATTACKER)
    lab.wait("the ban", lambda: is_everywhere(lab, ATTACKER))
    lab.scan(ATTACKER, "100-200")
    lab.scan(SECOND)
    lab.wait("the second ban", lambda: is_everywhere(lab, SECOND))
    assert lab.history.read_text(encoding="ascii").count(f"/{ATTACKER} ") == 1


def test_after_an_unban_a_new_scan_is_noticed_at_once(lab: Lab) -> None:
    lab.start_daemon()
    lab.scan(ATTACKER)
    lab.wait("the ban", lambda: is_everywhere(lab, ATTACKER))
    assert lab.jailbridge("unban", ATTACKER).code == 0
    assert lab.connect(ATTACKER) == "connected"
    lab.wait("the sensor notices it again", lambda: lab.scan(ATTACKER).code == 0 and is_everywhere(lab, ATTACKER))
    assert lab.history.read_text(encoding="ascii").count(f"/{ATTACKER} ") == 2


def test_a_history_that_does_not_exist_yet_is_followed_from_its_first_line(lab: Lab) -> None:
    lab.history.unlink()
    lab.start_daemon("--without", "sensor")
    append(lab, line(ATTACKER))
    lab.wait("the ban", lambda: is_everywhere(lab, ATTACKER))


def test_lines_from_before_the_first_start_ban_nobody(lab: Lab) -> None:
    append(lab, line(ATTACKER))
    lab.start_daemon("--without", "sensor")
    append(lab, line(SECOND))
    lab.wait("the later ban", lambda: is_everywhere(lab, SECOND))
    assert ATTACKER not in listed(lab)


def test_portsentry_2_lines_ban_only_when_triggered_and_not_ignored(lab: Lab) -> None:
    lab.start_daemon("--without", "sensor")

    def row(address: str, ignored: str, triggered: str) -> str:
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000+0000", time.gmtime())
        return (
            f"{now} Scan from: [{address}] ({address}) protocol: [TCP] port: [23] type: [TCP SYN/Normal scan] "
            f"IP opts: [not set] ignored: [{ignored}] triggered: [{triggered}] noblock: [unset] blocked: [unset]\n"
        )

    append(lab, row("203.0.113.1", "true", "unset") + row("203.0.113.2", "false", "false"))
    append(lab, row("203.0.113.3", "false", "true"))
    lab.wait("the ban", lambda: is_everywhere(lab, "203.0.113.3"))
    assert set(listed(lab)) == {"203.0.113.3"}


def test_a_rotation_and_a_restart_lose_no_line(lab: Lab) -> None:
    daemon = lab.start_daemon("--without", "sensor")
    append(lab, line("203.0.113.1"))
    lab.wait("the first ban", lambda: is_everywhere(lab, "203.0.113.1"))
    lab.history.rename(lab.history.with_suffix(".history.1"))
    append(lab, line("203.0.113.2"))
    lab.wait("the ban after a rotation", lambda: is_everywhere(lab, "203.0.113.2"))
    lab.kill(daemon)
    append(lab, line("203.0.113.3"))
    lab.history.rename(lab.history.with_suffix(".history.2"))
    append(lab, line("203.0.113.4"))
    lab.start_daemon("--without", "sensor")
    lab.wait("both bans", lambda: is_everywhere(lab, "203.0.113.4") and is_everywhere(lab, "203.0.113.3"))


def test_a_flushed_ruleset_is_healed_within_an_interval(lab: Lab) -> None:
    lab.start_daemon("--without", "sensor")
    append(lab, line(ATTACKER))
    lab.wait("the ban", lambda: lab.connect(ATTACKER) == "timed out")
    lab.on_host("nft", "flush", "ruleset")
    assert lab.connect(ATTACKER) == "connected"
    lab.wait("the ban is back", lambda: lab.connect(ATTACKER) == "timed out")


def test_a_short_ban_leaves_every_store_and_the_source_is_noticed_again(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab('[[policy.network]]\nnetwork = "198.51.100.0/24"\nban_for = "4s"')
    lab.start_fail2ban()
    lab.start_daemon()
    lab.scan(ATTACKER)
    lab.wait("the ban", lambda: ATTACKER in deny(lab))
    lab.wait("its end", lambda: ATTACKER not in deny(lab))
    lab.wait("agreement", lambda: agrees(lab))
    assert ATTACKER not in lab.fail2ban("get", "portsentry", "banip").out
    assert lab.connect(ATTACKER) == "connected"
    lab.wait("it is noticed again", lambda: lab.scan(ATTACKER).code == 0 and ATTACKER in deny(lab))


def test_fail2ban_being_down_holds_up_no_other_store_and_is_made_up_for(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    lab.start_daemon("--without", "sensor")
    append(lab, line(ATTACKER))
    lab.wait("the ban in the others", lambda: lab.connect(ATTACKER) == "timed out" and ATTACKER in deny(lab))
    shown = lab.jailbridge("plan", "--json")
    stores = json.loads(shown.out)["stores"]
    assert shown.code == 2
    assert set(stores) == {*STORES, "blocked_files"}
    assert [name for name, store in stores.items() if not store["reachable"]] == ["fail2ban"]
    assert "fail2ban.sock: is it running?" in stores["fail2ban"]["problem"]
    lab.start_fail2ban()
    lab.wait("agreement", lambda: agrees(lab), timeout_s=45)
    assert ATTACKER in lab.fail2ban("get", "portsentry", "banip").out


def test_the_brake_holds_for_what_fail2ban_banned_from_the_same_log(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(policy="max_new_spoofable_per_minute = 20")
    lab.start_fail2ban()
    lab.start_daemon("--without", "sensor")
    append(lab, "".join(line(f"203.0.113.{n}") for n in range(1, 81)))
    lab.wait("fail2ban read them all", lambda: len(lab.fail2ban("get", "portsentry", "banip").out.split()) == 80)
    lab.wait("the rest waits, loudly", lambda: "found there wait" in lab.tail("jailbridge", 50))
    assert lab.jailbridge("reconcile").code == 0
    assert len(listed(lab)) == 20
    assert len(lab.fail2ban("get", "portsentry", "banip").out.split()) == 80, "in doubt nothing is removed"


def test_fail2ban_restarted_or_killed_gets_its_bans_back(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    server = lab.start_fail2ban()
    lab.start_daemon("--without", "sensor")
    append(lab, line(ATTACKER) + line(SECOND))
    lab.wait("agreement", lambda: is_everywhere(lab, ATTACKER) and is_everywhere(lab, SECOND))
    lab.kill(server)
    assert lab.jailbridge("unban", SECOND).code == 0
    lab.start_fail2ban()
    lab.wait("agreement", lambda: agrees(lab), timeout_s=45)
    assert lab.fail2ban("get", "portsentry", "banip").out.split() == [ATTACKER]


def test_an_unreadable_allow_file_holds_back_new_bans_loudly_and_loses_no_line(
    make_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    allow = tmp_path / "allowed"
    lab = make_lab(WITHOUT_FAIL2BAN, allow_files=[str(allow)])
    daemon = lab.start_daemon("--without", "sensor")
    append(lab, line(ATTACKER) + line(SECOND))
    lab.wait("the log says so", lambda: f"allow file {allow} is not there" in lab.tail("jailbridge", 50))
    assert listed(lab) == {}
    assert daemon.poll() is None
    allow.write_text(f"{SECOND}  # a friend\n")
    lab.wait("the ban", lambda: is_everywhere(lab, ATTACKER))
    assert SECOND not in listed(lab)


def test_an_address_that_becomes_allowed_is_let_in(make_lab: Callable[..., Lab], tmp_path: Path) -> None:
    allow = tmp_path / "allowed"
    allow.touch()
    lab = make_lab(WITHOUT_FAIL2BAN, allow_files=[str(allow)])
    lab.start_daemon("--without", "sensor")
    append(lab, line(ATTACKER))
    lab.wait("the ban", lambda: lab.connect(ATTACKER) == "timed out")
    allow.write_text(f"{ATTACKER}\n")
    lab.wait("it is let in", lambda: lab.connect(ATTACKER) == "connected")
    assert listed(lab) == {}


def test_broken_marks_in_hosts_deny_are_reported_and_left_alone(lab: Lab) -> None:
    broken = HOSTS_DENY + "# jailbridge end\n"
    (lab.disk / "hosts.deny").write_text(broken, encoding="utf-8")
    lab.start_daemon("--without", "sensor")
    append(lab, line(ATTACKER))
    lab.wait("the firewall has the ban", lambda: lab.connect(ATTACKER) == "timed out")
    stores = plan(lab)["stores"]
    assert "broken jailbridge marks (line 3)" in stores["hosts_deny"]["problem"]
    assert deny(lab) == broken


def test_a_machine_without_nft_is_told_what_to_install(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(WITHOUT_FAIL2BAN + '\n[stores.firewall]\nbackend = "nftables"')
    lab.start_daemon("--without", "sensor")
    append(lab, line(ATTACKER))
    lab.wait("the ban", lambda: is_everywhere(lab, ATTACKER))
    lab.cut_power()
    lab.power_on()
    hidden = 'for p in /usr/sbin/nft /sbin/nft; do mount --bind /dev/null $p; done 2>/dev/null; exec "$@"'
    shown = lab.on_host("unshare", "--mount", "sh", "-c", hidden, "sh", *lab.jailbridge_argv("plan", "--json"))
    stores = json.loads(shown.out)["stores"]
    assert shown.code == 2
    assert stores["firewall"]["problem"] == "nft is not on this machine: apt install nftables"
    assert stores["hosts_deny"]["reachable"]


@pytest.mark.parametrize("content", [b"this is no database, but a letter of some length\n" * 20, b"\0" * 4096])
def test_a_ledger_that_is_none_stops_the_daemon_with_one_line_and_is_kept(lab: Lab, content: bytes) -> None:
    ledger = lab.settings.ledger.path
    ledger.write_bytes(content)
    answer = lab.jailbridge("run")
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert str(ledger) in answer.err
    assert "Traceback" not in answer.err
    assert ledger.read_bytes() == content


def test_a_second_daemon_names_the_first(lab: Lab) -> None:
    first = lab.start_daemon("--without", "sensor")
    answer = lab.jailbridge("run", "--without", "sensor")
    assert answer.code == 1
    assert str(first.pid) in answer.err
    assert answer.err.count("\n") == 1


def test_commands_work_without_a_daemon(lab: Lab) -> None:
    assert "there is no ledger" in lab.jailbridge("plan").err
    assert lab.jailbridge("restore").code == 0
    assert lab.jailbridge("ban", ATTACKER, "--for", "1h").code == 0
    assert lab.connect(ATTACKER) == "timed out"
    assert is_everywhere(lab, ATTACKER)
    assert agrees(lab)
    assert lab.jailbridge("unban", "--all").code == 0
    assert lab.connect(ATTACKER) == "connected"
    assert "is not banned" in lab.jailbridge("unban", ATTACKER).out


def test_own_addresses_gateways_and_sessions_are_not_banned_without_force(lab: Lab) -> None:
    lab.on_host("ip", "route", "add", "default", "via", INNOCENT)
    for address in ("198.51.100.1", INNOCENT, "127.0.0.1", "198.51.100.0/24", "2001:db8:1::/64"):
        answer = lab.jailbridge("ban", address)
        assert answer.code == 1, address
        assert "--force" in answer.err
    assert lab.jailbridge("ban", INNOCENT, "--force").code == 0
    assert lab.connect(INNOCENT) == "timed out"


def test_a_bad_line_of_a_list_is_named_and_nobody_is_banned(lab: Lab, tmp_path: Path) -> None:
    wanted = tmp_path / "wanted"
    wanted.write_text("203.0.113.1\n# fine\n203.0.113.256\n")
    answer = lab.jailbridge("ban", "--from", str(wanted))
    assert answer.code == 1
    assert f"{wanted}:3:" in answer.err
    wanted.write_text("203.0.113.1\n\n203.0.113.0/25 # a network\n2001:db8:7::/48\n")
    assert lab.jailbridge("ban", "--from", str(wanted)).code == 0
    assert set(listed(lab)) == {"203.0.113.0/25", "203.0.113.1", "2001:db8:7::/48"}
    assert agrees(lab)


def test_unban_of_a_host_inside_an_operators_network_names_that_network(lab: Lab) -> None:
    lab.jailbridge("ban", "203.0.113.0/24")
    answer = lab.jailbridge("unban", "203.0.113.7")
    assert answer.code == 1
    assert "203.0.113.0/24" in answer.err


def test_killed_at_any_moment_it_comes_to_agreement(
    make_lab: Callable[..., Lab], record_property: Callable[[str, object], None]
) -> None:
    lab = make_lab()
    lab.start_fail2ban()
    seed = int(os.environ.get("JAILBRIDGE_SEED", random.randrange(1 << 30)))
    chance = random.Random(seed)
    record_property("seed", seed)
    wanted = set()
    for n in range(6):
        daemon = lab.start_daemon("--without", "sensor")
        fresh = [f"203.0.113.{n * 20 + i}" for i in range(1, 15)]
        append(lab, "".join(line(address) for address in fresh))
        wanted |= set(fresh)
        time.sleep(chance.uniform(0, 0.15))  # when the blow falls is the very thing that varies
        lab.kill(daemon)
        if n == 3:
            lab.cut_power()
            lab.power_on()
            lab.jailbridge("restore")
            lab.start_fail2ban()
    lab.start_daemon("--without", "sensor")
    lab.wait("every line banned its source", lambda: set(listed(lab)) == wanted)
    lab.wait("agreement", lambda: agrees(lab))
    block = [row for row in deny(lab).splitlines() if row.startswith("ALL: ")]
    assert sorted(block) == sorted(f"ALL: {address}" for address in wanted)
    assert set(lab.fail2ban("get", "portsentry", "banip").out.split()) == wanted
