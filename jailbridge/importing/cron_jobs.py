"""Jobs of cron that have to do with PortSentry: the scripts that let somebody in again. They are only named."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from jailbridge.errors import RetryLater
from jailbridge.host.files import content
from jailbridge.importing.notes import Note
from jailbridge.model.network import shown

# crontab(5), cron(8).
PLACES = (
    Path("/etc/crontab"),
    Path("/etc/cron.d"),
    Path("/var/spool/cron/crontabs"),
    *(Path(f"/etc/cron.{often}") for often in ("hourly", "daily", "weekly", "monthly")),
)
_WORDS = ("portsentry", "hosts.deny", "iptables -D", "ip6tables -D")
MOST = 100


def jobs(places: Sequence[Path] = PLACES) -> Iterator[Note]:
    """Yield the first lines of cron's files that name PortSentry or hosts.deny, or take a rule of iptables out."""
    for path in (file for place in places for file in _files(place)):
        try:
            data = content(path) or b""
        except RetryLater:
            continue
        told = 0
        for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
            if not line.lstrip().startswith("#") and any(word in line for word in _WORDS) and told < MOST:
                told += 1
                text = "JailBridge needs no job that ends bans, [[policy.network]] ban_for does so: see to it"
                yield Note(f"{path}:{number}", f"{shown(line.strip())}: {text}")


def _files(place: Path) -> list[Path]:
    try:
        return sorted(path for path in place.iterdir() if path.is_file()) if place.is_dir() else [place]
    except OSError:
        return []
