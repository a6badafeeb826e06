import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jailbridge import process
from jailbridge.config.settings import Settings
from jailbridge.definitions import MARK, install, outdated, render, uninstall, write
from jailbridge.definitions.install import OURS
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


def client(folder: Path, body: str) -> str:
    """A program that stands where fail2ban-client does: an outside thing, not ours."""
    program = folder / "client"
    program.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    program.chmod(0o755)
    return str(program)


def test_each_file_begins_with_our_mark_and_names_no_other_place() -> None:
    for standalone in (False, True):
        files = render(settings(), standalone=standalone)
        assert all(text.startswith(f"# {MARK}; do not edit") for text in files.values())
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
    assert jail(settings(tail=tails))["logpath"].split("\n") == ["/a head", "/b head"]


def test_the_jail_reads_the_history_by_default() -> None:
    assert jail(settings(history={"path": "/var/h"}))["logpath"] == "/var/h head"


def test_without_a_log_that_fail2ban_can_read_there_are_no_definitions() -> None:
    with pytest.raises(FatalError, match="no \\[\\[tail\\]\\]"):
        render(settings(tail=[{"path": "/c", "format": "syslog"}]))


def test_the_filter_knows_only_the_dialects_in_use() -> None:
    def expressions(*formats: str) -> tuple[bool, bool]:
        text = render(settings(tail=[{"path": "/a", "format": each} for each in formats]))[FILTER]
        return "Blocked$" in text, "ignored:" in text

    assert expressions("portsentry-1.2") == (True, False)
    assert expressions("portsentry-2") == (False, True)
    assert expressions("auto") == (True, True)
    assert expressions("portsentry-1.2", "portsentry-2") == (True, True)


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
    with pytest.raises(FatalError, match="no \\[\\[tail\\]\\] is in a format that fail2ban can read"):
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


def test_standalone_uses_fail2bans_own_firewall_action_for_tcp_and_udp() -> None:
    files = render(settings(), standalone=True)
    assert "action.d/jailbridge.py" not in files
    assert 'protocol="tcp,udp"' in jail(settings(), standalone=True)["action"]
    assert "dbpurgeage" in files[JAIL]


def test_the_action_needs_nothing_of_this_package() -> None:
    imports = re.findall(r"^\s*(?:from|import) (\S+)", render(settings())["action.d/jailbridge.py"], re.MULTILINE)
    assert imports == ["socket", "fail2ban.server.action"]


# writing


def test_only_what_differs_is_written(tmp_path: Path) -> None:
    files = render(settings())
    assert write(files, tmp_path) == [tmp_path / name for name in files]
    assert {name: (tmp_path / name).read_text() for name in files} == files
    assert (tmp_path / JAIL).stat().st_mode & 0o777 == 0o644
    assert write(files, tmp_path) == []
    assert outdated(files, tmp_path) == []
    changed = render(settings(policy={"allow": ["192.0.2.7"]}))
    assert outdated(changed, tmp_path) == [JAIL]
    assert write(changed, tmp_path) == [tmp_path / JAIL]
    assert sorted(path.name for path in (tmp_path / "jail.d").iterdir()) == ["jailbridge.conf"]


def test_a_file_that_somebody_else_wrote_is_not_overwritten_and_nothing_else_is_written(tmp_path: Path) -> None:
    theirs = tmp_path / JAIL
    theirs.parent.mkdir()
    theirs.write_text("[portsentry]\nenabled = true\n")
    with pytest.raises(FatalError, match="was not written by jailbridge"):
        write(render(settings()), tmp_path)
    assert theirs.read_text() == "[portsentry]\nenabled = true\n"
    assert not (tmp_path / FILTER).exists()


def test_a_link_in_our_place_is_not_replaced(tmp_path: Path) -> None:
    write(render(settings()), tmp_path)
    (tmp_path / JAIL).rename(tmp_path / "elsewhere")
    (tmp_path / JAIL).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FatalError, match="was not written by jailbridge"):
        write(render(settings(policy={"allow": ["192.0.2.7"]})), tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "filter.d").write_text("a file")
    with pytest.raises(FatalError, match=r"filter\.d/jailbridge-portsentry\.conf cannot be written"):
        write(render(settings()), tmp_path)


# installing


def test_without_fail2ban_the_installation_is_done_and_says_that_it_is_untested(tmp_path: Path) -> None:
    done = install(render(settings()), tmp_path, client="no-such-fail2ban-client")
    assert not done.tested
    assert done.reload_needed


def test_a_refused_installation_is_undone_and_tells_the_first_error(tmp_path: Path) -> None:
    old = render(settings())
    write(old, tmp_path)
    log = tmp_path / "new/log"
    refuses = client(tmp_path, "sys.exit('WARNING mild\\n2026 x [1]: ERROR   no such filter\\n2026 ERROR  second')")
    new = render(settings(policy={"allow": ["192.0.2.7"]}), standalone=True)
    with pytest.raises(FatalError, match=r"nothing was changed: no such filter$"):
        install(new, tmp_path, logs=[log], client=refuses)
    assert {name: (tmp_path / name).read_text() for name in old} == old
    assert not log.exists()


def test_a_first_installation_that_is_refused_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="refuses its configuration"):
        install(render(settings()), tmp_path, client=client(tmp_path, "sys.exit(255)"))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["client"]


def test_the_test_is_of_the_folder_itself(tmp_path: Path) -> None:
    asked = client(tmp_path, f"open({str(tmp_path / 'asked')!r}, 'w').write(repr(sys.argv[1:]))")
    assert install(render(settings()), tmp_path, client=asked).tested
    assert (tmp_path / "asked").read_text() == repr(["-c", str(tmp_path), "-t"])


def test_another_rendering_takes_away_what_it_does_not_need(tmp_path: Path) -> None:
    install(render(settings()), tmp_path, client="none")
    done = install(render(settings(), standalone=True), tmp_path, client="none")
    assert tmp_path / "action.d/jailbridge.py" in done.changed
    assert not (tmp_path / "action.d/jailbridge.py").exists()


def test_a_missing_log_is_created_for_its_owner_and_an_existing_one_is_left_alone(tmp_path: Path) -> None:
    there, missing = tmp_path / "there", tmp_path / "new/missing"
    there.write_text("line\n")
    (tmp_path / "f").mkdir()
    done = install(render(settings()), tmp_path / "f", logs=[there, missing], client="none")
    assert done.created == (missing,)
    assert there.read_text() == "line\n"
    assert missing.stat().st_mode & 0o777 == 0o640 & ~_umask()


def test_uninstalling_removes_our_files_only(tmp_path: Path) -> None:
    write(render(settings()), tmp_path)
    theirs = tmp_path / FILTER
    theirs.write_text("[Definition]\n")
    (tmp_path / "jail.d/other.conf").write_text("[other]\n")
    assert uninstall(tmp_path) == [tmp_path / JAIL, tmp_path / "action.d/jailbridge.py"]
    assert theirs.exists()
    assert (tmp_path / "jail.d/other.conf").exists()
    assert uninstall(tmp_path) == []


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_mistyped_folder_is_not_made_into_an_installation(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="typo is not there: apt install fail2ban"):
        install(render(Settings()), tmp_path / "typo", logs=[tmp_path / "log"])
    assert list(tmp_path.iterdir()) == []
