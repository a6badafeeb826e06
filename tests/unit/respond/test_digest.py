"""When a message is due, and what of what waits it tells one by one."""

from datetime import UTC, datetime, timedelta

from jailbridge.config.responding import LimitSettings, On
from jailbridge.model.ban import Origin
from jailbridge.model.network import network_text, parse_network
from jailbridge.respond.digest import MAX_COUNTED, MAX_LISTED, Pending, Sent, earliest, memory, next_batch
from jailbridge.respond.event import Event
from jailbridge.respond.postbox import Batch

NOW = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
LIMITS = LimitSettings(
    every=timedelta(minutes=15), count=100, per_hour=4, quiet_for=timedelta(minutes=40), per_network=3
)
MINUTE = timedelta(minutes=1)


def event(address: str, *, what: On = On.BAN, number: int = 1) -> Event:
    return Event(
        sequence=number,
        time=NOW,
        what=what,
        network=parse_network(address),
        until=None,
        reason="scan: tcp/23",
        origin=Origin.SENSOR,
    )


def pending(*addresses: str, passed_over: int = 0) -> Pending:
    events = [event(address, number=n) for n, address in enumerate(addresses)]
    return Pending(events=events, last=len(events), passed_over=passed_over)


def sent(minutes_ago: float, *addresses: str) -> Sent:
    return Sent(time=NOW - minutes_ago * MINUTE, networks=frozenset(map(parse_network, addresses)))


def batch(waiting: Pending, *before: Sent, limits: LimitSettings = LIMITS) -> Batch:
    made = next_batch(waiting, before, NOW, limits)
    assert isinstance(made, Batch)
    return made


def test_nothing_is_told_of_nothing() -> None:
    assert next_batch(pending(), [], NOW, LIMITS) is None


def test_the_first_event_goes_at_once() -> None:
    assert batch(pending("192.0.2.1")) == Batch(listed=(event("192.0.2.1", number=0),), counted={}, total=1)


def test_the_next_ones_wait_until_their_time() -> None:
    assert next_batch(pending("192.0.2.2"), [sent(5)], NOW, LIMITS) == NOW + 10 * MINUTE
    assert batch(pending("192.0.2.2"), sent(15)).total == 1


def test_many_do_not_wait() -> None:
    many = [f"192.0.{n}.1" for n in range(LIMITS.count)]
    assert next_batch(pending(*many[1:]), [sent(5)], NOW, LIMITS) == NOW + 10 * MINUTE
    assert batch(pending(*many), sent(5)).total == LIMITS.count
    assert batch(pending(*many[1:], passed_over=1), sent(5)).total == LIMITS.count


def test_there_are_only_so_many_in_an_hour_however_many_wait() -> None:
    many = pending(*(f"192.0.{n}.1" for n in range(LIMITS.count)))
    before = [sent(59), sent(30), sent(29), sent(1)]
    assert next_batch(many, before, NOW, LIMITS) == NOW + MINUTE
    assert batch(many, sent(60), *before[1:]).total == LIMITS.count


def test_a_source_that_was_told_makes_no_message_of_its_own() -> None:
    before = [sent(35, "192.0.2.1"), sent(20, "192.0.2.2")]
    assert next_batch(pending("192.0.2.1"), before, NOW, LIMITS) == NOW + 5 * MINUTE
    assert next_batch(pending("192.0.2.2", "192.0.2.1"), before, NOW, LIMITS) == NOW + 5 * MINUTE
    assert batch(pending("192.0.2.1", "192.0.2.3"), *before).total == 2, (
        "it is in the next message, whoever causes that"
    )


def test_a_source_that_was_told_twice_is_quiet_from_the_second_time() -> None:
    before = [sent(10, "192.0.2.1"), sent(39, "192.0.2.1")]
    assert next_batch(pending("192.0.2.1"), before, NOW, LIMITS) == NOW + 30 * MINUTE


def test_of_a_network_only_so_many_sources_are_listed_and_the_others_are_counted() -> None:
    waiting = pending(*(f"192.0.2.{n}" for n in range(9)), "2001:db8:0:1::/64", "2001:db8:0:2::/64", "192.0.3.1")
    made = batch(waiting)
    addresses = [network_text(one.network) for one in made.listed]
    assert addresses == ["192.0.2.0", "192.0.2.1", "192.0.2.2", "2001:db8:0:1::/64", "2001:db8:0:2::/64", "192.0.3.1"]
    assert made.counted == {"192.0.2.0/24": 6}
    assert made.total == 12


def test_a_source_that_is_listed_is_listed_with_all_that_became_of_it() -> None:
    waiting = pending("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.1")
    made = batch(waiting)
    assert [network_text(one.network) for one in made.listed] == ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.1"]
    assert made.counted == {"192.0.2.0/24": 1}


def test_a_banned_network_larger_than_those_counted_together_stands_for_itself() -> None:
    assert [network_text(one.network) for one in batch(pending("192.0.0.0/16", "192.0.2.1")).listed] == [
        "192.0.0.0/16",
        "192.0.2.1",
    ]


def test_a_message_has_a_size_whatever_the_sources_are() -> None:
    made = batch(pending(*(f"10.{n >> 8}.{n & 255}.1" for n in range(5000)), passed_over=7))
    assert (len(made.listed), len(made.counted), made.total) == (MAX_LISTED, MAX_COUNTED, 5007)


def test_what_was_passed_over_alone_is_told_too() -> None:
    assert batch(pending(passed_over=3)) == Batch(listed=(), counted={}, total=3)
    assert next_batch(pending(passed_over=3), [sent(5)], NOW, LIMITS) == NOW + 10 * MINUTE


def test_a_clock_that_was_set_back_silences_for_an_hour_and_a_wait_at_most() -> None:
    assert batch(pending("192.0.2.1"), sent(-61, "192.0.2.1")).total == 1
    assert next_batch(pending("192.0.2.1"), [sent(-5)], NOW, LIMITS) == NOW + 20 * MINUTE


def test_the_first_question_needs_no_events() -> None:
    assert earliest(1, [], NOW, LIMITS) == NOW
    assert earliest(1, [sent(5)], NOW, LIMITS) == NOW + 10 * MINUTE
    assert earliest(LIMITS.count, [sent(5)], NOW, LIMITS) == NOW


def test_so_far_back_it_must_be_known_what_was_sent() -> None:
    assert memory(LIMITS) == timedelta(hours=1)
    assert memory(LIMITS.model_copy(update={"quiet_for": timedelta(days=1)})) == timedelta(days=1)
