"""End-to-end tests are skipped aloud where they cannot run, and never where all must run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
TESTS = """
import pytest

@pytest.mark.e2e
def test_with_real_programs():
    raise AssertionError("it ran")

def test_without():
    pass
"""
NEEDS = """import pytest

pytestmark = pytest.mark.needs("nosuchprogram")
"""
LACKING = """
MORE_PROGRAMS["nosuchprogram"] = "nothing"


def what_is_missing() -> list[str]:
    return []
"""
# Root gives up its rights for as long as it is asked for them.
UNPRIVILEGED = """
import os
import pytest

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems():
    before = os.geteuid()
    os.seteuid(before or 65534)
    try:
        return (yield)
    finally:
        os.seteuid(before)
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "unprivileged.py").write_text(UNPRIVILEGED)
    (tmp_path / "test_sample.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    e2e: real programs\n    needs: more\n")
    return tmp_path


def run(suite: Path, *arguments: str, required: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "unprivileged", "-p", "no:cacheprovider", *arguments],
        cwd=suite, env={**os.environ, "PYTHONPATH": str(suite), "JAILBRIDGE_E2E": required},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_without_root_end_to_end_tests_are_skipped_and_counted_at_the_end(suite: Path) -> None:
    done = run(suite)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 1 skipped" in done.stdout
    assert "NOT TESTED: 1 end-to-end tests; end-to-end tests need root" in done.stdout


def test_where_they_are_required_nothing_runs_without_them(suite: Path) -> None:
    done = run(suite, required="required")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "JAILBRIDGE_E2E=required, but end-to-end tests need root" in done.stderr
    assert "passed" not in done.stdout


def test_where_none_is_asked_for_nothing_is_said(suite: Path) -> None:
    done = run(suite, "-k", "without", required="required")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 1 deselected" in done.stdout
    assert "NOT TESTED" not in done.stdout


def test_a_test_that_needs_a_program_more_is_skipped_alone(suite: Path) -> None:
    (suite / "test_sample.py").write_text(TESTS.replace("import pytest", NEEDS, 1))
    (suite / "conftest.py").write_text(CONFTEST.read_text() + LACKING)
    done = run(suite, "-p", "no:unprivileged")
    assert "1 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
    assert "NOT TESTED: 1 end-to-end tests; end-to-end tests need nosuchprogram (apt install nothing)" in done.stdout
