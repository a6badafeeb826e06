"""What a ledger's rows are read as, whoever wrote them."""

import json
from datetime import UTC, datetime

import pytest

from jailbridge.errors import ParseError
from jailbridge.ledger.rows import ban_row, to_bans, to_network
from jailbridge.model.ban import Ban, Origin, Sightings
from jailbridge.model.network import network_text, parse_network

NOW = datetime(2026, 11, 22, 6, 30, 59, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "192.0.2.7",
        "192.0.2.0/24",
        "0.0.0.0/0",
        "192.0.2.7/32",
        "2001:db8::7",
        "2001:db8::/64",
        "::/0",
        "::7",
        "::1.2.3.4",
        # In another form than ours:
        "192.0.2.7/24",
        "192.0.2.0/255.255.255.0",
        "2001:DB8:0::/64",
        "2001:db8::7/64",
        "fe80::7%eth0",
        "::ffff:192.0.2.7",
        "::ffff:192.0.2.0/120",
        "::ffff:c000:207/128",
        "::ffff:0:0/96",
    ],
)
def test_a_network_is_what_its_text_says_in_any_form(text: str) -> None:
    read, expected = to_network(text), parse_network(text)
    assert (read, hash(read), network_text(read)) == (expected, hash(expected), network_text(expected))


@pytest.mark.parametrize(
    "text",
    ["", "nowhere", "192.0.2", "192.0.2.07", "192.0.2.7/", "192.0.2.7/33", "192.0.2.7/-1", "1.2.3.4\0", " 1.2.3.4",
     "2001:db8::/129", "2001:db8::/", "2001:db8:::", "2001:db8::/64/64", "\u0661.2.3.4", "1.2.3.4/\u0661"],
)  # fmt: skip
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ParseError):
        to_network(text)


def test_rows_share_what_is_equal_in_them() -> None:
    seen = Sightings(NOW, NOW, 1, ("tcp/23",))
    bans = [
        Ban(network=net, since=NOW, until=None, origin=Origin.SENSOR, reason="scan", file="/log", seen=seen)
        for net in map(parse_network, ("192.0.2.7", "2001:db8::/64"))
    ]
    # As from a file, each text is an object of its own.
    one, two = to_bans(tuple(json.loads(json.dumps(ban_row(ban)))) for ban in bans)
    assert [one, two] == bans
    assert one.reason is two.reason
    assert one.file is two.file
    assert one.seen is not None
    assert two.seen is not None
    assert one.seen.ports is two.seen.ports
    assert one.seen.first is one.since
