"""The list that hosts.deny names: what is a ban, what is the token, what is somebody else's."""

import pytest

from jailbridge.model.network import Network, parse_network
from jailbridge.stores.deny_list import agreed, list_text, read_list

TOKEN = "jb1:0123456789ab:-:1:7"


def nets(*texts: str) -> tuple[Network, ...]:
    return tuple(parse_network(text) for text in texts)


def test_what_is_written_is_read_back() -> None:
    bans = nets("192.0.2.7", "10.0.0.0/8", "2001:db8::7", "2001:db8::/64", "0.0.0.0/0")
    parts = read_list(list_text(read_list(b""), bans, TOKEN))
    assert (parts.token, parts.bans, parts.unknown) == (TOKEN, bans, ())


@pytest.mark.parametrize(
    "content", [b"", b"192.0.2.8\n192.0.2.7\n", b"192.0.2.7\n192.0.2.7\n192.0.2.7", b" 192.0.2.7\n192.0.2.7 ALL\n"]
)
def test_what_an_earlier_reading_found_never_changes_what_is_read(content: bytes) -> None:
    earlier = read_list(b"192.0.2.7\n192.0.2.9\n192.0.2.7 192.0.2.8\nALL\n")
    assert read_list(content, earlier.said) == read_list(content)


def test_the_token_is_no_address_and_has_no_letter() -> None:
    first = list_text(read_list(b""), nets("192.0.2.7"), TOKEN).splitlines()[0]
    assert set(first) <= set(b"0123456789.")
    assert first.count(b".") > 3
    assert not first.endswith(b".")


@pytest.mark.parametrize(
    "line", [b"192.0.2.7 192.0.2.8\n", b"\t192.0.2.7\t[::ffff:192.0.2.8]", b"192.0.2.7\r\n192.0.2.8"]
)
def test_patterns_are_what_stands_between_blanks(line: bytes) -> None:
    assert read_list(line).bans == nets("192.0.2.7", "192.0.2.8")


@pytest.mark.parametrize(
    "line",
    [b"ALL", b".example.org", b"192.0.2.", b"# 192.0.2.7", b"192.0.2.7 EXCEPT", b"2001:db8::7", b"/etc/x", b"\xff"],
)
def test_a_line_with_any_other_pattern_is_kept(line: bytes) -> None:
    parts = read_list(b"192.0.2.1\n" + line + b"\n192.0.2.2\n")
    assert parts.bans == nets("192.0.2.1", "192.0.2.2")
    assert parts.unknown == (line + b"\n",)
    text = list_text(parts, nets("192.0.2.3", "192.0.2.2"), TOKEN)
    assert text.splitlines()[1:] == [line, b"192.0.2.2", b"192.0.2.3"]
    assert read_list(text).unknown == (line + b"\n",)


@pytest.mark.parametrize("line", [b"106.098.049", b"106.098.049.058.048.049.050.999", b"192.0.2.7.1.1.1.1.1"])
def test_what_is_no_token_is_none(line: bytes) -> None:
    assert read_list(line).token is None


@pytest.mark.parametrize(
    ("block", "listed", "token"),
    [
        ("jb1:a:-:5:1", "jb1:a:-:5:9", "jb1:a:-:5:9"),
        ("jb1:a:-:5:1", "jb1:a:-:6:9", None),
        ("jb1:a:-:5:1", "jb1:b:-:5:9", None),
        (None, "jb1:a:-:5:9", None),
        ("jb1:a:-:5:1", None, None),
        ("x", "x", None),
    ],
)
def test_a_block_and_its_list_agree_where_ledger_and_layout_do(
    block: str | None, listed: str | None, token: str | None
) -> None:
    assert agreed(block, listed) == token
