import os
import pickle
import socket
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jailbridge.errors import ParseError, RetryLater
from jailbridge.model.network import parse_network
from jailbridge.model.plan import Action, Change
from jailbridge.model.token import Token
from jailbridge.stores.fail2ban import Fail2banStore
from jailbridge.stores.fail2ban_socket import END, Fail2banSocket, Refused, decoded
from tests.fail2ban_talk import request, saying, serving

Answer = Callable[[list[str]], bytes]
NOW = datetime(2026, 11, 22, 6, 30, tzinfo=UTC)


def reply(value: object, code: int = 0) -> bytes:
    return pickle.dumps((code, value), pickle.HIGHEST_PROTOCOL) + END


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


class Harm:
    """What a pickle can do to a careless reader."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def test_a_command_is_the_pickle_of_a_list_of_text_and_the_value_comes_back(path: Path) -> None:
    asked = []

    def meet(connection: socket.socket) -> None:
        asked.append(request(connection))
        connection.sendall(reply("pong"))
        asked.append(request(connection))
        connection.sendall(reply([("a", 1), {"b": None}, 1.5, True, {2}]))

    with serving(path, meet), Fail2banSocket(path) as server:
        assert server.ask("ping") == "pong"
        assert server.ask("get", "j", "banip") == [("a", 1), {"b": None}, 1.5, True, {2}]
    assert asked == [["ping"], ["get", "j", "banip"]]


def test_a_reply_in_pieces_is_one_reply(path: Path) -> None:
    def meet(connection: socket.socket) -> None:
        request(connection)
        for byte in reply(["192.0.2.7"] * 20):
            connection.sendall(bytes([byte]))

    with serving(path, meet), Fail2banSocket(path) as server:
        assert server.ask("get", "j", "banip") == ["192.0.2.7"] * 20


def test_an_error_of_the_server_is_refused_with_its_kind(path: Path) -> None:
    # (1, fail2ban.exceptions.UnknownJailException("j")), as a server pickles it
    foreign = b"\x80\x02K\x01cfail2ban.exceptions\nUnknownJailException\nX\x01\x00\x00\x00j\x85R\x86." + END
    with serving(path, saying(reply(KeyError("portsentry"), 1), foreign)), Fail2banSocket(path) as server:
        with pytest.raises(Refused, match=r"KeyError 'portsentry'$") as first:
            server.ask("x")
        with pytest.raises(Refused, match=r"UnknownJailException 'j'$") as second:
            server.ask("x")
    assert (first.value.kind, second.value.kind) == ("KeyError", "UnknownJailException")


@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("database is locked"), NameError("x"), FileNotFoundError(2, "gone")]
)
def test_any_error_that_a_server_may_meet_is_one(error: Exception) -> None:
    with pytest.raises(Refused, match=type(error).__name__):
        decoded(reply(error, 1)[: -len(END)])


def test_what_its_database_does_not_take_now_is_tried_again(path: Path) -> None:
    full = reply(sqlite3.OperationalError("database or disk is full"), 1)
    add = Change(store="fail2ban", action=Action.ADD, network=parse_network("192.0.2.7"), why="")
    token = Token(ledger="0123456789ab", boot="-", layout=1, sequence=1)
    with serving(path, saying(reply("token"), full)), pytest.raises(RetryLater, match="disk is full"):
        Fail2banStore(jail="j", socket=path).apply([add], token, NOW)


def test_an_error_text_is_one_line() -> None:
    with pytest.raises(Refused) as error:
        decoded(reply(ValueError("a\nb\x1b[2J" + "c" * 1000), 1)[: -len(END)])
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("wrap", [lambda harm: (0, harm), lambda harm: harm, lambda harm: (1, ValueError(harm))])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_calls_something_is_refused_and_nothing_is_called(
    path: Path, tmp_path: Path, protocol: int, wrap: Callable[[object], object]
) -> None:
    harms = [
        Harm(os.system, f"touch {tmp_path}/harm"),
        Harm(eval, f"open('{tmp_path}/harm', 'w')"),
        Harm(open, f"{tmp_path}/harm", "w"),
        Harm(getattr, "x", "upper"),
        Harm(os.mkdir, f"{tmp_path}/harm"),
    ]
    for harm in harms:
        answer = pickle.dumps(wrap(harm), protocol)
        with pytest.raises(ParseError, match="is not a value"):
            decoded(answer)
    hostile = saying(pickle.dumps(wrap(harms[0]), protocol) + END)
    with serving(path, hostile), Fail2banSocket(path) as server, pytest.raises(RetryLater, match="is not fail2ban"):
        server.ask("ping")
    assert not (tmp_path / "harm").exists()


def test_text_of_nested_containers_is_not_made() -> None:
    bomb: list[object] = ["x" * 10]
    for _ in range(60):
        bomb = [bomb, bomb]
    with pytest.raises(ParseError, match="no text"):
        decoded(pickle.dumps((0, Harm(str, bomb))))


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x00" * 100,
        b"HTTP/1.1 400 Bad Request\r\n",
        pickle.dumps("pong"),
        pickle.dumps((0,)),
        pickle.dumps((2, "x")),
        b"P1\n.",
    ],
)
def test_garbage_is_no_answer(path: Path, garbage: bytes) -> None:
    with pytest.raises(ParseError):
        decoded(garbage)
    with serving(path, saying(garbage + END)), pytest.raises(RetryLater, match="is not fail2ban"):
        Fail2banStore(jail="j", socket=path).observe(datetime.now(UTC))


def test_a_broken_connection_is_made_again_once(path: Path) -> None:
    with serving(path, saying(reply("one")), saying(reply("two"))), Fail2banSocket(path) as server:
        assert server.ask("ping") == "one"
        assert server.ask("ping") == "two"


def test_a_connection_that_breaks_twice_is_out_of_reach(path: Path) -> None:
    hang_up = saying(b"")
    answer = f"does not answer at {path}: is it running"
    with serving(path, hang_up, hang_up), Fail2banSocket(path) as server, pytest.raises(RetryLater, match=answer):
        server.ask("ping")


def test_a_missing_socket_and_a_stale_one_are_out_of_reach(path: Path) -> None:
    for _ in range(2):
        with Fail2banSocket(path) as server, pytest.raises(RetryLater, match="is it running"):
            server.ask("ping")
        if not path.exists():
            with socket.socket(socket.AF_UNIX) as stale:
                stale.bind(str(path))


def test_a_silent_server_costs_the_time_limit_only(path: Path) -> None:
    done = threading.Event()

    def meet(connection: socket.socket) -> None:
        request(connection)
        assert done.wait(10)

    with serving(path, meet), Fail2banSocket(path, timeout_s=0.05) as server:
        with pytest.raises(RetryLater, match="in time: is it busy"):
            server.ask("ping")
        done.set()


def test_a_server_that_drips_does_not_outlast_the_time_limit(path: Path) -> None:
    done = threading.Event()

    def meet(connection: socket.socket) -> None:
        request(connection)
        while not done.wait(0.01):
            connection.sendall(b"x")

    with serving(path, meet), Fail2banSocket(path, timeout_s=0.2) as server:
        with pytest.raises(RetryLater, match="in time"):
            server.ask("ping")
        done.set()


def test_an_endless_answer_is_cut_off(path: Path) -> None:
    def meet(connection: socket.socket) -> None:
        request(connection)
        with suppress(ConnectionError):
            while True:
                connection.sendall(b"x" * 65536)

    long = "longer than 1000000 bytes"
    with (
        serving(path, meet),
        Fail2banSocket(path, max_reply=1_000_000) as server,
        pytest.raises(RetryLater, match=long),
    ):
        server.ask("ping")


def test_a_list_of_bans_that_is_no_list_is_an_error_of_one_line(path: Path) -> None:
    with serving(path, saying(reply("token"), reply({"a": 1}))), pytest.raises(RetryLater, match="not a list of text"):
        Fail2banStore(jail="j", socket=path).observe(datetime.now(UTC))


def test_a_jail_that_goes_away_between_two_questions_is_out_of_reach(path: Path) -> None:
    gone = b"\x80\x02K\x01cfail2ban.exceptions\nUnknownJailException\nX\x01\x00\x00\x00j\x85R\x86." + END
    with serving(path, saying(reply("token"), gone)), pytest.raises(RetryLater, match="no jail j"):
        Fail2banStore(jail="j", socket=path).observe(datetime.now(UTC))
