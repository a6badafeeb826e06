"""`jailbridge doctor` on a host that is well and on hosts with several faults; `backup`, and putting it back."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jailbridge import process
from jailbridge.daemon.control import call
from jailbridge.demo.lab import Answer, Lab
from tests.e2e.conftest import WITHOUT_FAIL2BAN
from tests.e2e.guest import Guest
from tests.e2e.rebooting import CONFIG
from tests.e2e.test_import import on_host
from tests.e2e.test_traces import Sentry, sentry  # noqa: F401 - a fixture

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

# A clock that something sets, no systemd, and the job of an article's script; all of them are this command's alone.
WITHIN = """
disk=$1 && shift && mount -t tmpfs none /run && mkdir -p /run/systemd/timesync $disk/cron.d &&
: >/run/systemd/timesync/synchronized && mount --bind $disk/cron.d /etc/cron.d && exec "$@"
"""
JOB = "*/5 * * * * root sed -i /$(date +%H)/d /etc/hosts.deny\n"
HISTORY = "1795329059 - 11/22/2026 06:30:59 Host: 192.0.2.9/192.0.2.9 Port: 23 TCP Blocked\n"


def doctor(lab: Lab, *options: str) -> Answer:
    argv = lab.jailbridge_argv("doctor", *options)
    return lab.on_host("sh", "-c", WITHIN, "sh", str(lab.disk), *argv, timeout_s=60)


def found(lab: Lab) -> dict[str, str]:
    """What doctor finds, by what it is about."""
    answer = doctor(lab, "--json")
    findings: dict[str, str] = {}
    for finding in json.loads(answer.out):
        findings[finding["what"]] = f"{findings.get(finding['what'], '')}{finding['text']}\n"
    assert answer.code == (2 if findings else 0), answer
    return findings


def left(lab: Lab) -> dict[str, object]:
    """All that doctor could have changed: the host's rules and the files on its disk."""
    rules = lab.on_host("nft", "list", "ruleset").out
    files = {path: path.read_bytes() for path in lab.disk.rglob("*") if path.is_file()}
    return {"rules": rules, "files": files}


def test_a_host_that_is_well_has_no_finding(lab: Lab) -> None:
    lab.start_daemon()
    assert lab.jailbridge("ban", "192.0.2.7").code == 0
    answer = doctor(lab)
    assert (answer.code, answer.out) == (0, "all is as it should be\n"), answer


def test_every_fault_is_named_with_its_remedy_and_nothing_is_touched(make_lab: Callable[..., Lab]) -> None:
    extra = f"""{WITHOUT_FAIL2BAN}
[stores.firewall]
target = "CHAOS"
[[respond.command]]
run = ["/nowhere/notify", "{{address}}"]
"""
    lab = make_lab(extra, allow_files=["/nowhere/allowed"])
    text = lab.config.read_text(encoding="utf-8")
    tail = f'[[tail]]\npath = "{lab.history}"\nformat = "portsentry-2"\n'
    lab.config.write_text(text + tail, encoding="utf-8")
    lab.history.write_text(HISTORY, encoding="ascii")
    lab.history.chmod(0o666)
    (lab.disk / "cron.d").mkdir()
    (lab.disk / "cron.d" / "unblock").write_text(JOB, encoding="ascii")
    (lab.disk / "ledger.sqlite3").write_bytes(b"\xa5" * 8192)
    (lab.disk / "ledger.sqlite3.damaged").write_bytes(b"\xa5" * 8192)
    before = left(lab)
    findings = found(lab)
    assert left(lab) == before
    assert "allow file /nowhere/allowed is not there" in findings["config"]
    assert "/nowhere/notify" in findings["config"]
    assert f"a damaged ledger lies at {lab.disk}/ledger.sqlite3.damaged: put a backup" in findings["ledger"]
    assert f"{lab.disk}/ledger.sqlite3 is not a sound JailBridge ledger: " in findings["ledger"]
    assert findings["daemon"].endswith("nothing new is banned: start `jailbridge run`\n")
    assert "no command is run and no mail sent: start `jailbridge respond`" in findings["respond"]
    assert f"chmod o-w {lab.history}" in findings["history"]
    assert 'is in dialect 1.2: set it to "auto"' in findings["dialect"]
    assert findings["cron"].startswith("/etc/cron.d/unblock:1: ")
    if not list(Path("/lib/modules").glob("*/**/xt_CHAOS.ko*")):
        assert "the target CHAOS is not on this machine" in findings["firewall"]
        assert "apt install xtables-addons-common" in findings["firewall"]
    assert "services" not in findings


def test_a_daemons_troubles_and_rules_that_are_not_reached_are_told(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab('[stores.firewall]\nbackend = "ipset"\nhook = "after:WHITELIST"')
    lab.start_daemon()
    lab.on_host("iptables-nft", "-A", "INPUT", "-s", "192.0.2.1", "-j", "ACCEPT")
    is_legacy_here = lab.on_host("iptables-legacy", "-A", "INPUT", "-s", "192.0.2.2", "-j", "ACCEPT").code == 0
    lab.jailbridge("ban", "192.0.2.7")
    findings = found(lab)
    assert "fail2ban is out of reach: " in findings["stores"]
    assert "firewall is not in force, whom it holds gets in" in findings["stores"]
    assert "iptables INPUT: no rule there jumps to WHITELIST" in findings["hook"]
    assert ("iptables has rules of both kinds" in findings.get("iptables", "")) == is_legacy_here
    assert "jailbridge fail2ban install" in findings["fail2ban"]
    lab.jailbridge("pause", "--for", "1h")
    findings = found(lab)
    assert "no store holds a ban; `jailbridge resume` ends that" in findings["daemon"]
    assert "not in force" not in findings["stores"]


@pytest.mark.needs("journalctl")
def test_services_are_looked_at_where_systemd_runs(installed: Guest) -> None:
    def services() -> str:
        answer = guest.run("jailbridge", "doctor", "--json", timeout_s=60)
        assert answer.code in {0, 2}, answer
        return "\n".join(one["text"] for one in json.loads(answer.out) if one["what"] in {"services", "respond"})

    with Guest(installed) as guest:
        guest.start()
        guest.wait("all is well", lambda: services() == "", timeout_s=60)
        command = '[[respond.command]]\nrun = ["true"]\n'
        guest.path("/etc/jailbridge/jailbridge.toml").write_text(CONFIG + command, encoding="utf-8")
        guest.do("systemctl", "stop", "jailbridge-sensor.service")
        guest.do("systemctl", "disable", "--now", "jailbridge-respond.service")
        unit = guest.path("/etc/systemd/system/jailbridge.service")
        unit.write_text(unit.read_text(encoding="utf-8").replace("RestartSec=2", "RestartSec=3"), encoding="utf-8")
        told = services()
        assert "jailbridge.service was edited: a change belongs in a drop-in" in told
        assert "jailbridge.service was changed since systemd read it: systemctl daemon-reload" in told
        assert "jailbridge-sensor.service does not run" in told
        assert "jailbridge-respond.service is not enabled" in told
        assert "nobody works on /var/lib/jailbridge/respond.sqlite3" in told
        guest.do("jailbridge", "uninstall", "--force")
        assert "nothing starts JailBridge at a boot: run `jailbridge install`" in services()


@pytest.mark.needs("portsentry")
def test_a_real_portsentry_is_named_for_what_it_does_beside_us(sentry: Sentry) -> None:  # noqa: F811
    config = sentry.folder / "etc" / "jailbridge" / "jailbridge.toml"
    config.parent.mkdir()
    process.run(["ip", "-n", sentry.host, "address", "add", "2001:db8:9::1/64", "dev", "eth0", "nodad"])

    def about_detection(mode: str) -> str:
        config.write_text(f'[sensor]\nmode = "{mode}"\n', encoding="utf-8")
        answer = on_host(sentry, "doctor", code=2)
        return "\n".join(one["text"] for one in answer if one["what"] in {"detection", "ipv6"})

    beside = about_detection("stealth")
    assert "PortSentry runs here already" in beside
    assert "systemctl disable --now portsentry" in beside
    alone = about_detection("off")
    for key in ("BLOCK_TCP", "BLOCK_UDP"):
        assert f'also whom we exempt: set {key}="0" in /etc/portsentry/portsentry.conf' in alone
    assert "PortSentry 1.2 sees no IPv6, and this host has 2001:db8:9::1" in alone


def test_a_backup_of_a_storm_is_put_back_and_no_ban_is_lost(lab: Lab) -> None:
    daemon = lab.start_daemon()
    groups = [[f"198.18.{n}.{host}" for host in range(1, 101)] for n in range(10)]
    again, later = groups[0][0], "203.0.113.9"
    wanted = {later, *(address for group in groups for address in group)}

    def ask(command: str, **arguments: Any) -> Any:
        return call(lab.settings.control.socket, command, arguments)

    def untils() -> dict[str, str | None]:
        return {ban["address"]: ban["until"] for ban in ask("list_bans")}

    def storm() -> None:
        for group in groups:
            ask("ban", addresses=group)

    thread = threading.Thread(target=storm)
    thread.start()
    lab.wait("the storm has begun", lambda: again in untils(), timeout_s=60)
    kept = lab.disk / "kept"
    for code in (0, 1):
        # The second time it is there.
        answer = lab.jailbridge("backup", str(kept))
        assert answer.code == code, answer
    thread.join()
    ask("ban", addresses=[later])
    ask("unban", addresses=[again])
    lab.wait("the stores agree", lambda: ask("status")["agreement"], timeout_s=60)
    lab.kill(daemon)
    # As the README says.
    ledger = lab.settings.ledger.path
    for end in ("-wal", "-shm"):
        Path(f"{ledger}{end}").unlink(missing_ok=True)
    shutil.copy(kept, ledger)
    # The dead one's: `start_daemon` waits for it.
    lab.settings.control.socket.unlink()
    lab.start_daemon()
    lab.wait("every ban is known again", lambda: untils().keys() == wanted, timeout_s=60)
    assert untils()[again] is None, "it stood when the copy was made"
    assert untils()[later] is not None, "what is found has the policy's durations"
    lab.wait("the stores agree", lambda: ask("status")["agreement"], timeout_s=60)
