import logging
import os
import resource
import signal
import stat
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest

from jailbridge.config.portsentry_conf import Mode, PortsentryConf
from jailbridge.errors import FatalError, RetryLater
from jailbridge.portsentry.blocked import MAX_BYTES, BinaryList, Blocked, NoList, TextList, blocked

A, B, C = (IPv4Address(f"10.98.0.{n}") for n in (14, 15, 16))
V6 = IPv6Address("fd98::2")
FAMILY_4, FAMILY_6 = (family.to_bytes(2, sys.byteorder) for family in (2, 10))
Make = Callable[[Path], Blocked]
BOTH = pytest.mark.parametrize("make", [TextList, BinaryList])


def line(address: object) -> str:
    return f"1795329073 - 11/22/2026 06:31:13 Host: {address}/{address} Port: 15 TCP Blocked"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "portsentry.blocked"


@pytest.fixture
def text(path: Path) -> TextList:
    made = TextList(path)
    made.start()
    return made


@BOTH
def test_a_source_is_held_once_it_was_added(path: Path, make: Make) -> None:
    made = make(path)
    made.start()
    assert not made.holds(A)
    made.add(A, line(A))
    made.add(V6, line(V6))
    assert (made.holds(A), made.holds(V6), made.holds(B)) == (True, True, False)


def test_1_2_writes_the_lines_of_its_history(path: Path, text: TextList) -> None:
    text.add(A, line(A))
    text.add(B, line(B))
    assert path.read_text() == f"{line(A)}\n{line(B)}\n"


def test_2_x_writes_the_bytes_of_the_real_one(path: Path) -> None:
    made = BinaryList(path)
    made.start()
    for address in (A, B, V6):
        made.add(address, "")
    # As recorded of 2.0.7 on a little-endian machine: 0200 0a62000e 0200 0a62000f
    assert path.read_bytes() == (
        FAMILY_4 + b"\x0a\x62\x00\x0e" + FAMILY_4 + b"\x0a\x62\x00\x0f" + FAMILY_6 + V6.packed
    )  # fmt: skip


@BOTH
def test_the_file_is_readable_by_all_as_the_real_one(path: Path, make: Make) -> None:
    before = os.umask(0o022)
    try:
        make(path).start()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_1_2_begins_with_an_empty_list(path: Path) -> None:
    path.write_text(f"{line(A)}\n")
    made = TextList(path)
    made.start()
    assert not made.holds(A)
    assert path.read_bytes() == b""


def test_2_x_begins_with_the_list_of_last_time(path: Path) -> None:
    path.write_bytes(FAMILY_4 + A.packed + FAMILY_6 + V6.packed)
    made = BinaryList(path)
    made.start()
    assert (made.holds(A), made.holds(V6), made.holds(B)) == (True, True, False)


def test_in_1_2_a_line_taken_out_counts_at_once(path: Path, text: TextList) -> None:
    for address in (A, B):
        text.add(address, line(address))
    path.write_text(f"{line(B)}\n")
    assert (text.holds(A), text.holds(B)) == (False, True)
    # As sed -i does it: another file in its place.
    other = path.with_name("other")
    other.write_text(f"{line(C)}\n")
    other.replace(path)
    assert (text.holds(B), text.holds(C)) == (False, True)
    path.unlink()
    assert not text.holds(C)
    text.add(A, line(A))
    assert text.holds(A)
    assert path.read_text() == f"{line(A)}\n"


def test_in_1_2_what_others_wrote_before_an_own_line_is_seen(path: Path, text: TextList) -> None:
    text.add(A, line(A))
    with path.open("a") as file:
        file.write(f"{line(B)}\n")
    text.add(C, line(C))
    assert [text.holds(address) for address in (A, B, C)] == [True, True, True]


def test_in_2_x_memory_decides_until_the_next_start(path: Path) -> None:
    made = BinaryList(path)
    made.start()
    made.add(A, "")
    path.write_bytes(b"")
    assert made.holds(A)
    made.start()
    assert not made.holds(A)


def test_in_1_2_only_the_address_that_portsentry_wrote_is_meant(path: Path, text: TextList) -> None:
    named = line(A).replace(f"Host: {A}/", f"Host: {B}-x.example/")
    path.write_text(f"{named}\n# {C}\nnonsense {C}\n")
    assert (text.holds(A), text.holds(B), text.holds(C)) == (True, False, False)


def test_in_1_2_a_file_left_without_its_last_newline_is_ended_first(path: Path, text: TextList) -> None:
    path.write_text(line(A))
    text.add(B, line(B))
    assert path.read_text() == f"{line(A)}\n{line(B)}\n"


def test_in_1_2_an_unreadable_file_changes_nothing(path: Path, text: TextList) -> None:
    text.add(A, line(A))
    path.rename(path.with_name("real"))
    path.symlink_to("real")
    assert (text.holds(A), text.holds(B)) == (True, False)


@BOTH
def test_nothing_is_written_through_a_symbolic_link(path: Path, make: Make) -> None:
    target = path.with_name("precious")
    target.write_text("precious")
    path.symlink_to(target)
    made = make(path)
    with pytest.raises(FatalError, match="is a symbolic link: name another BLOCKED_FILE"):
        made.start()
    with pytest.raises(RetryLater, match="is a symbolic link"):
        made.add(A, line(A))
    assert made.holds(A)
    assert target.read_text() == "precious"


@BOTH
def test_what_is_no_file_is_refused(path: Path, make: Make) -> None:
    os.mkfifo(path)
    with pytest.raises(FatalError, match=f"blocked file {path} cannot be kept"):
        make(path).start()


@BOTH
def test_a_missing_folder_is_made(path: Path, make: Make) -> None:
    deep = path.parent / "run" / "portsentry" / "blocked"
    make(deep).start()
    assert deep.exists()


@BOTH
def test_a_record_is_written_whole_or_not_at_all(path: Path, make: Make) -> None:
    made = make(path)
    made.start()
    made.add(A, line(A))
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 3, hard))
    try:
        with pytest.raises(RetryLater, match="cannot be kept: No space left"):
            made.add(B, line(B))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before


@pytest.mark.parametrize("tail", [b"\x02", FAMILY_4, FAMILY_4 + b"\x0a\x62", FAMILY_6 + b"\x00" * 15, b"\xff\xff" * 40])
def test_in_2_x_a_damaged_end_is_cut_off(path: Path, tail: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(FAMILY_4 + A.packed + tail)
    made = BinaryList(path)
    with caplog.at_level(logging.WARNING):
        made.start()
    made.add(B, "")
    assert path.read_bytes() == FAMILY_4 + A.packed + FAMILY_4 + B.packed
    assert f"damaged_bytes={len(tail)}" in caplog.text


@pytest.mark.parametrize("content", [f"{line(A)}\n".encode(), b"\x00" * (MAX_BYTES + 1)])
def test_in_2_x_a_file_of_another_kind_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(FatalError, match=r"is no blocked list of PortSentry 2\.x: move it away"):
        BinaryList(path).start()
    assert path.read_bytes() == content


@pytest.mark.parametrize("make", [lambda path: TextList(path, 20), lambda path: BinaryList(path, 20)])
def test_forged_sources_cannot_fill_memory_or_disk(path: Path, make: Make) -> None:
    made = make(path)
    made.start()
    sources = [ip_address(0x0A000000 + n) for n in range(50)]
    for source in sources:
        made.add(source, line(source))
    held = [source for source in sources if made.holds(source)]
    assert held == sources[-len(held) :]
    assert 18 <= len(held) <= 20
    again = make(path)
    if isinstance(again, BinaryList):
        again.start()
    assert [source for source in sources if again.holds(source)] == held
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_size <= 20 * len(f"{line(sources[-1])}\n")


def test_in_1_2_of_a_file_that_others_filled_the_newest_lines_count(path: Path) -> None:
    sources = [ip_address(0x0A000000 + n) for n in range(50)]
    path.write_text("".join(f"{line(source)}\n" for source in sources))
    made = TextList(path, 20)
    held = [source for source in sources if made.holds(source)]
    assert held == sources[-len(held) :]
    assert 18 <= len(held) <= 20


def test_a_list_turned_off_holds_nobody() -> None:
    made = NoList()
    made.start()
    made.add(A, line(A))
    assert not made.holds(A)


def test_the_mode_chooses_the_list() -> None:
    conf = PortsentryConf(blocked_file=Path("/b"))
    assert isinstance(blocked(conf, Mode.ATCP), TextList)
    assert isinstance(blocked(conf, Mode.STEALTH), BinaryList)
    assert isinstance(blocked(PortsentryConf(), Mode.CONNECT), NoList)
