"""What may happen to our ipsets, and what the kernel does with packets: real ones, in networks of the tests' own."""

import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jailbridge import process
from jailbridge.config.settings import Chain, FirewallSettings, Target
from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.network import Network, network_text, parse_network
from jailbridge.model.plan import Action, Change
from jailbridge.model.token import Token
from jailbridge.stores import ipset_netlink, ipset_text
from jailbridge.stores.ipset import SINGLY, IpsetStore
from jailbridge.stores.ipset_netlink import Request, Standing, Verb
from jailbridge.stores.protocol import Drifted
from jailbridge.stores.xtables import Kind
from tests.contract.programs import done

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("own_network")]

KINDS: tuple[Kind, ...] = ("nft", "legacy")
NETWORKS = ("192.0.2.7", "198.51.100.0/24", "2001:db8::7", "2001:db8:1::/64", "2001:db8:2:8::/61")
LONGEST = timedelta(seconds=ipset_text.LONGEST_S)
SECOND = timedelta(seconds=1)


def now() -> datetime:
    return datetime.now(UTC)


def token(sequence: int) -> Token:
    return Token(ledger="0123456789ab", boot="ba9876543210", layout=1, sequence=sequence)


def change(action: Action, network: str | None = None, until: datetime | None = None) -> Change:
    return Change(
        store="firewall", action=action, network=parse_network(network) if network else None, why="test", until=until
    )


def adding(*networks: str) -> list[Change]:
    return [change(Action.ADD, network) for network in networks]


def removing(*networks: str) -> list[Change]:
    return [change(Action.REMOVE, network) for network in networks]


def nets(*networks: str) -> set[Network]:
    return {parse_network(network) for network in networks}


def held(store: IpsetStore) -> set[Network]:
    return {ban.network for ban in store.observe(now()).bans}


def many(count: int) -> list[str]:
    return [f"10.{n >> 8}.{n & 255}.7" if n % 2 else f"2001:db8:{n:x}::/64" for n in range(count)]


def in_force(kind: Kind = "nft", networks: tuple[str, ...] = NETWORKS, **more: int) -> IpsetStore:
    """Return a store in force that holds some networks, with token 1."""
    made = IpsetStore(FirewallSettings(), kind=kind, **more)
    assert made.apply([change(Action.HOOK), *adding(*networks)], token(1), now()) == []
    return made


@pytest.fixture
def store() -> IpsetStore:
    return in_force()


# what may happen to our sets and rules

UNREFERENCED = [["iptables", "-F", "jailbridge"], ["ip6tables", "-F", "jailbridge"]]


def damage(*commands: list[str]) -> None:
    for command in commands:
        deadline = time.monotonic() + 5
        # The kernel lets go of a rule's set some ms after the rule.
        while (result := process.run(command)).code != 0:
            assert "in use" in result.err, result.err
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_done_to_our_rules_a_hook_puts_them_back(kind: Kind) -> None:
    store = in_force(kind)
    for command in (
        "iptables -F jailbridge",
        "ip6tables -F jailbridge",
        "iptables -F",
        "ip6tables -D INPUT 1",
        "iptables -I INPUT -j ACCEPT",
        "iptables -I jailbridge -j RETURN",
        "iptables -A jailbridge -m set --match-set jailbridge4 src -j DROP",
    ):
        program, *words = command.split()
        damage([f"{program}-{kind}", *words])
        assert store.touched(), command
        assert store.observe(now()).enforcing is False, command
        assert store.apply([change(Action.HOOK)], token(2), now()) == []
        assert store.observe(now()).enforcing is True, command
        assert held(store) == nets(*NETWORKS)


@pytest.mark.parametrize(
    ("commands", "left"),
    [
        ([*UNREFERENCED, ["ipset", "destroy", "jailbridge4"]], NETWORKS[2:]),
        ([["iptables", "-F"], ["iptables", "-X"], ["ip6tables", "-F"], ["ipset", "destroy"]], ()),
        (
            [*UNREFERENCED, ["ipset", "destroy", "jailbridge4"], ["ipset", "rename", "jailbridge6", "jailbridge4"]],
            (),
        ),
    ],
)
def test_a_set_that_is_gone_is_made_again(store: IpsetStore, commands: list[list[str]], left: tuple[str, ...]) -> None:
    damage(*commands)
    assert store.touched()
    seen = store.observe(now())
    assert (seen.token, seen.enforcing) == (None, False)
    assert {ban.network for ban in seen.bans} == nets(*left)
    with pytest.raises(RetryLater, match="must be put back first"):
        store.apply(adding("203.0.113.9"), token(2), now())
    with pytest.raises(Drifted):
        store.apply(adding("203.0.113.9"), token(2), now(), expected=str(token(1)))
    store.apply([change(Action.HOOK), *adding(*NETWORKS)], token(3), now())
    seen = store.observe(now())
    assert (seen.token, seen.enforcing) == (str(token(3)), True)
    assert {ban.network for ban in seen.bans} == nets(*NETWORKS)


@pytest.mark.parametrize(
    ("other", "element", "kinds"),
    [
        ("hash:net family inet", "203.0.113.0/24", KINDS),
        ("hash:net family inet timeout 600 comment", "203.0.113.0/24", KINDS[:1]),
        ("hash:net family inet timeout 0 comment maxelem 65536 counters", "203.0.113.0/24", KINDS[:1]),
        ("hash:ip family inet timeout 0", "203.0.113.9", KINDS),
        ("hash:net family inet6 timeout 0 comment maxelem 1048576", None, KINDS[:1]),
        ("bitmap:port range 0-1024", None, KINDS[:1]),
        ("list:set", None, KINDS[:1]),
    ],
)
def test_another_set_under_our_name_gives_way_with_the_bans_it_holds(
    own_network: Callable[[], None], other: str, element: str | None, kinds: tuple[Kind, ...]
) -> None:
    for kind in kinds:
        own_network()
        for name in ("jailbridge4", "jailbridge6-new"):
            done("ipset", "create", name, *other.split())
        if element is not None:
            # As if an older version of ours had made it.
            done("ipset", "add", "jailbridge4", element)
            rule = "-A jailbridge -m set --match-set jailbridge4 src -j DROP"
            text = f"*filter\n:jailbridge - [0:0]\n{rule}\nCOMMIT\n"
            done(f"iptables-{kind}-restore", "--noflush", given=text)
        store = IpsetStore(FirewallSettings(), kind=kind)
        assert store.observe(now()).enforcing is False
        assert store.apply([change(Action.HOOK), *adding("192.0.2.7")], token(1), now()) == []
        seen = store.observe(now())
        assert (seen.token, seen.enforcing) == (str(token(1)), True)
        assert {ban.network for ban in seen.bans} == nets("192.0.2.7", *([element] if element else []))


def test_a_set_of_another_type_that_others_use_is_a_persons_business() -> None:
    done("ipset", "create", "jailbridge4", "hash:ip")
    done("iptables", "-A", "INPUT", "-m", "set", "--match-set", "jailbridge4", "src", "-j", "DROP")
    store = IpsetStore(FirewallSettings(), kind="nft")
    with pytest.raises(FatalError, match=r"ipset: jailbridge4 is of type hash:ip, .* run `ipset destroy jailbridge4`$"):
        store.apply([change(Action.HOOK)], token(1), now())
    assert "hash:ip" in done("ipset", "list", "-t", "jailbridge4")


def test_a_draft_that_was_left_behind_is_in_nobodys_way() -> None:
    done("ipset", "create", "jailbridge4", "hash:net")
    done("ipset", "create", "jailbridge4-new", "hash:ip")
    done("ipset", "add", "jailbridge4-new", "203.0.113.9")
    store = in_force(networks=("192.0.2.7",))
    assert held(store) == nets("192.0.2.7")
    assert done("ipset", "list", "-n").split() == ["jailbridge4", "jailbridge6"]


# the token


@pytest.mark.parametrize(
    "command",
    ["flush jailbridge4", "flush jailbridge6", "flush", "del jailbridge4 224.0.0.2", "del jailbridge6 ff00::2"],
)
def test_who_takes_out_a_sentinel_takes_the_token_away_and_nothing_is_written_unread(
    store: IpsetStore, command: str
) -> None:
    done("ipset", *command.split())
    before = held(store)
    assert store.observe(now()).token is None
    with pytest.raises(Drifted):
        store.apply([*adding("203.0.113.9"), *removing("192.0.2.7")], token(2), now(), expected=str(token(1)))
    assert held(store) == before
    assert store.observe(now()).enforcing is True, "what is empty is still reached"
    store.apply(adding(*NETWORKS), token(3), now())
    assert held(store) == nets(*NETWORKS)
    assert store.observe(now()).token == str(token(3))


def test_an_older_copy_that_is_loaded_beside_what_is_there_leaves_no_token(store: IpsetStore) -> None:
    saved = done("ipset", "save")
    store.apply(removing("192.0.2.7"), token(2), now())
    done("ipset", "-exist", "restore", given=saved)
    seen = store.observe(now())
    assert (seen.token, seen.foreign) == (None, 0)
    store.apply(removing("192.0.2.7"), token(3), now())
    assert store.observe(now()).token == str(token(3))


def test_an_older_copy_is_not_taken_for_what_was_left(store: IpsetStore) -> None:
    saved = done("ipset", "save")
    store.apply(removing("192.0.2.7"), token(2), now(), expected=str(token(1)))
    done("ipset", "flush")
    done("ipset", "-exist", "restore", given=saved)
    assert store.touched()
    with pytest.raises(Drifted):
        store.apply(adding("203.0.113.9"), token(3), now(), expected=str(token(2)))
    assert store.observe(now()).token == str(token(1))
    assert held(store) == nets(*NETWORKS)


def test_a_ban_around_the_sentinels_hides_no_loss(store: IpsetStore) -> None:
    store.apply(adding("224.0.0.0/3", "ff00::/8"), token(2), now())
    done("ipset", "del", "jailbridge4", "224.0.0.3")
    assert store.touched()
    with pytest.raises(Drifted):
        store.apply([], token(3), now(), expected=str(token(2)))


def test_what_is_not_of_our_form_is_foreign_and_stays(store: IpsetStore) -> None:
    done("ipset", "add", "jailbridge4", "224.9.9.9")
    done("ipset", "add", "jailbridge4", "198.51.100.128/25", "nomatch")
    assert store.observe(now()).foreign == 2
    store.apply(adding("203.0.113.9"), token(2), now())
    seen = store.observe(now())
    assert (seen.foreign, seen.token) == (2, str(token(2)))
    store.apply(adding("198.51.100.128/25"), token(3), now())
    assert store.observe(now()).foreign == 1
    assert parse_network("198.51.100.128/25") in held(store)


# being touched


@pytest.mark.parametrize("kind", KINDS)
def test_what_we_do_ourselves_and_what_others_do_elsewhere_touches_nothing(kind: Kind) -> None:
    assert IpsetStore(FirewallSettings(), kind=kind).touched(), "never read"
    store = in_force(kind)
    assert not store.touched()
    store.apply(removing("192.0.2.7"), token(2), now(), expected=str(token(1)))
    assert not store.touched()
    store.observe(now())
    assert not store.touched()
    done("ipset", "create", "other", "hash:ip")
    done("ipset", "add", "other", "192.0.2.7")
    done(f"iptables-{kind}", "-A", "FORWARD", "-s", "192.0.2.9", "-j", "DROP")
    done("ipset", "flush", "other")
    # On legacy hosts any rule of the table may cause a reading.
    assert not store.touched() or kind == "legacy"


@pytest.mark.parametrize(
    "command",
    [
        "ipset flush jailbridge6",
        "ipset del jailbridge4 192.0.2.7",
        "ipset add jailbridge4 203.0.113.9",
        "ipset add jailbridge4 224.0.0.9",
        "iptables -F jailbridge",
        "ip6tables -D INPUT -m comment --comment jailbridge -j jailbridge",
        "iptables -A OUTPUT -m set --match-set jailbridge4 src -j DROP",
    ],
)
def test_what_another_does_to_our_part_is_noticed_until_it_is_read(store: IpsetStore, command: str) -> None:
    done(*command.split())
    assert store.touched()
    assert store.touched()
    store.observe(now())
    assert not store.touched()


# many, long, full


def test_ten_thousand_at_once_and_one_by_one_come_to_the_same(store: IpsetStore) -> None:
    networks = many(10_000)
    until = now() + timedelta(days=1)
    changes = [change(Action.ADD, network, until) for network in networks]
    assert store.apply([*changes, *removing(*NETWORKS)], token(2), now(), expected=str(token(1))) == []
    assert held(store) == nets(*networks)
    bulk = done("ipset", "save")
    assert store.apply(removing(*networks[SINGLY - 1 :]), token(3), now(), expected=str(token(2))) == []
    assert held(store) == nets(*networks[: SINGLY - 1])
    done("ipset", "flush")
    store.apply(changes[: SINGLY - 1], token(4), now())
    few = {line.partition(" timeout")[0] for line in done("ipset", "save").splitlines() if "comment" not in line}
    assert few < {line.partition(" timeout")[0] for line in bulk.splitlines()}
    assert all(abs((ban.until or now()) - until) < 30 * SECOND for ban in store.observe(now()).bans)


@pytest.mark.parametrize("network", ["192.0.2.99", "2001:db8:9::/64"])
@pytest.mark.parametrize("count", [1, SINGLY + 1])
def test_ends_are_kept_as_far_as_the_kernel_counts(store: IpsetStore, network: str, count: int) -> None:
    others = many(count - 1)
    for sequence, lasting in enumerate(
        [LONGEST - 61 * SECOND, LONGEST - 60 * SECOND, LONGEST, LONGEST * 2, timedelta(days=36500), None, SECOND], 2
    ):
        until = now() + lasting if lasting is not None else None
        assert store.apply([change(Action.UPDATE, network, until), *adding(*others)], token(sequence), now()) == []
        seen = next(ban.until for ban in store.observe(now()).bans if ban.network == parse_network(network))
        if lasting is None:
            assert seen is None
        else:
            assert seen is not None
            assert abs(seen - now() - min(lasting, IpsetStore.capabilities.longest or LONGEST)) < 5 * SECOND


def test_a_ban_that_is_over_goes_by_itself_and_a_minute_late(store: IpsetStore) -> None:
    until = now() - timedelta(seconds=59)
    store.apply([change(Action.UPDATE, "192.0.2.7", until), change(Action.ADD, "192.0.2.9", until)], token(2), now())
    deadline = time.monotonic() + 10
    while held(store) != nets(*NETWORKS) - nets("192.0.2.7"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert store.observe(now()).token == str(token(2))


@pytest.mark.parametrize(("capacity", "count"), [(8, 20), (300, SINGLY + 100)])
def test_what_a_full_set_has_no_room_for_is_refused_and_the_token_keeps_its_place(capacity: int, count: int) -> None:
    store = in_force(networks=("192.0.2.7",), capacity=capacity)
    changes = adding(*(f"10.0.{n >> 8}.{n & 255}" for n in range(count)), "2001:db8::7")
    rejections = store.apply([*changes, *removing("192.0.2.7")], token(2), now(), expected=str(token(1)))
    # The one that goes is taken out last; the kernel may keep some elements' room for its own reasons.
    assert count - capacity <= len(rejections) <= count - capacity + 2
    assert {rejection.why for rejection in rejections} == {
        f"the set jailbridge4 is full: it takes {capacity} elements (maxelem)"
    }
    refused = {rejection.change.network for rejection in rejections}
    seen = store.observe(now())
    assert {ban.network for ban in seen.bans} == {c.network for c in changes} - refused
    assert seen.token == str(token(2))
    assert store.apply([change(Action.UPDATE, "10.0.0.0", now() + SECOND)], token(3), now()) == []
    assert store.observe(now()).token == str(token(3))


def test_a_set_that_others_have_filled_without_our_token_is_a_persons_business() -> None:
    store = in_force(networks=(), capacity=4)
    done("ipset", "flush", "jailbridge4")
    for n in range(4):
        done("ipset", "add", "jailbridge4", f"10.0.0.{n}")
    with pytest.raises(
        FatalError, match=r"^ipset: jailbridge4 is full of what is not ours: run `ipset flush jailbridge4`"
    ):
        store.apply([], token(2), now())


@pytest.mark.parametrize(
    ("network", "why"), [("0.0.0.0/0", "size 0"), ("::/0", "size 0"), ("224.0.0.9", "source"), ("ff02::1", "source")]
)
def test_what_a_set_cannot_hold_is_refused_and_all_else_is_done(store: IpsetStore, network: str, why: str) -> None:
    refused = store.apply([*adding(network), *adding("192.0.2.9")], token(2), now())
    assert [rejection.change.network for rejection in refused] == [parse_network(network)]
    assert why in refused[0].why
    assert held(store) == nets(*NETWORKS, "192.0.2.9")
    assert store.apply(removing(network), token(3), now(), expected=str(token(2))) == []
    assert store.observe(now()).token == str(token(3))


networks = st.one_of(
    st.builds(lambda a, n: Network(4, a, 32).supernet(n), st.integers(0, 2**32 - 1), st.integers(1, 32)),
    st.builds(lambda a, n: Network(6, a, 128).supernet(n), st.integers(0, 2**128 - 1), st.integers(1, 128)),
    st.builds(lambda a, n: Network(4, 0x0A000000 + a, 32).supernet(n), st.integers(0, 1023), st.integers(22, 32)),
    st.builds(lambda n: Network(4, 0xE0000000, 32).supernet(n), st.integers(1, 32)),
).map(lambda network: parse_network(network_text(network)))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.sets(networks, max_size=12), second=st.sets(networks, max_size=12), pad=st.booleans(), shared=st.data())
def test_any_two_sets_of_networks_can_follow_each_other(
    store: IpsetStore, first: set[Network], second: set[Network], pad: bool, shared: st.DataObject
) -> None:
    """Overlapping or not, singly or in bulk."""
    done("ipset", "flush")
    padding = [f"172.16.{n >> 8}.{n & 255}" for n in range(SINGLY)] if pad else []
    second |= set(shared.draw(st.lists(st.sampled_from(sorted(first, key=str)), max_size=4))) if first else set()
    refused = store.apply([change(Action.ADD, str(n)) for n in first] + adding(*padding), token(1), now())
    held_first = first - {rejection.change.network for rejection in refused}
    assert held(store) == held_first | nets(*padding)
    changes = [change(Action.REMOVE, str(n)) for n in first - second]
    changes += [change(Action.ADD, str(n)) for n in second - first] + removing(*padding)
    refused = [*refused, *store.apply(changes, token(2), now(), expected=str(token(1)))]
    assert held(store) == second - {rejection.change.network for rejection in refused}
    assert store.observe(now()).token == str(token(2))


# packets


def reaches(source: str) -> str:
    """Send a datagram over loopback from an address; return what becomes of it: arrived, refused or lost."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as receiver, socket.socket(family, socket.SOCK_DGRAM) as sender:
        receiver.bind(("::1" if ":" in source else "127.0.0.1", 0))
        receiver.setblocking(False)
        sender.bind((source, 0))
        sender.connect(receiver.getsockname()[:2])
        # Loopback delivers within send(2) itself, the answer to it too: what has not arrived then never will.
        sender.send(b"?")
        try:
            sender.send(b"?")
        except ConnectionRefusedError:
            return "refused"
        try:
            return "arrived" if receiver.recv(9) == b"?" else "lost"
        except BlockingIOError:
            return "lost"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("target", "verdict"), [(Target.DROP, "lost"), (Target.REJECT, "refused"), (Target.REJECT_RESET, "refused")]
)
def test_packets_of_a_banned_network_are_stopped_until_it_is_unbanned(
    own_network: Callable[[], None], kind: Kind, target: Target, verdict: str
) -> None:
    cases = [
        ("198.51.100.7", ["198.51.100.7"], ["198.51.100.8"]),
        ("203.0.113.0/29", ["203.0.113.7", "203.0.113.1"], ["203.0.113.8"]),
        ("2001:db8::7", ["2001:db8::7"], ["2001:db8::8"]),
        ("2001:db8:1::/64", ["2001:db8:1::7", "2001:db8:1::ffff:0:0:1"], ["2001:db8:1:1::7"]),
        ("2001:db8:2:8::/61", ["2001:db8:2:f::1"], ["2001:db8:2:10::1"]),
    ]
    inside = [address for _, banned, _ in cases for address in banned]
    outside = [address for _, _, free in cases for address in free]
    text = "".join(f"address add {one} dev lo{' nodad' * (':' in one)}\n" for one in (*inside, *outside))
    done("ip", "-batch", "-", given=text)
    store = IpsetStore(FirewallSettings(target=target, chains=(Chain.INPUT, Chain.FORWARD)), kind=kind)
    assert {reaches(address) for address in (*inside, *outside)} == {"arrived"}
    assert store.apply([change(Action.HOOK), *adding(*(ban for ban, _, _ in cases))], token(1), now()) == []
    assert {address: reaches(address) for address in inside} == dict.fromkeys(inside, verdict)
    assert {reaches(address) for address in outside} == {"arrived"}
    store.apply([change(Action.HOOK)], token(2), now())
    assert {reaches(address) for address in inside} == {verdict}
    store.apply(removing(*(ban for ban, _, _ in cases)), token(3), now(), expected=str(token(2)))
    assert {reaches(address) for address in (*inside, *outside)} == {"arrived"}


def test_a_chain_where_our_rules_cannot_be_reached_is_a_refused_hook_and_the_bans_are_written() -> None:
    store = IpsetStore(FirewallSettings(hook="after:whitelist"), kind="nft")
    refused = store.apply([change(Action.HOOK), *adding("192.0.2.7")], token(1), now())
    assert {rejection.change.action for rejection in refused} == {Action.HOOK}
    assert all("whitelist" in rejection.why for rejection in refused)
    seen = store.observe(now())
    assert (seen.token, seen.enforcing) == (str(token(1)), False)
    assert {ban.network for ban in seen.bans} == nets("192.0.2.7")


# the program


def other_ipset(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a script in the place of ipset, which `$IPSET` still is."""
    folder.mkdir()
    program = folder / "ipset"
    program.write_text(f"#!/bin/sh\nIPSET={process.find('ipset', 'ipset')}\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(process, "SEARCH_PATH", f"{folder}:{process.SEARCH_PATH}")


def test_an_ipset_that_is_killed_in_the_middle_leaves_no_token_and_the_next_pass_converges(
    store: IpsetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = many(2000)
    with monkeypatch.context() as patch:
        other_ipset(tmp_path / "bin", patch, 'head -n 900 | $IPSET "$@"; kill -9 $$')
        with pytest.raises(RetryLater, match=r"^ipset was stopped by signal 9$"):
            store.apply([*adding(*networks), *removing("192.0.2.7")], token(2), now(), expected=str(token(1)))
    assert store.touched()
    seen = store.observe(now())
    assert (seen.token, seen.enforcing, seen.foreign) == (None, True, 0)
    assert {ban.network for ban in seen.bans} == nets(*NETWORKS, *networks[:898])
    assert store.apply([*adding(*networks), *removing("192.0.2.7")], token(3), now()) == []
    assert held(store) == nets(*NETWORKS, *networks) - nets("192.0.2.7")
    assert store.observe(now()).token == str(token(3))


def test_what_comes_is_put_in_before_what_goes_is_taken_out(
    store: IpsetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_ipset(tmp_path / "bin", monkeypatch, f'tee {tmp_path}/given | $IPSET "$@"')
    store.apply([*removing(*NETWORKS), *adding(*many(SINGLY))], token(2), now(), expected=str(token(1)))
    verbs = [line.partition(" ")[0] for line in (tmp_path / "given").read_text().splitlines()]
    assert verbs == ["create"] * 2 + ["add"] * SINGLY + ["del"] * len(NETWORKS)


def test_without_ipset_the_package_is_named(store: IpsetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SEARCH_PATH", "/nowhere")
    for act in (lambda: store.observe(now()), lambda: store.apply(adding("192.0.2.7"), token(2), now())):
        with pytest.raises(FatalError, match=r"^ipset is not on this machine: apt install ipset$"):
            act()


def test_without_the_right_to_it_the_remedy_is_named(store: IpsetStore) -> None:
    code = """
import os
from datetime import UTC, datetime
from jailbridge.config.settings import FirewallSettings
from jailbridge.errors import FatalError
from jailbridge.model.token import Token
from jailbridge.stores.ipset import IpsetStore
os.setgroups([]); os.setgid(65534); os.setuid(65534)
store = IpsetStore(FirewallSettings(), kind="nft")
token = Token(ledger="0123456789ab", boot="ba9876543210", layout=1, sequence=1)
for act in (
    lambda: store.observe(datetime.now(UTC)),
    lambda: store.apply([], token, datetime.now(UTC)),
    lambda: store.apply([], token, datetime.now(UTC), expected=str(token)),
):
    try:
        act()
    except FatalError as error:
        print(error)
print(store.touched())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert done.stderr == ""
    assert done.stdout == "ipset: not permitted: run as root, or with CAP_NET_ADMIN\n" * 3 + "True\n"
    assert store.observe(now()).token == str(token(1))


# the kernel's own answers


def test_each_request_is_made_and_answered_in_order(store: IpsetStore) -> None:
    one, two, six = (parse_network(text) for text in ("10.0.0.1", "10.0.0.0/24", "2001:db8:5::/64"))
    name = "jailbridge4"
    requests = [
        (Request(Verb.ADD, name, one, 600, "first"), 0),
        (Request(Verb.ADD, name, one, strict=True), ipset_netlink.EXIST),
        (Request(Verb.ADD, name, one, ipset_text.LONGEST_S, "second"), 0),
        (Request(Verb.DELETE, name, two, strict=True), ipset_netlink.EXIST),
        (Request(Verb.DELETE, name, two), 0),
        (Request(Verb.TEST, name, one), 0),
        (Request(Verb.TEST, name, two), ipset_netlink.EXIST),
        (Request(Verb.TEST, "jailbridge5", one), 2),
        (Request(Verb.ADD, "jailbridge6", six), 0),
    ] * 50
    assert ipset_netlink.ask(request for request, _ in requests) == [
        ipset_netlink.EXIST if number >= 9 and request.strict else code
        for number, (request, code) in enumerate(requests)
    ]
    saved = done("ipset", "save", name)
    assert re.search(rf'\nadd {name} 10\.0\.0\.1 timeout 214748\d comment "second"\n', saved)
    assert "add jailbridge6 2001:db8:5::/64 timeout 0\n" in done("ipset", "save", "jailbridge6")


def test_a_kernel_without_ipset_is_a_persons_business(store: IpsetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    # The number of a part of netfilter that no kernel has: answered as ipset's is where that is not built in.
    monkeypatch.setattr(ipset_netlink, "_SUBSYSTEM", 200)
    assert store.touched()
    for act in (lambda: store.observe(now()), lambda: store.apply([], token(2), now(), expected=str(token(1)))):
        with pytest.raises(FatalError, match=r"^ipset: this kernel has none: modprobe ip_set_hash_net, or "):
            act()


def test_how_a_set_stands_is_told_and_that_there_is_none() -> None:
    assert ipset_netlink.standing("jailbridge4") is None
    in_force(networks=("192.0.2.7", "198.51.100.0/24"))
    assert ipset_netlink.standing("jailbridge4") == Standing(elements=3, references=1)
