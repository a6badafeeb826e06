import logging
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from jailbridge.errors import FatalError
from jailbridge.privileges import FALLBACK, OWN_ACCOUNT, Account, account, drop

HAS_OWN = any(entry.pw_name == OWN_ACCOUNT for entry in pwd.getpwall())
DROP = """
from pathlib import Path
from jailbridge.privileges import account, drop
drop(account("auto"))
print(Path("/proc/self/status").read_text())
"""


def held() -> list[str]:
    """What this thread is allowed."""
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    return [line for line in lines if line.startswith(("Uid", "Gid", "Groups", "Cap", "NoNewPrivs"))]


def test_root_means_that_nothing_is_dropped() -> None:
    before = held()
    assert account("root") is None
    drop(None)
    assert held() == before


def test_an_account_is_found_by_its_name() -> None:
    entry = pwd.getpwnam(FALLBACK)
    assert account(FALLBACK) == Account(entry.pw_uid, entry.pw_gid, FALLBACK)


def test_auto_is_the_sensors_own_account_or_nobody_with_a_hint(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = account("auto")
    assert found is not None
    assert found.name == (OWN_ACCOUNT if HAS_OWN else FALLBACK)
    hints = [record.message for record in caplog.records]
    if HAS_OWN or os.geteuid() != 0:
        assert hints == []
    else:
        assert len(hints) == 1
        assert f"useradd --system --no-create-home --shell /usr/sbin/nologin {OWN_ACCOUNT}" in hints[0]


def test_an_account_that_does_not_exist_is_fatal() -> None:
    with pytest.raises(FatalError, match=r'sensor\.user: there is no account "no-such-one": make it .*, or name ano'):
        account("no-such-one")


def test_nothing_is_left_in_a_process_that_has_dropped_its_privileges() -> None:
    done = subprocess.run([sys.executable, "-c", DROP], capture_output=True, text=True, check=True)
    status = dict(line.partition(":")[::2] for line in done.stdout.splitlines())
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert "0" not in status["Uid"].split()
    assert status["NoNewPrivs"].strip() == "1"


def test_privileges_are_not_dropped_beside_a_second_thread() -> None:
    script = """
import sys, threading
from jailbridge.errors import FatalError
from jailbridge.privileges import account, drop
threading.Thread(target=threading.Event().wait, daemon=True).start()
try:
    drop(account("nobody"))
except FatalError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "privileges cannot be dropped: 2 threads run already, each with its own\n"
