import os
import sys
from pathlib import Path

import pytest

from jailbridge.config.settings import Settings
from jailbridge.definitions import install, render, uninstall, write
from jailbridge.errors import FatalError

FILTER = "filter.d/jailbridge-portsentry.conf"
JAIL = "jail.d/jailbridge.conf"


def settings(**tables: object) -> Settings:
    return Settings.model_validate(tables)


def client(folder: Path, body: str) -> str:
    """A program that stands where fail2ban-client does: an outside thing, not ours."""
    program = folder / "client"
    program.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    program.chmod(0o755)
    return str(program)


def test_without_fail2ban_the_installation_is_done_and_says_that_it_is_untested(tmp_path: Path) -> None:
    done = install(render(settings()), tmp_path, client="no-such-fail2ban-client")
    assert not done.tested
    assert done.changed


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


def test_a_mistyped_folder_is_not_made_into_an_installation(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="typo is not there: apt install fail2ban"):
        install(render(Settings()), tmp_path / "typo", logs=[tmp_path / "log"])
    assert list(tmp_path.iterdir()) == []


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
