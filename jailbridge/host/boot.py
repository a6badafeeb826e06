"""Which boot of this host it is, and whether its clock can be relied on yet."""

import ctypes
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from jailbridge.errors import RetryLater

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# What has not set the clock by so long after a boot will not: there may be nothing that does.
SETTLING = timedelta(minutes=5)
# Is there once the clock was synchronised in this boot: systemd-timesyncd.service(8). Any user may look.
SYNCHRONISED = Path("/run/systemd/timesync/synchronized")
# adjtimex(2): the fourth word is the largest error the clock may have, 16 s (NTP_PHASE_LIMIT) where nobody knows it.
_MAXERROR, _UNKNOWN_US = 3, 16_000_000


def boot_id() -> str:
    """Return a short id of this boot (kernel's boot_id, random(4)). Raises RetryLater."""
    try:
        return BOOT_ID.read_text(encoding="ascii").replace("-", "").strip()[:12]
    except OSError as error:
        raise RetryLater(f"{BOOT_ID} cannot be read: {error.strerror}") from None


def uptime() -> timedelta:
    """Return how long ago this host booted, by a clock that nobody sets."""
    return timedelta(seconds=time.clock_gettime(time.CLOCK_BOOTTIME))


def is_synchronised(told: Path = SYNCHRONISED) -> bool:
    """Tell whether something is known to have set the clock right in this boot."""
    return told.exists() or _kernel_knows()


def clock_doubt(up: Callable[[], timedelta] = uptime, is_right: Callable[[], bool] = is_synchronised) -> timedelta:
    """Return for how long yet the clock may be wrong: none once it is synchronised, or SETTLING after the boot."""
    left = SETTLING - up()
    return left if left > timedelta(0) and not is_right() else timedelta(0)


def _kernel_knows() -> bool:
    """Tell whether something keeps the kernel's clock right; a unit with ProtectClock= may not ask."""
    words = (ctypes.c_long * 64)()
    return ctypes.CDLL(None).adjtimex(words) >= 0 and words[_MAXERROR] < _UNKNOWN_US
