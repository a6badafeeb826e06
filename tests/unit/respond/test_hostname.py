"""The name of an address, as the system's resolver has it."""

import pytest

from jailbridge import process
from jailbridge.model.network import parse_network
from jailbridge.process import Result
from jailbridge.respond.hostname import hostname


def test_the_resolvers_name_is_taken() -> None:
    assert hostname(parse_network("127.0.0.1")) == "localhost"


def test_a_network_has_none() -> None:
    assert hostname(parse_network("127.0.0.0/8")) == ""


@pytest.mark.parametrize(
    "name", ["-rf.example.net", "a;id.example.net", "$(id)", "a/b", "x" * 254, "\u202eevil.example.net", ""]
)
def test_odd_names_are_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A resolver that answers so is not to be had here.
    monkeypatch.setattr(process, "run", lambda *_, **__: Result(code=0, out=f"192.0.2.7 {name}\n", err=""))
    assert hostname(parse_network("192.0.2.7")) == ""
