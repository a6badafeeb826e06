"""The wheel stands on its own: it carries the fail2ban definitions and renders them without the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RENDER = """
import sys
sys.path.insert(0, sys.argv[1])
import jailbridge
assert jailbridge.__file__.startswith(sys.argv[1]), jailbridge.__file__
sys.argv = ["jailbridge", "fail2ban", "render", sys.argv[2], "--config", sys.argv[3]]
from jailbridge.cli import main
main()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_carries_what_lies_at_the_top_of_the_checkout(installed: Path) -> None:
    for name in ("filters", "jails"):
        carried = installed / "jailbridge" / "_definitions" / name
        ours = {path.relative_to(ROOT / name) for path in (ROOT / name).rglob("*.*") if "__pycache__" not in path.parts}
        assert {path.relative_to(carried) for path in carried.rglob("*.*")} == ours
    assert not (installed / "tests").exists()


def test_the_wheel_carries_the_templates_of_mails(installed: Path) -> None:
    folder = Path("jailbridge") / "respond" / "mail_templates"
    ours = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / folder).iterdir()}
    assert {path.name: path.read_text(encoding="utf-8") for path in (installed / folder).iterdir()} == ours
    assert set(ours) == {"subject.txt.j2", "text.j2", "html.j2"}


def test_an_installed_wheel_renders_as_the_checkout_does(installed: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("")
    script = [sys.executable, "-I", "-c", RENDER, str(installed), str(tmp_path / "wheel"), str(config)]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours = [sys.executable, "-m", "jailbridge", "fail2ban", "render", str(tmp_path / "ours"), "--config", str(config)]
    subprocess.run(ours, check=True, capture_output=True)
    texts = [
        {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "wheel", tmp_path / "ours")
    ]
    assert set(texts[0]) == {"filter.d/jailbridge-portsentry.conf", "jail.d/jailbridge.conf", "action.d/jailbridge.py"}
    assert texts[0] == texts[1]
