"""What the ledger records, forgets, and holds on to."""

import gc
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jailbridge.errors import FatalError, ParseError
from jailbridge.ledger import Ledger
from jailbridge.model.ban import Ban, EndReason, Origin, ReadMark, Sightings
from jailbridge.model.event import Evidence, TailPosition
from jailbridge.model.network import Network, parse_network

NOW = datetime(2026, 11, 22, 6, 30, 59, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)


def net(text: str) -> Network:
    return parse_network(text)


FULL = Ban(
    network=parse_network("2001:db8::/61"),
    since=NOW,
    until=NOW + 7 * HOUR,
    origin=Origin.OPERATOR,
    reason="naïve \u202e reason\nof two lines",
    evidence=Evidence.HANDSHAKE,
    port=65535,
    file="/var/log/a b",
    offset=1 << 40,
    line="\\xff'; DROP TABLE ban; --",
    forced=True,
)


def ban(network: str, *, until: datetime | None = None, reason: str = "scan") -> Ban:
    return Ban(network=net(network), since=NOW, until=until, origin=Origin.SENSOR, reason=reason)


def position(offset: int, *, path: str = "/log", inode: int = 5) -> TailPosition:
    return TailPosition(path=path, device=1, inode=inode, offset=offset, head="abc")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path) as opened:
        yield opened


# bans


@pytest.mark.parametrize(
    "written",
    [
        FULL,
        FULL._replace(until=None),
        FULL._replace(evidence=None),
        FULL._replace(port=None, line=None),
        FULL._replace(file=None, offset=None),
        FULL._replace(forced=False, origin=Origin.STORE),
        FULL._replace(network=net("0.0.0.0/0"), until=NOW + timedelta(days=36500)),
    ],
)
def test_every_field_of_a_ban_comes_back(path: Path, written: Ban) -> None:
    with Ledger(path) as ledger:
        ledger.record([written], now=NOW)
    with Ledger(path) as ledger:
        assert dict(ledger.bans()) == {written.network: written}


def test_a_change_replaces_the_ban(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.record([ban("192.0.2.7")], now=NOW)
        ledger.record([ban("192.0.2.7", until=NOW + HOUR)], now=NOW)
    with Ledger(path) as ledger:
        assert list(ledger.bans().values()) == [ban("192.0.2.7", until=NOW + HOUR)]


def test_a_mapping_of_bans_never_changes(ledger: Ledger) -> None:
    ledger.record([ban("192.0.2.7")], now=NOW)
    before = ledger.bans()
    ledger.record([ban("192.0.2.8")], now=NOW)
    ledger.end([net("192.0.2.7")], EndReason.OPERATOR, now=NOW)
    assert list(before) == [net("192.0.2.7")]
    assert list(ledger.bans()) == [net("192.0.2.8")]


@pytest.mark.parametrize(
    "look", [iter, Mapping.keys, Mapping.values, Mapping.items], ids=["iter", "keys", "values", "items"]
)
def test_who_goes_through_the_bans_while_they_change_sees_them_as_they_were(
    ledger: Ledger, look: Callable[[Mapping[Network, Ban]], Iterable[object]]
) -> None:
    addresses = [f"192.0.2.{n}" for n in range(9)]
    ledger.record(map(ban, addresses), now=NOW)
    seen = 0
    for _ in look(ledger.bans()):
        ledger.record([ban(f"10.0.0.{seen}")], now=NOW)
        ledger.end([net(addresses[seen])], EndReason.OPERATOR, now=NOW)
        seen += 1
    assert seen == len(addresses)
    assert set(ledger.bans()) == {net(f"10.0.0.{n}") for n in range(9)}


def test_bans_that_nobody_looks_at_are_not_copied_for_each_change(ledger: Ledger) -> None:
    ledger.record([ban("192.0.2.7")], now=NOW)
    kept = id(ledger._bans)
    assert len(ledger.bans()) == 1
    ledger.record([ban("192.0.2.8")], now=NOW)
    ledger.record([], now=NOW, merged={net("192.0.2.8"): Sightings(NOW, NOW, 2, ("tcp/23",))})
    ledger.end([net("192.0.2.7")], EndReason.OPERATOR, now=NOW)
    assert id(ledger._bans) == kept


def test_where_there_is_nothing_to_write_the_file_is_left_alone(ledger: Ledger, path: Path) -> None:
    ledger.record([ban("192.0.2.7")], now=NOW)
    with sqlite3.connect(path, isolation_level=None) as other:
        # Nobody else can write now.
        other.execute("BEGIN IMMEDIATE")
        ledger.record([], [], now=NOW, durable=True)
        assert ledger.end([], EndReason.EXPIRED, now=NOW) == []
        assert ledger.end([net("192.0.2.8")], EndReason.OPERATOR, now=NOW, durable=True) == []
        other.execute("ROLLBACK")
    other.close()


def test_the_largest_ban_around_a_network_covers_it(ledger: Ledger) -> None:
    assert ledger.covering(net("192.0.2.7")) is None
    ledger.record([ban("192.0.2.7"), ban("192.0.2.0/24"), ban("2001:db8::/64")], now=NOW)
    assert ledger.covering(net("192.0.2.7")) == ban("192.0.2.0/24")
    assert ledger.covering(net("192.0.2.0/23")) is None
    assert ledger.covering(net("2001:db8::7")) == ban("2001:db8::/64")
    ledger.end([net("192.0.2.0/24")], EndReason.OPERATOR, now=NOW)
    assert ledger.covering(net("192.0.2.7")) == ban("192.0.2.7")
    assert ledger.covering(net("192.0.2.8")) is None


def test_the_next_end_is_the_earliest(ledger: Ledger) -> None:
    assert ledger.next_end is None
    ledger.record(
        [ban("192.0.2.7"), ban("192.0.2.8", until=NOW + 2 * HOUR), ban("192.0.2.9", until=NOW + HOUR)], now=NOW
    )
    assert ledger.next_end == NOW + HOUR
    ledger.end([net("192.0.2.9")], EndReason.OPERATOR, now=NOW)
    assert ledger.next_end == NOW + 2 * HOUR


# ends


def test_ending_says_which_were_banned_whatever_is_asked(ledger: Ledger) -> None:
    ledger.record([ban("192.0.2.7"), ban("192.0.2.8")], now=NOW)
    asked = [net("192.0.2.9"), net("192.0.2.7"), net("192.0.2.0/24"), net("192.0.2.7")]
    assert ledger.end(iter(asked), EndReason.OPERATOR, now=NOW) == [net("192.0.2.7")]
    assert list(ledger.bans()) == [net("192.0.2.8")]
    stone = ledger.tombstone(net("192.0.2.7"))
    assert stone is not None
    assert (stone.ended, stone.why, stone.bans) == (NOW, EndReason.OPERATOR, 0)
    assert ledger.tombstone(net("192.0.2.8")) is None


def test_a_natural_end_bears_its_own_time_however_late_it_is_noticed(ledger: Ledger) -> None:
    ledger.record([ban("192.0.2.7", until=NOW + HOUR)], now=NOW)
    ledger.end([net("192.0.2.7")], EndReason.EXPIRED, now=NOW + 9 * HOUR)
    stone = ledger.tombstone(net("192.0.2.7"))
    assert stone is not None
    assert stone.ended == NOW + HOUR


def test_an_end_remembers_what_had_been_read_but_a_natural_one_does_not(ledger: Ledger) -> None:
    ledger.record([ban("192.0.2.7"), ban("192.0.2.8", until=NOW)], [position(900)], now=NOW)
    ledger.end([net("192.0.2.7")], EndReason.OPERATOR, now=NOW)
    ledger.end([net("192.0.2.8")], EndReason.EXPIRED, now=NOW)
    stone, natural = ledger.tombstone(net("192.0.2.7")), ledger.tombstone(net("192.0.2.8"))
    assert stone is not None
    assert natural is not None
    assert stone.marks == {"/log": ReadMark(device=1, inode=5, offset=900)}
    assert natural.marks == {}


def test_bans_of_a_network_are_counted_over_its_ends(path: Path) -> None:
    for end in (EndReason.EXPIRED, EndReason.EVICTED, EndReason.EXPIRED):
        with Ledger(path) as ledger:
            ledger.record([ban("192.0.2.7")], now=NOW)
            ledger.end([net("192.0.2.7")], end, now=NOW)
    with Ledger(path) as ledger:
        stone = ledger.tombstone(net("192.0.2.7"))
        assert stone is not None
        assert (stone.bans, stone.why) == (3, EndReason.EXPIRED)


@pytest.mark.parametrize("pardon", [EndReason.OPERATOR, EndReason.ALLOW])
def test_what_a_person_ends_is_pardoned(ledger: Ledger, pardon: EndReason) -> None:
    for end, count in ((EndReason.EXPIRED, 1), (EndReason.EXPIRED, 2), (pardon, 0), (EndReason.EXPIRED, 1)):
        ledger.record([ban("192.0.2.7")], now=NOW)
        ledger.end([net("192.0.2.7")], end, now=NOW)
        stone = ledger.tombstone(net("192.0.2.7"))
        assert stone is not None
        assert (stone.bans, stone.why) == (count, end)


@pytest.mark.parametrize(
    ("ended", "asked", "found"),
    [
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.0/24", "192.0.2.7", True),
        ("0.0.0.0/0", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("192.0.2.7", "192.0.2.0/24", False),
        ("2001:db8::/64", "2001:db8::7", True),
        ("2001:db8::/61", "2001:db8:0:7::/64", True),
        ("::/0", "2001:db8::7", True),
        ("::/0", "192.0.2.7", False),
        ("2001:db8::/64", "2001:db8:0:1::7", False),
        ("fe80::/96", "fe80::1.2.3.4", True),
    ],
)
def test_a_tombstone_stands_for_all_within_its_network(ledger: Ledger, ended: str, asked: str, found: bool) -> None:
    ledger.record([ban(ended)], now=NOW)
    ledger.end([net(ended)], EndReason.OPERATOR, now=NOW)
    stone = ledger.tombstone(net(asked))
    assert (stone is not None) is found
    assert stone is None or stone.network == net(ended)


def test_the_latest_of_several_tombstones_counts(ledger: Ledger) -> None:
    for hours, network in enumerate(["192.0.2.7", "192.0.2.0/24", "192.0.0.0/16"]):
        ledger.record([ban(network)], now=NOW)
        ledger.end([net(network)], EndReason.OPERATOR, now=NOW + hours * HOUR)
        stone = ledger.tombstone(net("192.0.2.7"))
        assert stone is not None
        assert stone.network == net(network)
    ledger.record([ban("192.0.2.7")], now=NOW)
    ledger.end([net("192.0.2.7")], EndReason.EXPIRED, now=NOW + 5 * HOUR)
    stone = ledger.tombstone(net("192.0.2.7"))
    assert stone is not None
    assert (stone.network, stone.bans) == (net("192.0.2.7"), 1)


# what is forgotten


def test_old_tombstones_are_pruned_but_not_those_that_a_store_may_still_hold(ledger: Ledger) -> None:
    ledger.record([ban("192.0.2.7"), ban("192.0.2.8"), ban("192.0.2.9")], now=NOW)
    ledger.places.attempt("firewall", dict.fromkeys([net("192.0.2.8")]), boot="-", layout=1, now=NOW)
    ledger.end([net("192.0.2.7"), net("192.0.2.8")], EndReason.OPERATOR, now=NOW)
    ledger.end([net("192.0.2.9")], EndReason.OPERATOR, now=NOW + HOUR)
    memory = timedelta(days=90)
    ledger.prune(now=NOW + memory, memory=memory)
    assert ledger.tombstone(net("192.0.2.7")) is not None, "a log's time may be off by a day"
    ledger.prune(now=NOW + memory + timedelta(days=1, seconds=1), memory=memory)
    assert ledger.tombstone(net("192.0.2.7")) is None
    assert ledger.tombstone(net("192.0.2.8")) is not None
    assert ledger.tombstone(net("192.0.2.9")) is not None
    ledger.places.confirm("firewall", (), [net("192.0.2.8")], None)
    ledger.prune(now=NOW + memory + timedelta(days=1, seconds=1), memory=memory)
    assert ledger.tombstone(net("192.0.2.8")) is None


def test_the_feed_is_bounded_and_its_numbers_go_on(path: Path) -> None:
    for _ in range(2):
        with Ledger(path) as ledger:
            ledger.record([ban("192.0.2.7"), ban("192.0.2.8"), ban("192.0.2.9")], now=NOW)
            ledger.prune(now=NOW, memory=HOUR, feed_kept=2)
    with Ledger(path) as ledger:
        assert [entry[0] for entry in ledger.feed()] == [5, 6]
        ledger.prune(now=NOW, memory=HOUR, feed_kept=0)
        assert ledger.feed() == []
        assert len(ledger.bans()) == 3
        ledger.record([ban("192.0.2.7")], now=NOW)
        assert ledger.last_change == 7


# logs


def test_positions_are_written_with_the_bans_that_they_led_to(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.record([ban("192.0.2.7")], [position(10), position(7, path="/other")], now=NOW)
        ledger.record([], [position(20)], now=NOW)
    with Ledger(path) as ledger:
        assert ledger.positions() == {"/log": position(20), "/other": position(7, path="/other")}


@pytest.mark.parametrize("inode", [1 << 63, (1 << 64) - 1])
def test_inode_numbers_use_all_their_64_bits(path: Path, inode: int) -> None:
    with Ledger(path) as ledger:
        ledger.record([ban("192.0.2.7")], [position(10, inode=inode)], now=NOW)
        ledger.end([net("192.0.2.7")], EndReason.OPERATOR, now=NOW)
    with Ledger(path) as ledger:
        assert ledger.positions()["/log"].inode == inode
        stone = ledger.tombstone(net("192.0.2.7"))
        assert stone is not None
        assert stone.marks["/log"].inode == inode


def test_the_feed_tells_every_change_in_order_and_can_be_read_on(path: Path) -> None:
    with Ledger(path) as ledger:
        assert ledger.last_change == 0
        ledger.record([ban("192.0.2.7"), ban("2001:db8::/64", reason="again")], now=NOW)
        ledger.end([net("192.0.2.7")], EndReason.ALLOW, now=NOW + HOUR)
    with Ledger(path) as ledger:
        whole = ledger.feed()
        assert [entry[1:] for entry in whole] == [
            (NOW, "ban", net("192.0.2.7"), "scan"),
            (NOW, "ban", net("2001:db8::/64"), "again"),
            (NOW + HOUR, "unban", net("192.0.2.7"), "allow"),
        ]
        numbers = [entry[0] for entry in whole]
        assert numbers == sorted(set(numbers))
        assert ledger.last_change == numbers[-1]
        assert ledger.feed(numbers[0]) == whole[1:]
        assert ledger.feed(numbers[0], 1) == whole[1:2]


# what goes wrong


def test_a_failed_transaction_changes_neither_file_nor_memory(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.record([ban("192.0.2.7"), ban("192.0.2.0/24")], [position(1)], now=NOW)
        before = ledger.bans()
        # What was seen of a network that is not banned cannot be recorded; by then the rest has been.
        odd = {net("10.0.0.7"): Sightings(NOW, NOW, 2, ())}
        with pytest.raises(KeyError):
            ledger.record([ban("192.0.2.8"), ban("192.0.0.0/16")], [position(99)], now=NOW, merged=odd)
        for _ in range(2):
            assert ledger.bans() == before
            assert ledger.covering(net("192.0.2.8")) == ban("192.0.2.0/24")
            assert ledger.positions() == {"/log": position(1)}
            assert ledger.last_change == 2
            ledger.close()
            ledger = Ledger(path)  # noqa: PLW2901 - the same, read again from its file
        ledger.record([ban("192.0.2.8")], now=NOW)
        assert net("192.0.2.8") in ledger.bans()
        ledger.close()


def test_a_full_disk_is_one_line_and_changes_nothing(ledger: Ledger, path: Path) -> None:
    ledger.record([ban("192.0.2.7")], now=NOW)
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(FatalError, match=f"^ledger {path} cannot be written: database or disk is full$"):
        ledger.record([ban(f"10.0.{n >> 8}.{n & 255}") for n in range(5000)], now=NOW)
    assert list(ledger.bans()) == [net("192.0.2.7")]
    ledger.record([ban("192.0.2.7", reason="more")], now=NOW)


def test_a_ledger_that_fails_while_read_is_one_line(path: Path) -> None:
    with Ledger(path) as ledger:
        other = sqlite3.connect(path)
        with other:
            for table in ("tombstone", "placement", "store", "attempt", "position", "feed", "meta"):
                other.execute(f"DROP TABLE {table}")
        other.close()
        reads: list[Callable[[], object]] = [
            lambda: ledger.tombstone(net("192.0.2.7")),
            lambda: ledger.places.of("firewall"),
            lambda: ledger.places.token("firewall"),
            lambda: ledger.places.last_sequence("firewall"),
            lambda: ledger.last_change,
            ledger.positions,
            ledger.feed,
        ]
        for read in reads:
            with pytest.raises(FatalError, match=f"^ledger {path} cannot be read: [^\n]*$"):
                read()


def test_text_that_is_no_unicode_is_refused_and_nothing_is_written(ledger: Ledger) -> None:
    with pytest.raises(ParseError, match=r"^'caf\\udce9' is not Unicode text: "):
        ledger.record([ban("192.0.2.7"), ban("192.0.2.8", reason="caf\udce9")], now=NOW)
    assert not ledger.bans()
    assert ledger.last_change == 0


def test_a_power_cut_in_the_middle_of_writing_leaves_whole_transactions(path: Path) -> None:
    # Each transaction bans two networks and notes one position: after SIGKILL at any moment they agree.
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_ledger import NOW, ban, position
from jailbridge.ledger import Ledger
ledger = Ledger(Path(sys.argv[1])); ledger.hold()
for n in range(1, 60000):
    a = f"10.{{n >> 8}}.{{n & 255}}."
    ledger.record([ban(a + "1"), ban(a + "2")], [position(n)], now=NOW)
    if n == int(sys.argv[2]): print("go", flush=True)
"""
    for wait_for in (1, 40, 77):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path), str(wait_for)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"go\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        with Ledger(path) as ledger:
            ledger.hold()
            written = ledger.positions()["/log"].offset
            assert written >= wait_for
            assert len(ledger.bans()) % 2 == 0
            assert len(ledger.bans()) >= 2 * written
            assert ledger.last_change >= 2 * written


# several at once


def test_one_process_holds_a_ledger_and_is_named(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from jailbridge.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1])); ledger.hold(); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with Ledger(path) as second:
        with pytest.raises(FatalError, match=rf"\(process {holder.pid}\) works on ledger {path}"):
            second.hold()
        assert second.bans() == {}, "reading needs no hold"
        holder.kill()
        holder.communicate()
        second.hold()
        with Ledger(path) as third, pytest.raises(FatalError, match=rf"\(process {os.getpid()}\)"):
            third.hold()
    with Ledger(path) as third:
        third.hold()


def test_who_comes_to_hold_a_ledger_sees_what_was_written_since_it_was_opened(path: Path) -> None:
    with Ledger(path) as early:
        with Ledger(path) as other:
            other.hold()
            other.record([ban("192.0.2.7")], now=NOW)
        early.hold()
        assert list(early.bans()) == [net("192.0.2.7")]
        assert early.covering(net("192.0.2.7")) is not None


def test_who_comes_to_hold_a_ledger_that_nobody_wrote_since_does_not_read_it_again(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.record([ban("192.0.2.7")], now=NOW)
        read = ledger.bans()[net("192.0.2.7")]
        with Ledger(path) as reader:
            assert len(reader.bans()) == 1
        ledger.hold()
        assert ledger.bans()[net("192.0.2.7")] is read


def test_reading_leaves_the_collection_of_garbage_as_it_was(path: Path) -> None:
    was_collecting = gc.isenabled()
    try:
        for collecting in (True, False):
            (gc.enable if collecting else gc.disable)()
            Ledger(path).close()
            assert gc.isenabled() is collecting
    finally:
        (gc.enable if was_collecting else gc.disable)()


def test_readers_in_other_threads_see_whole_transactions_only(ledger: Ledger) -> None:
    pairs = [(f"10.0.{n}.0/24", f"10.0.{n}.7") for n in range(150)]
    stop, problems, rounds = threading.Event(), [], [0, 0, 0]

    def look(reader: int) -> None:
        while not stop.is_set():
            bans = ledger.bans()
            if len(bans) % 2:
                problems.append(f"{len(bans)} bans")
            around = ledger.covering(net("10.0.5.7"))
            if around is not None and around.network != net("10.0.5.0/24"):
                problems.append(f"covered by {around.network}")
            ledger.tombstone(net("10.0.5.7"))
            ledger.places.of("firewall")
            ledger.feed(0, 5)
            rounds[reader] += 1

    readers = [threading.Thread(target=look, args=(n,)) for n in range(3)]
    for reader in readers:
        reader.start()
    try:
        for wide, host in pairs:
            ledger.record([ban(wide), ban(host)], [position(1)], now=NOW)
            ledger.places.attempt("firewall", dict.fromkeys([net(wide), net(host)]), boot="-", layout=1, now=NOW)
        for wide, host in pairs[::2]:
            ledger.end([net(wide), net(host)], EndReason.OPERATOR, now=NOW)
        while min(rounds) == 0:
            ledger.prune(now=NOW, memory=HOUR)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert problems == []
    assert len(ledger.bans()) == len(pairs)


def test_many_bans_are_no_burden(ledger: Ledger) -> None:
    """Twenty thousand are written, looked up and ended in far less time than this test may take."""
    many = [ban(f"10.{n >> 8}.{n & 255}.7") for n in range(20_000)]
    ledger.record(many, now=NOW)
    for one in many[:2000]:
        ledger.record([], [position(1)], now=NOW)
        assert ledger.covering(one.network) is not None
        assert ledger.tombstone(one.network) is None
    assert len(ledger.end([one.network for one in many], EndReason.OPERATOR, now=NOW)) == len(many)
