"""Who may not open the ledger, where no daemon answers, is told both in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.settings import settings_text

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def jailbridge(folder: Path, *arguments: str, become: tuple[str, ...] = ()) -> tuple[int, str]:
    argv = [*become, sys.executable, "-m", "jailbridge", *arguments, "--config", str(folder / "jailbridge.toml")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.fixture
def folder(open_folder: Path) -> Path:
    text = settings_text(open_folder).replace(f"{open_folder}/ledger", f"{open_folder}/closed/ledger")
    (open_folder / "jailbridge.toml").write_text(text)
    (open_folder / "closed").mkdir(0o700)
    return open_folder


@pytest.mark.parametrize("command", [["list"], ["restore"], ["ban", "203.0.113.7"]])
def test_neither_daemon_nor_ledger_is_one_line_with_the_remedy(folder: Path, command: list[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root has a ledger that is closed to others")
    assert jailbridge(folder, "ban", "203.0.113.6") == (0, "")
    code, said = jailbridge(folder, *command, become=NOBODY)
    assert (code, said.count("\n")) == (1, 1)
    assert f"ledger {folder}/closed/ledger cannot be opened: Permission denied" in said
    assert f"no daemon answers at {folder}/run/control.sock: start it, or run as root" in said


def test_check_config_names_an_unknown_group(folder: Path) -> None:
    config = folder / "jailbridge.toml"
    config.write_text(config.read_text() + 'group = "nosuch"\n')
    code, said = jailbridge(folder, "check-config")
    assert code == 1
    assert 'control.group: there is no group "nosuch": make it (groupadd --system nosuch)' in said
