"""What every store promises the reconciler: one suite, run on each of them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Protocol

import pytest

from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.network import Network, parse_network
from jailbridge.model.plan import Action, Change, Observation, ObservedBan
from jailbridge.model.token import Token, TokenState, token_state
from jailbridge.reconcile.diff import END_TOLERANCE
from jailbridge.stores.protocol import Drifted, Store

NETWORKS = ("192.0.2.7", "198.51.100.0/24", "2001:db8::7", "2001:db8:1::/64", "2001:db8:2:8::/61", "10.0.0.0/9")
BOOT = "ba9876543210"
HOUR = timedelta(hours=1)


class Kit(Protocol):
    store: Store

    def foreign(self) -> object: ...
    def lose(self) -> None: ...
    def older_copy(self) -> Callable[[], None] | None: ...
    def unhook(self) -> bool: ...
    def cut_off(self) -> AbstractContextManager[None]: ...


def now() -> datetime:
    return datetime.now(UTC)


def token(sequence: int) -> Token:
    return Token(ledger="0123456789ab", boot=BOOT, layout=1, sequence=sequence)


def net(text: str) -> Network:
    return parse_network(text)


def change(kit: Kit, action: Action, network: str | None, until: datetime | None = None) -> Change:
    return Change(
        store=kit.store.name, action=action, network=net(network) if network else None, why="test", until=until
    )


def apply(kit: Kit, sequence: int, **actions: list[str]) -> None:
    """Make changes, given as add=[…], remove=[…], update=[…], in this order; the store is in force before."""
    changes = [change(kit, Action(action), network) for action, networks in actions.items() for network in networks]
    if kit.store.observe(now()).enforcing is False:
        changes.insert(0, change(kit, Action.HOOK, None))
    assert list(kit.store.apply(changes, token(sequence), now())) == []


def held(kit: Kit) -> set[Network]:
    return {ban.network for ban in kit.store.observe(now()).bans}


def state(kit: Kit, recorded: int, last: int) -> TokenState:
    return token_state(
        kit.store.observe(now()).token, recorded=token(recorded), ledger="0123456789ab", last_sequence=last, boot=BOOT
    )


def test_at_first_there_is_nothing_of_ours(kit: Kit) -> None:
    seen = kit.store.observe(now())
    assert (seen.bans, seen.token) == ((), None)


def test_what_is_added_is_read_back_exactly(kit: Kit) -> None:
    apply(kit, 1, add=list(NETWORKS))
    seen = kit.store.observe(now())
    assert {ban.network for ban in seen.bans} == {net(text) for text in NETWORKS}
    assert len(seen.bans) == len(NETWORKS)
    assert seen.token == str(token(1))
    assert seen.enforcing is not False


@pytest.mark.parametrize("network", NETWORKS)
def test_each_kind_of_network_can_be_added_again_and_removed_twice(kit: Kit, network: str) -> None:
    apply(kit, 1, add=["203.0.113.9"])
    apply(kit, 2, add=[network])
    apply(kit, 3, add=[network])
    assert held(kit) == {net(network), net("203.0.113.9")}
    apply(kit, 4, remove=[network])
    assert held(kit) == {net("203.0.113.9")}
    apply(kit, 5, remove=[network])
    assert held(kit) == {net("203.0.113.9")}
    assert kit.store.observe(now()).token == str(token(5))


def test_adds_and_removes_go_together(kit: Kit) -> None:
    apply(kit, 1, add=["192.0.2.7", "192.0.2.8", "2001:db8:1::/64", "10.0.0.0/9"])
    apply(kit, 2, remove=["192.0.2.7", "10.0.0.0/9"], add=["192.0.2.9", "10.128.0.0/9", "2001:db8:2::/64"])
    assert held(kit) == {
        net(n) for n in ("192.0.2.8", "192.0.2.9", "10.128.0.0/9", "2001:db8:1::/64", "2001:db8:2::/64")
    }


def test_no_change_at_all_writes_the_token(kit: Kit) -> None:
    apply(kit, 1, add=["192.0.2.7"])
    apply(kit, 2)
    assert kit.store.observe(now()).token == str(token(2))
    assert held(kit) == {net("192.0.2.7")}


def test_neighbouring_networks_stay_themselves(kit: Kit) -> None:
    networks = [
        "10.0.0.0/25",
        "10.0.0.128/25",
        "10.0.1.0/24",
        "2001:db8::/62",
        "2001:db8:0:4::/62",
        "2001:db8:0:8::/64",
    ]
    apply(kit, 1, add=networks)
    assert held(kit) == {net(text) for text in networks}
    apply(kit, 2, remove=["10.0.0.128/25", "2001:db8::/62"])
    assert held(kit) == {net(text) for text in networks} - {net("10.0.0.128/25"), net("2001:db8::/62")}


def test_a_network_and_what_lies_in_it_are_two_bans(kit: Kit) -> None:
    if not kit.store.capabilities.overlaps:
        pytest.skip("this store holds no overlaps")
    networks = ["192.0.2.7", "192.0.2.0/24", "192.0.2.0/25", "2001:db8::7", "2001:db8::/64", "2001:db8::/48"]
    apply(kit, 1, add=networks)
    assert held(kit) == {net(text) for text in networks}
    apply(kit, 2, remove=["192.0.2.0/24", "2001:db8::/64"])
    assert held(kit) == {net(text) for text in networks} - {net("192.0.2.0/24"), net("2001:db8::/64")}
    apply(kit, 3, remove=["192.0.2.0/24"])
    assert net("192.0.2.7") in held(kit), "removing a network that is not there leaves the hosts in it"


def test_a_prefix_can_be_widened_and_narrowed_in_one_go(kit: Kit) -> None:
    apply(kit, 1, add=["10.0.0.0/8", "2001:db8::/48", "192.0.2.7"])
    apply(kit, 2, remove=["10.0.0.0/8", "2001:db8::/48"], add=["10.0.0.0/7", "2001:db8::/47"])
    assert held(kit) == {net("10.0.0.0/7"), net("2001:db8::/47"), net("192.0.2.7")}
    apply(kit, 3, remove=["10.0.0.0/7"], add=["11.0.0.0/9"])
    assert held(kit) == {net("11.0.0.0/9"), net("2001:db8::/47"), net("192.0.2.7")}


@pytest.mark.parametrize("everything", ["0.0.0.0/0", "::/0", "240.0.0.0/4", "ff00::/8", "128.0.0.0/1"])
def test_the_largest_networks_are_held_or_refused_for_good(kit: Kit, everything: str) -> None:
    other = "192.0.2.7" if ":" in everything else "2001:db8::7"
    apply(kit, 1, add=[other])
    refused = kit.store.apply([change(kit, Action.ADD, everything)], token(2), now())
    assert held(kit) - {net(other)} == ({net(everything)} if not refused else set())
    apply(kit, 3, remove=[everything], add=["10.0.0.0/8"])
    assert held(kit) == {net("10.0.0.0/8"), net(other)}


def test_a_thousand_at_once(kit: Kit) -> None:
    many = [f"10.{n >> 8}.{n & 255}.7" for n in range(600)] + [f"2001:db8:0:{n:x}::/64" for n in range(300)]
    many += [f"172.16.{n}.0/24" for n in range(100)]
    apply(kit, 1, add=many)
    assert held(kit) == {net(text) for text in many}
    apply(kit, 2, remove=many[10:])
    assert held(kit) == {net(text) for text in many[:10]}


@pytest.mark.parametrize("network", ["192.0.2.7", "2001:db8:1::/64", "198.51.100.0/24"])
def test_an_end_is_kept_where_ends_are_kept(kit: Kit, network: str) -> None:
    apply(kit, 1, add=["192.0.2.99"])
    lasting = [timedelta(seconds=90), None, HOUR, timedelta(days=1600), None, None, timedelta(days=36500), HOUR]
    for number, duration in enumerate(lasting, start=2):
        until = now() + duration if duration is not None else None
        action = Action.ADD if number == 2 else Action.UPDATE
        kit.store.apply([change(kit, action, network, until)], token(number), now())
        assert end_of(kit, network, until), duration


def end_of(kit: Kit, network: str, until: datetime | None) -> bool:
    """Tell whether a ban is held with this end, to the tolerance, or with none where none is kept."""
    ban: ObservedBan = next(ban for ban in kit.store.observe(now()).bans if ban.network == net(network))
    if until is None or not kit.store.capabilities.ends:
        return ban.until is None
    if kit.store.capabilities.longest is not None:
        until = min(until, now() + kit.store.capabilities.longest)
    return ban.until is not None and abs(ban.until - until) < END_TOLERANCE


def test_changing_one_ban_leaves_the_ends_of_the_others(kit: Kit) -> None:
    until = now() + HOUR
    apply(kit, 1, add=["192.0.2.99"])
    kept = ["192.0.2.7", "198.51.100.0/24", "2001:db8:1::/64"]
    kit.store.apply([change(kit, Action.ADD, network, until) for network in kept], token(2), now())
    apply(kit, 3, add=["203.0.113.0/25", "2001:db8:5::/64", "192.0.2.8"])
    apply(kit, 4, remove=["203.0.113.0/25", "2001:db8:5::/64", "192.0.2.8"])
    assert all(end_of(kit, network, until) for network in kept)


def test_what_is_not_ours_is_never_touched(kit: Kit) -> None:
    before = kit.foreign()
    apply(kit, 1, add=list(NETWORKS))
    apply(kit, 2, remove=list(NETWORKS))
    apply(kit, 3, add=["192.0.2.0/24"])
    assert kit.foreign() == before
    apply(kit, 4, remove=["192.0.2.0/24", "192.0.2.7", "203.0.113.5"])
    assert kit.foreign() == before


def test_after_our_own_writing_the_token_is_current(kit: Kit) -> None:
    apply(kit, 1, add=["192.0.2.7"])
    apply(kit, 2, add=["10.0.0.0/9"])
    assert state(kit, recorded=2, last=2) is TokenState.CURRENT
    assert state(kit, recorded=1, last=2) is TokenState.STALE, "an apply that was not confirmed"


def test_a_loss_takes_the_token_with_the_bans(kit: Kit) -> None:
    apply(kit, 1, add=list(NETWORKS))
    kit.lose()
    seen = kit.store.observe(now())
    assert (seen.token, seen.bans) == (None, ())
    apply(kit, 2, add=["192.0.2.7"])
    assert held(kit) == {net("192.0.2.7")}


def test_an_older_copy_that_is_put_back_brings_its_older_token(kit: Kit) -> None:
    apply(kit, 1, add=["192.0.2.7", "10.0.0.0/9"])
    put_back = kit.older_copy()
    if put_back is None:
        pytest.skip("nobody can put back this store's content with its token")
    apply(kit, 2, add=["192.0.2.8"], remove=["192.0.2.7"])
    put_back()
    assert kit.store.observe(now()).token == str(token(1))
    assert state(kit, recorded=2, last=2) is TokenState.STALE
    assert held(kit) == {net("192.0.2.7"), net("10.0.0.0/9")}


def test_changes_made_without_a_reading_go_where_our_token_still_is(kit: Kit) -> None:
    apply(kit, 1, add=["192.0.2.7", "2001:db8:1::/64", "10.0.0.0/9"])
    changes = [
        change(kit, Action.REMOVE, "192.0.2.7"),
        *(change(kit, Action.ADD, network) for network in ("192.0.2.8", "2001:db8:2::/64", "172.16.0.0/12")),
        change(kit, Action.UPDATE, "2001:db8:1::/64", now() + HOUR),
    ]
    assert not kit.store.apply(changes, token(2), now(), expected=str(token(1)))
    assert held(kit) == {
        net(n) for n in ("192.0.2.8", "2001:db8:1::/64", "2001:db8:2::/64", "10.0.0.0/9", "172.16.0.0/12")
    }
    assert end_of(kit, "2001:db8:1::/64", now() + HOUR)
    assert state(kit, recorded=2, last=2) is TokenState.CURRENT


def test_changes_made_without_a_reading_are_not_written_after_a_loss(kit: Kit) -> None:
    apply(kit, 1, add=["192.0.2.7"])
    kit.lose()
    with pytest.raises(Drifted):
        kit.store.apply([change(kit, Action.ADD, "192.0.2.8")], token(2), now(), expected=str(token(1)))
    seen = kit.store.observe(now())
    assert (seen.token, seen.bans) == (None, ())


def test_changes_made_without_a_reading_are_not_written_over_an_older_copy(kit: Kit) -> None:
    apply(kit, 1, add=["192.0.2.7"])
    put_back = kit.older_copy()
    if put_back is None or not kit.store.capabilities.guarded:
        pytest.skip("nobody can put back this store's content with its token, or it cannot tell")
    apply(kit, 2, remove=["192.0.2.7"])
    put_back()
    with pytest.raises(Drifted):
        kit.store.apply([change(kit, Action.ADD, "192.0.2.8")], token(3), now(), expected=str(token(2)))
    assert kit.store.observe(now()).token == str(token(1))
    assert held(kit) == {net("192.0.2.7")}


def test_a_hook_puts_our_rules_back_in_force_and_keeps_every_ban_and_its_end(kit: Kit) -> None:
    until = now() + HOUR
    apply(kit, 1, add=["192.0.2.99"])
    kit.store.apply([change(kit, Action.ADD, network, until) for network in NETWORKS], token(2), now())
    foreign = kit.foreign()
    if kit.unhook():
        assert kit.store.observe(now()).enforcing is False
    kit.store.apply([change(kit, Action.HOOK, None)], token(3), now())
    seen: Observation = kit.store.observe(now())
    assert seen.enforcing is not False
    assert {ban.network for ban in seen.bans} == {net(text) for text in (*NETWORKS, "192.0.2.99")}
    assert all(end_of(kit, network, until) for network in NETWORKS)
    assert seen.token == str(token(3))
    assert kit.foreign() == foreign


def test_a_hook_comes_with_other_changes(kit: Kit) -> None:
    apply(kit, 1, add=["192.0.2.7", "10.0.0.0/9", "2001:db8:1::/64"])
    kit.unhook()
    apply(kit, 2, remove=["10.0.0.0/9", "192.0.2.7"], add=["10.0.0.0/8", "192.0.2.8"])
    assert kit.store.observe(now()).enforcing is not False
    assert held(kit) == {net("10.0.0.0/8"), net("192.0.2.8"), net("2001:db8:1::/64")}


def test_out_of_reach_is_one_line_and_afterwards_all_is_as_it_was(kit: Kit) -> None:
    apply(kit, 1, add=list(NETWORKS))
    with kit.cut_off():
        for act in (
            lambda: kit.store.observe(now()),
            lambda: kit.store.apply([change(kit, Action.ADD, "192.0.2.8")], token(2), now()),
            lambda: kit.store.apply([change(kit, Action.REMOVE, "10.0.0.0/9")], token(2), now()),
        ):
            with pytest.raises((RetryLater, FatalError)) as caught:
                act()
            text = str(caught.value)
            assert text.strip()
            assert "\n" not in text
    assert held(kit) == {net(text) for text in NETWORKS}
    assert state(kit, recorded=1, last=1) is TokenState.CURRENT


def test_reading_changes_nothing(kit: Kit) -> None:
    apply(kit, 1, add=list(NETWORKS))
    before, foreign = kit.store.observe(now()), kit.foreign()
    for _ in range(3):
        seen = kit.store.observe(now())
        assert {ban.network for ban in seen.bans} == {ban.network for ban in before.bans}
        assert (seen.token, seen.enforcing, seen.foreign) == (before.token, before.enforcing, before.foreign)
    assert kit.foreign() == foreign
