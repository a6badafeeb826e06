import errno
import socket
from contextlib import closing

import pytest

from jailbridge.sensor.links import LinkWatch, indexes
from jailbridge.sensor.netlink import dump

LOOPBACK = socket.if_nametoindex("lo")
SOCK_DIAG, BY_FAMILY, DCCP = 4, 20, 33


@pytest.mark.parametrize("names", [["all"], ["all-but-loopback"], ["lo", "all"]])
def test_all_interfaces_have_no_indexes(names: list[str]) -> None:
    assert indexes(names) == (None, ())


def test_present_names_have_an_index_and_absent_ones_are_named_once() -> None:
    assert indexes(["lo", "jb-nowhere", "lo", "jb-nowhere"]) == (frozenset({LOOPBACK}), ("jb-nowhere",))
    assert indexes(["jb-nowhere"]) == (frozenset(), ("jb-nowhere",))


@pytest.mark.parametrize("name", ["a" * 40, "ä", ""])
def test_a_name_that_no_interface_can_have_is_absent(name: str) -> None:
    assert indexes([name]) == (frozenset(), (name,))


def test_a_list_that_the_kernel_refuses_is_an_error() -> None:
    with pytest.raises(OSError, match=r"not supported|No such file") as refused:
        list(dump(socket.NETLINK_ROUTE, 250, bytes(8)))
    assert refused.value.errno == errno.EOPNOTSUPP


def test_a_list_that_ends_with_an_error_is_an_error() -> None:
    # A protocol without a module for sock_diag.
    with pytest.raises(OSError, match=r"not supported|No such file") as refused:
        list(dump(SOCK_DIAG, BY_FAMILY, bytes([socket.AF_INET, DCCP]) + bytes(54)))
    assert refused.value.errno == errno.ENOENT


def test_a_watch_is_a_descriptor_until_it_is_closed() -> None:
    with closing(LinkWatch()) as watch:
        assert watch.fileno() >= 0
    assert watch.fileno() == -1
