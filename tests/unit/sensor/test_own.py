import socket
import struct
from ipaddress import ip_address

import pytest

from jailbridge.errors import RetryLater
from jailbridge.sensor.own import Addresses, OwnAddresses, _local, addresses

HERE, NEW, SIXTH = (int(ip_address(text)) for text in ("192.0.2.1", "192.0.2.2", "2001:db8::1"))


class Host:
    def __init__(self) -> None:
        self.addresses = frozenset({HERE}), frozenset({SIXTH})
        self.readings = 0
        self.broken = False

    def read(self) -> Addresses:
        self.readings += 1
        if self.broken:
            raise RetryLater("own addresses cannot be read: netlink")
        return self.addresses

    def renumber(self) -> None:
        self.addresses = frozenset({NEW}), frozenset()


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def own(host: Host) -> OwnAddresses:
    own = OwnAddresses(host.read)
    own.load(0.0)
    return own


def test_the_first_reading_is_there_at_once(own: OwnAddresses) -> None:
    assert own.v4 == {HERE}
    assert own.v6 == {SIXTH}


def test_a_change_is_read_at_once(own: OwnAddresses, host: Host) -> None:
    host.renumber()
    own.refresh(1.0, changed=True)
    assert own.v4 == {NEW}
    assert not own.v6


def test_one_change_is_read_once(own: OwnAddresses, host: Host) -> None:
    own.refresh(1.0, changed=True)
    own.refresh(2.0, changed=False)
    assert host.readings == 2


def test_without_a_change_nothing_is_read_for_a_minute(own: OwnAddresses, host: Host) -> None:
    host.renumber()
    for second in range(60):
        own.refresh(second, changed=False)
    assert own.v4 == {HERE}
    own.refresh(60.0, changed=False)
    assert own.v4 == {NEW}


def test_a_change_too_soon_after_a_reading_is_read_when_the_pause_is_over(own: OwnAddresses, host: Host) -> None:
    host.renumber()
    own.refresh(0.1, changed=True)
    own.refresh(0.15, changed=False)
    assert own.v4 == {HERE}
    own.refresh(0.2, changed=False)
    assert own.v4 == {NEW}


def test_a_storm_of_changes_is_read_five_times_a_second(own: OwnAddresses, host: Host) -> None:
    for hundredth in range(1, 1001):
        own.refresh(hundredth / 100, changed=True)
    assert 45 <= host.readings <= 52


def test_a_failed_reading_keeps_the_last_known_and_is_logged_once(
    own: OwnAddresses, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    host.broken = True
    host.renumber()
    own.refresh(1.0, changed=True)
    own.refresh(2.0, changed=True)
    assert own.v4 == {HERE}
    host.broken = False
    own.refresh(3.0, changed=False)
    assert own.v4 == {NEW}
    assert [record.message for record in caplog.records] == [
        "the last known own addresses stay: own addresses cannot be read: netlink",
        "own addresses are read again",
    ]


def test_a_failed_reading_is_tried_again_after_the_pause(own: OwnAddresses, host: Host) -> None:
    host.broken = True
    own.refresh(60.0, changed=False)
    host.broken = False
    host.renumber()
    own.refresh(60.2, changed=False)
    assert own.v4 == {NEW}


def test_a_failed_first_reading_is_the_callers(host: Host) -> None:
    host.broken = True
    with pytest.raises(RetryLater):
        OwnAddresses(host.read).load(0.0)


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def test_of_a_point_to_point_link_our_own_end_is_taken() -> None:
    near, far = socket.inet_aton("10.9.0.1"), socket.inet_aton("10.9.0.2")
    head = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, 2)
    assert _local(head + attribute(1, far) + attribute(3, b"eth0\0") + attribute(2, near)) == near
    assert _local(head + attribute(3, b"eth0\0") + attribute(1, near)) == near
    assert _local(head) is None


@pytest.mark.parametrize("tail", [b"\0\0\1\0", b"\3\0\1\0abcd", b"\4"])
def test_a_broken_attribute_ends_the_message(tail: bytes) -> None:
    assert _local(bytes(8) + tail) is None


def test_this_very_host_can_be_read() -> None:
    assert int(ip_address("127.0.0.1")) in addresses()[0]
