from dataclasses import replace
from datetime import UTC, datetime

import pytest

from jailbridge.model.token import NO_BOOT, Token, TokenState, token_state

TOKEN = Token(ledger="0123456789ab", boot="ba9876543210", layout=1, sequence=7)


def state(
    observed: str | None, *, recorded: Token | None = TOKEN, last_sequence: int = 7, boot: str = TOKEN.boot
) -> TokenState:
    return token_state(observed, recorded=recorded, ledger=TOKEN.ledger, last_sequence=last_sequence, boot=boot)


@pytest.mark.parametrize("token", [TOKEN, Token(ledger="a", boot=NO_BOOT, layout=12, sequence=123456789)])
def test_a_token_reads_back_as_written(token: Token) -> None:
    assert Token.parse(str(token)) == token


@pytest.mark.parametrize(
    "text",
    [
        None, "", "jb1", "jb1:a:b:1", "jb1:a:b:1:2:3", "jb2:a:b:1:2", "jb1::b:1:2", "jb1:a::1:2", "jb1:a:b:-1:2",
        "jb1:a:b:1:", "jb1:a:b:1:2\n", " jb1:a:b:1:2", "jb1:a:b:1:٢", "jb1:a:b:1:²", "jb1:a b:b:1:2",
        "jb1:a:b:1:" + "9" * 5000, "jb1:a:b:01:2",
    ],
)  # fmt: skip
def test_anything_else_is_no_token(text: str | None) -> None:
    assert Token.parse(text) is None
    assert state(text) is TokenState.ABSENT


@pytest.mark.parametrize("sequence", [0, 57, 123456789])
def test_a_number_from_before_they_were_times_tells_no_time(sequence: int) -> None:
    assert replace(TOKEN, sequence=sequence).written is None


def test_a_sequence_number_tells_when_it_was_given_out() -> None:
    written = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
    assert replace(TOKEN, sequence=int(written.timestamp() * 1000)).written == written
    assert replace(TOKEN, sequence=10**18 - 1).written is None


def test_our_own_last_writing_is_current() -> None:
    assert state(str(TOKEN)) is TokenState.CURRENT
    assert state(str(TOKEN), last_sequence=9) is TokenState.CURRENT


def test_an_older_writing_of_ours_is_stale() -> None:
    older = Token(ledger=TOKEN.ledger, boot=TOKEN.boot, layout=1, sequence=6)
    assert state(str(older)) is TokenState.STALE


def test_a_writing_that_was_never_read_back_is_stale() -> None:
    assert state(str(TOKEN), recorded=None) is TokenState.STALE


def test_a_ruleset_loaded_again_after_a_reboot_is_stale() -> None:
    assert state(str(TOKEN), boot="cccccccccccc") is TokenState.STALE


def test_another_layout_is_stale() -> None:
    assert state(str(Token(ledger=TOKEN.ledger, boot=TOKEN.boot, layout=2, sequence=7))) is TokenState.STALE


def test_a_token_that_the_ledger_does_not_know_is_ahead() -> None:
    assert state(str(TOKEN), last_sequence=6) is TokenState.AHEAD
    assert state(str(Token(ledger="ffffffffffff", boot=TOKEN.boot, layout=1, sequence=1))) is TokenState.AHEAD
