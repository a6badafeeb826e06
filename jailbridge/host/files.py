"""Small files that others write: what one holds, and a sign that tells whether that may have changed."""

import os
import stat
from pathlib import Path
from typing import TypeAlias

from jailbridge.errors import RetryLater

# These are short lists; something much larger is not one.
MAX_BYTES = 4 << 20

Sign: TypeAlias = tuple[int, ...]


def content(path: Path) -> bytes | None:
    """Return what a file holds, None where there is none. Raises RetryLater, the path and the reason its text."""
    try:
        # A pipe would be waited for.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise RetryLater(f"{path} is not a regular file")
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RetryLater(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise RetryLater(f"{path} is over {MAX_BYTES >> 20} MiB")
    return data


def sign(path: Path) -> Sign:
    """Return what differs once the file is another one, or was written to, or can no longer be looked at."""
    try:
        seen = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    # The times have the kernel's tick, 4 ms: who reads at once may see two writes as one, so read again now and then.
    return (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
