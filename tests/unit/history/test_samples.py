"""Every line of sample-logs is read as the file beside it says."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from jailbridge.cli.history import event_answer
from jailbridge.errors import ParseError
from jailbridge.history.dialects import parse
from jailbridge.model.event import Dialect

SAMPLES = Path(__file__).parents[3] / "sample-logs"
FORMATS = {"portsentry-1.2": Dialect.PORTSENTRY_1, "portsentry-2": Dialect.PORTSENTRY_2}


def pairs(name: str) -> list[tuple[bytes, dict[str, Any]]]:
    lines = (SAMPLES / f"{name}.log").read_bytes().removesuffix(b"\n").split(b"\n")
    expected = (SAMPLES / f"{name}.expected.jsonl").read_text(encoding="utf-8").splitlines()
    return list(zip(lines, map(json.loads, expected), strict=True))


def read(number: int, line: bytes, only: Dialect | None) -> dict[str, Any] | None:
    try:
        event, dialect = parse(line, only)
    except ParseError:
        return None
    answer = event_answer(number, event, dialect)
    return answer | {"time": datetime.fromisoformat(answer["time"])}


def wanted(expected: dict[str, Any]) -> dict[str, Any] | None:
    if "refused" in expected:
        return None
    told = {key: value for key, value in expected.items() if key != "fail2ban"}
    return told | {"time": datetime.fromisoformat(told["time"])}


def test_every_log_has_its_expectations_and_a_format() -> None:
    assert {path.stem for path in SAMPLES.glob("*.log")} == set(FORMATS)
    assert {path.name for path in SAMPLES.glob("*.jsonl")} == {f"{name}.expected.jsonl" for name in FORMATS}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_lines_to_accept_and_lines_to_refuse(name: str) -> None:
    accepted = [expected for _, expected in pairs(name) if "refused" not in expected]
    assert accepted
    assert len(accepted) < len(pairs(name))
    assert {expected["dialect"] for expected in accepted} == {FORMATS[name].value}
    assert [expected["line"] for _, expected in pairs(name)] == list(range(1, len(pairs(name)) + 1))


@pytest.mark.parametrize("only", ["either dialect", "its own dialect"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_line_is_read_as_expected(name: str, only: str) -> None:
    dialect = None if only == "either dialect" else FORMATS[name]
    wrong = [
        (number, line[:200], got, wanted(expected))
        for number, (line, expected) in enumerate(pairs(name), start=1)
        if (got := read(number, line, dialect)) != wanted(expected)
    ]
    assert wrong == []


@pytest.mark.parametrize("name", FORMATS)
def test_no_line_is_read_as_the_other_dialect(name: str) -> None:
    (other,) = set(FORMATS.values()) - {FORMATS[name]}
    assert [line for number, (line, _) in enumerate(pairs(name)) if read(number, line, other) is not None] == []


@pytest.mark.parametrize("name", FORMATS)
def test_a_line_that_says_so_is_one_that_fail2ban_acts_on(name: str) -> None:
    for _, expected in pairs(name):
        said = expected.get("ignored"), expected.get("triggered")
        acts = "refused" not in expected and said in {(None, None), (False, True)}
        if name == "portsentry-2":
            acts = said == (False, True)
        assert expected["fail2ban"] == (expected["address"] if acts else None), expected["line"]
