import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jailbridge import service_files
from jailbridge.config import load
from jailbridge.errors import FatalError
from jailbridge.service_files import CONFIG, OURS, STATE, UNITS, install, render, uninstall

COMMAND = ["/opt/x/bin/jailbridge"]
UNIT = "etc/systemd/system/jailbridge.service"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system's tree, as far as others have made it."""
    for name in (
        "systemd/system/ssh.service",
        "sysusers.d/x.conf",
        "tmpfiles.d/x.conf",
        "logrotate.d/apt",
        "hosts.deny",
    ):
        path = tmp_path / "etc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("theirs\n")
    return tmp_path


def tree(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
    }


def test_after_uninstall_the_tree_is_as_before(root: Path) -> None:
    before = tree(root)
    done = install(render(COMMAND), root)
    assert {path.relative_to(root).as_posix() for path in done.changed} == {*OURS, CONFIG}
    removed = uninstall(root, purge=True)
    assert set(removed.removed) == set(done.changed)
    assert tree(root) == before


def test_into_nothing_and_back_to_nothing(tmp_path: Path) -> None:
    install(render(COMMAND), tmp_path)
    uninstall(tmp_path, purge=True)
    assert tree(tmp_path) == {}


def test_twice_is_as_once(root: Path) -> None:
    install(render(COMMAND), root)
    first = tree(root)
    assert install(render(COMMAND), root).changed == ()
    assert tree(root) == first
    uninstall(root)
    second = tree(root)
    assert uninstall(root).removed == ()
    assert tree(root) == second


def test_a_dry_run_changes_nothing_and_says_all(root: Path) -> None:
    before = tree(root)
    would = install(render(COMMAND), root, dry_run=True)
    assert tree(root) == before
    assert install(render(COMMAND), root) == would
    there = tree(root)
    would_go = uninstall(root, purge=True, dry_run=True)
    assert tree(root) == there
    assert uninstall(root, purge=True) == would_go


def test_a_configuration_that_is_there_stays(root: Path) -> None:
    config = root / CONFIG
    config.parent.mkdir()
    config.write_text("[sensor]\nmode = 'off'\n")
    assert config not in install(render(COMMAND), root, force=True).changed
    uninstall(root)
    assert config.read_text() == "[sensor]\nmode = 'off'\n"


def test_configuration_and_ledger_go_only_when_that_is_asked(root: Path) -> None:
    install(render(COMMAND), root)
    (root / STATE).mkdir(parents=True)
    (root / STATE / "ledger.sqlite3").touch()
    assert uninstall(root).removed == tuple(root / place for place in OURS)
    assert (root / CONFIG).exists()
    assert (root / STATE / "ledger.sqlite3").exists()
    assert uninstall(root, purge=True).removed == (root / CONFIG, root / STATE)
    assert not (root / STATE).exists()
    assert not (root / CONFIG).parent.exists()


@pytest.mark.parametrize("place", OURS)
def test_what_somebody_edited_is_lost_only_by_force(root: Path, place: str) -> None:
    install(render(COMMAND), root)
    path = root / place
    path.write_text(path.read_text() + "# mine\n")
    before = tree(root)
    remedy = rf"a drop-in \(systemctl edit {path.name}\)" if path.suffix == ".service" else "save what you need"
    with pytest.raises(FatalError, match=f"{path.name} was edited by hand: .*{remedy}, .*--force"):
        install(render(["/opt/y/bin/jailbridge"]), root)
    assert tree(root) == before
    assert uninstall(root).edited == (path,)
    assert path.read_text().endswith("# mine\n")
    assert path in install(render(COMMAND), root, force=True).changed
    path.write_text(path.read_text() + "# mine\n")
    assert path in uninstall(root, force=True).removed


def test_a_file_that_somebody_else_wrote_is_neither_overwritten_nor_removed(root: Path) -> None:
    (root / UNIT).write_text("[Service]\nExecStart=/bin/true\n")
    before = tree(root)
    with pytest.raises(FatalError, match="was not written by jailbridge: move it away"):
        install(render(COMMAND), root, force=True)
    assert tree(root) == before
    assert uninstall(root, force=True).edited == (root / UNIT,)
    assert tree(root) == before


def test_an_administrators_drop_in_stays_and_is_named(root: Path) -> None:
    install(render(COMMAND), root)
    dropin = root / f"{UNIT}.d" / "override.conf"
    dropin.parent.mkdir()
    dropin.write_text("[Service]\nNice=5\n")
    assert uninstall(root, purge=True, force=True).dropins == (dropin.parent,)
    assert dropin.exists()


def test_the_units_call_the_program_that_installs_them() -> None:
    texts = render(["/opt/x/bin/python", "-I", "-m", "jailbridge"])
    ours = [text for place, text in texts.items() if Path(place).name in UNITS]
    called = [line for text in ours for line in text.splitlines() if line.startswith("ExecStart=")]
    program = "ExecStart=/opt/x/bin/python -I -m jailbridge"
    run = "run --without sensor --without respond"
    assert called == [f"{program} {command}" for command in ("restore", "sensor", run, "respond")]


@pytest.mark.parametrize("path", ["/opt/a b/jailbridge", "/opt/100%/jailbridge", "/opt/$x/jailbridge"])
def test_a_path_that_a_unit_would_misread_is_refused(path: str) -> None:
    with pytest.raises(FatalError, match="a unit cannot call"):
        render([path])


def test_a_program_where_services_may_not_enter_is_refused(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = open_folder / "jailbridge"
    shutil.copy("/bin/true", program)
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert service_files.program(check=False) == [str(program)]
    # Below /tmp, of which services have their own.
    with pytest.raises(FatalError, match="services may not enter /tmp: install it for all"):
        service_files.program()


def test_the_default_configuration_says_what_holds_without_it(tmp_path: Path) -> None:
    install(render(COMMAND), tmp_path)
    # Without the comments' marks: the values named there are the defaults.
    lines = (tmp_path / CONFIG).read_text().partition("; examples:\n")[0].splitlines()
    (tmp_path / "bare").write_text("")
    (tmp_path / "told").write_text("\n".join(line.removeprefix("# ") if " = " in line else line for line in lines))
    assert load(tmp_path / CONFIG) == load(tmp_path / "bare") == load(tmp_path / "told")


def test_the_default_configurations_examples_can_be_used(tmp_path: Path) -> None:
    install(render(COMMAND), tmp_path)
    config = tmp_path / CONFIG
    text, marker, examples = config.read_text().partition("; examples:\n")
    config.write_text(text + marker + "\n".join(line.removeprefix("#") for line in examples.splitlines()))
    respond = load(config).respond
    assert respond.mail.to == ("root",)
    assert [command.run[0] for command in respond.command] == ["/usr/local/bin/notify"]


def test_the_commands_tell_what_they_do_and_what_is_next(root: Path) -> None:
    def jailbridge(*arguments: str) -> str:
        command = [sys.executable, "-m", "jailbridge", *arguments, "--root", str(root)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    told = jailbridge("install", "--dry-run")
    assert f"would write {root / UNIT}" in told
    assert "next" not in told
    told = jailbridge("install")
    assert f"wrote {root / UNIT}" in told
    assert f"systemctl enable --now {' '.join(UNITS)}" in told
    assert "nothing to change" in jailbridge("install")
    told = jailbridge("uninstall")
    assert f"removed {root / UNIT}" in told
    assert f"kept {root / CONFIG}: --purge removes" in told
    assert f"removed {root / CONFIG}" in jailbridge("uninstall", "--purge")
    assert jailbridge("uninstall") == "nothing to remove\n"
