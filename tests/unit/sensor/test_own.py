from ipaddress import ip_address

import pytest

from jailbridge.errors import RetryLater
from jailbridge.model.network import Address
from jailbridge.sensor.own import OwnAddresses

HERE, NEW, FOREIGN = (ip_address(text) for text in ("192.0.2.1", "192.0.2.2", "198.51.100.9"))


class Host:
    def __init__(self) -> None:
        self.addresses = frozenset({HERE})
        self.readings = 0
        self.broken = False

    def read(self) -> frozenset[Address]:
        self.readings += 1
        if self.broken:
            raise RetryLater("ip address show failed")
        return self.addresses


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def own(host: Host) -> OwnAddresses:
    own = OwnAddresses(host.read)
    own.load(0.0)
    return own


def test_only_own_addresses_are_destinations(own: OwnAddresses) -> None:
    assert own.is_destination(HERE, 0.5)
    assert not own.is_destination(FOREIGN, 0.5)
    assert own.holds(HERE)
    assert not own.holds(FOREIGN)


def test_a_new_address_is_known_once_a_second_has_passed(own: OwnAddresses, host: Host) -> None:
    host.addresses = frozenset({HERE, NEW})
    assert not own.is_destination(NEW, 0.9)
    assert own.is_destination(NEW, 1.0)


def test_an_address_that_went_is_dropped_within_a_minute(own: OwnAddresses, host: Host) -> None:
    host.addresses = frozenset({NEW})
    assert own.is_destination(HERE, 59.0)
    assert not own.is_destination(HERE, 60.0)


def test_foreign_destinations_are_looked_up_ever_more_rarely(own: OwnAddresses, host: Host) -> None:
    for tenth in range(6000):
        own.is_destination(FOREIGN, tenth / 10)
    assert 10 < host.readings < 30


def test_multicast_is_never_looked_up(own: OwnAddresses, host: Host) -> None:
    for address in (ip_address("224.0.0.251"), ip_address("ff02::fb")):
        assert not own.is_destination(address, 1000.0)
    assert host.readings == 1


def test_a_failed_reading_keeps_the_last_known_and_is_logged_once(
    own: OwnAddresses, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.broken = True
    assert own.is_destination(HERE, 100.0)
    assert own.is_destination(HERE, 200.0)
    assert [record.message for record in caplog.records] == [
        "own addresses not read, the last known ones stay: ip address show failed"
    ]
    host.broken, host.addresses = False, frozenset({NEW})
    assert own.is_destination(NEW, 300.0)


def test_a_failed_first_reading_is_the_callers(host: Host) -> None:
    host.broken = True
    with pytest.raises(RetryLater):
        OwnAddresses(host.read).load(0.0)
