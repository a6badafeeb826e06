from ipaddress import IPv4Address, IPv6Address

import pytest

from jailbridge.errors import ParseError
from jailbridge.model.network import (
    NetworkSet,
    is_host,
    maximal,
    network_text,
    parse_address,
    parse_network,
    shown,
    source_network,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:DB8:0:0::7", "2001:db8::7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::ffff:c000:207", "192.0.2.7"),
        ("::ffff:192.0.2.7%eth0", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::1"),
        ("fe80::1%br-0.100", "fe80::1"),
        ("64:ff9b::192.0.2.7", "64:ff9b::c000:207"),
    ],
)
def test_an_address_is_unwrapped_and_loses_its_zone(text: str, address: str) -> None:
    assert str(parse_address(text)) == address
    assert getattr(parse_address(text), "scope_id", None) is None


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "192.0.2", "192.0.2.256", "192.0.2.07", "192.0.2.7.1", "3221225985", "0xc0000207", "192.0.2.7 ",
        " 192.0.2.7", "192.0.2.7\n", "192.0.2.7/32", "192.0.2.7%eth0", "٢٠٣.0.113.1", "\uff1192.0.2.7", "[2001:db8::7]",
        "2001:db8::1::1", "2001:db8:1", "::fffff", "fe80::1%", "fe80::1%a%b", "fe80::1%\n", "fe80::1%a b",
        "fe80::1%eth0/64", "fe80::1%" + "x" * 16, "localhost", "::" + "0" * 100,
    ],
)  # fmt: skip
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(ParseError, match="is not an IP address") as error:
        parse_address(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7/24", "192.0.2.0/24"),
        ("192.0.2.7/255.255.255.0", "192.0.2.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:db8::7", "2001:db8::7"),
        ("2001:db8::7/64", "2001:db8::/64"),
        ("fe80::1%eth0/64", "fe80::/64"),
        ("::/0", "::/0"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7/120", "192.0.2.0/24"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
    ],
)
def test_a_network_is_normalised(text: str, network: str) -> None:
    assert str(parse_network(text)) == network


@pytest.mark.parametrize(
    "text",
    [
        "", "/", "/24", "192.0.2.0/", "192.0.2.0/33", "192.0.2.0/-1", "192.0.2.0/+8", "192.0.2.0/ 24", "192.0.2.0/24 ",
        "192.0.2.0/24/24", "192.0.2.0/٢٤", "192.0.2.0/255.0.255.0", "192.0.2.0/" + "9" * 5000, "2001:db8::/129",
        "2001:db8::/ffff::", "::ffff:192.0.2.7/64", "::ffff:192.0.2.7/129", "::ffff:192.0.2.7/255.255.255.0",
        "::ffff:192.0.2.7/" + "1" * 5000,
    ],
)  # fmt: skip
def test_anything_else_is_no_network(text: str) -> None:
    with pytest.raises(ParseError, match="is not an IP") as error:
        parse_network(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_the_text_of_a_host_has_no_prefix() -> None:
    assert [
        network_text(parse_network(text)) for text in ("192.0.2.7", "192.0.2.0/24", "2001:db8::7", "2001:db8::/64")
    ] == [
        "192.0.2.7",
        "192.0.2.0/24",
        "2001:db8::7",
        "2001:db8::/64",
    ]
    assert is_host(parse_network("192.0.2.7"))
    assert not is_host(parse_network("2001:db8::/64"))


def test_an_ipv4_source_is_banned_alone_and_an_ipv6_source_with_its_network() -> None:
    assert source_network(IPv4Address("192.0.2.7"), 64) == parse_network("192.0.2.7")
    assert source_network(IPv6Address("2001:db8:1:2:3::7"), 64) == parse_network("2001:db8:1:2::/64")
    assert source_network(IPv6Address("2001:db8::7"), 128) == parse_network("2001:db8::7")


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "\u202eevil", "\x00", "\x85", "tab\t", "\ud800"])
def test_shown_text_has_nothing_that_moves_a_terminal(text: str) -> None:
    assert shown(text).isprintable()
    assert shown(text) != text


def test_shown_text_is_quoted_and_cut() -> None:
    assert shown("it is") == "'it is'"
    assert len(shown("x" * 10000)) < 100


def test_the_largest_network_that_holds_another_covers_it() -> None:
    networks = NetworkSet(map(parse_network, ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "2001:db8::/32"]))
    assert str(networks.covering(parse_network("10.1.2.3"))) == "10.0.0.0/8"
    assert str(networks.covering(parse_network("2001:db8::/64"))) == "2001:db8::/32"
    assert networks.covering(parse_network("11.0.0.1")) is None
    assert networks.covering(parse_network("0.0.0.0/0")) is None
    assert networks.covering(parse_network("::a01:203")) is None


def test_a_network_covers_itself_unless_strictly() -> None:
    networks = NetworkSet([parse_network("10.0.0.0/8")])
    assert networks.covering(parse_network("10.0.0.0/8")) == parse_network("10.0.0.0/8")
    assert networks.covering(parse_network("10.0.0.0/8"), strictly=True) is None
    assert parse_network("10.0.0.0/8") in networks
    assert parse_network("10.0.0.0/16") not in networks
    assert parse_network("a00::/8") not in networks


def test_maximal_networks_keep_their_order() -> None:
    networks = [parse_network(text) for text in ("10.1.2.3", "192.0.2.7", "10.0.0.0/8", "2001:db8::7", "2001:db8::/64")]
    assert [network_text(network) for network in maximal(networks)] == ["192.0.2.7", "10.0.0.0/8", "2001:db8::/64"]
