"""The command as a user meets it: exit codes, one-line errors, quick help."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.settings import settings_text


def jailbridge(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jailbridge", *arguments], capture_output=True, text=True, check=False, input=given
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "jailbridge.toml"
    path.write_text(settings_text(tmp_path))
    return path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "--bogus"], "No such option: --bogus"),
        (["nosuch"], "No such command 'nosuch'"),
        (["run", "--without", "x"], "only sensor and respond can be left out"),
        (["ban"], "name an address"),
        (["plan", "--config", "/proc/none.toml"], "/proc/none.toml: no such file"),
        (["history", "events", "/proc/none"], "/proc/none cannot be read: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_1(arguments: list[str], said: str) -> None:
    done = jailbridge(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['jailbridge', '--help']\n"
        "from jailbridge.cli import main\n"
        "try: main()\n"
        "finally: print([n for n in ('iptc', 'pyinotify', 'watchdog', 'jinja2', 'sqlite3') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]"


def test_running_the_daemon_never_imports_python_iptables_nor_pyinotify() -> None:
    script = "import sys, jailbridge.daemon.run; print([n for n in ('iptc', 'pyinotify') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_configuration_problem_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('[policy]\nban_four = "1d"\nipv6_prefix = 200\n[stores.firewall]\nbackend = "pf"\n')
    done = jailbridge("check-config", "--config", str(path))
    assert done.returncode == 1
    assert "policy.ban_four: unknown key, did you mean ban_for?" in done.stderr
    assert "policy.ipv6_prefix" in done.stderr
    assert "stores.firewall.backend" in done.stderr


def test_an_unreadable_allow_file_fails_the_check(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f'[policy]\nallow_files = ["{tmp_path}/nosuch"]\n')
    done = jailbridge("check-config", "--config", str(path))
    assert done.returncode == 1
    assert f"{tmp_path}/nosuch is not there" in done.stderr


def test_ban_list_and_unban_without_a_daemon(config: Path, tmp_path: Path) -> None:
    at = ["--config", str(config)]
    assert jailbridge("ban", "203.0.113.7", "2001:db8::/48", "--for", "1h", "--reason", "[red]x", *at).returncode == 0
    shown = jailbridge("list", *at)
    assert "203.0.113.7" in shown.stdout
    assert "[red]x" in shown.stdout, "an outsider's text is never markup"
    assert "ALL: [2001:db8::]/48" in (tmp_path / "hosts.deny").read_text()
    assert jailbridge("plan", *at).returncode == 0
    (tmp_path / "hosts.deny").unlink()
    assert jailbridge("plan", *at).returncode == 2
    assert jailbridge("reconcile", *at).returncode == 0
    assert jailbridge("status", *at).returncode == 0
    done = jailbridge("unban", "203.0.113.7", "203.0.113.8", *at)
    assert done.returncode == 0
    assert "unbanned 203.0.113.7" in done.stdout
    assert "203.0.113.8 is not banned" in done.stdout


def test_a_reader_that_leaves_early_causes_no_noise(tmp_path: Path) -> None:
    log = tmp_path / "history"
    row = "1795329059 - 11/22/2026 06:30:59 Host: 203.0.113.9/203.0.113.9 Port: 15 TCP Blocked\n"
    log.write_text(row * 20000)
    shell = f"'{sys.executable}' -m jailbridge history events '{log}' | head -1"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.parametrize("command", [["ban"], ["allow", "add"]])
@pytest.mark.parametrize("reason", ["two\nlines", "\x1b[2J", "\udcff", "x" * 201])
def test_a_reason_that_no_log_line_can_carry_is_refused(command: list[str], reason: str, config: Path) -> None:
    done = jailbridge(*command, "192.0.2.7", "--reason", reason, "--config", str(config))
    assert done.returncode == 1
    assert "a reason should be one line" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (config.parent / "ledger").exists()


def test_a_restore_during_a_pause_does_not_say_that_bans_are_back(config: Path) -> None:
    assert jailbridge("ban", "192.0.2.7", "--config", str(config)).returncode == 0
    assert "1 bans restored" in jailbridge("restore", "--config", str(config)).stdout
    assert jailbridge("pause", "--config", str(config)).returncode == 0
    done = jailbridge("restore", "--config", str(config))
    assert done.returncode == 0
    assert "restored" not in done.stdout
    assert "paused" in done.stdout


def test_a_restore_where_nothing_is_enforced_does_not_say_that_bans_are_back(config: Path) -> None:
    assert jailbridge("ban", "192.0.2.7", "--config", str(config)).returncode == 0
    config.write_text(config.read_text().replace("[policy]", "[policy]\nenforce = false"))
    done = jailbridge("restore", "--config", str(config))
    assert "restored" not in done.stdout
    assert "policy.enforce is false" in done.stdout
