"""What the twin promises beyond the contract."""

from datetime import UTC, datetime, timedelta

import pytest

from jailbridge.errors import RetryLater
from jailbridge.model.network import Network, parse_network
from jailbridge.model.plan import Action, Capabilities, Change, ObservedBan
from jailbridge.model.token import Token
from jailbridge.stores.memory import MemoryStore

NOW = datetime(2026, 11, 22, tzinfo=UTC)
HOUR = timedelta(hours=1)
TOKEN = Token(ledger="0123456789ab", boot="-", layout=1, sequence=1)
NARROW = Capabilities(overlaps=False, ends=False, volatile=True, early=True)


def change(action: Action, network: str | None, until: datetime | None = None) -> Change:
    return Change(
        store="memory", action=action, network=parse_network(network) if network else None, why="test", until=until
    )


def held(store: MemoryStore, now: datetime = NOW) -> dict[Network, ObservedBan]:
    return {ban.network: ban for ban in store.observe(now).bans}


def test_a_ban_is_held_until_its_end() -> None:
    store = MemoryStore()
    store.apply([change(Action.ADD, "192.0.2.7", NOW + HOUR), change(Action.ADD, "192.0.2.8")], TOKEN, NOW)
    assert len(held(store)) == 2
    assert set(held(store, NOW + HOUR)) == {parse_network("192.0.2.8")}


def test_an_update_moves_the_end_and_keeps_the_beginning() -> None:
    store = MemoryStore()
    store.apply([change(Action.ADD, "192.0.2.7", NOW + HOUR)], TOKEN, NOW)
    store.apply([change(Action.UPDATE, "192.0.2.7", NOW + 3 * HOUR)], TOKEN, NOW + HOUR / 2)
    (ban,) = store.observe(NOW).bans
    assert (ban.since, ban.until) == (NOW, NOW + 3 * HOUR)


def test_a_store_without_overlaps_refuses_them_and_changes_nothing() -> None:
    store = MemoryStore(capabilities=NARROW)
    store.apply([change(Action.ADD, "10.0.0.0/8")], TOKEN, NOW)
    before = (dict(store.bans), store.token)
    for inside in ("10.0.0.1", "10.0.0.0/9", "0.0.0.0/0"):
        with pytest.raises(RetryLater, match="store memory cannot hold 10"):
            store.apply([change(Action.ADD, inside), change(Action.HOOK, None)], TOKEN, NOW)
    assert (store.bans, store.token) == before
    store.apply([change(Action.ADD, "0.0.0.0/0"), change(Action.REMOVE, "10.0.0.0/8")], TOKEN, NOW)
    assert set(held(store)) == {parse_network("0.0.0.0/0")}


def test_a_store_without_ends_keeps_none() -> None:
    store = MemoryStore(capabilities=NARROW)
    store.apply([change(Action.ADD, "192.0.2.7", NOW + HOUR)], TOKEN, NOW)
    assert held(store, NOW + 9 * HOUR)[parse_network("192.0.2.7")].until is None
