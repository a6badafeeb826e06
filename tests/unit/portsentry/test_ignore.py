import os
from ipaddress import ip_address
from pathlib import Path

import pytest

from jailbridge.errors import RetryLater
from jailbridge.policy.allow import MAX_BYTES
from jailbridge.portsentry.ignore import Ignore

# As Debian's script builds it.
DEBIAN = """\
# /etc/portsentry/portsentry.ignore: Contains all IPs portsentry(8)
#                                    will never block.

# IPs from /etc/portsentry/portsentry.ignore.static:
127.0.0.1/32
0.0.0.0
192.0.2.0/24 # the office
# dynamically fetched IPs(via ifconfig -a):
198.51.100.7
2001:db8::/48
fd98::77/128
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "portsentry.ignore"
    made.write_text(DEBIAN)
    return made


def held(ignore: Ignore, address: str, now: float = 0.0) -> bool:
    return ignore.holds(ip_address(address), now)


@pytest.mark.parametrize(
    ("address", "ignored"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", False),
        ("0.0.0.0", True),
        ("192.0.2.255", True),
        ("192.0.3.0", False),
        ("198.51.100.7", True),
        ("2001:db8:0:ffff::1", True),
        ("2001:db8:1::1", False),
        ("fd98::77", True),
        ("fd98::78", False),
        ("::7f00:1", False),
    ],
)
def test_addresses_and_networks_are_ignored(path: Path, address: str, ignored: bool) -> None:
    assert held(Ignore(path), address) is ignored


def test_without_a_file_nobody_is_ignored() -> None:
    assert not held(Ignore(None), "127.0.0.1")


def test_a_network_of_everybody_ignores_everybody(path: Path) -> None:
    path.write_text("0.0.0.0/0\n")
    assert held(Ignore(path), "203.0.113.9")
    assert not held(Ignore(path), "2001:db8::1")


def test_a_change_counts_within_a_second(path: Path) -> None:
    ignore = Ignore(path)
    assert held(ignore, "127.0.0.1", 10.0)
    path.write_text("203.0.113.9\n")
    assert held(ignore, "127.0.0.1", 10.9)
    assert not held(ignore, "127.0.0.1", 11.0)
    assert held(ignore, "203.0.113.9", 11.0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("127.0.0.1\nlocalhost\n", ":2: 'localhost' is not an IP address"),
        ("192.0.2.0/33\n", ":1: '192.0.2.0/33' is not an IP network"),
        ("1.2.3.4\0\n", ":1: "),
        ("#" * (MAX_BYTES + 1), "is over 4 MiB"),
    ],
)
def test_while_the_file_is_malformed_nobody_may_be_acted_on(path: Path, content: str, reason: str) -> None:
    ignore = Ignore(path)
    assert held(ignore, "127.0.0.1", 0.0)
    path.write_text(content)
    for now in (1.0, 1.1, 2.0):
        with pytest.raises(RetryLater, match=r"^ignore file .*; nobody is blocked until it is mended$") as error:
            held(ignore, "203.0.113.9", now)
        assert reason in str(error.value)
        assert "\n" not in str(error.value)
    path.write_text("127.0.0.1\n")
    assert not held(ignore, "203.0.113.9", 3.0)


def test_while_the_file_is_away_nobody_may_be_acted_on(path: Path) -> None:
    ignore = Ignore(path)
    path.rename(path.with_name("away"))
    with pytest.raises(RetryLater, match="cannot be read: No such file"):
        held(ignore, "203.0.113.9", 1.0)
    path.with_name("away").rename(path)
    assert held(ignore, "127.0.0.1", 2.0)


def test_a_pipe_is_not_waited_for(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RetryLater, match="is not a regular file"):
        held(Ignore(path), "203.0.113.9")
