"""docs/services.md: what it has people copy is what the programs that read it take."""

import re
import shutil
from pathlib import Path

import pytest

from jailbridge import process
from jailbridge.service_files import UNITS, render

TEXT = (Path(__file__).parents[2] / "docs" / "services.md").read_text(encoding="utf-8")


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_nothing_there_is_left_out_here() -> None:
    assert set(re.findall(r"^```(\w+)$", TEXT, re.MULTILINE)) == {"ini", "sh", "cron", "logrotate"}


@pytest.mark.parametrize("script", [*snippets("sh"), *(line.split(maxsplit=2)[2] for line in snippets("cron"))])
def test_a_shell_takes_each_script(script: str, tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text(script)
    done = process.run(["sh", "-n", str(path)])
    assert (done.code, done.err) == (0, "")
    # What cron would cut the command at (crontab(5)).
    assert "%" not in script


def test_a_cron_table_has_a_command_a_line_and_cron_takes_it_for_one() -> None:
    (table,) = snippets("cron")
    assert re.fullmatch(r"@reboot root \S.*\n", table)


def test_logrotate_takes_the_rotation(tmp_path: Path) -> None:
    logrotate = shutil.which("logrotate")
    if logrotate is None:
        pytest.skip("needs logrotate (apt install logrotate)")
    path = tmp_path / "rotation"
    path.write_text(snippets("logrotate")[0])
    done = process.run([logrotate, "--debug", "--state", str(tmp_path / "state"), str(path)])
    assert done.code == 0
    assert "error" not in done.err


def test_every_script_calls_the_program_where_the_units_do_and_by_commands_that_there_are() -> None:
    calls = re.findall(r"/usr/local/bin/jailbridge(?: (\w+))?", "".join([*snippets("sh"), *snippets("cron")]))
    assert {call for call in calls if call} == {"restore", "run"}
    assert set(re.findall(r"^command_args=\"?(.*?)\"?$", TEXT, re.MULTILINE)) == {"sensor", "run --without sensor"}
    assert all("ExecStart=/usr/local/bin/jailbridge " in text for text in units())


def units() -> list[str]:
    texts = render(["/usr/local/bin/jailbridge"])
    return [texts[f"etc/systemd/system/{unit}"] for unit in UNITS]


def test_the_table_names_each_units_capabilities() -> None:
    for unit, text in zip(UNITS, units(), strict=True):
        (row,) = re.findall(rf"^\| `{re.escape(unit)}` \|.*$", TEXT, re.MULTILINE)
        (bounding,) = re.findall(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE)
        assert re.findall(r"CAP_\w+", row) == bounding.split()
