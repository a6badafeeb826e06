"""Our transactions, our listings, others' news: the kernel's own answers over netlink, in networks of our own."""

import errno
import gc
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jailbridge import process
from jailbridge.errors import RetryLater
from jailbridge.model.network import Network, parse_network
from jailbridge.model.token import Token
from jailbridge.stores import nft_sets, nft_text
from jailbridge.stores.nft_sets import SETS, Step, adding, claiming, marking, removing, sweeping
from jailbridge.stores.nft_socket import NftSocket

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("own_network")]

NOW = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
SAME_NAME = "add table ip jailbridge\nadd set ip jailbridge hosts4 { type ipv4_addr; }\n"


def token(sequence: int) -> Token:
    return Token(ledger="0123456789ab", boot="ba9876543210", layout=2, sequence=sequence)


def nft(commands: str) -> None:
    done = process.run(["nft", "-f", "-"], given=commands + "\n")
    assert done.code == 0, done.err


def listed() -> str:
    done = process.run(["nft", "-s", "list", "table", "inet", "jailbridge"])
    assert done.code == 0, done.err
    return done.out


def bans(*texts: str) -> dict[Network, datetime | None]:
    return {parse_network(text): None for text in texts}


def laid() -> str:
    return nft_text.layout(("input",)) + nft_text.commands(marking(token(1)))


@pytest.fixture
def sock() -> Iterator[NftSocket]:
    """A socket that listens in a network with a table of ours, token 1, and others' tables."""
    nft(laid() + SAME_NAME + "add table inet jailbridge2\nadd set inet jailbridge2 hosts4 { type ipv4_addr; }")
    made = NftSocket()
    made.listen()
    yield made
    del made
    gc.collect()


# writing

hosts = st.one_of(
    st.integers(0, 5).map(lambda n: parse_network(f"192.0.2.{n}")),
    st.integers(0, 3).map(lambda n: parse_network(f"2001:db8::{n}")),
    st.integers(0, 3).map(lambda n: parse_network(f"2001:db8:{n}::/64")),
)
ends = st.one_of(st.none(), st.integers(60, 10**9).map(lambda s: NOW + timedelta(seconds=s)))


@st.composite
def rounds(draw: st.DrawFn) -> list[list[Step]]:
    """Transactions of bans and unbans that follow one another, each on the other's token or after a sweep."""
    made = []
    for sequence in range(2, draw(st.integers(3, 5))):
        chosen = draw(st.dictionaries(hosts, ends, max_size=6))
        gone = draw(st.sets(hosts, max_size=4)) - chosen.keys()
        before = str(token(sequence - 1))
        seen = {name: [place] for name, place in nft_sets.places(before).items()}
        leaving = claiming(before) if draw(st.booleans()) else sweeping(seen)
        made.append([*leaving, *removing(gone), *adding(chosen, NOW), *marking(token(sequence))])
    return made


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(transactions=rounds())
def test_the_same_steps_leave_the_same_over_netlink_as_through_nft(transactions: list[list[Step]]) -> None:
    nft(laid())
    for steps in transactions:
        nft(nft_text.commands(steps))
    through_nft = listed()
    nft(laid())
    sock = NftSocket()
    for steps in transactions:
        sock.write(steps)
    assert listed() == through_nft


def test_nft_shows_the_comment_the_timeout_and_no_range(sock: NftSocket) -> None:
    sock.write(list(marking(token(2))) + list(adding({parse_network("192.0.2.7"): NOW}, NOW)))
    lines = [line.strip() for line in listed().splitlines()]
    place = nft_sets.places(str(token(2)))["hosts6"].network_address
    assert any(f'{place} comment "{token(2)}"' in line for line in lines)
    assert any("192.0.2.7 timeout 1m" in line for line in lines)
    assert sum("255.255.255.255 comment" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("", errno.ENOENT),
        ("delete table inet jailbridge", errno.ENOENT),
        ("flush chain inet jailbridge input\ndelete set inet jailbridge nets6", errno.ENOENT),
        *((f"flush set inet jailbridge {name}", errno.ENOENT) for name in SETS),
    ],
)
def test_a_transaction_whose_token_is_gone_is_refused_as_a_whole(sock: NftSocket, damage: str, reason: int) -> None:
    nft(damage)
    expected = token(1) if damage else token(9)
    before = process.run(["nft", "list", "ruleset"]).out
    with pytest.raises(OSError, match="No such file or directory") as caught:
        sock.write([*claiming(str(expected)), *adding(bans("192.0.2.7"), NOW), *marking(token(2))])
    assert caught.value.errno == reason
    assert process.run(["nft", "list", "ruleset"]).out == before


def test_after_a_refusal_the_next_transaction_is_answered_for_itself(sock: NftSocket) -> None:
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            sock.write([*claiming(str(token(8))), *claiming(str(token(9))), *marking(token(2))])
        sock.write([*claiming(str(token(1))), *marking(token(1))])


def test_ten_thousand_steps_of_a_storm_go_in_one_transaction(sock: NftSocket) -> None:
    many = [f"10.{n >> 8}.{n & 255}.7" for n in range(10_000)]
    sock.write([*adding(bans(*many), NOW), *marking(token(2))])
    assert listed().count(".7,") + listed().count(".7 }") == 10_000
    assert not sock.touched()


# hearing


@pytest.mark.parametrize(
    "change",
    [
        "flush ruleset",
        "delete table inet jailbridge",
        "add element inet jailbridge hosts4 { 192.0.2.9 }",
        'delete element inet jailbridge prefixes4 { 255.255.255.255 comment "x" }',
        "flush set inet jailbridge hosts4",
        "flush chain inet jailbridge input",
        "insert rule inet jailbridge input accept",
        "add chain inet jailbridge more",
        "add set inet jailbridge more { type ipv4_addr; }",
        "add counter inet jailbridge more",
        "add table inet jailbridge { flags dormant; }",
        "add element ip jailbridge hosts4 { 192.0.2.9 }\nadd element inet jailbridge nets6 { 2001:db8:: }",
    ],
)
def test_what_another_does_to_our_table_is_told_once(sock: NftSocket, change: str) -> None:
    assert not sock.touched()
    nft(change)
    assert sock.touched()
    assert not sock.touched()


@pytest.mark.parametrize(
    "change",
    [
        "add element ip jailbridge hosts4 { 192.0.2.9 }",
        "add element inet jailbridge2 hosts4 { 192.0.2.9 }",
        "delete table ip jailbridge",
        "delete table inet jailbridge2",
        "add table inet filter\nadd chain inet filter jailbridge\nadd set inet filter hosts4 { type ipv4_addr; }",
        "",
    ],
)
def test_what_is_done_to_other_tables_is_nothing(sock: NftSocket, change: str) -> None:
    nft(change)
    process.run(["nft", "list", "table", "inet", "jailbridge"])
    assert not sock.touched()


def test_another_tables_bulk_load_is_no_loss(sock: NftSocket) -> None:
    nft(f"add element ip jailbridge hosts4 {{ {', '.join(f'10.0.{n >> 8}.{n & 255}' for n in range(8192))} }}")
    assert not sock.touched()


def test_what_the_kernel_could_not_tell_is_a_change(sock: NftSocket) -> None:
    many = ", ".join(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(80_000))
    nft(f"add element ip jailbridge hosts4 {{ {many} }}")
    assert sock.touched()
    assert not sock.touched()


def test_our_own_transactions_are_nothing_and_others_between_them_are_not_lost(sock: NftSocket) -> None:
    sock.write([*claiming(str(token(1))), *marking(token(2))])
    assert not sock.touched()
    nft("add element inet jailbridge hosts4 { 192.0.2.9 }")
    sock.write([*claiming(str(token(2))), *marking(token(3))])
    sock.skip()
    assert sock.touched()
    assert not sock.touched()


def test_before_it_could_listen_anything_may_have_happened() -> None:
    sock = NftSocket()
    assert sock.touched()
    assert not sock.touched()
    sock.listen()
    assert not sock.touched()


# listing


def held(sock: NftSocket, name: str) -> set[int | None]:
    return {element.address for element in sock.elements(SETS[name])}


@pytest.mark.parametrize("many", [0, 1, 2500, 7000])
def test_every_element_of_a_set_is_listed_once(sock: NftSocket, many: int) -> None:
    asked = bans(*(f"10.{n >> 8}.{n & 255}.7" for n in range(many)))
    sock.write([*adding(asked, NOW), *marking(token(2))])
    listed = [element.address for element in sock.elements(SETS["hosts4"])]
    assert len(listed) == many + 2, "both sentinels"
    assert {int(network.network_address) for network in asked} < {*listed}
    assert len(held(sock, "hosts6")) == len(held(sock, "nets6")) == 2


def test_a_set_that_still_grows_is_listed_as_a_whole(sock: NftSocket) -> None:
    asked = bans(*(f"10.{n >> 8}.{n & 255}.7" for n in range(50_000)))
    steps = [*adding(asked, NOW, fresh=asked)]
    for start in range(0, len(steps), 16):
        sock.write(steps[start : start + 16])
    assert len({element.address for element in sock.elements(SETS["hosts4"])}) == 50_001


def test_an_element_is_listed_with_its_time_and_comment_and_an_interval_with_its_end(sock: NftSocket) -> None:
    nft(
        """add element inet jailbridge hosts4 { 192.0.2.7 timeout 60s comment "x" }
        add element inet jailbridge prefixes4 { 10.0.0.0/8 timeout 60s comment "y" }"""
    )
    [host] = [element for element in sock.elements(SETS["hosts4"]) if element.address == 0xC0000207]
    [start, end] = sorted(element for element in sock.elements(SETS["prefixes4"]) if element.address != 0xFFFFFFFF)[-2:]
    assert (host.comment, start.comment) == ("x", "y")
    assert all(0 < (one.remaining_ms or 0) <= 60_000 for one in (host, start))
    assert (start.address, end.address, end.is_end) == (0x0A000000, 0x0B000000, True)


@pytest.mark.parametrize("damage", ["delete table inet jailbridge", "flush ruleset"])
def test_a_set_that_is_not_there_is_an_error_and_the_next_listing_is_answered_for_itself(
    sock: NftSocket, damage: str
) -> None:
    nft(damage)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            sock.elements(SETS["hosts4"])
    nft(laid())
    assert len(held(sock, "hosts4")) == 1


def test_what_is_read_while_another_changes_our_table_is_read_again(sock: NftSocket) -> None:
    seen: list[set[int | None]] = []

    def read() -> set[int | None]:
        seen.append(held(sock, "hosts4"))
        if len(seen) < 3:
            nft(f"add element inet jailbridge hosts4 {{ 192.0.2.{len(seen)} }}")
        return seen[-1]

    assert sock.undisturbed(read) == held(sock, "hosts4")
    assert len(seen) == 3
    assert sock.touched(), "it was disturbed"
    assert not sock.touched()


def test_what_others_do_to_other_tables_disturbs_no_reading(sock: NftSocket) -> None:
    seen = []

    def read() -> int:
        nft("add element ip jailbridge hosts4 { 192.0.2.9 }")
        seen.append(held(sock, "hosts4"))
        return len(seen)

    assert sock.undisturbed(read) == 1
    assert not sock.touched()


def test_a_table_that_never_rests_is_to_be_read_later(sock: NftSocket) -> None:
    def read() -> None:
        nft("add element inet jailbridge hosts4 { 192.0.2.9 }\ndelete element inet jailbridge hosts4 { 192.0.2.9 }")

    with pytest.raises(RetryLater, match=r"^our nftables table is changed while it is read, [^\n]+$"):
        sock.undisturbed(read)
    assert sock.touched()


def test_what_was_heard_before_a_reading_is_remembered_until_it_is_forgotten(sock: NftSocket) -> None:
    nft("add element inet jailbridge hosts4 { 192.0.2.9 }")
    assert len(sock.undisturbed(lambda: held(sock, "hosts4"))) == 2
    assert sock.touched()
    nft("add element inet jailbridge hosts4 { 192.0.2.8 }")
    assert len(sock.undisturbed(lambda: held(sock, "hosts4"))) == 3
    sock.forget()
    assert not sock.touched()


def test_the_deaf_hear_what_was_before_and_what_comes_after(sock: NftSocket) -> None:
    with sock.deaf():
        nft("add element inet jailbridge hosts4 { 192.0.2.9 }")
    assert not sock.touched()
    nft("add element inet jailbridge hosts4 { 192.0.2.8 }")
    with sock.deaf():
        pass
    assert sock.touched()
    with sock.deaf():
        pass
    nft("add element inet jailbridge hosts4 { 192.0.2.7 }")
    assert sock.touched()


# where it is


def test_it_is_at_home_wherever_its_thread_is(sock: NftSocket, own_network: Callable[[], None]) -> None:
    sock.write([*claiming(str(token(1))), *marking(token(2))])
    own_network()
    with pytest.raises(FileNotFoundError):
        sock.write([*claiming(str(token(2))), *marking(token(3))])
    assert sock.touched(), "nobody listened here until now"
    nft(laid())
    assert sock.touched()
    sock.write([*claiming(str(token(1))), *marking(token(2))])
    assert not sock.touched()


def test_a_fork_has_sockets_of_its_own(sock: NftSocket) -> None:
    sock.write([*claiming(str(token(1))), *marking(token(2))])
    child = os.fork()
    if child == 0:
        try:
            sock.write([*claiming(str(token(2))), *marking(token(3))])
            sock.listen()
            nft("add element inet jailbridge hosts4 { 192.0.2.9 }")
            os._exit(0 if sock.touched() else 2)
        except BaseException:  # noqa: BLE001
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    sock.write([*claiming(str(token(3))), *marking(token(4))])
    assert sock.touched(), "the child is another"


def test_who_is_forgotten_holds_no_socket() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    sock = NftSocket()
    sock.listen()
    nft(laid())
    sock.write(list(marking(token(2))))
    assert len(list(Path("/proc/self/fd").iterdir())) > before
    del sock
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
