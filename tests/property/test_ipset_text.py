"""ipset: every network is one element that is read back as that network, and no listing is an error."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from jailbridge.model.network import Network, network_text, parse_network
from jailbridge.model.token import Token
from jailbridge.stores import ipset_text
from jailbridge.stores.ipset_text import GRACE, LONGEST_S, SETS

NOW = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
networks: st.SearchStrategy[Network] = st.one_of(
    st.builds(lambda a, n: Network(4, a, 32).supernet(n), st.integers(0, 2**32 - 1), st.integers(0, 32)),
    st.builds(lambda a, n: Network(6, a, 128).supernet(n), st.integers(0, 2**128 - 1), st.integers(0, 128)),
    st.builds(lambda a, n: Network(4, (14 << 28) + a, 32).supernet(n), st.integers(0, 9), st.integers(0, 32)),
    st.builds(lambda a, n: Network(6, (255 << 120) + a, 128).supernet(n), st.integers(0, 9), st.integers(0, 128)),
).map(lambda network: parse_network(network_text(network)))
ends = st.one_of(
    st.none(), st.timedeltas(timedelta(days=-20000), timedelta(days=2900000)).map(lambda lasting: NOW + lasting)
)
tokens = st.builds(
    Token,
    ledger=st.text("0123456789abcdef", min_size=1, max_size=12),
    boot=st.just("b"),
    layout=st.just(1),
    sequence=st.one_of(st.integers(0, 2**30), st.integers(0, 10**18 - 1)),
)
CREATED = {version: ipset_text.creating(s) for version, s in SETS.items()}


def listed(text: str, version: int) -> ipset_text.Holding:
    """Return what a set shows that was given these commands."""
    own = [line for line in text.splitlines() if line.startswith(f"add {SETS[version].name} ")]
    return ipset_text.holding(CREATED[version] + "\n".join(own), SETS[version], NOW)


@given(bans=st.dictionaries(networks, ends, max_size=8), token=tokens)
def test_what_is_added_is_what_is_read_back(bans: dict[Network, datetime | None], token: Token) -> None:
    bans = {network: until for network, until in bans.items() if ipset_text.refusal(network) is None}
    text = ipset_text.adding(bans, NOW)
    for s in SETS.values():
        text += f'add {s.name} {network_text(ipset_text.sentinel(s, token))} timeout 0 comment "{token}"\n'
    seen = ipset_text.observation([listed(text, version) for version in SETS], enforcing=True)
    assert (seen.token, seen.foreign, len(seen.bans)) == (str(token), 0, len(bans))
    for ban in seen.bans:
        until = bans[ban.network]
        if until is None or ban.until is None:
            assert until is ban.until
        elif NOW - GRACE < until < NOW + timedelta(seconds=LONGEST_S) - GRACE:
            assert abs(ban.until - until) <= timedelta(seconds=1)
        else:
            assert ban.until in {NOW - GRACE + timedelta(seconds=s) for s in (1, LONGEST_S)}


@given(network=networks, token=tokens)
def test_no_ban_is_a_sentinel(network: Network, token: Token) -> None:
    s = ipset_text.set_of(network)
    if network in {ipset_text.sentinel(s, token), ipset_text.placeholder(s)}:
        assert ipset_text.refusal(network) is not None


@given(one=tokens, other=tokens)
def test_two_tokens_share_no_place_in_both_sets(one: Token, other: Token) -> None:
    assert ipset_text.sentinel(SETS[6], one) != ipset_text.sentinel(SETS[6], other) or one.sequence == other.sequence


words = st.sampled_from(
    [
        "add",
        "create",
        "jailbridge4",
        "192.0.2.7",
        "10.0.0.0/8",
        "224.0.0.1",
        "timeout",
        "0",
        "9",
        "nomatch",
        'comment "',
    ]
)
lines = st.one_of(st.lists(words, max_size=7).map(" ".join), st.text(max_size=40))


@given(junk=st.lists(lines.map(lambda line: line.replace("\n", " ")), max_size=6))
def test_each_line_of_any_form_is_a_ban_a_mark_or_foreign_and_never_an_error(junk: list[str]) -> None:
    ending = "add jailbridge4 203.0.113.9 timeout 0"
    held = ipset_text.holding("\n".join([CREATED[4].strip(), *junk, ending]) + "\n", SETS[4], NOW)
    assert len(held.bans) + len(held.sentinels) + held.foreign <= len(junk) + 1
    assert held.bans[-1].network == parse_network("203.0.113.9")
