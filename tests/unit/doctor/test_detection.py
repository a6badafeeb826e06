"""The history's file, and in which dialect it is read."""

from pathlib import Path

import pytest

from jailbridge.config import Settings, parse
from jailbridge.doctor import detection

LINE_1 = b"1795329059 - 11/22/2026 06:30:59 Host: 192.0.2.9/192.0.2.9 Port: 23 TCP Blocked"


def settings_of(history: Path, form: str = "auto") -> Settings:
    return parse(f'[history]\npath = "{history}"\n[[tail]]\npath = "{history}"\nformat = "{form}"\n', "test")


def test_a_history_that_everybody_may_write_or_that_is_no_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "history"
    assert list(detection.history(settings_of(path))) == []
    path.touch(mode=0o640)
    assert list(detection.history(settings_of(path))) == []
    path.chmod(0o666)
    (told,) = detection.history(settings_of(path))
    assert told.endswith(f"chmod o-w {path}")
    link = tmp_path / "link"
    link.symlink_to(path)
    (told,) = detection.history(settings_of(link))
    assert told == f"{link} is not a regular file: set history.path to the file itself"


@pytest.mark.parametrize(
    ("form", "lines", "is_told"),
    [
        ("auto", [LINE_1], False),
        ("portsentry-1.2", [LINE_1], False),
        ("portsentry-2", [LINE_1], True),
        ("portsentry-2", [], False),
        ("syslog", [LINE_1], False),
    ],
)
def test_a_log_that_is_read_in_the_other_dialect_is_told(form: str, lines: list[bytes], is_told: bool) -> None:
    told = list(detection.unread(settings_of(Path("/h"), form), lambda _: lines))
    assert told == ['tail.0.format: the last scan in /h is in dialect 1.2: set it to "auto"'] * is_told
