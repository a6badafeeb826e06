"""One question by RDAP to real servers, honest ones and others."""

import json
import time

import pytest

from jailbridge.errors import ParseError, RetryLater
from jailbridge.model.network import parse_address, parse_network
from jailbridge.respond.rdap import MAX_FIELD, Holder, ask, is_public, read
from tests.servers import LOOPBACK, Authority, WebServer, listening, stubborn

ADDRESS = parse_network("9.9.9.9")
HOSTILE = "evil\r\nBcc: all@example.org\x00\x1b[2J\u202e\ud800 <script>alert(1)</script> " + "x" * 5000


def card(**fields: str) -> list[object]:
    return ["vcard", [["version", {}, "text", "4.0"], *([name, {}, "text", value] for name, value in fields.items())]]


def told(**more: object) -> dict[str, object]:
    """As registries say it: a maintainer and an organisation as registrants, a contact of a contact for abuse."""
    abuse = {"roles": ["abuse"], "vcardArray": card(fn="Abuse", email="abuse@example.net")}
    return {
        "objectClassName": "ip network",
        "startAddress": "9.9.0.0",
        "endAddress": "9.9.255.255",
        "name": "EXAMPLE-NET",
        "country": "de",
        "entities": [
            {"roles": ["registrant"], "vcardArray": card(kind="individual", fn="EXAMPLE-MNT")},
            {"roles": ["registrant"], "vcardArray": card(kind="org", fn="Example GmbH"), "entities": [abuse]},
        ],
        **more,
    }


def text(**more: object) -> bytes:
    return json.dumps(told(**more)).encode()


def holder(**more: object) -> Holder:
    return read(text(**more), ADDRESS).holder


HOLDER = Holder(name="Example GmbH", country="DE", network="9.9.0.0/16", abuse="abuse@example.net")


def base(server: WebServer) -> str:
    return server.url.rpartition("/")[0]


def test_it_is_asked_for_an_address_and_for_a_network() -> None:
    with WebServer(body=text()) as server:
        assert ask(base(server), ADDRESS, 10.0).holder == HOLDER
        ask(f"{base(server)}/rdap/", parse_network("9.9.8.0/24"), 10.0)
    assert [request.path for request in server.requests] == ["/ip/9.9.9.9", "/rdap/ip/9.9.8.0/24"]
    assert server.requests[0].method == "GET"
    assert server.requests[0].headers["Accept"] == "application/rdap+json"


def test_a_name_is_looked_up() -> None:
    with WebServer(body=text()) as server:
        assert ask(base(server).replace(LOOPBACK, "localhost"), ADDRESS, 10.0).holder == HOLDER
    with pytest.raises(RetryLater, match="has no address"):
        ask("http://no-such-host.invalid", ADDRESS, 10.0)


def test_https_is_trusted_by_its_certificate_only(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    with WebServer(tls=authority.context(), body=text()) as server:
        with pytest.raises(RetryLater, match="its certificate cannot be trusted"):
            ask(base(server), ADDRESS, 10.0)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        assert ask(base(server), ADDRESS, 10.0).holder == HOLDER


# What is said


def test_of_a_poor_answer_the_rest_is_empty() -> None:
    poor = {"entities": None, "name": 7, "country": "Germany", "startAddress": "9.9.9.8", "endAddress": "9.9.9.10"}
    assert holder(**poor) == Holder(name="", country="", network="9.9.9.8 - 9.9.9.10", abuse="")
    assert holder(entities=[]).name == "EXAMPLE-NET"
    odd = [7, {"roles": 7, "vcardArray": 7}, {"vcardArray": ["vcard", [7, ["fn"], ["fn", {}, "text", ["a"]]]]}]
    assert holder(entities=odd).name == "EXAMPLE-NET"


def test_what_is_told_is_printable_and_cut_to_size() -> None:
    roles = ["registrant", "abuse"]
    said = holder(
        name=HOSTILE, country=HOSTILE, entities=[{"roles": roles, "vcardArray": card(fn=HOSTILE, email=HOSTILE)}]
    )
    for field in (said.name, said.abuse):
        assert field.isprintable()
        assert 150 < len(field) <= MAX_FIELD
        assert field.startswith("evil Bcc: all@example.org [2J <script>")
    assert said.country == ""


@pytest.mark.parametrize(
    ("first", "last", "network"),
    [
        ("9.9.9.9", "9.9.9.9", "9.9.9.9/32"),
        ("0.0.0.0", "255.255.255.255", "0.0.0.0/0"),
        ("9.9.9.9", "9.9.9.10", "9.9.9.9 - 9.9.9.10"),
    ],
)
def test_a_range_is_a_prefix_where_it_can_be(first: str, last: str, network: str) -> None:
    assert holder(startAddress=first, endAddress=last).network == network


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"7",
        b"[" * 100_000,
        b"1" * 100_000,
        text(startAddress="9.9.9\r\n9"),
        text(startAddress=None),
        text(startAddress="8.8.8.0", endAddress="8.8.8.255"),
        text(startAddress="9.9.255.255", endAddress="9.9.0.0"),
        text(startAddress="::", endAddress="9.9.255.255"),
        text(startAddress="2001:db8::", endAddress="2001:db8::ffff"),
    ],
)
def test_what_is_no_answer_is_none(body: bytes) -> None:
    with pytest.raises(ParseError):
        read(body, ADDRESS)


def test_contacts_in_contacts_without_end_are_not_followed() -> None:
    told: dict[str, object] = {}
    for _ in range(300):
        told = {"roles": ["abuse"], "entities": [told]}
    assert holder(entities=[told]).abuse == ""


# Bounds


def test_an_answer_of_10_mb_is_cut_off() -> None:
    with WebServer(body=text(remarks="x" * 10_000_000)) as server, pytest.raises(ParseError, match="over 256 KiB"):
        ask(base(server), ADDRESS, 30.0)


def test_silence_and_drops_come_to_an_end() -> None:
    for say in (b"", b"HTTP/1.1 200 OK\r\n\r\n ", b"HTTP/1.1 200 OK\r\nA: b", b"HTTP/1.1 100 Continue\r\n\r\n"):
        began = time.monotonic()
        with stubborn(say) as port, pytest.raises((RetryLater, ParseError)):
            ask(f"http://{LOOPBACK}:{port}", ADDRESS, 0.5)
        assert time.monotonic() - began < 30.0


def test_a_handshake_without_end_comes_to_one() -> None:
    with stubborn() as port, pytest.raises(RetryLater, match="no answer in time"):
        ask(f"https://{LOOPBACK}:{port}", ADDRESS, 0.5)


def test_the_time_limit_is_for_all_redirects_together() -> None:
    began = time.monotonic()
    with WebServer(wait_s=0.4) as server:
        server.answers = [(302, {"Location": "/elsewhere"})] * 3
        with pytest.raises(RetryLater, match="no answer in time"):
            ask(base(server), ADDRESS, 0.6)
    assert len(server.requests) < 4
    assert time.monotonic() - began < 30.0


@pytest.mark.parametrize(
    ("status", "error"), [(404, ParseError), (400, ParseError), (204, ParseError), (429, RetryLater), (503, RetryLater)]
)
def test_a_refusal_is_for_ever_or_for_now(status: int, error: type[Exception]) -> None:
    with WebServer() as server:
        server.answers = [(status, {})]
        with pytest.raises(error, match=f"HTTP {status}"):
            ask(base(server), ADDRESS, 10.0)


def test_nobody_there() -> None:
    with listening() as free:
        port = free.getsockname()[1]
    with pytest.raises(RetryLater, match="refused"):
        ask(f"http://{LOOPBACK}:{port}", ADDRESS, 10.0)


# Redirects


def test_three_redirects_are_followed_and_no_more() -> None:
    with WebServer(body=text()) as server:
        there = (302, {"Location": "/elsewhere"})
        server.answers = [there] * 3
        assert ask(base(server), ADDRESS, 10.0).holder == HOLDER
        server.answers = [there] * 4
        with pytest.raises(ParseError, match="leads on and on"):
            ask(base(server), ADDRESS, 10.0)
    assert len(server.requests) == 8


@pytest.mark.parametrize("host", [LOOPBACK, "localhost", "[::ffff:127.0.0.1]", "2130706433", "127.1"])
def test_nobody_is_led_into_our_own_network(host: str) -> None:
    with WebServer() as server, listening() as inside:
        inside.setblocking(False)
        server.answers = [(302, {"Location": f"https://{host}:{inside.getsockname()[1]}/"})]
        with pytest.raises(ParseError, match="not a public address"):
            ask(base(server), ADDRESS, 10.0)
        with pytest.raises(BlockingIOError):
            inside.accept()


@pytest.mark.parametrize(
    "location",
    [
        *("", "http://9.9.9.9/", "file:///etc/passwd", "https://a@9.9.9.9/", "https:///", "https://9.9.9.9:99999/"),
        *("https://[::1/", "https://-x.example/", "https://a_b\x01.example/", "https://9.9.9.9/" + "x" * 3000),
    ],
)
def test_a_redirect_to_nowhere_good_is_none(location: str) -> None:
    with WebServer() as server:
        server.answers = [(301, {"Location": location})] * 4
        with pytest.raises(ParseError):
            ask(base(server), ADDRESS, 10.0)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.168.1.1"),
        *("203.0.113.7", "224.0.0.1", "240.0.0.1"),
        *("::", "::1", "64:ff9b::7f00:1", "2001:db8::1", "fc00::1", "fe80::1", "ff02::1"),
    ],
)
def test_what_is_nobodys_is_not_public(address: str) -> None:
    assert not is_public(parse_address(address))


def test_what_is_somebodys_is_public() -> None:
    for address in ("9.9.9.9", "2620:fe::9"):
        assert is_public(parse_address(address))
