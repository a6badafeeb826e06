"""`jailbridge import` on what Debian's PortSentry 1.2 and a real fail2ban leave behind."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fail2ban_server import Server, eventually, on_both
from tests.e2e.test_traces import OTHER, SOURCE, Sentry, sentry  # noqa: F401 - a fixture
from tests.settings import settings_text

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).parents[2]
# The host's own /etc and /var/lib, so that every default path is one of its.
WITHIN = 'cd "$1" && mount --bind etc /etc && mount --bind lib /var/lib && cd "$2" && shift 2 && exec "$@"'


def asked(*argv: str, code: int = 0) -> Any:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd=REPOSITORY)
    assert done.returncode == code, done.stderr or done.stdout
    return json.loads(done.stdout)


def on_host(host: Sentry, *arguments: str, code: int = 0) -> Any:
    inside = ["ip", "netns", "exec", host.host, "sh", "-c", WITHIN, "sh", str(host.folder), str(REPOSITORY)]
    return asked(*inside, sys.executable, "-m", "jailbridge", *arguments, "--json", code=code)


def ends_of(answer: Any) -> dict[str, datetime]:
    return {ban["address"]: datetime.fromisoformat(ban["until"]) for ban in answer["bans"]}


def addresses(answer: Any) -> set[str]:
    return {ban["address"] for ban in answer["bans"]}


@pytest.mark.needs("portsentry")
def test_a_machine_with_portsentry_is_taken_over(sentry: Sentry) -> None:  # noqa: F811
    (sentry.folder / "etc" / "default").mkdir()
    (sentry.folder / "etc" / "default" / "portsentry").write_text('TCP_MODE="stcp"\nUDP_MODE=""\n')
    sentry.scan(SOURCE, 1)
    sentry.scan(OTHER, 1)
    # Of the other one only its line in hosts.deny, its rule and its record are left.
    history = sentry.kept / "portsentry.history"
    history.write_text("".join(line for line in history.read_text().splitlines(True) if f"/{OTHER} " not in line))
    before = sentry.deny.read_bytes(), history.read_bytes()
    plan = on_host(sentry, "import")
    assert addresses(plan) == {SOURCE, OTHER}
    assert plan["sources"]["KILL_ROUTE"]["read"] == 2
    assert plan["sources"]["/etc/hosts.deny"]["read"] == 2
    assert plan["sources"][str(Path("/var/lib/portsentry/portsentry.blocked.stcp"))]["read"] == 2
    assert plan["configuration"]["action"] == "write"
    assert not (sentry.folder / "lib" / "jailbridge").exists()
    assert not (sentry.folder / "etc" / "jailbridge").exists()
    done = on_host(sentry, "import", "--apply", "--keep-portsentry")
    assert addresses(done) == {SOURCE, OTHER}
    assert 'mode = "off"' in (sentry.folder / "etc" / "jailbridge" / "jailbridge.toml").read_text()
    assert {ban["address"] for ban in on_host(sentry, "list")} == {SOURCE, OTHER}
    again = on_host(sentry, "import", "--apply")
    assert (again["configuration"]["action"], again["bans"]) == ("keep", [])
    assert (sentry.deny.read_bytes(), history.read_bytes()) == before


@on_both
def test_what_a_jail_holds_is_taken_over_from_its_server_and_from_its_database(server: Server, tmp_path: Path) -> None:
    (server.directory / "jail.d" / "scans.local").write_text(
        f"[scans]\nenabled = true\nfilter = portsentry\nbackend = polling\nlogpath = {server.history}\n"
        "maxretry = 1\nbantime = 600\naction =\n"
        f"[other]\nenabled = true\nfilter = portsentry\nbackend = polling\nlogpath = {tmp_path}/other\naction =\n"
    )
    (tmp_path / "other").touch()
    server.start(None)
    eventually(lambda: server.asked("get", "scans", "logpath") and server.asked("get", "other", "logpath"))
    server.asked("set", "scans", "banip", "203.0.113.50")
    server.asked("set", "other", "banip", "203.0.113.51")
    now = datetime.now(UTC)
    with server.history.open("a") as history:
        stamp = f"{int(now.timestamp())} - {now:%m/%d/%Y %H:%M:%S}"
        history.write(f"{stamp} Host: 203.0.113.52/203.0.113.52 Port: 23 TCP Blocked\n")
    eventually(lambda: "203.0.113.52" in str(server.asked("get", "scans", "banip")))
    config = tmp_path / "jailbridge.toml"
    config.write_text(settings_text(tmp_path) + f'[history]\npath = "{server.history}"\n')
    places = ["--portsentry-conf", f"{tmp_path}/none", "--defaults", f"{tmp_path}/none", "--config", str(config)]
    places += ["--fail2ban-socket", str(server.socket), "--fail2ban-database", f"{tmp_path}/db.sqlite3"]
    command = [sys.executable, "-m", "jailbridge", "import", "--json", *places]
    plan = asked(*command)
    found = {ban["address"]: ban["source"] for ban in plan["bans"]}
    assert found == {"203.0.113.50": "fail2ban's jail scans", "203.0.113.52": str(server.history)}
    ends = ends_of(plan)
    assert (ends["203.0.113.50"] - now).total_seconds() <= 660
    server.kill()
    from_database = asked(*command, code=2)
    # Of a ban's second fail2ban's server and its database each have their own.
    others = ends_of(from_database)
    assert others.keys() == ends.keys()
    assert all(abs((others[address] - ends[address]).total_seconds()) <= 1 for address in ends)
    assert [note["place"] for note in from_database["not_read"]] == [str(server.socket)]
