"""The text that goes to ipset, and what its listings say."""

from datetime import UTC, datetime, timedelta

import pytest

from jailbridge.errors import RetryLater
from jailbridge.model.network import Network, parse_network
from jailbridge.model.token import Token
from jailbridge.owned_files import shipped
from jailbridge.stores import ipset_text
from jailbridge.stores.ipset_text import CAPACITY, GRACE, LONGEST_S, SETS, Holding

NOW = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
TOKEN = Token(ledger="0123456789ab", boot="ba9876543210", layout=1, sequence=7)
CREATED = {
    4: "create jailbridge4 hash:net family inet hashsize 1024 maxelem 1048576 timeout 0 comment bucketsize 12 "
    "initval 0x2f25e5d5",
    6: "create jailbridge6 hash:net family inet6 hashsize 1024 maxelem 1048576 timeout 0 comment bucketsize 12 "
    "initval 0xdc112d1b",
}
SENTINELS = {
    4: f'add jailbridge4 224.0.0.8 timeout 0 comment "{TOKEN}"',
    6: f'add jailbridge6 ff00::8 timeout 0 comment "{TOKEN}"',
}


def net(text: str) -> Network:
    return parse_network(text)


def saved(*lines: str, version: int = 4, created: str | None = None) -> Holding:
    text = "\n".join([created or CREATED[version], *lines]) + "\n"
    return ipset_text.holding(text, SETS[version], NOW)


@pytest.mark.parametrize(
    ("network", "why"),
    [
        ("0.0.0.0/0", "size 0"),
        ("::/0", "size 0"),
        ("224.0.0.8", "never a packet's source"),
        ("239.255.255.255", "never a packet's source"),
        ("ff02::1", "never a packet's source"),
        ("224.0.0.0/4", None),
        ("ff00::/8", None),
        ("240.0.0.0", None),
        ("0.0.0.0/1", None),
        ("0.0.0.0", None),
        ("::", None),
    ],
)
def test_what_a_set_cannot_hold_is_known(network: str, why: str | None) -> None:
    told = ipset_text.refusal(net(network))
    assert told is None if why is None else why in str(told)


@pytest.mark.parametrize(
    ("lasting", "timeout"),
    [
        (timedelta(seconds=10), 70),
        (timedelta(seconds=-59.4), 1),
        # No time left is not for ever.
        (timedelta(seconds=-60), 1),
        (timedelta(days=-9), 1),
        (timedelta(seconds=LONGEST_S - 61), LONGEST_S - 1),
        (timedelta(seconds=LONGEST_S - 60), LONGEST_S),
        (timedelta(seconds=LONGEST_S), LONGEST_S),
        (timedelta(days=36500), LONGEST_S),
        (datetime.max.replace(tzinfo=UTC) - NOW, LONGEST_S),
    ],
)
def test_an_element_outlives_its_ban_by_the_grace_as_far_as_the_kernel_counts(lasting: timedelta, timeout: int) -> None:
    assert timedelta(seconds=60) == GRACE
    assert ipset_text.timeout_s(NOW + lasting, NOW) == timeout
    text = ipset_text.adding({net("192.0.2.7"): NOW + lasting}, NOW)
    assert text == f"add jailbridge4 192.0.2.7 timeout {timeout}\n"


def test_a_permanent_ban_has_a_timeout_of_none_at_all() -> None:
    assert ipset_text.adding({net("10.0.0.0/8"): None}, NOW) == "add jailbridge4 10.0.0.0/8 timeout 0\n"


def test_each_network_goes_in_and_out_of_the_set_of_its_version() -> None:
    networks = [net("192.0.2.7"), net("2001:db8::/64")]
    assert ipset_text.adding(dict.fromkeys(networks), NOW, draft=True).splitlines() == [
        "add jailbridge4-new 192.0.2.7 timeout 0",
        "add jailbridge6-new 2001:db8::/64 timeout 0",
    ]
    assert ipset_text.removing(networks).splitlines() == ["del jailbridge4 192.0.2.7", "del jailbridge6 2001:db8::/64"]


def test_a_set_is_made_by_one_line_and_replaced_by_two() -> None:
    assert ipset_text.creating(SETS[4]) == "create jailbridge4 hash:net family inet maxelem 1048576 timeout 0 comment\n"
    assert (
        ipset_text.creating(SETS[6], 9, draft=True)
        == "create jailbridge6-new hash:net family inet6 maxelem 9 timeout 0 comment\n"
    )
    assert ipset_text.replacing(SETS[6]) == "swap jailbridge6-new jailbridge6\ndestroy jailbridge6-new\n"


def test_the_unit_that_makes_the_sets_early_makes_them_as_we_do() -> None:
    unit = (shipped() / "packaging/systemd/jailbridge-sets.service").read_text(encoding="utf-8")
    making = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert making == [f"ExecStart=ipset -exist {ipset_text.creating(s).strip()}" for s in SETS.values()]


@pytest.mark.parametrize(
    ("sequence", "four", "six"),
    [
        (0, "224.0.0.1", "ff00::1"),
        (7, "224.0.0.8", "ff00::8"),
        (2**28 - 2, "239.255.255.255", "ff00::fff:ffff"),
        (2**28 - 1, "224.0.0.1", "ff00::1000:0"),
        (10**18 - 1, None, "ff00::de0:b6b3:a764:0"),
    ],
)
def test_a_sentinels_place_is_its_tokens_sequence(sequence: int, four: str | None, six: str) -> None:
    token = Token(ledger="a", boot="b", layout=1, sequence=sequence)
    assert four is None or ipset_text.sentinel(SETS[4], token) == net(four)
    assert ipset_text.sentinel(SETS[6], token) == net(six)
    for s in SETS.values():
        assert ipset_text.sentinel(s, token) != ipset_text.placeholder(s)


# listings


def test_an_empty_set_is_ours_and_bears_no_token() -> None:
    for version, s in SETS.items():
        held = saved(version=version)
        assert (held.bans, held.token, held.foreign) == ((), None, 0)
        assert held.is_ours(s)
        assert not held.is_ours(s, 65536)


@pytest.mark.parametrize(
    ("line", "network", "left_s"),
    [
        ("add jailbridge4 192.0.2.7 timeout 0", "192.0.2.7", None),
        ("add jailbridge4 192.0.2.7 timeout 3660", "192.0.2.7", 3600),
        ("add jailbridge4 192.0.2.7 timeout 1", "192.0.2.7", -59),
        ("add jailbridge4 0.0.0.0/1 timeout 2147483", "0.0.0.0/1", 2147423),
        ("add jailbridge4 224.0.0.0/4 timeout 0", "224.0.0.0/4", None),
        ('add jailbridge4 10.0.0.0/8 timeout 0 comment "by hand"', "10.0.0.0/8", None),
        ('add jailbridge4 10.0.0.0/8 timeout 9 comment "x nomatch timeout 7"', "10.0.0.0/8", -51),
        ("add jailbridge4 192.0.2.7", "192.0.2.7", None),
        ("add jailbridge4 192.0.2.7 packets 0 bytes 0", "192.0.2.7", None),
        ('add jailbridge4 192.0.2.7 timeout 70 packets 7 bytes 0 comment "x"', "192.0.2.7", 10),
        ("add jailbridge6 2001:db8:1::/64 timeout 0", "2001:db8:1::/64", None),
        ("add jailbridge6 ::1.2.3.4 timeout 0", "::102:304", None),
        ("add jailbridge6 :: timeout 0", "::", None),
    ],
)
def test_each_form_of_element_is_its_network(line: str, network: str, left_s: int | None) -> None:
    held = saved(line, version=int(line[len("add jailbridge")]))
    until = None if left_s is None else NOW + timedelta(seconds=left_s)
    assert [(ban.network, ban.until) for ban in held.bans] == [(net(network), until)]
    assert held.foreign == 0


@pytest.mark.parametrize(
    "line",
    [
        "add jailbridge4 10.0.0.0/8 timeout 0 nomatch",
        'add jailbridge4 10.0.0.0/8 timeout 0 nomatch comment "an exception"',
        "add jailbridge4 10.0.0.0/8 nomatch",
        "add jailbridge4 10.0.0.0/8 timeout 0 skbmark 0x1",
        "add jailbridge4 10.0.0.0/8 timeout",
        "add jailbridge4 10.0.0.0/8 timeout ٣",
        "add jailbridge4 10.0.0.0/8 timeout 99999999999",
        "add jailbridge4 10.0.0.0/8 timeout -1",
        "add jailbridge4 192.0.2.7,tcp:80 timeout 0",
        "add jailbridge4 2001:db8::7 timeout 0",
        "add jailbridge4 eth0",
        "add jailbridge6 192.0.2.7",
        "add jailbridge4",
        "flush jailbridge4",
        "",
        "add jailbridge4 224.0.0.8 timeout 0",
        'add jailbridge4 224.0.0.8 timeout 0 comment "not a token"',
        f'add jailbridge4 224.0.0.9 timeout 0 comment "{TOKEN}"',
        f'add jailbridge4 224.0.0.8 timeout 0 comment "{TOKEN}x"',
        f'add jailbridge4 224.0.0.8 timeout 0 comment "{TOKEN}" nomatch',
        f'add jailbridge4 224.0.0.8 timeout 0 nomatch comment "{TOKEN}"',
    ],
)
def test_an_element_that_we_would_not_have_written_is_foreign(line: str) -> None:
    held = saved(line, "add jailbridge4 192.0.2.7 timeout 0")
    assert ([ban.network for ban in held.bans], held.foreign, held.token) == ([net("192.0.2.7")], 1, None)


def test_a_place_that_is_kept_is_neither_ban_nor_foreign() -> None:
    held = saved("add jailbridge4 224.0.0.0 timeout 0")
    assert (held.bans, held.foreign, held.token) == ((), 0, None)


def test_a_sentinel_tells_the_token_where_it_is_the_only_one() -> None:
    assert saved(SENTINELS[4]).token == str(TOKEN)
    older = 'add jailbridge4 224.0.0.7 timeout 0 comment "jb1:0123456789ab:ba9876543210:1:6"'
    held = saved(SENTINELS[4], older)
    assert held.token is None
    assert set(held.sentinels.values()) == {net("224.0.0.7"), net("224.0.0.8")}


@pytest.mark.parametrize(
    ("created", "swapped"),
    [
        ("create jailbridge4 hash:net family inet maxelem 1048576", True),
        ("create jailbridge4 hash:net family inet maxelem 1048576 timeout 600 comment", True),
        ("create jailbridge4 hash:net family inet maxelem 1048576 timeout 0", True),
        ("create jailbridge4 hash:net family inet maxelem 65536 timeout 0 comment", True),
        ("create jailbridge4 hash:net family inet maxelem 1048576 timeout 0 comment forceadd", True),
        ("create jailbridge4 hash:net family inet maxelem 1048576 timeout 0 counters comment", True),
        ("create jailbridge4 hash:net family inet maxelem 1048576 timeout 0 comment of tomorrow", True),
        ("create jailbridge4 hash:net family inet6 maxelem 1048576 timeout 0 comment", False),
        ("create jailbridge4 hash:ip family inet maxelem 1048576 timeout 0 comment", False),
        ("create jailbridge4 bitmap:port range 0-1024", False),
        ("create jailbridge4 list:set size 8", False),
        ("create jailbridge4 hash:net", False),
    ],
)
def test_a_set_that_is_not_as_we_make_it_is_known_and_whether_ours_may_take_its_place(
    created: str, swapped: bool
) -> None:
    held = saved("add jailbridge4 192.0.2.7", created=created)
    assert not held.is_ours(SETS[4])
    assert held.may_be_swapped(SETS[4]) is swapped
    assert [ban.network for ban in held.bans] == [net("192.0.2.7")]


@pytest.mark.parametrize("text", ["", "\n", "create jailbridge6 hash:net", "add jailbridge4 192.0.2.7", "create"])
def test_what_is_no_listing_of_the_set_is_an_error(text: str) -> None:
    with pytest.raises(RetryLater, match=r"^ipset: what is said of jailbridge4 cannot be read$"):
        ipset_text.holding(text, SETS[4], NOW)


def test_marks_are_all_that_a_listing_tells_but_the_bans() -> None:
    bans = [f"add jailbridge4 192.0.2.{n} timeout 9" for n in range(9)]
    text = "\n".join([CREATED[4], *bans, SENTINELS[4], *bans]) + "\n"
    whole, quick = (ipset_text.holding(one, SETS[4], NOW) for one in (text, ipset_text.marks(text)))
    assert (len(whole.bans), len(quick.bans)) == (18, 0)
    assert (quick.options, quick.sentinels) == (whole.options, whole.sentinels)


def test_the_store_bears_a_token_where_both_sets_bear_the_same() -> None:
    four, six = saved(SENTINELS[4]), saved(SENTINELS[6], version=6)
    other = saved('add jailbridge6 ff00::9 timeout 0 comment "jb1:0123456789ab:ba9876543210:1:8"', version=6)
    assert ipset_text.observation([four, six], enforcing=True).token == str(TOKEN)
    for pair in ([four, other], [four, saved(version=6)], [saved(), six], [four, None], [None, six], [None, None]):
        assert ipset_text.observation(pair, enforcing=True).token is None


def test_what_both_sets_hold_is_held() -> None:
    four = saved("add jailbridge4 192.0.2.7 timeout 0", "add jailbridge4 192.0.2.8 timeout 0 nomatch")
    six = saved("add jailbridge6 2001:db8::/64 timeout 0", "add jailbridge6 ff00::9 timeout 0", version=6)
    seen = ipset_text.observation([four, six], enforcing=False)
    assert {ban.network for ban in seen.bans} == {net("192.0.2.7"), net("2001:db8::/64")}
    assert (seen.foreign, seen.enforcing) == (2, False)
    assert CAPACITY > ipset_text.LIMIT, "room for what comes before what goes, and for the sentinel"
