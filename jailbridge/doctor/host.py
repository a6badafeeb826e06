"""This host's clock, and what its cron does with bans."""

from collections.abc import Iterator

from jailbridge.config import Settings
from jailbridge.host.boot import is_synchronised
from jailbridge.importing.cron_jobs import jobs


def clock(_: Settings) -> Iterator[str]:
    """Yield that nothing is known to set the clock: bans begin and end by it."""
    if not is_synchronised():
        yield "nothing is known to have set the clock since the boot: timedatectl set-ntp true, or start chrony"


def cron(_: Settings) -> Iterator[str]:
    """Yield each job that undoes what PortSentry did."""
    yield from (f"{note.place}: {note.text}" for note in jobs())
