"""Every line of sample-logs is read as the file beside it says."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jailbridge.cli.history import event_answer
from jailbridge.errors import ParseError
from jailbridge.history.formats import reader
from jailbridge.model.event import Dialect, TailFormat

SAMPLES = Path(__file__).parents[3] / "sample-logs"
# As sample-logs/README.md says.
NOW = datetime(2026, 11, 22, 18, tzinfo=UTC)
ZONE = "UTC"
PREFIXES = ("portscan nft: ", "PORTSCAN:", "portscan raw: ", "portscan frag: ")
DIALECTS = {
    "portsentry-1.2": {Dialect.PORTSENTRY_1},
    "portsentry-2": {Dialect.PORTSENTRY_2},
    "syslog": {Dialect.SYSLOG},
    "kernel": {Dialect.KERNEL},
    "journal": {Dialect.SYSLOG, Dialect.KERNEL},
}
HISTORIES = ["portsentry-1.2", "portsentry-2"]
LOGS_OF = {form: [form.value] for form in TailFormat} | {
    TailFormat.AUTO: list(DIALECTS),
    TailFormat.SYSLOG: ["syslog", "journal"],
    TailFormat.KERNEL: ["kernel", "journal"],
}
ITS_DIALECT = {
    TailFormat.PORTSENTRY_1: Dialect.PORTSENTRY_1,
    TailFormat.PORTSENTRY_2: Dialect.PORTSENTRY_2,
    TailFormat.SYSLOG: Dialect.SYSLOG,
    TailFormat.KERNEL: Dialect.KERNEL,
}
EACH = [(form, name) for form, names in LOGS_OF.items() for name in names]


@pytest.fixture(autouse=True)
def _zone_of_the_samples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", ZONE)
        time.tzset()
        yield
    time.tzset()


def pairs(name: str) -> list[tuple[bytes, dict[str, Any]]]:
    lines = (SAMPLES / f"{name}.log").read_bytes().removesuffix(b"\n").split(b"\n")
    expected = (SAMPLES / f"{name}.expected.jsonl").read_text(encoding="utf-8").splitlines()
    return list(zip(lines, map(json.loads, expected), strict=True))


def read(number: int, line: bytes, form: TailFormat) -> dict[str, Any] | str:
    prefixes = PREFIXES if form in {TailFormat.AUTO, TailFormat.KERNEL} else ()
    try:
        told = reader(form, prefixes)(line, NOW)
    except ParseError:
        return "refused"
    if told is None:
        return "skipped"
    answer = event_answer(number, *told)
    return answer | {"time": datetime.fromisoformat(answer["time"])}


def wanted(expected: dict[str, Any]) -> dict[str, Any] | str:
    for word in ("refused", "skipped"):
        if word in expected:
            return word
    told = {key: value for key, value in expected.items() if key != "fail2ban"}
    # `history events` shows milliseconds.
    when = datetime.fromisoformat(told["time"])
    return told | {"time": when.replace(microsecond=when.microsecond // 1000 * 1000)}


def test_every_log_has_its_expectations_and_a_format() -> None:
    assert {path.stem for path in SAMPLES.glob("*.log")} == set(DIALECTS)
    assert {path.name for path in SAMPLES.glob("*.jsonl")} == {f"{name}.expected.jsonl" for name in DIALECTS}


@pytest.mark.parametrize("form", TailFormat)
def test_every_format_has_lines_to_accept_and_lines_to_refuse(form: TailFormat) -> None:
    for name in LOGS_OF[form]:
        expected = [expectation for _, expectation in pairs(name)]
        accepted = [one for one in expected if "dialect" in one]
        assert any("refused" in one for one in expected)
        assert {one["dialect"] for one in accepted} == {dialect.value for dialect in DIALECTS[name]}
        assert [one["line"] for one in expected] == list(range(1, len(expected) + 1))
        assert all(("dialect" in one) + ("refused" in one) + ("skipped" in one) == 1 for one in expected)


@pytest.mark.parametrize(("form", "name"), [one for one in EACH if one[0] is TailFormat.AUTO or one[1] != "journal"])
def test_every_line_is_read_as_expected(form: TailFormat, name: str) -> None:
    wrong = []
    for number, (line, expected) in enumerate(pairs(name), start=1):
        got, want = read(number, line, form), wanted(expected)
        if form is TailFormat.AUTO and name in HISTORIES and line.startswith(b"Nov 22 "):
            # In a history it has no place, in a system log it may say what it likes.
            want = "skipped"
        if got != want:
            wrong.append((number, line[:200], got, want))
    assert wrong == []


@pytest.mark.parametrize("form", [TailFormat.SYSLOG, TailFormat.KERNEL])
def test_of_the_journal_each_format_reads_its_own_program(form: TailFormat) -> None:
    for number, (line, expected) in enumerate(pairs("journal"), start=1):
        got = read(number, line, form)
        if "dialect" not in expected:
            assert got in {"refused", "skipped"}, number
        else:
            assert got == (wanted(expected) if expected["dialect"] == ITS_DIALECT[form].value else "skipped"), number


@pytest.mark.parametrize(
    ("form", "name"),
    [(form, name) for form, its in ITS_DIALECT.items() for name, has in DIALECTS.items() if its not in has],
)
def test_no_line_is_read_as_another_dialect(form: TailFormat, name: str) -> None:
    found = [read(number, line, form) for number, (line, _) in enumerate(pairs(name))]
    assert [one for one in found if isinstance(one, dict)] == []


def test_without_prefixes_no_line_of_the_kernel_is_believed() -> None:
    for form, name in ((TailFormat.AUTO, "kernel"), (TailFormat.AUTO, "journal"), (TailFormat.KERNEL, "kernel")):
        read_line = reader(form)
        for line, expected in pairs(name):
            if expected.get("dialect") == "kernel":
                assert read_line(line, NOW) is None


@pytest.mark.parametrize("name", DIALECTS)
def test_a_line_that_says_so_is_one_that_fail2ban_acts_on(name: str) -> None:
    for _, expected in pairs(name):
        said = expected.get("ignored"), expected.get("triggered")
        acts = "dialect" in expected and said in {(None, None), (False, True)}
        if name == "portsentry-2":
            acts = said == (False, True)
        # Our filter for fail2ban reads files of PortSentry's lines: histories, and syslog.
        acts = acts and name in {*HISTORIES, "syslog"}
        assert expected["fail2ban"] == (expected["address"] if acts else None), expected["line"]
