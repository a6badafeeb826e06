"""What the commands answer with, made of the program's own values: objects that JSON can carry. Pure.

Times are RFC 3339, UTC, to the second; what is not known or never comes is null.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

from jailbridge.ledger.story import Told
from jailbridge.model.ban import Ban, Tombstone
from jailbridge.model.network import network_text
from jailbridge.model.plan import Plan
from jailbridge.policy.exempt import Exemption

Answer: TypeAlias = dict[str, Any] | list[Any]


def plan_answer(plan: Plan) -> dict[str, Any]:
    """Return a plan as the JSON of `plan` shows it."""
    return {
        "changes": [
            {
                "store": change.store,
                "action": change.action.value,
                "address": network_text(change.network) if change.network is not None else None,
                "why": change.why,
            }
            for change in plan.changes
        ],
        "stores": {
            name: {
                "reachable": store.reachable,
                "enforcing": store.enforcing,
                "desired": store.desired,
                "observed": store.observed,
                "foreign": store.foreign,
                "problem": store.problem,
            }
            for name, store in plan.stores.items()
        },
    }


def is_agreement(answer: Mapping[str, Any]) -> bool:
    """Tell of a plan's answer whether there is nothing to do and every store is in reach and in force."""
    stores = answer["stores"].values()
    return not answer["changes"] and all(s["reachable"] and s["enforcing"] is not False for s in stores)


def listed_answer(ban: Ban, stores: Mapping[str, str]) -> dict[str, Any]:
    """Return a ban as the JSON of `list` shows it; `stores` tells how each store stands to it."""
    return {
        "address": network_text(ban.network),
        "since": time_text(ban.since),
        "until": time_text(ban.until),
        "reason": ban.reason,
        "origin": ban.origin.value,
        "stores": dict(stores),
    }


def banned_answer(ban: Ban) -> dict[str, Any]:
    """Return a ban as the JSON of `explain` shows it, with all that is known of its cause."""
    seen = ban.seen
    return {
        "network": network_text(ban.network),
        "since": time_text(ban.since),
        "until": time_text(ban.until),
        "reason": ban.reason,
        "origin": ban.origin.value,
        "forced": ban.forced,
        "evidence": ban.evidence.value if ban.evidence is not None else None,
        "first_seen": time_text(seen.first) if seen is not None else None,
        "last_seen": time_text(seen.last) if seen is not None else None,
        "sightings": seen.times if seen is not None else 0,
        "ports": list(seen.ports) if seen is not None else [],
        "file": ban.file,
        "offset": ban.offset,
        "line": ban.line,
    }


def ended_answer(stone: Tombstone) -> dict[str, Any]:
    """Return what is left of a ban that has ended."""
    return {
        "network": network_text(stone.network),
        "time": time_text(stone.ended),
        "why": stone.why.value,
        "bans": stone.bans,
    }


def exempt_answer(exemption: Exemption) -> dict[str, Any]:
    """Return who is exempt and why."""
    return {"network": network_text(exemption.network), "why": exemption.why, "permanent": exemption.permanent}


def told_answer(told: Told) -> dict[str, Any]:
    """Return one thing of a story; its `detail` says how long a ban lasts."""
    ending = "for ever" if told.until is None else f"until {time_text(told.until)}"
    return {
        "time": time_text(told.time),
        "what": told.what,
        "network": told.network,
        "detail": f"{told.detail}, {ending}" if told.what in {"banned", "changed"} else told.detail,
        "file": told.file,
        "offset": told.offset,
        "line": told.line,
    }


def time_text(time: datetime | None) -> str | None:
    """Return an aware time as text; None stays."""
    return None if time is None else time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
