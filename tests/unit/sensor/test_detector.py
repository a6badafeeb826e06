from ipaddress import ip_address

import pytest

from jailbridge.model.event import Protocol
from jailbridge.model.network import Address, parse_network
from jailbridge.sensor.detector import Detector, Sighting

ALICE, BOB = ip_address("192.0.2.7"), ip_address("192.0.2.8")
TCP, UDP = Protocol.TCP, Protocol.UDP


@pytest.fixture
def detector() -> Detector:
    return Detector(3, 60.0, 64)


def see(detector: Detector, address: Address, port: int, protocol: Protocol, now: float) -> Sighting:
    return detector.see(address.version, int(address), port, protocol, now)


def scan(detector: Detector, *ports: int, now: float = 0.0) -> list[bool]:
    return [see(detector, ALICE, port, TCP, now).newly_triggered for port in ports]


def test_the_third_port_triggers_and_a_fourth_does_not_again(detector: Detector) -> None:
    assert scan(detector, 1, 2, 3, 4) == [False, False, True, False]


def test_a_repeated_port_is_not_new_and_does_not_count(detector: Detector) -> None:
    assert scan(detector, 1, 1, 2, 2, 1) == [False] * 5
    assert see(detector, ALICE, 1, TCP, 0.0) == Sighting(new=False, triggered=False, newly_triggered=False)


def test_the_same_number_over_tcp_and_udp_are_two_ports(detector: Detector) -> None:
    scan(detector, 53, 54)
    assert see(detector, ALICE, 53, UDP, 0.0) == Sighting(new=True, triggered=True, newly_triggered=True)


def test_sources_are_counted_apart(detector: Detector) -> None:
    scan(detector, 1, 2)
    assert not see(detector, BOB, 3, TCP, 0.0).triggered


def test_ipv6_sources_of_one_prefix_are_counted_together(detector: Detector) -> None:
    seen = [see(detector, ip_address(f"2001:db8::{n}"), n, TCP, 0.0) for n in (1, 2, 3)]
    assert seen[-1].newly_triggered
    assert not see(detector, ip_address("2001:db8:0:1::1"), 4, TCP, 0.0).triggered


def test_an_ipv4_and_an_ipv6_source_with_the_same_bits_are_two() -> None:
    detector = Detector(2, 60.0, 32)
    see(detector, ip_address("32.1.13.184"), 1, TCP, 0.0)
    assert not see(detector, ip_address("2001:db8::1"), 2, TCP, 0.0).triggered


def test_a_port_leaves_the_window_when_the_window_has_passed(detector: Detector) -> None:
    scan(detector, 1, now=0.0)
    scan(detector, 2, now=30.0)
    assert scan(detector, 3, now=60.0) == [False]
    assert scan(detector, 4, now=89.9) == [True]


def test_a_port_seen_again_counts_from_its_last_sighting(detector: Detector) -> None:
    scan(detector, 1, now=0.0)
    scan(detector, 1, now=50.0)
    scan(detector, 2, now=80.0)
    assert scan(detector, 3, now=109.0) == [True]


def test_a_port_is_new_again_after_a_window(detector: Detector) -> None:
    assert see(detector, ALICE, 1, TCP, 0.0).new
    assert not see(detector, ALICE, 1, TCP, 59.9).new
    assert see(detector, ALICE, 1, TCP, 119.9).new


def test_a_source_that_goes_on_is_newly_triggered_once_a_window(detector: Detector) -> None:
    scan(detector, 1, 2, 3, now=0.0)
    assert scan(detector, 1, 2, 3, now=59.9) == [False] * 3
    assert scan(detector, 1, 2, 3, now=60.0) == [True, False, False]


def test_a_reported_source_stays_triggered_for_a_window(detector: Detector) -> None:
    scan(detector, 1, 2, now=0.0)
    scan(detector, 3, now=50.0)
    assert see(detector, ALICE, 4, TCP, 70.0).triggered
    assert not see(detector, ALICE, 5, TCP, 131.0).triggered


@pytest.mark.parametrize("network", ["192.0.2.7/32", "192.0.2.0/24", "0.0.0.0/0"])
def test_a_forgotten_source_is_news_at_its_next_scan(detector: Detector, network: str) -> None:
    scan(detector, 1, 2, 3)
    detector.forget(parse_network(network))
    assert detector.sources == detector.sightings == 0
    assert scan(detector, 1, 2, 3) == [False, False, True]


@pytest.mark.parametrize("network", ["192.0.2.8/32", "198.51.100.0/24", "::/0"])
def test_forgetting_another_network_changes_nothing(detector: Detector, network: str) -> None:
    scan(detector, 1, 2, 3)
    detector.forget(parse_network(network))
    assert scan(detector, 1, 4) == [False, False]


@pytest.mark.parametrize("network", ["2001:db8::/64", "2001:db8::/32", "2001:db8::7/128"])
def test_forgetting_reaches_the_ipv6_source_that_overlaps(detector: Detector, network: str) -> None:
    see(detector, ip_address("2001:db8::7"), 1, TCP, 0.0)
    see(detector, ip_address("2001:db9::7"), 1, TCP, 0.0)
    detector.forget(parse_network(network))
    assert see(detector, ip_address("2001:db8::7"), 1, TCP, 0.0).new
    assert not see(detector, ip_address("2001:db9::7"), 1, TCP, 0.0).new


def test_a_sighting_taken_back_is_said_again(detector: Detector) -> None:
    scan(detector, 1, 2)
    first = see(detector, ALICE, 3, TCP, 0.0)
    detector.take_back(4, int(ALICE), 3, TCP, first)
    assert detector.sightings == 2
    assert see(detector, ALICE, 3, TCP, 1.0) == first == Sighting(new=True, triggered=True, newly_triggered=True)


def test_taking_back_a_later_port_keeps_the_earlier_report(detector: Detector) -> None:
    scan(detector, 1, 2, 3)
    later = see(detector, ALICE, 4, TCP, 0.0)
    detector.take_back(4, int(ALICE), 4, TCP, later)
    assert see(detector, ALICE, 4, TCP, 0.0) == Sighting(new=True, triggered=True, newly_triggered=False)


def test_the_source_not_seen_for_the_longest_goes_when_the_table_is_full() -> None:
    detector = Detector(3, 60.0, 64, max_sources=2)
    see(detector, ALICE, 1, TCP, 0.0)
    see(detector, BOB, 1, TCP, 1.0)
    see(detector, ALICE, 2, TCP, 2.0)
    see(detector, ip_address("192.0.2.9"), 1, TCP, 3.0)
    assert not see(detector, ALICE, 1, TCP, 4.0).new
    assert see(detector, BOB, 1, TCP, 5.0).new


def test_a_source_keeps_as_many_ports_as_the_trigger_takes_whatever_the_maximum() -> None:
    detector = Detector(5, 60.0, 64, max_ports=2, max_sightings=2)
    assert scan(detector, 1, 2, 3, 4, 5) == [False] * 4 + [True]


def test_sources_unseen_for_a_window_are_not_kept(detector: Detector) -> None:
    for n in range(100):
        see(detector, ip_address(f"192.0.2.{n}"), 1, TCP, 0.0)
    see(detector, ip_address("198.51.100.1"), 1, TCP, 60.0)
    assert (detector.sources, detector.sightings) == (1, 1)
