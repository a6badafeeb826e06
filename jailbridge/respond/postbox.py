"""What mail and webhooks have in common: a name, whom they tell of what, a message made of events, a way to send it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from jailbridge.respond.event import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one message tells of.

    listed   the events that are told one by one, oldest first
    counted  of networks (`203.0.113.0/24`) with more sources than are listed: how many more there are
    total    how many events there are in all
    """

    listed: tuple[Event, ...]
    counted: Mapping[str, int]
    total: int


class Postbox(Protocol):
    """Where messages go. Made of settings; knows no queue and no limits."""

    name: str
    """Unlike every other's, and the same for as long as its settings are: what waits is kept under it."""

    def wants(self, event: Event) -> bool:
        """Tell whether this event is to be told here."""

    def compose(self, batch: Batch) -> Sequence[bytes]:
        """Make the messages of a batch, one for each set of recipients. May take its time (whois). Raises GiveUp."""

    def send(self, message: bytes) -> None:
        """Send one message. Raises RetryLater, or GiveUp where trying again will not help."""
