"""Whole imports of machines in a folder: what is read, planned, written, and what is left alone."""

import gzip
import os
import sqlite3
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jailbridge.config import load
from jailbridge.errors import FatalError
from jailbridge.importing.migration import ImportPlan, apply, planned
from jailbridge.importing.notes import Notes
from jailbridge.ledger import Ledger
from jailbridge.model.ban import EndReason
from jailbridge.model.network import network_text, parse_network
from jailbridge.owned_files import shipped
from tests.unit.importing.conftest import ARTICLE_1, Machine

NOW = datetime.now(UTC)
DENY = 'BLOCK_TCP="1"\nBLOCK_UDP="1"\nKILL_HOSTS_DENY="ALL: $TARGET$ : DENY"\n'


def line(address: str, hours_ago: float) -> str:
    time = NOW - timedelta(hours=hours_ago)
    return f"{int(time.timestamp())} - {time:%m/%d/%Y %H:%M:%S} Host: name.example/{address} Port: 23 TCP Blocked\n"


def line_2(address: str, hours_ago: float, triggered: str = "true") -> str:
    return (
        f"{NOW - timedelta(hours=hours_ago):%Y-%m-%dT%H:%M:%S}.000+0000 Scan from: [{address}] ({address}) "
        "protocol: [TCP] port: [23] type: [TCP SYN/Normal scan] IP opts: [not set] ignored: [false] "
        f"triggered: [{triggered}] noblock: [false] blocked: [true]\n"
    )


@pytest.fixture
def machine(machine: Machine) -> Machine:
    machine.conf(DENY)
    machine.history.write_text(line("203.0.113.9", 60) + line("203.0.113.1", 3))
    return machine


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def plan_of(machine: Machine, ledger: Ledger | None = None, **asked: object) -> ImportPlan:
    return planned(machine.asked(**asked), NOW, lambda _: ledger, Notes())


def banned(plan: ImportPlan) -> dict[str, str]:
    """Return where each ban of a plan comes from, by the name of the file."""
    return {network_text(ban.network): Path(place).name for ban, place in plan.bans}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and "ledger" not in path.name}


def test_a_plan_changes_nothing_and_an_import_twice_only_once(machine: Machine, ledger: Ledger) -> None:
    before = everything(machine.folder)
    plan = plan_of(machine)
    assert everything(machine.folder) == before
    assert banned(plan) == {"203.0.113.1": "portsentry.history"}
    assert plan.declined["its ban would be over by now"] == 1
    apply(plan, lambda _: ledger, NOW)
    assert load(machine.toml) == plan.configuration.settings
    assert list(ledger.bans()) == [parse_network("203.0.113.1")]
    last, after = ledger.last_change, everything(machine.folder)
    again = plan_of(machine, ledger)
    assert (again.configuration.action, again.bans, again.positions) == ("keep", [], [])
    apply(again, lambda _: ledger, NOW)
    assert (ledger.last_change, everything(machine.folder)) == (last, after)


def test_the_daemon_goes_on_where_the_import_ended(machine: Machine, ledger: Ledger) -> None:
    with machine.history.open("a") as history:
        history.write("1795")
    apply(plan_of(machine), lambda _: ledger, NOW)
    position = ledger.positions()[str(machine.history)]
    assert position.offset == machine.history.stat().st_size - 4
    assert position.inode == machine.history.stat().st_ino


def test_rotated_and_packed_histories_of_both_versions_count(machine: Machine) -> None:
    Path(f"{machine.history}.1").write_text(
        line("203.0.113.2", 4) + line_2("203.0.113.3", 4) + line_2("1.2.3.4", 4, "false")
    )
    with gzip.open(f"{machine.history}.2.gz", "wt") as packed:
        packed.write(line("203.0.113.4", 5))
    Path(f"{machine.history}.3.zst").write_bytes(b"x")
    Path(f"{machine.history}.4.gz").write_bytes(b"no gzip")
    plan = plan_of(machine)
    assert set(banned(plan)) == {f"203.0.113.{n}" for n in (1, 2, 3, 4)}
    assert {Path(note.place).suffix for note in plan.notes.not_read} == {".zst", ".gz"}


def test_every_line_that_says_nothing_is_named(machine: Machine) -> None:
    told: list[str] = []
    garbage = os.urandom(3000).replace(b"\n", b"") + b"\n" + b"x" * 5000 + b"\n"
    machine.history.write_bytes(garbage + line("203.0.113.1", 3).encode())
    notes = Notes(tell=lambda note: told.append(note.place))
    plan = planned(machine.asked(), NOW, lambda _: None, notes)
    assert told == [f"{machine.history}:1", f"{machine.history}:2"]
    assert list(banned(plan)) == ["203.0.113.1"]
    assert not plan.is_whole


def test_marks_count_where_no_history_tells_of_them(machine: Machine) -> None:
    deny = machine.folder / "hosts.deny"
    deny.write_text(
        "sshd: 10.9.9.9\n" + "".join(f"ALL: 203.0.113.{n} : DENY\n" for n in (1, 5, 9)) + "ALL: 192.0.2.5 : DENY\n"
    )
    Path(f"{machine.folder}/portsentry.blocked.atcp").write_text(
        line("203.0.113.6", 2) + line("203.0.113.7", 99) + "junk\n"
    )
    plan = plan_of(machine)
    assert banned(plan) == {
        "203.0.113.1": "portsentry.history",
        "203.0.113.5": "hosts.deny",
        "203.0.113.6": "portsentry.blocked.atcp",
    }
    assert plan.declined["the history tells when: its ban would be over by now"] == 1
    assert any("1 lines are not KILL_HOSTS_DENY" in note.text for note in plan.notes.left_alone)
    assert any(note.place.endswith("192.0.2.5") and "exempt" in note.text for note in plan.notes.left_alone)
    assert [note.place for note in plan.notes.not_understood] == [f"{machine.folder}/portsentry.blocked.atcp:3"]


def test_the_binary_list_of_2_counts_from_now(machine: Machine) -> None:
    (machine.folder / "portsentry.blocked").write_bytes(struct.pack("=H4B", 2, 203, 0, 113, 77) + b"\2")
    plan = plan_of(machine)
    found = {network_text(ban.network): ban for ban, _ in plan.bans}["203.0.113.77"]
    assert (found.since, found.until) == (NOW, NOW + timedelta(days=1))
    assert any("no record" in note.text for note in plan.notes.not_read)


def test_what_fail2ban_holds_is_read_from_its_database(machine: Machine) -> None:
    database = machine.folder / "fail2ban.sqlite3"
    with sqlite3.connect(database) as made:
        made.execute("CREATE TABLE logs (jail, path)")
        made.execute("CREATE TABLE bips (ip, jail, timeofban, bantime)")
        made.executemany(
            "INSERT INTO logs VALUES (?, ?)", [("scans", str(machine.history)), ("sshd", "/var/log/auth.log")]
        )
        at = int(NOW.timestamp())
        rows = [
            ("203.0.113.20", "scans", at - 60, 600),
            ("203.0.113.21", "scans", at - 900, 600),
            ("203.0.113.22", "scans", at - 60, -1),
            ("203.0.113.23", "sshd", at - 60, 600),
            ("text", "scans", at, 600),
        ]
        made.executemany("INSERT INTO bips VALUES (?, ?, ?, ?)", rows)
    made.close()
    before = database.read_bytes()
    plan = plan_of(machine)
    ends = {network_text(ban.network): ban.until for ban, place in plan.bans if "jail" in place}
    assert ends.keys() == {"203.0.113.20", "203.0.113.22"}
    assert ends["203.0.113.20"] == datetime.fromtimestamp(at + 540, UTC)
    assert plan.configuration.settings.stores.fail2ban.jail == "scans"
    assert len(plan.notes.not_understood) == 1
    assert database.read_bytes() == before
    database.write_bytes(b"garbage" * 100)
    assert any(note.place == str(database) for note in plan_of(machine).notes.not_read)


def test_an_exemption_list_in_doubt_stops_the_bans_but_for_force(machine: Machine, ledger: Ledger) -> None:
    machine.ignore.write_text("203.0.113.1\nnonsense\n")
    plan = plan_of(machine)
    assert plan.stopped is not None
    assert f"{machine.ignore}:2" in plan.stopped
    assert not plan.bans
    apply(plan, lambda _: ledger, NOW)
    assert not ledger.bans()
    assert not ledger.positions()
    machine.history.write_text(line("203.0.113.1", 3) + line("203.0.113.2", 3))
    forced = plan_of(machine, force=True)
    assert list(banned(forced)) == ["203.0.113.2"], "what can be read of the list still holds"
    assert any(note.place == f"{machine.ignore}:2" for note in forced.notes.not_understood)


def test_a_portsentry_conf_in_doubt_stops_the_bans(machine: Machine) -> None:
    (machine.folder / "portsentry.conf").write_bytes(b"\0")
    assert "whom PortSentry never blocked is not known" in str(plan_of(machine).stopped)


def test_what_the_ledger_has_ended_is_not_made_again(machine: Machine, ledger: Ledger) -> None:
    (machine.folder / "hosts.deny").write_text("ALL: 203.0.113.5 : DENY\n")
    apply(plan_of(machine), lambda _: ledger, NOW)
    ledger.end(list(ledger.bans()), EndReason.OPERATOR, now=NOW + timedelta(seconds=1))
    assert not plan_of(machine, ledger).bans


def test_an_administrators_file_is_only_replaced_by_force_and_kept_beside(machine: Machine, ledger: Ledger) -> None:
    machine.toml.write_text('[policy]\nban_for_spoofable = "4d"\n')
    assert plan_of(machine).configuration.action == "keep"
    assert set(banned(plan_of(machine))) == {"203.0.113.1", "203.0.113.9"}, "its durations count"
    plan = plan_of(machine, force=True, wants_bans=False)
    apply(plan, lambda _: ledger, NOW)
    assert load(machine.toml) == plan.configuration.settings
    assert "4d" in machine.toml.with_name("jailbridge.toml.before-import").read_text()


def test_the_file_that_install_put_there_is_no_administrators(machine: Machine) -> None:
    machine.toml.write_bytes((shipped() / "packaging" / "jailbridge.toml").read_bytes())
    assert plan_of(machine).configuration.action == "replace"


def test_a_link_in_the_configurations_place_is_not_followed(machine: Machine, ledger: Ledger) -> None:
    machine.toml.symlink_to(machine.folder / "elsewhere")
    with pytest.raises(FatalError):
        apply(plan_of(machine, force=True), lambda _: ledger, NOW)
    assert not (machine.folder / "elsewhere").exists()


def test_a_pipe_is_not_waited_for(machine: Machine) -> None:
    machine.history.unlink()
    os.mkfifo(machine.history)
    (machine.folder / "hosts.deny").unlink()
    os.mkfifo(machine.folder / "hosts.deny")
    places = {note.place for note in plan_of(machine).notes.not_read}
    assert places == {str(machine.history), str(machine.folder / "hosts.deny")}


def test_an_article_as_it_stands(machine: Machine) -> None:
    machine.conf(ARTICLE_1)
    (machine.folder / "cron").write_text("*/10 * * * * root /etc/portsentry/unban-lan.sh portsentry\n")
    plan = plan_of(machine)
    assert plan.is_whole
    assert any(note.place == f"{machine.folder}/cron:1" for note in plan.notes.left_alone)
