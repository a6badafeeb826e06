"""What checks find is told in one line each, once, and a check that fails ends none of the others."""

from collections.abc import Iterator

from jailbridge.config import Settings
from jailbridge.doctor import Finding, examine
from jailbridge.errors import FatalError


def well(_: Settings) -> Iterator[str]:
    return iter(())


def ill(_: Settings) -> Iterator[str]:
    yield "the thing is gone: put it back"


def stuck(_: Settings) -> Iterator[str]:
    yield "found before"
    raise FatalError("f:\nline 1: bad\nline 2: worse")


def closed(_: Settings) -> Iterator[str]:
    raise PermissionError(13, "Permission denied", "/x")


def test_each_find_is_one_line_and_an_error_is_one_too() -> None:
    checks = [("a", well), ("b", stuck), ("c", closed), ("d", ill)]
    assert list(examine(Settings(), checks)) == [
        Finding("b", "found before"),
        Finding("b", "f:; line 1: bad; line 2: worse"),
        Finding("c", "/x cannot be looked at: Permission denied"),
        Finding("d", "the thing is gone: put it back"),
    ]


def test_what_two_checks_find_is_told_once() -> None:
    assert [finding.about for finding in examine(Settings(), [("a", ill), ("b", ill)])] == ["a"]
