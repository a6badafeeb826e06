"""The text of hosts.deny: what is ours, what is foreign, and what is broken."""

import pytest

from jailbridge.errors import FatalError
from jailbridge.model.network import Network, parse_network
from jailbridge.stores.deny_file import BEGIN, END, client, client_network, put_together, take_apart

RULE = "ALL: {address}"
TOKEN = "jb1:0123456789ab:-:1:7"
HEAD = BEGIN + TOKEN.encode() + b" - bans\n"
TAIL = END + b"\n"


def nets(*texts: str) -> tuple[Network, ...]:
    return tuple(parse_network(text) for text in texts)


def bans(block: bytes, rule: str = RULE) -> tuple[Network, ...]:
    return take_apart(HEAD + block + TAIL, "f", rule).bans


def written(content: bytes, *networks: str, rule: str = RULE) -> bytes:
    return put_together(take_apart(content, "f", rule), nets(*networks), rule, TOKEN)


# what is read


@pytest.mark.parametrize(
    ("line", "network"),
    [
        ("ALL: 192.0.2.7", "192.0.2.7"),
        ("ALL : 192.0.2.7", "192.0.2.7"),
        ("  ALL:192.0.2.7  ", "192.0.2.7"),
        ("ALL: 192.0.2.7\r", "192.0.2.7"),
        ("ALL: 192.0.2.7 : DENY", "192.0.2.7"),
        ("sshd, in.telnetd: 192.0.2.7: spawn (echo %h) &", "192.0.2.7"),
        ("ALL: 192.0.2.0/255.255.255.0", "192.0.2.0/24"),
        ("ALL: 192.0.2.0/24", "192.0.2.0/24"),
        ("ALL: 0.0.0.0/0.0.0.0", "0.0.0.0/0"),
        ("ALL: [2001:db8::7]", "2001:db8::7"),
        ("ALL: [2001:DB8::]/64 :DENY", "2001:db8::/64"),
        ("ALL: [2001:db8::]/61", "2001:db8::/61"),
        ("ALL: [::ffff:192.0.2.7]", "192.0.2.7"),
    ],
)
def test_a_line_of_our_block_that_denies_one_network_is_a_ban(line: str, network: str) -> None:
    assert bans(line.encode() + b"\n") == nets(network)


@pytest.mark.parametrize(
    "line",
    [
        b"# ALL: 192.0.2.7",
        b"",
        b"ALL",
        b"ALL: ALL",
        b"ALL: .example.org",
        b"ALL: 192.0.2.",
        b"ALL: 192.0.2.256",
        b"ALL: 192.0.2.7/33",
        b"ALL: 192.0.2.7, 192.0.2.8",
        b"ALL: 192.0.2.7 192.0.2.8",
        b"ALL: 192.0.2.0/24 EXCEPT 192.0.2.8",
        b"ALL: 192.0.2.7 : ALLOW",
        b"ALL: 192.0.2.7 : severity auth.info : allow",
        b"ALL: 192.0.2.7 # why",
        b"ALL: 2001:db8::7",
        b"ALL: [2001:db8::7",
        b"ALL: [2001:db8::]/129",
        b"ALL: [2001:db8::]/64x",
        b"ALL: [192.0.2.7]x",
        b"ALL: /etc/banned",
        b"ALL: \xff\xfe",
        b"sshd: 192.0.2.1, \\\nALL: 192.0.2.7",
        b"ALL: 192.0.2.7\rALL: 192.0.2.8",
    ],
)
def test_a_line_of_our_block_that_says_anything_else_is_kept_where_it_stands(line: bytes) -> None:
    content = b"a\n" + HEAD + b"ALL: 192.0.2.1\n" + line + b"\nALL: 192.0.2.2\n" + TAIL + b"z\n"
    parts = take_apart(content, "f", RULE)
    assert parts.bans == nets("192.0.2.1", "192.0.2.2")
    assert b"".join(parts.unknown) == line + b"\n"
    again = put_together(parts, nets("192.0.2.1", "192.0.2.2", "192.0.2.3"), RULE, TOKEN)
    assert b"ALL: 192.0.2.1\n" + line + b"\nALL: 192.0.2.2\nALL: 192.0.2.3\n" + TAIL in again


@pytest.mark.parametrize(
    "rule",
    [
        "ALL: {address}",
        "ALL: {address} : DENY",
        "sshd@[2001:db8::1] : {address}",
        "ALL EXCEPT sshd: {address} EXCEPT 192.0.2.9",
        "ALL: .example.org, {address}: twist (/bin/echo no) & : ALLOW",
        "sshd: (a+)*{address}$.[",
        "ALL: {address}0",
    ],
)
def test_every_rule_reads_its_own_writing(rule: str) -> None:
    networks = ("192.0.2.7", "192.0.2.0/25", "2001:db8::7", "2001:db8::/61")
    content = written(b"", *networks, rule=rule)
    parts = take_apart(content, "f", rule)
    assert parts.bans == nets(*networks)
    assert parts.unknown == ()
    assert written(content, *networks, rule=rule) == content


def test_the_lines_of_an_earlier_rule_are_bans_and_are_rewritten() -> None:
    content = written(b"", "192.0.2.7", rule="sshd: {address}: DENY")
    assert take_apart(content, "f", RULE).bans == nets("192.0.2.7")
    assert b"\nALL: 192.0.2.7\n" in written(content, "192.0.2.7")


@pytest.mark.parametrize(
    ("head", "token"),
    [
        (HEAD, TOKEN),
        (BEGIN + b"\n", None),
        (BEGIN + b"caf\xe9 x\n", "caf\ufffd"),
        (BEGIN + TOKEN.encode() + b"\r\n", TOKEN),
    ],
)
def test_the_token_is_the_begin_lines_first_word(head: bytes, token: str | None) -> None:
    assert take_apart(head + TAIL, "f", RULE).token == token


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.07", None),
        ("192.0.2", None),
        ("0300.0.2.7", None),
        ("192.0.2.7]", None),
        ("[192.0.2.7]", "192.0.2.7"),
        ("[2001:db8:0::7]", "2001:db8::7"),
        ("[2001:DB8::7]", "2001:db8::7"),
        ("[2001:db8::7]/64", "2001:db8::/64"),
        ("[2001:db8::7]/128", "2001:db8::7"),
        ("[2001:db8::]/064", "2001:db8::/64"),
        ("[::]/0", "::/0"),
        ("[::]", "::"),
        ("[::192.0.2.7]", "::c000:207"),
        ("[::ffff:192.0.2.7]", "192.0.2.7"),
        ("[::ffff:c000:207]", "192.0.2.7"),
        ("[::ffff:192.0.2.0]/120", "192.0.2.0/24"),
        ("[::ffff:0:0]/95", None),
        ("[2001:db8::]/129", None),
        ("[2001:db8::]/-1", None),
        ("[2001:db8::7%lo]", None),
        ("x2001:db8::7]", None),
        ("[]", None),
        ("", None),
    ],
)
def test_what_is_not_quite_as_we_write_it_is_read_by_the_same_rules(text: str, network: str | None) -> None:
    known = nets(network) if network is not None else ()
    assert bans(b"ALL: " + text.encode() + b"\n") == known
    assert client_network(text.encode()) == (known[0] if known else None)


@pytest.mark.parametrize("rule", ["ALL: {address}", "sshd: {address}0", "ALL:{address} : DENY"])
@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"ALL: 192.0.2.8\nALL: 192.0.2.7\n",
        b"ALL: 192.0.2.7\nALL: 192.0.2.7\nsshd: 192.0.2.7\n# c\nALL: [2001:db8::7]\n",
        b"ALL: 192.0.2.7 \\\n\nALL: /l\nALL: 192.0.2.70\nsshd: 192.0.2.70\n",
    ],
)
def test_what_an_earlier_reading_found_never_changes_what_is_read(rule: str, block: bytes) -> None:
    earlier = take_apart(HEAD + b"ALL: 192.0.2.7\nALL: 192.0.2.9\nALL: /l\nsshd: 192.0.2.70\n" + TAIL, "f", rule, "/l")
    content = b"a\n" + HEAD + block + TAIL
    assert take_apart(content, "f", rule, "/l", earlier.said) == take_apart(content, "f", rule, "/l")


def test_a_file_without_marks_is_all_foreign() -> None:
    content = b"# jailbridge\nALL: 192.0.2.7\n # jailbridge end\nx# jailbridge begin \n"
    parts = take_apart(content, "f", RULE)
    assert (parts.before, parts.after, parts.token, parts.bans, parts.unknown) == (content, b"", None, (), ())


def test_foreign_rules_are_counted_and_comments_are_not() -> None:
    content = b"# c\n\nALL: a\n" + HEAD + b"ALL: 192.0.2.7\nALL: b\n# c\n" + TAIL + b"\t# c\nALL: c, \\\n d\n \n"
    assert take_apart(content, "f", RULE).foreign == 3


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (HEAD, "1"),
        (b"\n" + TAIL, "2"),
        (HEAD + b"ALL: 192.0.2.7\n", "1"),
        (TAIL + b"a\n" + HEAD, "1, 3"),
        (HEAD + TAIL + HEAD + TAIL, "1, 2, 3, 4"),
        (HEAD + HEAD + TAIL, "1, 2, 3"),
        (HEAD + TAIL + b"x\n" + END, "1, 2, 4"),
    ],
)
def test_broken_marks_are_refused_by_their_line_numbers(content: bytes, lines: str) -> None:
    with pytest.raises(FatalError, match=rf"^/f: broken jailbridge marks \(line {lines}\): [^\n]*$"):
        take_apart(content, "/f", RULE)


def test_many_broken_marks_are_one_readable_line() -> None:
    with pytest.raises(FatalError) as caught:
        take_apart(HEAD * 10_000, "/f", RULE)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("ALL: /etc/list", True),
        ("sshd, in.ftpd : /etc/list", True),
        ("ALL: /etc/list : DENY\r", True),
        ("ALL: /etc/list : ALLOW", False),
        ("ALL: /etc/list EXCEPT 192.0.2.7", False),
        ("ALL: /etc/list, 192.0.2.7", False),
        ("ALL: /etc/list2", False),
        ("ALL: /ETC/LIST", False),
        ("# ALL: /etc/list", False),
        ("/etc/list", False),
    ],
)
def test_a_line_that_denies_just_what_the_list_has_is_ours(line: str, names: bool) -> None:
    content = HEAD + line.encode() + b"\nALL: 192.0.2.7\n" + TAIL
    parts = take_apart(content, "f", RULE, "/etc/list")
    assert parts.refers == names
    assert parts.bans == nets("192.0.2.7")
    assert parts.unknown == (() if names else (line.encode() + b"\n",))
    again = put_together(parts, (), RULE, TOKEN, "/etc/list")
    assert again.count(b"ALL: /etc/list\n") == 1 + (line == "# ALL: /etc/list")
    assert not take_apart(content, "f", RULE).refers


def test_a_rule_that_allows_is_our_own_line_still() -> None:
    rule = "ALL EXCEPT sshd: {address} : ALLOW"
    text = put_together(take_apart(b"", "f", rule, "/l"), (), rule, TOKEN, "/l")
    assert b"ALL EXCEPT sshd: /l : ALLOW\n" in text
    assert take_apart(text, "f", rule, "/l").refers


# what is written


@pytest.mark.parametrize(
    "before",
    [b"", b"a\n", b"a", b"a \\\n", b"a \\", b"a\r\n", b"\xff\x00\x85\x1c\n", b"a\rb", "ä\u2028b\n".encode(), b"\n\n"],
)
@pytest.mark.parametrize("after", [b"", b"z\n", b"z", b"\xff\x0b\x0c\r", b"z \\\n"])
def test_foreign_bytes_are_kept(before: bytes, after: bytes) -> None:
    first = written(before, "192.0.2.7")
    assert first.startswith(before)
    assert first.endswith(TAIL)
    second = written(first + after, "192.0.2.8")
    assert second.startswith(before)
    assert second.endswith(TAIL + after)
    # At most the line's own end is added, and one that ends what it continues with; and that only once.
    assert second.partition(BEGIN)[0] in {before, before + b"\n", before + b"\n\n"}
    assert written(second, "192.0.2.8") == second


def test_a_line_that_is_continued_never_swallows_our_marks_or_bans() -> None:
    assert b"a \\\n\n" + BEGIN in written(b"a \\\n", "192.0.2.7")
    assert b"a \\\n\n" + BEGIN in written(b"a \\", "192.0.2.7")
    block = b"ALL: 192.0.2.1\nsshd: x, \\\n"
    again = written(HEAD + block + TAIL, "192.0.2.1", "192.0.2.2")
    assert block + b"\nALL: 192.0.2.2\n" + TAIL in again
    assert written(again, "192.0.2.1", "192.0.2.2") == again


def test_a_ban_that_stands_twice_is_written_once() -> None:
    content = HEAD + b"ALL: 192.0.2.7\nsshd: 192.0.2.7\n" + TAIL
    assert take_apart(content, "f", RULE).bans == nets("192.0.2.7")
    assert written(content, "192.0.2.7").count(b"192.0.2.7") == 1


@pytest.mark.parametrize(
    ("network", "text"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.0/24", "192.0.2.0/255.255.255.0"),
        ("0.0.0.0/0", "0.0.0.0/0.0.0.0"),
        ("2001:db8::7", "[2001:db8::7]"),
        ("2001:db8::/64", "[2001:db8::]/64"),
    ],
)
def test_a_network_is_written_as_libwrap_knows_it(network: str, text: str) -> None:
    assert client(parse_network(network)) == text
