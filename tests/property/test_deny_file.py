"""hosts.deny: whatever stands in the file, what is foreign stays to the byte and what is ours is read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jailbridge.errors import FatalError
from jailbridge.model.network import Network, network_text, parse_network
from jailbridge.stores.deny_file import BEGIN, END, put_together, take_apart
from jailbridge.stores.deny_list import list_text, read_list

TOKEN = "jb1:0123456789ab:-:1:7"
LIST = "/etc/hosts.deny.jailbridge"
networks: st.SearchStrategy[Network] = st.one_of(
    st.builds(lambda a, n: Network(4, a, 32).supernet(n), st.integers(0, 2**32 - 1), st.integers(0, 32)),
    st.builds(lambda a, n: Network(6, a, 128).supernet(n), st.integers(0, 2**128 - 1), st.integers(0, 128)),
).map(lambda network: parse_network(network_text(network)))
pieces = st.one_of(
    st.binary(max_size=20),
    st.sampled_from(
        [b"\n", b"\\\n", b"\\", b"\r", b"\r\n", b"#", b"ALL: 192.0.2.7\n", b"sshd: 10.0.0.0/8 EXCEPT 10.1.1.1\n", b" "]
    ),
)
foreign = st.lists(pieces, max_size=8).map(b"".join).filter(lambda text: b"jailbridge" not in text)
marks = st.sampled_from([BEGIN, BEGIN + b"x\n", END, END + b"\n", b"\n", b"ALL: 192.0.2.7\n", b" " + END, BEGIN[:-1]])
rules = st.one_of(
    st.sampled_from(["ALL: {address}", "sshd: {address} : DENY", "ALL EXCEPT sshd : {address}: ALLOW"]),
    st.builds(
        lambda before, after: f"{before}:{{address}}{after}",
        st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="{}#\\"), max_size=8),
        st.text(
            st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="{}\\0123456789./"),
            max_size=8,
        ),
    ),
)


@given(before=foreign, after=foreign, first=st.lists(networks), second=st.lists(networks), rule=rules)
def test_foreign_bytes_stay_and_bans_are_read_back(
    before: bytes, after: bytes, first: list[Network], second: list[Network], rule: str
) -> None:
    one = put_together(take_apart(before, "f", rule), first, rule, TOKEN) + after
    two = put_together(take_apart(one, "f", rule), second, rule, TOKEN)
    for content, bans in ((one, first), (two, second)):
        parts = take_apart(content, "f", rule)
        assert (parts.bans, parts.unknown, parts.token) == (tuple(dict.fromkeys(parts.bans)), (), TOKEN)
        assert set(parts.bans) == set(bans)
        # At most its line's own end, and one that ends a continued line, are added, and only in front of our block.
        assert parts.before in {before, before + b"\n", before + b"\n\n"}
        assert not parts.before or parts.before.endswith(b"\n")
        assert not parts.before.endswith(b"\\\n")
        assert parts.after == after
    assert put_together(take_apart(two, "f", rule), take_apart(two, "f", rule).bans, rule, TOKEN) == two


@given(block=foreign, bans=st.lists(networks, max_size=4), removed=st.integers(0, 4))
def test_what_a_person_writes_into_our_block_is_a_ban_or_stays(block: bytes, bans: list[Network], removed: int) -> None:
    rule = "ALL: {address}"
    whole = (
        BEGIN + TOKEN.encode() + b"\n" + block + (b"" if block.endswith(b"\n") or not block else b"\n") + END + b"\n"
    )
    parts = take_apart(whole, "f", rule)
    kept = list(dict.fromkeys([*parts.bans[removed:], *bans]))
    again = take_apart(put_together(parts, kept, rule, TOKEN), "f", rule)
    assert set(again.bans) == set(kept)
    # A newline may be added where a line would go on.
    assert [line.rstrip(b"\n") for line in again.unknown] == [line.rstrip(b"\n") for line in parts.unknown]


@given(content=st.lists(st.one_of(pieces, marks), max_size=10).map(b"".join))
def test_any_bytes_are_taken_apart_without_loss_or_refused_in_one_line(content: bytes) -> None:
    lines = content.split(b"\n")
    begins = [n for n, line in enumerate(lines) if line.startswith(BEGIN)]
    ends = [n for n, line in enumerate(lines) if line.rstrip() == END]
    whole = (len(begins), len(ends)) == (1, 1) and begins < ends
    if (begins or ends) and not whole:
        with pytest.raises(FatalError, match=r"^f: broken jailbridge marks \(line [^\n]*$"):
            take_apart(content, "f", "ALL: {address}")
        return
    parts = take_apart(content, "f", "ALL: {address}")
    assert content.startswith(parts.before)
    assert content.endswith(parts.after)
    rewritten = take_apart(put_together(parts, parts.bans, "ALL: {address}", TOKEN), "f", "ALL: {address}")
    assert set(rewritten.bans) == set(parts.bans)
    assert rewritten.after == parts.after


@given(before=foreign, after=foreign, first=st.lists(networks), second=st.lists(networks), rule=rules)
def test_a_change_of_form_to_and_fro_keeps_foreign_bytes(
    before: bytes, after: bytes, first: list[Network], second: list[Network], rule: str
) -> None:
    lines = put_together(take_apart(before, "f", rule, LIST), first, rule, TOKEN) + after
    listed = put_together(take_apart(lines, "f", rule, LIST), (), rule, TOKEN, LIST)
    parts = take_apart(listed, "f", rule, LIST)
    assert (parts.refers, parts.bans, parts.unknown, parts.after) == (True, (), (), after)
    assert put_together(parts, (), rule, TOKEN, LIST) == listed
    again = take_apart(put_together(parts, second, rule, TOKEN), "f", rule, LIST)
    assert (again.refers, set(again.bans), again.unknown) == (False, set(second), ())
    assert (again.before, again.after) == (parts.before, after)


@given(content=st.lists(pieces).map(b"".join), bans=st.lists(networks))
def test_a_list_keeps_what_it_does_not_know_and_has_just_the_bans(content: bytes, bans: list[Network]) -> None:
    parts = read_list(content)
    text = list_text(parts, bans, TOKEN)
    again = read_list(text)
    assert (again.token, set(again.bans)) == (TOKEN, set(bans))
    assert [line.split() for line in again.unknown] == [line.split() for line in parts.unknown]
    assert list_text(again, again.bans, TOKEN) == text
