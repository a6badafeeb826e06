import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jailbridge import process
from jailbridge.config.settings import Settings
from jailbridge.definitions import MARK, OURS, render
from jailbridge.errors import FatalError

FILTER = "filter.d/jailbridge-portsentry.conf"
JAIL = "jail.d/jailbridge.conf"


def settings(**tables: object) -> Settings:
    return Settings.model_validate(tables)


def jail(made: Settings, *, standalone: bool = False) -> configparser.SectionProxy:
    """The jail as fail2ban's own parser reads it: `%` interpolation, ` ;` comments."""
    parser = configparser.ConfigParser(inline_comment_prefixes=";")
    parser.read_string("[DEFAULT]\nbanaction_allports = x\n" + render(made, standalone=standalone)[JAIL])
    (name,) = parser.sections()
    return parser[name]


def test_each_file_begins_with_our_mark_and_names_no_other_place() -> None:
    for standalone in (False, True):
        files = render(settings(), standalone=standalone)
        assert all(re.match(rf"# {MARK} \([0-9a-f]{{16}}\); do not edit", text) for text in files.values())
        assert set(files) <= set(OURS)
    assert set(render(settings())) == set(OURS)


def test_the_bridged_jail_never_ends_a_ban_by_itself() -> None:
    section = jail(settings(stores={"fail2ban": {"jail": "scans"}}))
    assert section.name == "scans"
    assert section["bantime"] == "-1"
    assert section["bantime.increment"] == "false"
    assert section["action"] == 'jailbridge.py[wake="/run/jailbridge/fail2ban.wake"]'
    assert section["maxretry"] == "1"
    assert section["usedns"] == "no"


def test_the_jail_reads_every_portsentry_log_once_and_no_other() -> None:
    tails = [
        {"path": "/a"},
        {"path": "/b", "format": "portsentry-2"},
        {"path": "/c", "format": "syslog"},
        {"path": "/d", "format": "kernel"},
        {"path": "/a", "format": "portsentry-1.2"},
    ]
    assert jail(settings(tail=tails))["logpath"].split("\n") == ["/a head", "/b head", "/c head"]


def test_the_jail_reads_the_history_by_default() -> None:
    assert jail(settings(history={"path": "/var/h"}))["logpath"] == "/var/h head"


def test_without_a_log_that_fail2ban_can_read_there_are_no_definitions() -> None:
    with pytest.raises(FatalError, match="no \\[\\[tail\\]\\]"):
        render(settings(tail=[{"journal": "portsentry", "format": "syslog"}]))


def test_the_filter_knows_only_the_dialects_in_use() -> None:
    def expressions(*formats: str) -> tuple[bool, bool, bool]:
        text = render(settings(tail=[{"path": "/a", "format": each} for each in formats]))[FILTER]
        return "Blocked$" in text, "^ %(_scan)s$" in text, "attackalert" in text

    assert expressions("portsentry-1.2") == (True, False, False)
    assert expressions("portsentry-2") == (False, True, False)
    assert expressions("syslog") == (False, False, True)
    assert expressions("auto") == (True, True, True)
    assert expressions("portsentry-1.2", "portsentry-2") == (True, True, False)


def test_allowed_networks_and_loopback_are_ignored() -> None:
    ignored = jail(settings(policy={"allow": ["192.0.2.7", "2001:db8::/32"]}))["ignoreip"].split()
    assert {"127.0.0.0/8", "::1", "192.0.2.7", "2001:db8::/32"} <= set(ignored)


@pytest.mark.parametrize("path", ["/log/100%", "/log/%(known)s", "/log/a b", "/[x]*?/log", "/log/$(reboot)", "/log/ü"])
def test_a_path_reaches_fail2ban_as_it_is(path: str, tmp_path: Path) -> None:
    value = jail(settings(tail=[{"path": path}]))["logpath"]
    name, _, place = value.rpartition(" ")
    assert place == "head"
    target = tmp_path / path.lstrip("/")
    target.parent.mkdir()
    target.touch()
    (tmp_path / "xyz").mkdir()
    (tmp_path / "xyz/log").touch()
    (target.parent / "decoy").touch()
    assert [str(found) for found in tmp_path.glob(name.lstrip("/"))] == [str(target)]


def test_a_pattern_stays_one_for_fail2ban() -> None:
    assert jail(settings(tail=[{"path": "/log/100%*.history"}]))["logpath"] == "/log/100%*.history head"


def test_what_fail2ban_cannot_follow_is_left_out() -> None:
    tails = [{"journal": "portsentry"}, {"path": "/log/kern", "format": "kernel", "prefixes": ["scan: "]}]
    assert jail(settings(tail=[{"path": "/log/history"}, *tails]))["logpath"] == "/log/history head"
    with pytest.raises(FatalError, match="no \\[\\[tail\\]\\] is a file in a format that fail2ban can read"):
        render(settings(tail=tails))


@pytest.mark.parametrize("path", ["/log\nbantime = 1", "/log\r", "/a ; b", "/a # b", "/<HOST>", "/a\0b", "/a\u2028b"])
def test_a_path_that_would_break_the_file_is_refused_by_name(path: str) -> None:
    with pytest.raises(FatalError, match=r"fail2ban cannot follow '/"):
        render(settings(tail=[{"path": path}]))


@pytest.mark.parametrize(
    ("tables", "seconds"),
    [
        ({}, 86400),
        ({"policy": {"ban_for": "4w", "ban_for_spoofable": "2h"}}, 7200),
        ({"policy": {"ban_for_spoofable": "permanent"}}, -1),
        ({"tail": [{"path": "/a", "evidence": "handshake"}], "policy": {"ban_for": "4w"}}, 4 * 7 * 86400),
        ({"tail": [{"path": "/a", "evidence": "handshake"}, {"path": "/b"}], "policy": {"ban_for": "4w"}}, 86400),
        ({"sensor": {"mode": "connect"}}, -1),
        ({"sensor": {"mode": "connect"}, "tail": [{"path": "/other"}]}, 86400),
    ],
)
def test_standalone_bans_last_as_the_weakest_evidence_allows(tables: dict[str, object], seconds: int) -> None:
    assert jail(settings(**tables), standalone=True)["bantime"] == str(seconds)


@pytest.mark.parametrize(
    ("firewall", "banaction", "blocks"),
    [(True, "auto", False), (False, "auto", True), (True, "always", True), (False, "never", False)],
)
def test_the_bridged_jail_blocks_where_our_firewall_is_off_or_somebody_wants_both(
    firewall: bool, banaction: str, blocks: bool
) -> None:
    made = settings(stores={"firewall": {"enabled": firewall}, "fail2ban": {"banaction": banaction}})
    actions = jail(made)["action"].splitlines()
    assert actions[-1].startswith("jailbridge.py[wake=")
    assert actions[:-1] == (['x[name="portsentry", protocol="tcp,udp"]'] if blocks else [])


def test_standalone_uses_fail2bans_own_firewall_action_for_tcp_and_udp() -> None:
    files = render(settings(), standalone=True)
    assert "action.d/jailbridge.py" not in files
    assert 'protocol="tcp,udp"' in jail(settings(), standalone=True)["action"]
    assert "dbpurgeage" in files[JAIL]


def test_the_action_needs_nothing_of_this_package() -> None:
    imports = re.findall(r"^\s*(?:from|import) (\S+)", render(settings())["action.d/jailbridge.py"], re.MULTILINE)
    assert imports == ["socket", "time", "fail2ban.server.action"]


def test_the_definitions_travel_inside_the_wheel(tmp_path: Path) -> None:
    """An installed package has no checkout beside it: what the wheel's build puts there must be found and be enough."""
    package = Path(process.__file__).parent
    root = package.parent
    (tmp_path / "jailbridge").mkdir()
    for entry in package.iterdir():
        if entry.name != "_definitions":
            (tmp_path / "jailbridge" / entry.name).symlink_to(entry)
    (tmp_path / "jailbridge/_definitions").mkdir()
    for name in ("filters", "jails"):
        (tmp_path / "jailbridge/_definitions" / name).symlink_to(root / name)
    program = (
        "import jailbridge; from jailbridge.config.settings import Settings; "
        "from jailbridge.definitions import render; print(jailbridge.__file__, *render(Settings()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == [str(tmp_path / "jailbridge/__init__.py"), *OURS]
