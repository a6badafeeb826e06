import re
import time
from datetime import timedelta
from pathlib import Path

import pytest

from jailbridge.host import boot_id
from jailbridge.host.boot import clock_doubt, is_synchronised, uptime


def test_a_boot_id_is_short_and_the_same_as_long_as_nothing_boots() -> None:
    assert re.fullmatch("[0-9a-f]{12}", boot_id())
    assert boot_id() == boot_id()


def test_the_uptime_is_the_kernels() -> None:
    before = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    # The kernel tells hundredths of a second.
    assert before - 0.01 <= uptime().total_seconds() <= before + time.monotonic()


@pytest.mark.parametrize(("up_s", "right", "left_s"), [(0, False, 300), (299, False, 1), (300, False, 0), (9, True, 0)])
def test_a_clock_is_in_doubt_until_it_is_set_or_for_five_minutes(up_s: int, right: bool, left_s: int) -> None:
    assert clock_doubt(lambda: timedelta(seconds=up_s), lambda: right) == timedelta(seconds=left_s)


def test_a_clock_is_right_once_systemd_says_so(tmp_path: Path) -> None:
    (tmp_path / "synchronized").touch()
    assert is_synchronised(tmp_path / "synchronized")
