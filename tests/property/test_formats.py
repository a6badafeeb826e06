"""No reader trips over any bytes; whatever names, users and edits say, the address is the trusted field's, or none."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jailbridge.errors import ParseError
from jailbridge.history.formats import reader
from jailbridge.model.event import Dialect, Kind, Protocol, ScanEvent, TailFormat
from jailbridge.model.network import Address, parse_address
from jailbridge.portsentry import lines

NOW = datetime(2026, 11, 22, 18, tzinfo=UTC)
PREFIXES = ("portscan nft: ", "PORTSCAN:", "portscan raw: ", "portscan frag: ")
SAMPLES = Path(__file__).parents[2] / "sample-logs"
READERS = {form: reader(form, PREFIXES if form in {"auto", "kernel"} else ()) for form in TailFormat}
EVERY = READERS[TailFormat.AUTO]
ADDRESSES = st.builds(IPv4Address, st.integers(0, 2**32 - 1)) | st.builds(
    IPv6Address, st.integers(0, 2**128 - 1)
).filter(lambda address: address.ipv4_mapped is None)
NAMES = st.binary(max_size=40) | st.sampled_from(
    [
        b"x/198.51.100.1",
        b"[198.51.100.1]",
        b"x) (y",
        b"x/198.51.100.1 to TCP port: 1",
        b"x\n",
        b"a" * 1026,
        b'","_UID":"0',
    ]
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "delete", "replace", "copy"]),
        st.integers(0, 600),
        st.sampled_from([b"/", b"[", b"]", b" ", b"\r", b"\0", b":", b".", b"0", b'"', b"{", b"=", b"\\", b"\xd9\xa2"])
        | st.binary(min_size=1, max_size=3),
        st.integers(1, 60),
    ),
    max_size=4,
)


@cache
def real_lines() -> list[bytes]:
    return [line for log in sorted(SAMPLES.glob("*.log")) for line in log.read_bytes().split(b"\n") if len(line) < 2000]


def edited(line: bytes, edits: list[tuple[str, int, bytes, int]]) -> bytes:
    for what, place, text, size in edits:
        at = min(place, len(line))
        match what:
            case "insert":
                line = line[:at] + text + line[at:]
            case "delete":
                line = line[:at] + line[at + size :]
            case "replace":
                line = line[:at] + text + line[at + len(text) :]
            case _:
                line = line[:at] + line[at : at + size] + line[at:]
    return line


def read(line: bytes, form: TailFormat = TailFormat.AUTO) -> tuple[ScanEvent, Dialect] | None:
    try:
        return READERS[form](line, NOW)
    except ParseError as error:
        complaint = str(error)
    assert complaint.isprintable()
    return None


def trusted_address(line: bytes, dialect: Dialect) -> Address:
    """Return the address of the one field that nobody outside writes, found another way than by the grammars."""
    message = line
    if line.startswith(b"{"):
        said = json.loads(line)["MESSAGE"]
        message = said.encode("utf-8", "surrogatepass") if isinstance(said, str) else bytes(said)
    if dialect is Dialect.KERNEL:
        found = re.findall(rb" SRC=([0-9a-f.:]+) ", message)
        assert len(found) == 1
        return parse_address(found[0].decode())
    if b"Scan from: [" in message:
        field = message.partition(b"Scan from: [")[2].partition(b"]")[0]
    else:
        mark = b" Port: " if dialect is Dialect.PORTSENTRY_1 else b" to "
        field = message.rpartition(mark)[0].rpartition(b"/")[2]
    return parse_address(field.decode("ascii"))


@given(line=st.binary(max_size=300), form=st.sampled_from(TailFormat))
def test_any_bytes_are_an_event_or_nothing_or_one_line_of_complaint(line: bytes, form: TailFormat) -> None:
    assert read(line, form) is None


@given(data=st.data(), form=st.sampled_from(TailFormat), edits=EDITS)
def test_an_edited_real_line_names_the_address_of_its_trusted_field_or_none(
    data: st.DataObject, form: TailFormat, edits: list[tuple[str, int, bytes, int]]
) -> None:
    line = edited(data.draw(st.sampled_from(real_lines())), edits)
    if (told := read(line, form)) is not None:
        event, dialect = told
        assert event.address == trusted_address(line, dialect)
        assert 1 <= event.port <= 65535
        assert event.time.tzinfo is UTC


@given(
    address=ADDRESSES,
    port=st.integers(1, 65535),
    kind=st.sampled_from([Kind.SYN, Kind.FIN, Kind.NULL, Kind.XMAS, Kind.CONNECT]),
    name=NAMES,
    in_journal=st.booleans(),
)
def test_a_name_without_blanks_changes_nothing_and_no_other_is_believed(
    address: Address, port: int, kind: Kind, name: bytes, in_journal: bool
) -> None:
    event = ScanEvent(NOW, address, port, Protocol.TCP, kind)
    (line,) = lines.attack_1(event, "NAME")
    message = line.encode().replace(b"NAME", name)
    if in_journal:
        fields = {"_UID": "0", "SYSLOG_IDENTIFIER": "portsentry", "MESSAGE": list(message)}
        stamp = str(int(NOW.timestamp() * 1_000_000))
        logged = json.dumps(fields | {"__REALTIME_TIMESTAMP": stamp}).encode()
    else:
        logged = b"2026-11-22T18:00:00Z host portsentry[1]: " + message
    harmless = 1 <= len(name) <= 1025 and all(byte > 0x20 and byte != 0x7F for byte in name)
    assert read(logged) == ((event, Dialect.SYSLOG) if harmless else None)


@given(
    message=st.sampled_from([line for line in real_lines() if line]) | st.binary(max_size=60),
    tag=st.from_regex(r"\A[A-Za-z0-9_/-]{1,16}(\[[0-9]{1,5}\])?:\Z").filter(
        lambda tag: re.match(r"(portsentry|kernel)[\[:]", tag) is None
    ),
    head=st.sampled_from(
        ["Nov 22 06:31:13 host ", "Nov 22 06:31:13 ", "<29>Nov 22 06:31:13 ", "2026-11-22T06:31:13Z host "]
    ),
)
def test_what_another_program_says_is_never_believed(message: bytes, tag: str, head: str) -> None:
    assert read(f"{head}{tag} ".encode() + message) is None


@given(message=st.sampled_from(real_lines()).map(lambda line: line.decode("latin-1")), uid=st.integers(1, 2**32 - 1))
def test_in_the_journal_no_user_is_believed(message: str, uid: int) -> None:
    for program in ("portsentry", "kernel"):
        fields = {"_UID": str(uid), "_TRANSPORT": "syslog", "SYSLOG_IDENTIFIER": program, "MESSAGE": message}
        assert read(json.dumps(fields | {"__REALTIME_TIMESTAMP": "1795329073500000"}).encode()) is None


@given(
    now=st.datetimes(datetime(1980, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    ago=st.timedeltas(timedelta(days=-1), timedelta(days=360)),
)
def test_a_time_without_a_year_is_the_one_that_was_meant(now: datetime, ago: timedelta) -> None:
    then = (now - ago).replace(microsecond=0)
    stamp = then.astimezone().strftime("%b %e %H:%M:%S")
    told = EVERY(f"{stamp} host portsentry[1]: {SCAN}".encode(), now)
    assert told is not None
    # Where this system's clocks go back, an hour comes twice and a line does not say which one it is of.
    assert abs(told[0].time - then) <= timedelta(hours=1)


SCAN = "attackalert: TCP SYN/Normal scan from host: x/192.0.2.7 to TCP port: 11"
SYSLOG = b"Nov 22 06:31:13 host "
SAID = SYSLOG + b"portsentry[1]: "
PACKET = SYSLOG + b"kernel: PORTSCAN:IN=eth0 OUT= MAC="
V6 = (
    b" SRC=2001:0db8:0000:0000:0000:0000:0000:0007 DST=2001:0db8:0000:0000:0000:0000:0000:0001 "
    b"LEN=64 TC=0 HOPLIMIT=255 FLOWLBL=0 "
)
HOSTILE: dict[str, Callable[[int], bytes]] = {
    "a name of addresses": lambda n: SAID + b"attackalert: Connect from host: " + b"x/192.0.2.1" * (n // 11) + b" to",
    "hosts": lambda n: SYSLOG + b"from host: x/192.0.2.1 to TCP port: 1 " * (n // 38),
    "a name in 2.x": lambda n: SAID + b"Scan from: [192.0.2.1] (" + b") (" * (n // 3),
    "structured data": lambda n: b"1 2026-11-22T06:31:13Z host portsentry 1 - " + b'[a b="c"]' * (n // 9),
    "a value that does not end": lambda n: b'1 2026-11-22T06:31:13Z host portsentry 1 - [a b="' + b'\\"' * (n // 2),
    "fields without an end": lambda n: b"1 2026-11-22T06:31:13Z host portsentry 1 - [a" + b' b="c"' * (n // 6),
    "a host": lambda n: b"Nov 22 06:31:13 " + b"a:" * (n // 2),
    "a tag": lambda n: SAID * (n // len(SAID)),
    "blanks": lambda n: PACKET + V6 + b" " * n,
    "a MAC address": lambda n: PACKET + b":0" * (n // 2),
    "options": lambda n: PACKET + V6 + b"OPT ( ) " * (n // 8),
    "fragments": lambda n: PACKET + b" FRAG:0 INCOMPLETE" * (n // 18),
    "prefixes": lambda n: SYSLOG + b"kernel: " + b"PORTSCAN:" * (n // 9),
    "numbers": lambda n: SYSLOG + b"kernel: [" + b" " * (n // 2) + b"1" * (n // 2),
    "returns": lambda n: SAID + b"\r" * n + b"x",
    "an object in an object": lambda n: b'{"a":' * (n // 5),
    "a list in a list": lambda n: b'{"a":' + b"[" * n,
    "a huge number": lambda n: b'{"a":' + b"7" * n + b"}",
    "many fields": lambda n: b"{" + b",".join(b'"%d":1' % field for field in range(n // 9)) + b"}",
    "escapes": lambda n: b'{"a":"' + b"\\u0041" * (n // 6) + b'"}',
    "half an escape": lambda n: b'{"a":"' + b"\\\\" * (n // 2),
}


def cost(line: bytes) -> float:
    """Return the seconds that one reading takes, the best of some."""
    best = float("inf")
    for _ in range(5):
        begin = process_time()
        for _ in range(4):
            read(line)
        best = min(best, process_time() - begin)
    return best / 4


@pytest.mark.parametrize("hostile", HOSTILE)
def test_the_time_for_a_line_does_not_grow_faster_than_its_length(hostile: str) -> None:
    make = HOSTILE[hostile]
    short, long = cost(make(2_000)), cost(make(32_000))
    # 16 times as long: 16 times the time if linear, 256 if quadratic. What takes next to nothing is noise.
    assert long < max(64 * short, 0.004)
    assert cost(make(4_000)) < 0.05
