"""How the history commands write a time."""

from datetime import UTC, datetime


def time_text(time: datetime) -> str:
    """Return an aware time as RFC 3339 in UTC, to the millisecond where it has parts of a second."""
    timespec = "milliseconds" if time.microsecond else "seconds"
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec=timespec) + "Z"
