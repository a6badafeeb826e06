"""What may happen to our table, and what the kernel does with packets: real nft, in networks of the tests' own."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

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
    accept = 'ip saddr @hosts4 counter accept comment "jailbridge 1 hosts4"'
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


def test_an_older_layout_is_rebuilt(store: NftablesStore) -> None:
    saved = process.run(["nft", "list", "ruleset"]).out
    nft("flush ruleset\n" + saved.replace("jailbridge 1 ", "jailbridge 0 "))
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
    changes = [change(Action.ADD, n) for n in ("255.255.255.255", "192.0.2.9", "ffff:ffff:ffff:ffff::/64")]
    refused = store.apply(changes, token(2), now())
    assert [rejection.change for rejection in refused] == [changes[0], changes[2]]
    assert held(store) == {parse_network(n) for n in (*NETWORKS, "192.0.2.9")}
    assert store.observe(now()).token == str(token(2))
    assert store.apply([change(Action.REMOVE, "255.255.255.255")], token(3), now()) == []
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
    with pytest.raises(RetryLater, match=r"^nft failed: [^\n]+$"):
        store.apply([change(Action.ADD, "192.0.2.9"), change(Action.REMOVE, "192.0.2.7")], token(2), now())
    assert held(store) == before


addresses4 = st.integers(0, 2**32 - 1)
networks = st.one_of(
    st.builds(lambda a, n: ip_network((a, n), strict=False), addresses4, st.integers(0, 32)),
    st.builds(lambda a, n: ip_network((a, n), strict=False), st.integers(0, 2**128 - 1), st.integers(0, 128)),
    st.builds(lambda a, n: ip_network((0x0A000000 + a, n), strict=False), st.integers(0, 1023), st.integers(22, 32)),
    st.builds(
        lambda a, n: ip_network(((0x20010DB8 << 96) + (a << 62), n), strict=False),
        st.integers(0, 31),
        st.integers(57, 66),
    ),
).filter(lambda network: not (network.broadcast_address.is_multicast and network.is_multicast))


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
for act in (
    lambda: store.observe(datetime.now(UTC)),
    lambda: store.apply([], Token(ledger="a", boot="b", layout=1, sequence=9), datetime.now(UTC)),
):
    try:
        act()
    except FatalError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=os.sep)
    assert done.stderr == ""
    assert done.stdout == "nft: not permitted: run as root, or with CAP_NET_ADMIN\n" * 2
    assert store.observe(now()).token == str(token(1))
