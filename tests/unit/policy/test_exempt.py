from ipaddress import ip_address

import pytest

from jailbridge.host import Surroundings
from jailbridge.model.network import parse_network
from jailbridge.policy.exempt import Exemption, Exemptions

AROUND = Surroundings(
    addresses=frozenset(map(ip_address, ["203.0.113.5", "2001:db8:5::5"])),
    broadcasts=frozenset([ip_address("203.0.113.255")]),
    gateways=frozenset([ip_address("203.0.113.1"), ip_address("fe80::1")]),
)
NOWHERE = Surroundings(addresses=frozenset(), broadcasts=frozenset(), gateways=frozenset())


def why(network: str, *allow: str, around: Surroundings = AROUND) -> str | None:
    found = Exemptions.of([(parse_network(text), "policy.allow") for text in allow], around).find(
        parse_network(network)
    )
    return None if found is None else str(found)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        ("127.0.0.1", "127.0.0.0/8 is exempt: loopback"),
        ("127.255.255.255", "127.0.0.0/8 is exempt: loopback"),
        ("::1", "::1 is exempt: loopback"),
        ("::ffff:127.0.0.1", "127.0.0.0/8 is exempt: loopback"),
        ("169.254.7.7", "169.254.0.0/16 is exempt: link-local"),
        ("fe80::7", "fe80::/10 is exempt: link-local"),
        ("224.0.0.1", "224.0.0.0/4 is exempt: multicast"),
        ("ff02::1", "ff00::/8 is exempt: multicast"),
        ("255.255.255.255", "255.255.255.255 is exempt: broadcast"),
        ("0.0.0.0", "0.0.0.0/8 is exempt: this network (RFC 1122)"),
        ("::", ":: is exempt: unspecified address"),
        ("203.0.113.5", "203.0.113.5 is exempt: own address"),
        ("203.0.113.255", "203.0.113.255 is exempt: broadcast address"),
        ("203.0.113.1", "203.0.113.1 is exempt: default gateway"),
        ("2001:db8:5::5", "2001:db8:5::5 is exempt: own address"),
    ],
)
def test_a_place_of_its_own_is_exempt_and_says_why(network: str, reason: str) -> None:
    assert why(network) == reason


@pytest.mark.parametrize("network", ["203.0.113.6", "192.0.2.7", "10.0.0.1", "2001:db8::7", "2001:db8:5:1::/64"])
def test_everybody_else_is_not(network: str) -> None:
    assert why(network) is None


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0", "203.0.113.0/24", "2001:db8:5::/64", "::/64", "126.0.0.0/7"])
def test_a_network_with_somebody_exempt_in_it_is_exempt(network: str) -> None:
    assert why(network) is not None


@pytest.mark.parametrize(
    ("network", "exempt"),
    [
        ("192.0.2.7", True),
        ("192.0.2.0/24", True),
        ("192.0.2.0/25", True),
        ("192.0.0.0/16", True),
        ("192.0.3.7", False),
        ("2001:db8:1::/64", True),
        ("2001:db8:2::/64", False),
    ],
)
def test_an_allowed_network_is_exempt_with_all_in_it_and_around_it(network: str, exempt: bool) -> None:
    assert (why(network, "192.0.2.0/24", "2001:db8:1::9", around=NOWHERE) is not None) is exempt


def test_a_whole_family_that_is_allowed_leaves_the_other_alone() -> None:
    assert why("198.51.100.7", "0.0.0.0/0", around=NOWHERE) == "0.0.0.0/0 is exempt: policy.allow"
    assert why("2001:db8::7", "0.0.0.0/0", around=NOWHERE) is None


@pytest.mark.parametrize("network", ["203.0.113.5", "203.0.113.0/24", "203.0.113.4/31"])
@pytest.mark.parametrize("allowed", ["203.0.113.5", "203.0.113.0/25", "203.0.113.5/31"])
def test_a_permanent_exemption_comes_before_a_dynamic_one(network: str, allowed: str) -> None:
    found = Exemptions.of([(parse_network(allowed), "x:1")], AROUND).find(parse_network(network))
    assert found == Exemption(network=parse_network(allowed), why="x:1", permanent=True)


@pytest.mark.parametrize("asked", ["10.1.2.3", "10.1.2.0/24"])
def test_a_smaller_permanent_exemption_comes_before_a_larger_dynamic_one(asked: str) -> None:
    dynamic = Exemption(network=parse_network("10.0.0.0/8"), why="resolver", permanent=False)
    permanent = Exemption(network=parse_network("10.1.0.0/16"), why="policy.allow", permanent=True)
    assert Exemptions([dynamic, permanent]).find(parse_network(asked)) == permanent
    assert Exemptions([permanent, dynamic]).find(parse_network(asked)) == permanent


def test_the_first_place_that_names_a_network_is_told() -> None:
    entries = [(parse_network("192.0.2.7"), "policy.allow"), (parse_network("192.0.2.7"), "/etc/x:1")]
    assert str(Exemptions.of(entries, NOWHERE).find(parse_network("192.0.2.7"))) == "192.0.2.7 is exempt: policy.allow"


def test_without_lists_what_is_special_stays_exempt() -> None:
    assert Exemptions().find(parse_network("127.0.0.1")) is not None
    assert Exemptions().find(parse_network("192.0.2.7")) is None


def test_who_is_exempt_for_now_says_why_and_comes_after_a_list() -> None:
    present = [(ip_address("192.0.2.9"), "session of root from 192.0.2.9 (utmp)"), (ip_address("2001:db8::53"), "dns")]
    found = Exemptions.of([], NOWHERE, present).find(parse_network("192.0.2.0/24"))
    assert found == Exemption(
        network=parse_network("192.0.2.9"), why="session of root from 192.0.2.9 (utmp)", permanent=False
    )
    listed = Exemptions.of([(parse_network("192.0.2.0/24"), "x:1")], NOWHERE, present)
    assert str(listed.find(parse_network("192.0.2.9"))) == "192.0.2.0/24 is exempt: x:1"
    assert str(listed.find(parse_network("2001:db8::/64"))) == "2001:db8::53 is exempt: dns"


def test_exemptions_are_equal_where_their_entries_are() -> None:
    allow = [(parse_network("192.0.2.9"), "x:1")]
    assert Exemptions.of(allow, AROUND) == Exemptions.of(allow, AROUND)
    assert Exemptions.of(allow, AROUND) != Exemptions.of([(parse_network("192.0.2.9"), "x:2")], AROUND)
    assert Exemptions.of(allow, AROUND) != Exemptions.of(allow, NOWHERE)
    assert Exemptions.of([], NOWHERE, [(ip_address("192.0.2.9"), "x:1")]) != Exemptions.of(allow, NOWHERE)
    assert Exemptions() != "nobody"


def test_every_exemption_that_touches_a_network_can_be_told() -> None:
    allow = [(parse_network("203.0.113.0/24"), "x:1"), (parse_network("203.0.113.5"), "x:2")]
    told = [str(found) for found in Exemptions.of(allow, AROUND).touching(parse_network("203.0.113.5"))]
    assert told == [
        "203.0.113.0/24 is exempt: x:1",
        "203.0.113.5 is exempt: x:2",
        "203.0.113.5 is exempt: own address",
    ]
    assert Exemptions.of(allow, AROUND).touching(parse_network("2001:db8::7")) == []
