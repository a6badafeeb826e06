"""The kernel's own word on changes, in networks of the tests' own."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from jailbridge import process
from jailbridge.host.netlink import ADDRESSES, LINKS, ROUTES, ChangeWatch

pytestmark = pytest.mark.e2e


def ip(command: str) -> None:
    done = process.run(["ip", *command.split()])
    assert done.code == 0, f"ip {command}: {done.err}"


@pytest.fixture
def card(own_network: Callable[[], None]) -> str:
    ip("link add card0 type veth peer card1")
    ip("link set card1 up")
    ip("link set card0 up")
    ip("address add 198.51.100.7/24 dev card0")
    ip("address add 2001:db8::7/64 dev card0 nodad")
    return "card0"


@pytest.fixture
def watch(card: str) -> Iterator[ChangeWatch]:
    with closing(ChangeWatch(LINKS | ADDRESSES | ROUTES)) as watch:
        # The links' own comings up, which may still go on.
        process.run(["ip", "link", "show"])
        while watch.changed():
            pass
        yield watch


@pytest.mark.parametrize(
    "change",
    [
        "address add 203.0.113.9/32 dev card0",
        "address del 198.51.100.7/24 dev card0",
        "address add 2001:db8:1::7/64 dev card0 nodad",
        "route add default via 198.51.100.1",
        "route add default via 198.51.100.1 table 100",
        "route add default via inet6 2001:db8::1 dev card0",
        "-6 route add default via 2001:db8::1",
        "-6 route add default via fe80::1 dev card0 table 100",
        "link set card0 down",
        "link delete card0",
    ],
)
def test_every_change_that_can_matter_is_told_and_told_once(watch: ChangeWatch, change: str) -> None:
    ip(change)
    assert watch.changed()
    while watch.changed():
        pass
    ip("route show")
    assert not watch.changed()


def test_a_link_that_takes_its_routes_down_with_it_is_told(watch: ChangeWatch) -> None:
    ip("route add default via 198.51.100.1")
    while watch.changed():
        pass
    ip("link set card0 down")
    assert "default" not in process.run(["ip", "route", "show"]).out
    assert watch.changed()


def test_more_changes_than_the_socket_holds_are_a_change(card: str) -> None:
    with closing(ChangeWatch(ROUTES)) as watch:
        for n in range(0, 4096, 1024):
            lines = "".join(f"route add 10.{i >> 8}.{i & 255}.0/24 dev {card}\n" for i in range(n, n + 1024))
            assert process.run(["ip", "-batch", "-"], given=lines).code == 0
        assert watch.changed()


def test_a_forgotten_watch_holds_no_socket(card: str) -> None:
    number = ChangeWatch(LINKS).fileno()
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
