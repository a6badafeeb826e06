"""Events for the tests."""

from datetime import UTC, datetime, timedelta

from jailbridge.config.responding import On
from jailbridge.model.ban import Origin
from jailbridge.model.event import Evidence
from jailbridge.model.network import parse_network
from jailbridge.respond.event import Event

NOW = datetime(2026, 11, 22, 6, 30, 59, 250000, tzinfo=UTC)


def event(
    address: str = "192.0.2.7",
    what: On = On.BAN,
    *,
    sequence: int = 1,
    reason: str = "syn scan of tcp/23",
    evidence: Evidence | None = Evidence.SPOOFABLE,
    ports: tuple[str, ...] = ("tcp/23", "tcp/80"),
    minutes: float | None = 10,
) -> Event:
    return Event(
        sequence=sequence,
        time=NOW,
        what=what,
        network=parse_network(address),
        until=NOW + timedelta(minutes=minutes) if minutes is not None and what is On.BAN else None,
        reason=reason,
        origin=Origin.SENSOR,
        evidence=evidence,
        ports=ports,
    )
