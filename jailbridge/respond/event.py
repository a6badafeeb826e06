"""What is answered: one ban made or ended, as commands, mail and webhooks are told of it. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from jailbridge.config.responding import On
from jailbridge.model.ban import Origin
from jailbridge.model.event import Evidence
from jailbridge.model.network import Network, network_text, parse_network

PERMANENT = "permanent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change of the ledger's feed that is answered.

    sequence  the feed's own number, which grows
    time      when it was decided; aware, UTC
    what      a ban made, or ended
    network   what is banned
    until     the ban's end, None for permanent; of an unban None
    reason    our own words of why, or an operator's
    origin    who asked for the ban; of an unban: for the ban that it ended
    ports     what a log told of, first seen first (`tcp/23`); empty where no log did
    """

    sequence: int
    time: datetime
    what: On
    network: Network
    until: datetime | None
    reason: str
    origin: Origin
    evidence: Evidence | None = None
    ports: tuple[str, ...] = ()

    @property
    def protocol(self) -> str:
        """`tcp` or `udp`, "" where no log told of a port."""
        return self.ports[0].partition("/")[0] if self.ports else ""

    @property
    def port(self) -> str:
        """The first port's number, "" where no log told of one."""
        return self.ports[0].partition("/")[2] if self.ports else ""

    @property
    def mode(self) -> str:
        """In PortSentry 2's words how it was seen: `connect` or `stealth`; `manual` for a ban of no log."""
        if self.evidence is None:
            return "manual"
        return "connect" if self.evidence is Evidence.HANDSHAKE else "stealth"

    @property
    def values(self) -> Mapping[str, str]:
        """Return what commands and templates may name, but for the hostname; all of it our own or checked text."""
        return {
            "address": network_text(self.network),
            "port": self.port,
            "ports": " ".join(self.ports),
            "protocol": self.protocol,
            "mode": self.mode,
            "reason": self.reason,
            "until": PERMANENT if self.until is None and self.what is On.BAN else time_text(self.until),
            "time": time_text(self.time),
            "what": self.what.value,
            "origin": self.origin.value,
        }

    def to_json(self) -> str:
        """Return it as text that `from_json` reads back."""
        return json.dumps(
            {
                "sequence": self.sequence,
                "time": self.time.timestamp(),
                "what": self.what,
                "network": network_text(self.network),
                "until": self.until.timestamp() if self.until is not None else None,
                "reason": self.reason,
                "origin": self.origin,
                "evidence": self.evidence,
                "ports": self.ports,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        told = json.loads(text)
        return cls(
            sequence=told["sequence"],
            time=datetime.fromtimestamp(told["time"], UTC),
            what=On(told["what"]),
            network=parse_network(told["network"]),
            until=datetime.fromtimestamp(told["until"], UTC) if told["until"] is not None else None,
            reason=told["reason"],
            origin=Origin(told["origin"]),
            evidence=Evidence(told["evidence"]) if told["evidence"] is not None else None,
            ports=tuple(told["ports"]),
        )


def time_text(time: datetime | None) -> str:
    """Return a time as RFC 3339 has it, in UTC and seconds; "" for none."""
    return "" if time is None else time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
