"""Who is never acted on: PortSentry's ignore file, `ADDRESS` or `ADDRESS/bits` a line, `#` comments.

1.2 reads it for every packet, 2.x once at its start; this one looks once a second whether it changed. PortSentry 1.2
blocks everybody when it cannot read the file, and passes over a line that it does not understand: here nobody new may
be acted on until the file is mended.
"""

import os
import stat
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from jailbridge.errors import ParseError, RetryLater
from jailbridge.model.network import Address, Network
from jailbridge.policy.allow import MAX_BYTES, parse_list

LOOK_EVERY_S = 1.0


class Ignore:
    """The ignore file at `path`; None is a list of nobody. For one thread."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._looked_at = float("-inf")
        self._seen: tuple[int, int, int] | None = None
        self._problem = ""
        self._members: _Members = {}

    def holds(self, address: Address, now: float) -> bool:
        """Tell whether this source is never acted on; `now` is monotonic, in seconds.

        Raises RetryLater, with the same text until something changes, while the file cannot be read or understood:
        then nobody may be acted on.
        """
        if self._path is not None and not 0 <= now - self._looked_at < LOOK_EVERY_S:
            self._looked_at = now
            self._look(self._path)
        if self._problem:
            raise RetryLater(self._problem)
        number = int(address)
        return any(number >> shift in networks for shift, networks in self._members.get(address.version, {}).items())

    def _look(self, path: Path) -> None:
        try:
            # A pipe would be waited for.
            with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
                status = os.fstat(file.fileno())
                seen = (status.st_ino, status.st_size, status.st_ctime_ns)
                if seen == self._seen:
                    return
                data = file.read(MAX_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
            self._members = _members(parse_list(_text(data, path, status), str(path)))
        except OSError as error:
            problem = f"{path} cannot be read: {error.strerror}"
        except ParseError as error:
            problem = str(error)
        else:
            self._seen, self._problem = seen, ""
            return
        self._seen, self._problem = None, f"ignore file {problem}; nobody is blocked until it is mended"


def _text(data: bytes, path: Path, status: os.stat_result) -> str:
    if not stat.S_ISREG(status.st_mode):
        raise ParseError(f"{path} is not a regular file")
    if len(data) > MAX_BYTES:
        raise ParseError(f"{path} is over {MAX_BYTES >> 20} MiB")
    return data.decode("utf-8-sig", errors="replace")


_Members = dict[int, dict[int, set[int]]]
"""By IP version and by the bits that do not count, the networks as numbers without those."""


def _members(entries: Iterable[tuple[Network, str]]) -> _Members:
    members: _Members = {4: defaultdict(set), 6: defaultdict(set)}
    for network, _ in entries:
        shift = network.max_prefixlen - network.prefixlen
        members[network.version][shift].add(network.start >> shift)
    return members
