from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_address

import pytest

from jailbridge.errors import ParseError
from jailbridge.history.dialects import format_1, format_2, parse
from jailbridge.model.event import Dialect, Kind, Protocol, ScanEvent, TcpFlags

TIME = datetime(2026, 11, 22, 6, 32, 8, 215000, tzinfo=UTC)
LINE_1 = b"1795329128 - 11/22/2026 06:32:08 Host: NAME/192.0.2.7 Port: 23 TCP Blocked"
LINE_2 = (
    b"2026-11-22T06:32:08.215+0000 Scan from: [192.0.2.7] (NAME) protocol: [TCP] port: [23] "
    b"type: [TCP SYN/Normal scan] IP opts: [not set] "
    b"ignored: [false] triggered: [true] noblock: [true] blocked: [false]"
)
HOSTILE = [b"/", b"[", b"]", b"(", b")", b" ", b"0", b":", b"%", b"x/", b"1.1.1.1/", b"::/", b"] [", b"Host: ", b"\xff"]


def event(**changes: object) -> ScanEvent:
    fields = {
        "time": TIME,
        "address": ip_address("192.0.2.7"),
        "port": 23,
        "protocol": Protocol.TCP,
        "kind": Kind.SYN,
        "ignored": False,
        "triggered": True,
        "ip_options": False,
    }
    return ScanEvent(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_line_of_1_2_tells_who_probed_what_and_when() -> None:
    expected = event(time=TIME.replace(microsecond=0), kind=Kind.UNKNOWN, ignored=None, triggered=None, ip_options=None)
    assert parse(LINE_1) == (expected, Dialect.PORTSENTRY_1)


def test_a_line_of_2_tells_also_how() -> None:
    assert parse(LINE_2) == (event(), Dialect.PORTSENTRY_2)


def test_a_line_of_the_other_dialect_is_refused_where_one_is_asked_for() -> None:
    assert parse(LINE_1, Dialect.PORTSENTRY_1)[1] is Dialect.PORTSENTRY_1
    with pytest.raises(ParseError, match=r"not a line of PortSentry's history \(2 dialect\)"):
        parse(LINE_1, Dialect.PORTSENTRY_2)
    with pytest.raises(ParseError, match=r"not a line of PortSentry's history \(1\.2 dialect\)"):
        parse(LINE_2, Dialect.PORTSENTRY_1)


@pytest.mark.parametrize("line", [LINE_1, LINE_2])
@pytest.mark.parametrize(
    "name",
    [
        b"a.example",
        b"198.51.100.1",
        b"x/198.51.100.1",
        b"[198.51.100.1]",
        b"()",
        b"b\xc3\xbccher",
        b"\xa0\x85",
        b"a" * 1025,
    ],
)
def test_no_name_changes_the_address_or_saves_its_owner(line: bytes, name: bytes) -> None:
    assert parse(line.replace(b"NAME", name))[0].address == ip_address("192.0.2.7")


@pytest.mark.parametrize("line", [LINE_1, LINE_2])
@pytest.mark.parametrize(
    "name",
    [b"", b"a b", b"a\tb", b"a\rb", b"a\nb", b"a\0b", b"a\x1b[2Jb", b"a\x7fb", b"a\x0bb", b"a\x0cb", b"a" * 1026],
)
def test_a_name_that_could_play_a_record_is_refused(line: bytes, name: bytes) -> None:
    with pytest.raises(ParseError):
        parse(line.replace(b"NAME", name))


@pytest.mark.parametrize("line", [LINE_1, LINE_2])
@pytest.mark.parametrize("address", ["::ffff:192.0.2.7", "::ffff:c000:207", "192.0.2.7"])
def test_a_mapped_address_is_unwrapped(line: bytes, address: str) -> None:
    assert parse(line.replace(b"192.0.2.7", address.encode()))[0].address == ip_address("192.0.2.7")


@pytest.mark.parametrize("line", [LINE_1, LINE_2])
def test_a_zone_is_dropped(line: bytes) -> None:
    assert parse(line.replace(b"192.0.2.7", b"fe80::7%br-0.100"))[0].address == ip_address("fe80::7")


@pytest.mark.parametrize("line", [LINE_1, LINE_2])
@pytest.mark.parametrize("tail", [b"\r", b"\r\r\r"])
def test_carriage_returns_at_the_end_are_no_part_of_a_record(line: bytes, tail: bytes) -> None:
    assert parse(line + tail) == parse(line)


@pytest.mark.parametrize("line", [LINE_1, LINE_2])
@pytest.mark.parametrize("extra", [b" ", b"\n", b"\0", b".", b"\r ", b" \r"])
def test_nothing_may_stand_before_or_behind_a_record(line: bytes, extra: bytes) -> None:
    for changed in (extra + line, line + extra):
        with pytest.raises(ParseError):
            parse(changed)


@pytest.mark.parametrize("epoch", [b"0000000000", b"0795329128", b"999999999", b"10000000000", b"-795329128"])
def test_an_epoch_has_ten_digits(epoch: bytes) -> None:
    with pytest.raises(ParseError):
        parse(LINE_1.replace(b"1795329128", epoch))
    assert parse(LINE_1.replace(b"1795329128", b"9999999999"))[0].time.year == 2286


@pytest.mark.parametrize(
    "time",
    [
        b"2026-02-30T06:32:08.215+0000",
        b"2026-11-22T06:32:08.215+9999",
        b"0001-01-01T00:00:00.000+1400",
        b"0000-11-22T06:32:08.215+0000",
        b"2026-11-22T24:00:00.000+0000",
        b"2026-11-22T06:32:60.000+0000",
        b"2026-11-22T06:32:08.215+0060",
        b"2026-11-22T06:32:08.215-2400",
    ],
)
def test_an_impossible_time_is_refused(time: bytes) -> None:
    with pytest.raises(ParseError, match="not a time"):
        parse(LINE_2.replace(b"2026-11-22T06:32:08.215+0000", time))


UNKNOWN_TYPE = "Unknown Type: TCP Packet Flags: SYN: {} FIN: {} ACK: {} PSH: {} URG: {} RST: {}"


@pytest.mark.parametrize(
    ("text", "kind", "flags"),
    [
        ("Connect", Kind.CONNECT, None),
        ("TCP SYN/Normal scan", Kind.SYN, None),
        ("TCP FIN scan", Kind.FIN, None),
        ("TCP NULL scan", Kind.NULL, None),
        ("TCP XMAS scan", Kind.XMAS, None),
        ("UDP", Kind.UDP, None),
        (UNKNOWN_TYPE.format(1, 1, 0, 0, 0, 0), Kind.OTHER, TcpFlags.SYN | TcpFlags.FIN),
        (UNKNOWN_TYPE.format(0, 0, 1, 0, 0, 0), Kind.ACK, TcpFlags.ACK),
        (UNKNOWN_TYPE.format(0, 0, 1, 1, 0, 0), Kind.OTHER, TcpFlags.ACK | TcpFlags.PSH),
        (UNKNOWN_TYPE.format(0, 0, 0, 0, 1, 1), Kind.OTHER, TcpFlags.URG | TcpFlags.RST),
        (UNKNOWN_TYPE.format(0, 0, 0, 0, 0, 0), Kind.OTHER, None),
    ],
)
def test_every_type_of_2_has_its_kind_and_is_written_so(text: str, kind: Kind, flags: TcpFlags | None) -> None:
    line = LINE_2.replace(b"TCP SYN/Normal scan", text.encode())
    read = parse(line)[0]
    assert (read.kind, read.flags) == (kind, flags)
    assert format_2(read, TIME, name="NAME").encode() == line


@pytest.mark.parametrize(("text", "options"), [("set", True), ("not set", False), ("unknown", None)])
def test_ip_options_of_2_are_set_or_not_or_not_known(text: str, options: bool | None) -> None:
    line = LINE_2.replace(b"IP opts: [not set]", f"IP opts: [{text}]".encode())
    assert parse(line)[0].ip_options is options
    assert format_2(event(ip_options=options), TIME, name="NAME").encode() == line


@pytest.mark.parametrize("said", [("true", True), ("false", False), ("unset", None)])
def test_what_2_leaves_unset_is_not_known(said: tuple[str, bool | None]) -> None:
    text, value = said
    assert parse(LINE_2.replace(b"ignored: [false]", f"ignored: [{text}]".encode()))[0].ignored is value
    assert parse(LINE_2.replace(b"triggered: [true]", f"triggered: [{text}]".encode()))[0].triggered is value


def test_1_2_is_written_as_portsentry_writes_it() -> None:
    local = TIME.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert format_1(event(), local) == (
        "1795329128 - 11/22/2026 12:02:08 Host: 192.0.2.7/192.0.2.7 Port: 23 TCP Blocked"
    )


def test_2_is_written_as_portsentry_writes_it_with_blocking_off() -> None:
    assert format_2(event(), TIME) == LINE_2.decode().replace("NAME", "192.0.2.7")
    early = format_2(event(triggered=False, protocol=Protocol.UDP, kind=Kind.UDP), TIME)
    assert "protocol: [UDP] port: [23] type: [UDP]" in early
    assert early.endswith("ignored: [false] triggered: [false] noblock: [unset] blocked: [unset]")


def test_2_tells_what_became_of_a_source_that_triggered() -> None:
    blocked = format_2(event(), TIME, noblock=False, blocked=True)
    assert blocked.endswith("triggered: [true] noblock: [false] blocked: [true]")
    assert format_2(event(), TIME, noblock=None, blocked=None).endswith("noblock: [unset] blocked: [unset]")
    ignored = format_2(event(ignored=True, triggered=None), TIME, noblock=False, blocked=True)
    assert ignored.endswith("ignored: [true] triggered: [unset] noblock: [unset] blocked: [unset]")


def test_a_name_stands_beside_the_address() -> None:
    assert " Host: a-b.example/192.0.2.7 Port: " in format_1(event(), TIME, "a-b.example")
    assert " [192.0.2.7] (a-b.example) protocol" in format_2(event(), TIME, name="a-b.example")


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "x/198.51.100.1", "a)", "b\u00fccher.example", "a" * 254])
def test_the_address_stands_where_a_name_could_play_a_record(name: str) -> None:
    assert format_1(event(), TIME, name) == format_1(event(), TIME)
    assert format_2(event(), TIME, name=name) == format_2(event(), TIME)


@pytest.mark.parametrize("filling", HOSTILE)
@pytest.mark.parametrize("line", [LINE_1, LINE_2])
def test_a_long_hostile_line_is_refused_at_once(line: bytes, filling: bytes) -> None:
    # 4 KiB, the most that a reader passes on, and far more: quadratic work would outlast the tests' time limit.
    for size in (4096, 4 << 20):
        text = filling * (size // len(filling))
        for changed in (text, line.replace(b"NAME", text), line.replace(b"192.0.2.7", text), line + text, text + line):
            with pytest.raises(ParseError) as error:
                parse(changed)
            assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    "line",
    [b"", b"\r", b" ", b"\0" * 64, b"\xff\xfe", b"attackalert: Host: 192.0.2.7/192.0.2.7 is already blocked Ignoring"],
)
def test_other_lines_are_refused(line: bytes) -> None:
    with pytest.raises(ParseError, match="not a line of PortSentry's history"):
        parse(line)


def test_more_sources_than_are_remembered_are_read_right() -> None:
    sources = [f"10.{n >> 8}.{n & 255}.7" for n in range(5000)] * 2
    assert [str(parse(LINE_1.replace(b"192.0.2.7", each.encode()))[0].address) for each in sources] == sources


@pytest.mark.parametrize("refused", [b"192.0.2.07", b"fe80::7%"])
def test_a_refused_address_stays_refused(refused: bytes) -> None:
    for _ in range(2):
        with pytest.raises(ParseError):
            parse(LINE_1.replace(b"192.0.2.7", refused))
