"""What may happen to our table, and what the kernel does with packets: real nft, in networks of the tests' own."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jailbridge import process
from jailbridge.config.settings import Chain, FirewallSettings
from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.network import Network, maximal, parse_network
from jailbridge.model.plan import Action, Change
from jailbridge.model.token import Token
from jailbridge.stores.nftables import NftablesStore
from jailbridge.stores.protocol import Drifted

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("own_network")]

NETWORKS = ("192.0.2.7", "198.51.100.0/24", "2001:db8::7", "2001:db8:1::/64", "2001:db8:2:8::/61")


def now() -> datetime:
    return datetime.now(UTC)


def token(sequence: int) -> Token:
    return Token(ledger="0123456789ab", boot="ba9876543210", layout=1, sequence=sequence)


def nft(command: str) -> str:
    done = process.run(["nft", "-f", "-"], given=command + "\n")
    assert done.code == 0, done.err
    return done.out


def change(action: Action, network: str | None = None, until: datetime | None = None) -> Change:
    return Change(
        store="firewall", action=action, network=parse_network(network) if network else None, why="test", until=until
    )


def held(store: NftablesStore) -> set[Network]:
    return {ban.network for ban in store.observe(now()).bans}


@pytest.fixture
def store() -> NftablesStore:
    """A store in force that holds NETWORKS, with token 1."""
    made = NftablesStore(FirewallSettings())
    assert made.apply([change(Action.HOOK), *(change(Action.ADD, n) for n in NETWORKS)], token(1), now()) == []
    return made


# our table


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        ("flush chain inet jailbridge input", ()),
        ("delete chain inet jailbridge input", ()),
        ("add table inet jailbridge { flags dormant; }", ()),
        ("flush chain inet jailbridge input\ndelete set inet jailbridge nets6", ("2001:db8:1::/64",)),
        ("add rule inet jailbridge input accept", ()),
        ("insert rule inet jailbridge input ip saddr 192.0.2.7 accept", ()),
        ("insert rule inet jailbridge input drop", ()),
        ("add chain inet jailbridge forward { type filter hook forward priority -10; policy accept; }", ()),
        (
            """delete chain inet jailbridge input
            add chain inet jailbridge input { type filter hook input priority 10; policy accept; }""",
            (),
        ),
        (
            """flush chain inet jailbridge input
            delete set inet jailbridge hosts4
            add set inet jailbridge hosts4 { type ipv6_addr; flags timeout; }
            add element inet jailbridge hosts4 { 2001:db8::9 }""",
            ("192.0.2.7",),
        ),
        (
            """flush chain inet jailbridge input
            delete set inet jailbridge prefixes4
            add set inet jailbridge prefixes4 { type inet_service; flags interval; }
            add element inet jailbridge prefixes4 { 22, 80-90 }""",
            ("198.51.100.0/24",),
        ),
        (
            """flush chain inet jailbridge input
            delete set inet jailbridge hosts6
            add map inet jailbridge hosts6 { type ipv6_addr : verdict; }""",
            ("2001:db8::7",),
        ),
        ("delete table inet jailbridge", NETWORKS),
        ("flush ruleset", NETWORKS),
    ],
)
def test_a_damaged_table_is_not_in_force_and_a_hook_makes_it_whole_with_all_that_is_left(
    store: NftablesStore, damage: str, lost: tuple[str, ...]
) -> None:
    nft(damage)
    assert store.observe(now()).enforcing is False
    assert held(store) == {parse_network(n) for n in NETWORKS if n not in lost}
    assert store.apply([change(Action.HOOK)], token(2), now()) == []
    seen = store.observe(now())
    assert seen.enforcing is True
    assert (seen.token, seen.foreign) == (str(token(2)), 0)
    assert held(store) == {parse_network(n) for n in NETWORKS if n not in lost}


def test_a_deleted_rule_is_noticed_and_put_back(store: NftablesStore) -> None:
    listing = process.run(["nft", "-a", "list", "chain", "inet", "jailbridge", "input"]).out
    handles = [line.rpartition("handle ")[2].strip() for line in listing.splitlines() if " drop " in line]
    assert len(handles) == 5
    for handle in handles:
        nft(f"delete rule inet jailbridge input handle {handle}")
        assert store.observe(now()).enforcing is False
        store.apply([change(Action.HOOK)], token(2), now())
        assert store.observe(now()).enforcing is True
        handle_lines = process.run(["nft", "-a", "list", "chain", "inet", "jailbridge", "input"]).out
        assert handle_lines.count(" drop ") == 5
        nft("delete table inet jailbridge")
        store.apply([change(Action.HOOK), *(change(Action.ADD, n) for n in NETWORKS)], token(1), now())


def test_a_rule_that_no_longer_drops_is_noticed(store: NftablesStore) -> None:
    listing = process.run(["nft", "-a", "list", "chain", "inet", "jailbridge", "input"]).out
    handle = next(line for line in listing.splitlines() if "@hosts4" in line).rpartition("handle ")[2]
    accept = 'ip saddr @hosts4 counter accept comment "jailbridge 2 hosts4"'
    nft(f"replace rule inet jailbridge input handle {handle} {accept}")
    assert store.observe(now()).enforcing is False


def test_every_set_that_is_flushed_takes_the_token_away(store: NftablesStore) -> None:
    for name in ("hosts4", "hosts6", "nets6", "prefixes4", "prefixes6"):
        nft(f"flush set inet jailbridge {name}")
        seen = store.observe(now())
        assert seen.token is None
        assert seen.enforcing is True, "what is empty is still reached"
        assert len(seen.bans) == len(NETWORKS) - 1
        store.apply([change(Action.ADD, n) for n in NETWORKS], token(2), now())
        assert len(held(store)) == len(NETWORKS)
        assert store.observe(now()).token == str(token(2))


def test_a_layout_that_is_not_known_is_rebuilt(store: NftablesStore) -> None:
    saved = process.run(["nft", "list", "ruleset"]).out
    nft("flush ruleset\n" + saved.replace("jailbridge 2 ", "jailbridge 3 "))
    assert store.observe(now()).enforcing is False
    store.apply([change(Action.HOOK)], token(2), now())
    assert store.observe(now()).enforcing is True
    assert held(store) == {parse_network(n) for n in NETWORKS}


def test_a_saved_ruleset_that_is_loaded_twice_is_as_it_was(store: NftablesStore) -> None:
    store.apply(
        [change(Action.ADD, "0.0.0.0/0"), change(Action.ADD, "203.0.113.9", now() + timedelta(hours=1))],
        token(2),
        now(),
    )
    before = store.observe(now())
    saved = process.run(["nft", "list", "ruleset"]).out
    for text in ("flush ruleset\n" + saved, "flush ruleset\n" + saved):
        nft(text)
        seen = store.observe(now())
        assert (seen.token, seen.enforcing) == (before.token, True)
        assert {ban.network for ban in seen.bans} == {ban.network for ban in before.bans}


def test_chains_that_are_no_longer_asked_for_go(own_network: Callable[[], None]) -> None:
    both = NftablesStore(FirewallSettings(chains=(Chain.INPUT, Chain.DOCKER_USER)))
    both.apply([change(Action.HOOK), change(Action.ADD, "192.0.2.7")], token(1), now())
    assert both.observe(now()).enforcing is True
    one = NftablesStore(FirewallSettings())
    assert one.observe(now()).enforcing is False
    one.apply([change(Action.HOOK)], token(2), now())
    assert one.observe(now()).enforcing is True
    assert held(one) == {parse_network("192.0.2.7")}
    assert "forward" not in process.run(["nft", "list", "table", "inet", "jailbridge"]).out


def test_ranges_that_a_person_put_into_our_set_are_foreign_and_in_nobodys_way(store: NftablesStore) -> None:
    nft("add element inet jailbridge prefixes4 { 10.0.0.5-10.0.0.9 }")
    assert store.observe(now()).foreign == 1
    store.apply([change(Action.ADD, "10.0.0.0/8")], token(2), now())
    assert parse_network("10.0.0.0/8") in held(store)


def test_what_would_stand_in_a_sentinels_place_is_refused_and_all_else_is_done(store: NftablesStore) -> None:
    changes = [
        change(Action.ADD, n)
        for n in ("239.255.255.255", "192.0.2.9", "ff02::/64", "ff02::1", "255.255.255.255", "224.0.0.0/24")
    ]
    refused = store.apply(changes, token(2), now())
    assert [rejection.change for rejection in refused] == [changes[0], changes[2], changes[3]]
    assert held(store) == {parse_network(n) for n in (*NETWORKS, "192.0.2.9", "255.255.255.255", "224.0.0.0/24")}
    assert store.observe(now()).token == str(token(2))
    assert store.apply([change(Action.REMOVE, "239.255.255.255")], token(3), now()) == []
    assert store.observe(now()).token == str(token(3))


def test_of_overlapping_prefixes_the_larger_is_held(store: NftablesStore) -> None:
    store.apply([change(Action.ADD, n) for n in ("10.1.0.0/16", "10.0.0.0/8", "2001:db8:2::/47")], token(2), now())
    store.apply([change(Action.ADD, n) for n in ("10.2.0.0/16", "10.3.3.3", "198.51.0.0/16")], token(3), now())
    assert held(store) == {
        parse_network(n)
        for n in (
            "192.0.2.7",
            "198.51.0.0/16",
            "2001:db8::7",
            "2001:db8:1::/64",
            "2001:db8:2::/47",
            "10.0.0.0/8",
            "10.3.3.3",
        )
    }


def test_a_failed_transaction_changes_nothing(store: NftablesStore) -> None:
    nft("flush chain inet jailbridge input\ndelete set inet jailbridge prefixes6")
    before = held(store)
    reason = r"^the kernel refused our nftables transaction: No such file or directory$"
    with pytest.raises(RetryLater, match=reason):
        store.apply([change(Action.ADD, "192.0.2.9"), change(Action.REMOVE, "192.0.2.7")], token(2), now())
    with pytest.raises(RetryLater, match=r"^nft failed: [^\n]+$"):
        store.apply([change(Action.ADD, "10.0.0.0/8"), change(Action.REMOVE, "192.0.2.7")], token(2), now())
    assert held(store) == before


MULTICAST = parse_network("224.0.0.0/4"), parse_network("ff00::/8")
addresses4 = st.integers(0, 2**32 - 1)
networks: st.SearchStrategy[Network] = st.one_of(
    st.builds(lambda a, n: Network(4, a, 32).supernet(n), addresses4, st.integers(0, 32)),
    st.builds(lambda a, n: Network(6, a, 128).supernet(n), st.integers(0, 2**128 - 1), st.integers(0, 128)),
    st.builds(lambda a, n: Network(4, 0x0A000000 + a, 32).supernet(n), st.integers(0, 1023), st.integers(22, 32)),
    st.builds(
        lambda a, n: Network(6, (0x20010DB8 << 96) + (a << 62), 128).supernet(n),
        st.integers(0, 31),
        st.integers(57, 66),
    ),
).filter(lambda network: not any(multicast.holds(network) for multicast in MULTICAST))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.sets(networks, max_size=12), second=st.sets(networks, max_size=12), shared=st.data())
def test_any_two_sets_of_networks_can_follow_each_other(
    first: set[Network], second: set[Network], shared: st.DataObject
) -> None:
    nft("flush ruleset")
    store = NftablesStore(FirewallSettings())
    second |= set(shared.draw(st.lists(st.sampled_from(sorted(first, key=str)), max_size=4))) if first else set()
    one, two = set(maximal(first)), set(maximal(second))
    refused = store.apply([change(Action.HOOK), *(change(Action.ADD, str(n)) for n in one)], token(1), now())
    assert held(store) == one - {rejection.change.network for rejection in refused}
    changes = [change(Action.REMOVE, str(n)) for n in one - two] + [change(Action.ADD, str(n)) for n in two - one]
    refused = [*refused, *store.apply(changes, token(2), now())]
    assert held(store) == two - {rejection.change.network for rejection in refused}
    assert store.observe(now()).token == str(token(2))


# our token


SETS = ("hosts4", "hosts6", "nets6", "prefixes4", "prefixes6")


def carried(store: NftablesStore, sequence: int, *networks: str) -> None:
    """Ban without a reading, as after our own last writing."""
    changes = [change(Action.ADD, network) for network in networks]
    assert not store.apply(changes, token(sequence), now(), expected=str(token(sequence - 1)))


@pytest.mark.parametrize("network", ["203.0.113.9", "203.0.113.0/28"])
def test_a_saved_ruleset_that_is_loaded_again_is_not_carried_to(store: NftablesStore, network: str) -> None:
    saved = process.run(["nft", "list", "ruleset"]).out
    carried(store, 2, "192.0.2.8")
    nft("flush ruleset\n" + saved)
    with pytest.raises(Drifted):
        carried(store, 3, network)
    assert store.observe(now()).token == str(token(1))
    assert held(store) == {parse_network(n) for n in NETWORKS}


def set_of(name: str, ruleset: str) -> str:
    start = ruleset.index(f"set {name} {{")
    return f"table inet jailbridge {{\n{ruleset[start : ruleset.index(chr(9) + '}', start)]}\t}}\n}}\n"


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("network", ["203.0.113.9", "203.0.113.0/28", "2001:db8:16::/60"])
def test_where_one_set_is_flushed_there_is_no_token_and_nothing_is_carried(
    store: NftablesStore, name: str, network: str
) -> None:
    nft(f"flush set inet jailbridge {name}")
    before = held(store)
    assert store.observe(now()).token is None
    with pytest.raises(Drifted):
        carried(store, 2, network)
    assert held(store) == before


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("hosts4", "203.0.113.9"),
        ("hosts6", "203.0.113.9"),
        ("nets6", "203.0.113.0/28"),
        # An older copy of an interval set is seen where that set is written.
        ("prefixes4", "203.0.113.0/28"),
        ("prefixes6", "2001:db8:16::/60"),
    ],
)
def test_where_one_set_is_loaded_again_there_is_no_token_and_nothing_is_carried(
    store: NftablesStore, name: str, network: str
) -> None:
    older = process.run(["nft", "list", "set", "inet", "jailbridge", name]).out
    carried(store, 2, "192.0.2.8")
    nft(f"flush set inet jailbridge {name}\n{older}")
    before = held(store)
    assert store.observe(now()).token is None
    with pytest.raises(Drifted):
        carried(store, 3, network)
    assert held(store) == before


@pytest.mark.parametrize("hook", [False, True])
def test_sentinels_of_others_go_with_the_next_writing_whatever_their_number(store: NftablesStore, hook: bool) -> None:
    many = ", ".join(f"224.0.{n >> 8}.{n & 255}" for n in range(3000))
    stale = "jb1:0123456789ab:ba9876543210:1:99"
    nft(
        f"""add element inet jailbridge hosts4 {{ {many} }}
        add element inet jailbridge hosts6 {{ ff00::1 comment "{stale}", ff02::2 }}
        add element inet jailbridge nets6 {{ ffff:ffff:ffff:ffff:: comment "{stale}" }}"""
    )
    seen = store.observe(now())
    assert (seen.token, seen.foreign) == (None, 0)
    assert held(store) == {parse_network(n) for n in NETWORKS}
    store.apply([change(Action.HOOK)] if hook else [], token(2), now())
    listing = process.run(["nft", "list", "table", "inet", "jailbridge"]).out
    assert listing.count("jb1:") == listing.count(str(token(2))) == len(SETS)
    assert "224.0." not in listing
    assert "ff02::2" not in listing
    carried(store, 3, "192.0.2.8")


def test_a_store_that_has_read_nothing_finds_the_sentinels_by_itself(store: NftablesStore) -> None:
    another = NftablesStore(FirewallSettings())
    another.apply([change(Action.ADD, "192.0.2.8")], token(2), now())
    assert store.observe(now()).token == str(token(2))


def test_a_hook_that_is_carried_finds_our_token_or_does_nothing(store: NftablesStore) -> None:
    saved = process.run(["nft", "list", "ruleset"]).out
    assert not store.apply([change(Action.HOOK)], token(2), now(), expected=str(token(1)))
    assert held(store) == {parse_network(n) for n in NETWORKS}
    nft("flush ruleset\n" + saved)
    with pytest.raises(Drifted):
        store.apply([change(Action.HOOK)], token(3), now(), expected=str(token(2)))
    assert store.observe(now()).token == str(token(1))


def test_what_is_carried_needs_no_listing_and_no_nft(store: NftablesStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.observe(now())
    with monkeypatch.context() as patch:
        patch.setattr(process, "SEARCH_PATH", "/nowhere")
        carried(store, 2, "192.0.2.8", "2001:db8::8")
        assert not store.apply([change(Action.REMOVE, "192.0.2.7")], token(3), now())
    assert held(store) == {parse_network(n) for n in (*NETWORKS[1:], "192.0.2.8", "2001:db8::8")}
    assert store.observe(now()).token == str(token(3))


# what others do


@pytest.mark.parametrize(
    "change_of_another",
    [
        "flush ruleset",
        "delete table inet jailbridge",
        "delete rule inet jailbridge input handle {handle}",
        "delete element inet jailbridge hosts4 {{ 192.0.2.7 }}",
        "add element inet jailbridge prefixes4 {{ 10.0.0.0/8 }}",
    ],
)
def test_a_touch_by_another_is_told_once_and_our_own_never(store: NftablesStore, change_of_another: str) -> None:
    store.observe(now())
    listing = process.run(["nft", "-a", "list", "chain", "inet", "jailbridge", "input"]).out
    handle = next(line for line in listing.splitlines() if "@hosts4" in line).rpartition("handle ")[2]
    carried(store, 2, "192.0.2.8")
    carried(store, 3, "203.0.113.0/28")
    store.apply([change(Action.HOOK)], token(4), now())
    assert not store.touched()
    store.apply([change(Action.HOOK)], token(5), now(), expected=str(token(4)))
    listing = process.run(["nft", "-a", "list", "chain", "inet", "jailbridge", "input"]).out
    handle = next(line for line in listing.splitlines() if "@hosts4" in line).rpartition("handle ")[2]
    assert not store.touched()
    nft(change_of_another.format(handle=handle))
    assert store.touched()
    assert not store.touched()


def test_a_touch_before_our_own_transaction_is_told_after_it_and_a_reading_has_seen_all(store: NftablesStore) -> None:
    store.observe(now())
    for network in ("192.0.2.8", "203.0.113.0/28"):
        nft("add element inet jailbridge hosts4 { 192.0.2.99 }")
        store.apply([change(Action.ADD, network)], token(2), now())
        assert store.touched()
        assert not store.touched()
        nft("delete element inet jailbridge hosts4 { 192.0.2.99 }")
        store.observe(now())
        assert not store.touched()


# much at once


@pytest.mark.parametrize("network", ["192.0.2.8", "203.0.113.0/28"])
def test_ten_thousand_at_once(store: NftablesStore, network: str) -> None:
    store.observe(now())
    many = [f"10.{n >> 8}.{n & 255}.7" for n in range(10_000)]
    carried(store, 2, network, *many)
    assert not store.touched()
    assert held(store) == {parse_network(n) for n in (*NETWORKS, network, *many)}
    removals = [change(Action.REMOVE, n) for n in many]
    assert not store.apply(removals, token(3), now(), expected=str(token(2)))
    assert held(store) == {parse_network(n) for n in (*NETWORKS, network)}


def test_a_table_that_was_not_there_bears_the_token_only_when_all_is_in_it(own_network: Callable[[], None]) -> None:
    many = [f"10.{n >> 8}.{n & 255}.7" for n in range(20_000)]
    store = NftablesStore(FirewallSettings())
    assert store.touched(), "nobody listened until now"
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 12) as news:
        news.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)
        news.bind((0, 1 << 6))
        changes = [change(Action.HOOK), *(change(Action.ADD, n) for n in (*NETWORKS, *many))]
        assert not store.apply(changes, token(1), now())
        told = []
        with suppress(BlockingIOError):
            while True:
                told.append(news.recv(1 << 16))
    assert sum(part[4:6] == (0x0A0F).to_bytes(2, sys.byteorder) for part in told) > 2, "transactions"
    elements = [part for part in told if part[4:6] == (0x0A0C).to_bytes(2, sys.byteorder) and b"hosts4\0" in part]
    assert [str(token(1)).encode() in part for part in elements].index(True) == len(elements) - 1
    assert not store.touched()
    seen = store.observe(now())
    assert (seen.token, seen.enforcing) == (str(token(1)), True)
    assert {ban.network for ban in seen.bans} == {parse_network(n) for n in (*NETWORKS, *many)}


def test_an_nft_that_is_killed_leaves_all_or_nothing(
    store: NftablesStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it was: the moments are spread over what it takes when it is left alone."""
    many = [change(Action.ADD, f"10.{n >> 8}.{n & 255}.7") for n in range(2000)]
    began = time.monotonic()
    store.apply([change(Action.HOOK), *many], token(2), now())
    whole_s = time.monotonic() - began
    program = process.find("nft", "nftables")
    outcomes = set()
    for moment in range(6):
        store.apply([change(Action.REMOVE, "203.0.113.0/28")], token(1), now())
        wrapper = tmp_path / "nft"
        wrapper.write_text(
            f'#!/bin/sh\n[ "$1" = -f ] || exec {program} "$@"\n'
            f'exec timeout -s KILL {max(0.001, whole_s * moment / 5):.4f} {program} "$@"\n'
        )
        wrapper.chmod(0o755)
        before = held(store)
        with monkeypatch.context() as patch:
            patch.setattr(process, "SEARCH_PATH", f"{tmp_path}:{process.SEARCH_PATH}")
            try:
                store.apply([change(Action.HOOK), change(Action.ADD, "203.0.113.0/28")], token(2), now())
            except RetryLater:
                outcomes.add("killed")
        seen = store.observe(now())
        assert seen.enforcing is True
        assert (seen.token, held(store)) in [
            (str(token(1)), before),
            (str(token(2)), before | {parse_network("203.0.113.0/28")}),
        ]
    assert "killed" in outcomes


# packets


def reaches(source: str) -> bool:
    """Send a datagram over loopback from an address, and tell whether it arrives."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as receiver, socket.socket(family, socket.SOCK_DGRAM) as sender:
        receiver.bind(("::1" if ":" in source else "127.0.0.1", 0))
        receiver.setblocking(False)
        sender.bind((source, 0))
        # Loopback delivers within sendto(2) itself: what has not arrived then never will.
        sender.sendto(b"?", receiver.getsockname()[:2])
        try:
            return receiver.recv(9) == b"?"
        except BlockingIOError:
            return False


@pytest.mark.parametrize(
    ("banned", "inside", "outside"),
    [
        ("198.51.100.7", ["198.51.100.7"], ["198.51.100.8"]),
        ("198.51.100.0/29", ["198.51.100.7", "198.51.100.1"], ["198.51.100.8"]),
        ("0.0.0.0/0", ["198.51.100.7", "203.0.113.9"], []),
        ("2001:db8::7", ["2001:db8::7"], ["2001:db8::8"]),
        ("2001:db8::/64", ["2001:db8::7", "2001:db8::ffff:0:0:1"], ["2001:db8:0:1::7"]),
        ("2001:db8:0:8::/61", ["2001:db8:0:f::1", "2001:db8:0:8::1"], ["2001:db8:0:10::1", "2001:db8:0:7::1"]),
        ("::/0", ["2001:db8::7"], []),
    ],
)
def test_packets_of_a_banned_network_are_dropped_until_it_is_unbanned(
    own_network: Callable[[], None], banned: str, inside: list[str], outside: list[str]
) -> None:
    for address in (*inside, *outside):
        added = process.run(["ip", "address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else [])])
        assert added.code == 0, added.err
    store = NftablesStore(FirewallSettings())
    assert all(reaches(address) for address in (*inside, *outside))
    store.apply([change(Action.HOOK), change(Action.ADD, banned)], token(1), now())
    assert not any(reaches(address) for address in inside)
    assert all(reaches(address) for address in outside)
    store.apply([change(Action.HOOK)], token(2), now())
    assert not any(reaches(address) for address in inside)
    store.apply([change(Action.REMOVE, banned)], token(3), now())
    assert all(reaches(address) for address in (*inside, *outside))


LAYOUT_1 = """
table inet jailbridge {
    set hosts4 {
        type ipv4_addr
        flags timeout
        elements = { 192.0.2.7, 255.255.255.255 comment "TOKEN" }
    }

    set prefixes4 {
        type ipv4_addr
        flags interval,timeout
        elements = { 198.51.100.0/24, 255.255.255.255 comment "TOKEN" }
    }

    set hosts6 {
        type ipv6_addr
        flags timeout
        elements = { 2001:db8::7 timeout 1h1m,
            ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff comment "TOKEN" }
    }

    set nets6 {
        type ipv6_addr
        flags timeout
        elements = { 2001:db8:1:: timeout 1h1m,
            ffff:ffff:ffff:ffff:: comment "TOKEN" }
    }

    set prefixes6 {
        type ipv6_addr
        flags interval,timeout
        elements = { 2001:db8:2:8::/61 timeout 1h1m,
            ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff comment "TOKEN" }
    }

    chain input {
        type filter hook input priority filter - 10; policy accept;
        ip saddr @hosts4 counter drop comment "jailbridge 1 hosts4"
        ip saddr @prefixes4 counter drop comment "jailbridge 1 prefixes4"
        ip6 saddr @hosts6 counter drop comment "jailbridge 1 hosts6"
        ip6 saddr & ffff:ffff:ffff:ffff:: == @nets6 counter drop comment "jailbridge 1 nets6"
        ip6 saddr @prefixes6 counter drop comment "jailbridge 1 prefixes6"
    }
}
""".replace("TOKEN", str(token(1)))
"""As a release with layout 1 left it, from `nft list ruleset`."""


def ends(store: NftablesStore) -> dict[str, bool]:
    """Return by network whether it is held for about an hour, or else for ever."""
    found = {}
    for ban in store.observe(now()).bans:
        assert ban.until is None or abs(ban.until - now() - timedelta(hours=1)) < timedelta(minutes=1)
        found[str(ban.network)] = ban.until is not None
    return found


@pytest.fixture
def layout_1() -> dict[str, bool]:
    """A table of layout 1; what it holds, as `ends` returns it."""
    nft(LAYOUT_1)
    return {
        "192.0.2.7": False,
        "198.51.100.0/24": False,
        "2001:db8::7": True,
        "2001:db8:1::/64": True,
        "2001:db8:2:8::/61": True,
    }


def test_layout_1_is_read_and_a_hook_makes_layout_2_of_it_with_every_ban_and_end(layout_1: dict[str, bool]) -> None:
    store = NftablesStore(FirewallSettings())
    seen = store.observe(now())
    assert (seen.token, seen.enforcing, seen.foreign) == (str(token(1)), False, 0)
    assert ends(store) == layout_1
    with pytest.raises(Drifted):
        carried(store, 2, "192.0.2.8")
    assert not store.apply([change(Action.HOOK)], token(2), now())
    seen = store.observe(now())
    assert (seen.token, seen.enforcing, seen.foreign) == (str(token(2)), True, 0)
    assert ends(store) == layout_1
    assert "jailbridge 1" not in process.run(["nft", "list", "table", "inet", "jailbridge"]).out
    carried(store, 3, "192.0.2.8")


def test_layout_1_can_be_written_to_before_it_is_rebuilt(layout_1: dict[str, bool]) -> None:
    store = NftablesStore(FirewallSettings())
    store.observe(now())
    assert not store.apply([change(Action.REMOVE, "192.0.2.7")], token(2), now())
    assert store.observe(now()).token == str(token(2))
    assert ends(store).keys() == layout_1.keys() - {"192.0.2.7"}


def test_while_layout_1_becomes_layout_2_no_packet_passes(layout_1: dict[str, bool]) -> None:
    assert process.run(["ip", "address", "add", "192.0.2.7", "dev", "lo"]).code == 0
    store = NftablesStore(FirewallSettings())
    has_begun, is_over = threading.Event(), threading.Event()
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 12) as news,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        sender.bind(("192.0.2.7", 0))
        news.bind((0, 1 << 6))

        def flood() -> None:
            while not is_over.is_set():
                sender.sendto(b"?", receiver.getsockname())
                has_begun.set()

        flooding = threading.Thread(target=flood)
        flooding.start()
        try:
            assert has_begun.wait(10)
            store.apply([change(Action.HOOK)], token(2), now())
        finally:
            is_over.set()
            flooding.join()
        with pytest.raises(BlockingIOError):
            receiver.recv(9)
        generations = 0
        with suppress(BlockingIOError):
            while True:
                generations += news.recv(1 << 16)[4:6] == (0x0A0F).to_bytes(2, sys.byteorder)
        assert generations == 1, "transactions"


# the program


def test_without_nft_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SEARCH_PATH", "/nowhere")
    store = NftablesStore(FirewallSettings())
    for act in (lambda: store.observe(now()), lambda: store.apply([change(Action.ADD, "192.0.2.7")], token(1), now())):
        with pytest.raises(FatalError, match=r"^nft is not on this machine: apt install nftables$"):
            act()


def test_without_the_right_to_it_the_remedy_is_named(store: NftablesStore) -> None:
    code = """
import os
from datetime import UTC, datetime
from jailbridge.config.settings import FirewallSettings
from jailbridge.errors import FatalError
from jailbridge.model.token import Token
from jailbridge.stores.nftables import NftablesStore
os.setgroups([]); os.setgid(65534); os.setuid(65534)
store = NftablesStore(FirewallSettings())
token = Token(ledger="a", boot="b", layout=1, sequence=9)
assert not store.touched()
for act in (
    lambda: store.observe(datetime.now(UTC)),
    lambda: store.apply([], token, datetime.now(UTC)),
    lambda: store.apply([], token, datetime.now(UTC), expected=str(token)),
):
    try:
        act()
    except FatalError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=os.sep)
    assert done.stderr == ""
    assert done.stdout == "nft: not permitted: run as root, or with CAP_NET_ADMIN\n" * 3
    assert store.observe(now()).token == str(token(1))
