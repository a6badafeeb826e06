"""Whose a source is: seldom asked, remembered on the disk."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from jailbridge.config.responding import WhoisSettings
from jailbridge.model.network import parse_network
from jailbridge.respond import queue as module
from jailbridge.respond.queue import Known, Queue
from jailbridge.respond.rdap import Holder
from jailbridge.respond.whois import Whois, whois_problems
from tests.servers import WebServer
from tests.unit.respond.events import NOW
from tests.unit.respond.test_rdap import HOLDER, base, text

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


class Asking:
    """A whois at a time that the test says."""

    def __init__(self, path: Path, server: WebServer, **more: object) -> None:
        self.now = NOW
        settings = WhoisSettings.model_validate({"server": base(server), "timeout": timedelta(seconds=10), **more})
        self._make: Callable[[], Whois] = partial(
            Whois, settings, partial(Queue, path), clock=lambda: self.now, monotonic=self._monotonic
        )
        self._whois = self._make()

    def _monotonic(self) -> float:
        return (self.now - datetime.fromtimestamp(0, NOW.tzinfo)).total_seconds()

    def restart(self) -> None:
        self._whois = self._make()

    def __call__(self, network: str) -> Holder | None:
        return self._whois(parse_network(network))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue"


def test_it_is_asked_once_and_again_when_that_is_old(path: Path) -> None:
    with WebServer(body=text()) as server:
        whois = Asking(path, server, keep=2 * DAY)
        assert whois("9.9.9.9") == HOLDER
        whois.restart()
        whois.now += DAY
        assert whois("9.9.9.9") == HOLDER
        assert whois("9.9.9.77") == HOLDER, "a neighbour's is the same"
        assert whois("9.9.9.0/25") == HOLDER
        assert len(server.requests) == 1
        whois.now += DAY
        assert whois("9.9.9.9") == HOLDER
        assert len(server.requests) == 2


def test_what_is_said_of_more_is_not_believed_of_all_of_it(path: Path) -> None:
    with WebServer(body=text()) as server:
        whois = Asking(path, server)
        whois("9.9.9.9")
        whois("9.9.8.9")
        assert len(server.requests) == 2
        server.body = text(startAddress="9.9.7.0", endAddress="9.9.7.127")
        whois("9.9.7.9")
        whois("9.9.7.10")
        assert len(server.requests) == 4, "their neighbours may be another's"


def test_that_nobody_knows_is_kept_for_an_hour(path: Path) -> None:
    with WebServer(body=text()) as server:
        whois = Asking(path, server)
        server.answers = [(404, {})]
        assert whois("9.9.9.9") is None
        assert whois("9.9.9.9") is None
        assert len(server.requests) == 1
        whois.now += HOUR
        assert whois("9.9.9.9") == HOLDER


def test_who_does_not_answer_is_spared_for_a_minute(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with WebServer(body=text()) as server:
        whois = Asking(path, server)
        server.answers = [(503, {})]
        assert [whois(f"9.9.{n}.9") for n in range(20)] == [None] * 20
        assert len(server.requests) == 1
        whois.now += timedelta(minutes=1)
        assert whois("9.9.0.9") == HOLDER
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["whois not asked for 60 s network=9.9.0.9: 127.0.0.1: HTTP 503"]


def test_no_more_is_asked_in_a_minute_than_is_allowed(path: Path) -> None:
    with WebServer(body=text()) as server:
        whois = Asking(path, server, per_minute=3)
        assert [whois(f"9.9.{n}.9") is not None for n in range(5)] == [True, True, True, False, False]
        assert whois("9.9.0.9") is not None, "what is known costs nothing"
        whois.now += timedelta(minutes=1)
        assert whois("9.9.4.9") is not None
    assert len(server.requests) == 4


@pytest.mark.parametrize("network", ["192.168.1.7", "203.0.113.7", "127.0.0.1", "fe80::1", "10.0.0.0/7", "0.0.0.0/0"])
def test_nothing_is_asked_of_what_is_nobodys(path: Path, network: str) -> None:
    with WebServer(body=text()) as server:
        assert Asking(path, server)(network) is None
    assert server.requests == []


def test_an_ipv6_network_is_asked_for(path: Path) -> None:
    with WebServer(body=text(startAddress="2620:fe::", endAddress="2620:fe:ffff::")) as server:
        whois = Asking(path, server)
        answer = whois("2620:fe:0:1::/64")
        assert answer is not None
        assert answer == whois("2620:fe:0:2::/64")
    assert [request.path for request in server.requests] == ["/ip/2620:fe:0:1::/64"]


def test_what_is_known_does_not_grow_without_bounds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KNOWN", 3)
    with Queue(path) as queue:
        for n in range(5):
            queue.learn(parse_network(f"9.9.{n}.0/24"), str(n), NOW + DAY + n * HOUR, NOW)
        kept = [queue.known([parse_network(f"9.9.{n}.0/24")], NOW) for n in range(5)]
        assert kept == [None, None, Known("2"), Known("3"), Known("4")]
        queue.learn(parse_network("9.9.9.9"), None, NOW + 9 * DAY, NOW + 8 * DAY)
        assert queue.known([parse_network("9.9.4.0/24")], NOW) is None, "what is too old has gone"
        assert queue.known([parse_network("9.9.9.9"), parse_network("9.9.9.0/24")], NOW) == Known(None)


@pytest.mark.parametrize(
    ("server", "problem"),
    [
        ("https://rdap.example:99999", "is no address: Port out of range 0-65535"),
        ("https://:443", "names no host"),
        ("https://a:b@rdap.example/", 'should be an address alone, like "https://rdap.org"'),
        ("https://rdap.example/?a=b", 'should be an address alone, like "https://rdap.org"'),
    ],
)
def test_a_server_that_cannot_be_asked_is_a_problem(server: str, problem: str) -> None:
    assert list(whois_problems(WhoisSettings(server=server))) == [("respond.whois.server", problem)]


def test_a_server_that_can_be_asked_is_none() -> None:
    for server in ("https://rdap.org", "http://[::1]:8080/rdap/"):
        assert list(whois_problems(WhoisSettings(server=server))) == []
