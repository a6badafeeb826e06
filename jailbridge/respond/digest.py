"""When mail and webhooks tell of what waits, and of how much of it one by one: so that no scan makes a storm. Pure.

No event is lost: each is listed, or counted of its network, or counted as one of the rest.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from jailbridge.config.responding import LimitSettings
from jailbridge.model.network import Network, network_text
from jailbridge.respond.event import Event
from jailbridge.respond.postbox import Batch

# A message is read by people: so many lines are a megabyte at most, whatever the settings and the sources are.
MAX_LISTED = 500
MAX_COUNTED = 500
_HOUR = timedelta(hours=1)
# What one outsider has at hand: as large a network as the smallest that is announced (IPv4), one site (IPv6).
_AROUND = {4: 24, 6: 48}


class Pending(NamedTuple):
    """What a postbox has to tell, oldest first.

    last         its place in the table: what comes later is not in it
    passed_over  how many events came before these, and were too many to be kept
    """

    events: Sequence[Event]
    last: int = 0
    passed_over: int = 0


class Sent(NamedTuple):
    """When a batch was told, and which networks it told of one by one."""

    time: datetime
    networks: frozenset[Network]


def memory(limits: LimitSettings) -> timedelta:
    """Return how far back what was sent must be known."""
    return max(_HOUR, limits.every, limits.quiet_for)


def earliest(waiting: int, sent: Iterable[Sent], now: datetime, limits: LimitSettings) -> datetime:
    """Return before when there is no message, whatever the events are, if so many wait; `now` if it may be now."""
    times = sorted(time for time, _ in _believed(sent, now))
    least = now
    if times and waiting < limits.count:
        least = max(least, times[-1] + limits.every)
    if len(times) >= limits.per_hour:
        least = max(least, times[-limits.per_hour] + _HOUR)
    return least


def next_batch(pending: Pending, sent: Iterable[Sent], now: datetime, limits: LimitSettings) -> Batch | datetime | None:
    """Return what one message should tell now, of all that waits; or when to look again; None where nothing waits."""
    events, _, passed_over = pending
    waiting = len(events) + passed_over
    if not waiting:
        return None
    sent = list(sent)
    when = earliest(waiting, sent, now, limits)
    if not passed_over:
        told = _told(sent, now)
        when = max(
            when, min(told[event.network] + limits.quiet_for if event.network in told else now for event in events)
        )
    return when if when > now else _batch(events, waiting, limits.per_network)


def _believed(sent: Iterable[Sent], now: datetime) -> Iterable[Sent]:
    # After a clock was set back, what it had told in the time to come must not silence us until then.
    return (one for one in sent if one.time <= now + _HOUR)


def _told(sent: Iterable[Sent], now: datetime) -> dict[Network, datetime]:
    """Return when each source was told last."""
    told: dict[Network, datetime] = {}
    for time, networks in sorted(_believed(sent, now), key=lambda one: one.time):
        told |= dict.fromkeys(networks, time)
    return told


def _batch(events: Sequence[Event], total: int, per_network: int) -> Batch:
    listed: list[Event] = []
    sources: dict[Network, set[Network]] = {}
    unlisted: Counter[Network] = Counter()
    for event in events:
        around = _around(event.network)
        beside = sources.setdefault(around, set())
        if len(listed) < MAX_LISTED and (event.network in beside or len(beside) < per_network):
            beside.add(event.network)
            listed.append(event)
        else:
            unlisted[around] += 1
    counted = {network_text(network): number for network, number in unlisted.most_common(MAX_COUNTED)}
    return Batch(listed=tuple(listed), counted=counted, total=total)


def _around(network: Network) -> Network:
    """Return the network whose sources are counted together; of a larger one itself."""
    return network.supernet(min(_AROUND[network.version], network.prefixlen))
