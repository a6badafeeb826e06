"""However events come and whenever it crashes: nothing is lost, and the limits hold."""

from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from jailbridge.config.responding import LimitSettings, On
from jailbridge.model.ban import Origin
from jailbridge.model.network import Network, NetworkSet, parse_network
from jailbridge.respond.digest import Pending, Sent, earliest, memory, next_batch
from jailbridge.respond.event import Event
from jailbridge.respond.postbox import Batch

START = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
HOUR = timedelta(hours=1)
SOURCES = [parse_network(text) for text in ("10.0.0.0/8", "192.0.3.1", "2001:db8::/64", "2001:db8:0:1::/64")] + [
    parse_network(f"192.0.2.{n}") for n in range(12)
]
durations = st.sampled_from([timedelta(minutes=n) for n in (1, 7, 15, 60, 90)])
limits = st.builds(
    LimitSettings,
    every=durations,
    count=st.integers(1, 30),
    per_hour=st.integers(1, 5),
    quiet_for=durations,
    per_network=st.integers(1, 5),
)
# How many seconds pass, which sources come then, and whether it crashes between composing and writing down.
steps = st.lists(
    st.tuples(st.integers(0, 3000), st.lists(st.sampled_from(SOURCES), max_size=20), st.booleans()), max_size=25
)


def event(number: int, time: datetime, source: Network) -> Event:
    return Event(
        sequence=number,
        time=time,
        what=On.BAN if number % 3 else On.UNBAN,
        network=source,
        until=None,
        reason="",
        origin=Origin.SENSOR,
    )


class Box:
    """What a queue keeps of a postbox, and what came of it."""

    def __init__(self, limits: LimitSettings) -> None:
        self.limits = limits
        self.waiting: list[Event] = []
        self.sent: list[Sent] = []
        self.told: list[tuple[datetime, Batch, bool]] = []

    def look(self, now: datetime, *, crashes: bool = False) -> datetime | None:
        kept = [one for one in self.sent if one.time >= now - memory(self.limits)]
        answer = next_batch(Pending(events=self.waiting), kept, now, self.limits)
        least = earliest(len(self.waiting), reversed(kept), now, self.limits)
        if isinstance(answer, datetime):
            assert now < answer
            assert least <= answer
            return answer
        if answer is None:
            assert not self.waiting
            return None
        assert least == now
        if not crashes:
            recent = {network for one in kept if one.time > now - self.limits.quiet_for for network in one.networks}
            is_called_for = any(one.network not in recent for one in self.waiting)
            assert is_called_for
            self.told.append((now, answer, len(self.waiting) >= self.limits.count))
            self.sent.append(Sent(now, frozenset(one.network for one in answer.listed)))
            self.waiting = []
        return None


@given(limits=limits, steps=steps)
def test_no_event_is_lost_and_the_limits_hold(
    limits: LimitSettings, steps: list[tuple[int, list[Network], bool]]
) -> None:
    box, now, number = Box(limits), START, 0
    for seconds, sources, crashes in steps:
        now += timedelta(seconds=seconds)
        for source in sources:
            number += 1
            box.waiting.append(event(number, now, source))
        box.look(now, crashes=crashes)
    while (when := box.look(now)) is not None:
        now = when
    assert box.waiting == []
    told = Counter(one.sequence for _, batch, _ in box.told for one in batch.listed)
    assert all(times == 1 for times in told.values())
    assert sum(batch.total for _, batch, _ in box.told) == number
    for _, batch, _ in box.told:
        # There are fewer than a message holds: nobody is left to the rest.
        assert len(batch.listed) + sum(batch.counted.values()) == batch.total
        assert [one.sequence for one in batch.listed] == sorted(one.sequence for one in batch.listed)
        listed = {one.network for one in batch.listed}
        for around in (*map(parse_network, batch.counted), parse_network("192.0.2.0/24")):
            inside = NetworkSet([around])
            assert sum(inside.covering(source) is not None for source in listed) <= limits.per_network
    times = [time for time, _, _ in box.told]
    for n, (time, _, was_many) in enumerate(box.told):
        assert sum(time - HOUR < other <= time for other in times) <= limits.per_hour
        assert n == 0 or was_many or time - times[n - 1] >= limits.every


@given(limits=limits, sources=st.lists(st.sampled_from(SOURCES), min_size=1, max_size=60))
def test_what_is_told_depends_on_what_waits_and_not_on_how_often_it_was_looked_at(
    limits: LimitSettings, sources: list[Network]
) -> None:
    """A crash forgets everything but what waits and what was sent: the same comes of these again."""
    waiting = Pending(events=[event(n, START, source) for n, source in enumerate(sources)])
    assert next_batch(waiting, [], START, limits) == next_batch(waiting, [], START, limits)
    before = [Sent(START - timedelta(minutes=n), frozenset(SOURCES[:n])) for n in range(5)]
    assert next_batch(waiting, before, START, limits) == next_batch(waiting, before[::-1], START, limits)
