"""What the kernel says of this host's own place, in networks of the tests' own."""

from collections.abc import Callable, Iterable
from ipaddress import ip_address

import pytest

from jailbridge import process
from jailbridge.host import Surroundings, surroundings
from jailbridge.model.network import Address

LOOPBACK = {"127.0.0.1", "::1"}


def ip(command: str) -> None:
    done = process.run(["ip", *command.split()])
    assert done.code == 0, f"ip {command}: {done.err}"


def texts(addresses: Iterable[Address]) -> set[str]:
    return {str(address) for address in addresses}


@pytest.fixture
def card(own_network: Callable[[], None]) -> str:
    ip("link add card0 type veth peer card1")
    ip("link set card1 up")
    ip("link set card0 up")
    return "card0"


@pytest.mark.e2e
def test_a_lone_host_has_its_loopback_and_no_gateway(own_network: Callable[[], None]) -> None:
    seen = surroundings()
    assert texts(seen.addresses) == LOOPBACK
    assert seen.gateways == frozenset()


@pytest.mark.e2e
def test_every_address_of_every_interface_is_own(card: str) -> None:
    ip(f"address add 198.51.100.7/24 dev {card}")
    ip(f"address add 203.0.113.9/32 dev {card}")
    ip(f"address add 2001:db8::7/64 dev {card} nodad")
    seen = texts(surroundings().addresses)
    assert seen >= {*LOOPBACK, "198.51.100.7", "203.0.113.9", "2001:db8::7"}
    assert {a for a in seen if a.startswith("fe80")}, "its link-local address"


@pytest.mark.e2e
def test_an_address_of_an_interface_that_is_down_is_own(card: str) -> None:
    ip(f"link set {card} down")
    ip(f"address add 198.51.100.7/24 dev {card}")
    assert "198.51.100.7" in texts(surroundings().addresses)


@pytest.mark.e2e
def test_the_far_end_of_a_point_to_point_link_is_not_own(card: str) -> None:
    ip(f"address add 10.9.0.1 peer 10.9.0.2/32 dev {card}")
    assert texts(surroundings().addresses) >= {"10.9.0.1"}
    assert "10.9.0.2" not in texts(surroundings().addresses)


@pytest.mark.e2e
def test_broadcast_addresses_are_known_set_or_not(card: str) -> None:
    ip(f"address add 198.51.100.7/24 dev {card}")
    ip(f"address add 203.0.113.9/26 broadcast 203.0.113.62 dev {card}")
    ip(f"address add 192.0.2.1/31 dev {card}")
    ip(f"address add 192.0.2.9/32 dev {card}")
    seen = texts(surroundings().broadcasts)
    assert {a for a in seen if not a.startswith("127.")} == {"198.51.100.255", "203.0.113.62"}


@pytest.mark.e2e
def test_every_next_hop_of_every_default_route_is_a_gateway(card: str) -> None:
    ip(f"address add 198.51.100.7/24 dev {card}")
    ip(f"address add 2001:db8::7/64 dev {card} nodad")
    ip(f"route add default nexthop via 198.51.100.1 dev {card} nexthop via 198.51.100.2 dev {card}")
    ip(f"route add default via 198.51.100.3 dev {card} metric 900")
    ip(f"route add 10.0.0.0/8 via 198.51.100.99 dev {card}")
    ip(f"-6 route add default via 2001:db8::1 dev {card}")
    ip(f"-6 route add default via fe80::1 dev {card} metric 4000")
    assert texts(surroundings().gateways) == {
        "198.51.100.1", "198.51.100.2", "198.51.100.3", "2001:db8::1", "fe80::1",
    }  # fmt: skip


@pytest.mark.e2e
def test_an_ipv6_next_hop_of_an_ipv4_default_route_is_a_gateway(card: str) -> None:
    ip(f"address add 198.51.100.7/24 dev {card}")
    ip(f"address add 2001:db8::7/64 dev {card} nodad")
    ip(f"route add default via inet6 2001:db8::1 dev {card}")
    assert texts(surroundings().gateways) == {"2001:db8::1"}


@pytest.mark.e2e
def test_a_default_route_without_a_next_hop_has_no_gateway(card: str) -> None:
    ip(f"route add default dev {card}")
    ip("route add unreachable default metric 9999")
    assert surroundings().gateways == frozenset()


@pytest.mark.e2e
def test_a_default_route_of_another_routing_table_has_a_gateway_too(card: str) -> None:
    ip(f"address add 198.51.100.7/24 dev {card}")
    ip(f"route add default via 198.51.100.1 dev {card} table 100")
    assert texts(surroundings().gateways) == {"198.51.100.1"}


def test_this_very_host_can_be_read() -> None:
    seen = surroundings()
    assert isinstance(seen, Surroundings)
    assert ip_address("127.0.0.1") in seen.addresses
