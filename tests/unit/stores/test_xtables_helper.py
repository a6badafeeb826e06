"""The helper process refuses every word that we would not write; python-iptables itself is tried in tests/contract."""

import io
import json
from typing import Any

import pytest

from jailbridge.stores.iptc_helper import Refused, check, serve

RULE: dict[str, Any] = {
    "target": "DROP",
    "options": [],
    "protocol": None,
    "source": "192.0.2.7/32",
    "match_set": None,
    "comment": None,
}


def answers(*requests: object) -> list[dict[str, str]]:
    given = "".join(one if isinstance(one, str) else json.dumps(one) + "\n" for one in requests)
    out = io.StringIO()
    serve(io.StringIO(given), out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_nothing_is_written_without_the_lock() -> None:
    (answer,) = answers({"ask": "write", "family": "iptables", "steps": [["append", "jailbridge", 0, RULE]]})
    assert answer == {"refused": "other", "why": "the xtables lock is not held"}


@pytest.mark.parametrize(
    "request_",
    [
        "\n",
        "{\n",
        "[]\n",
        "5\n",
        '{"ask": "run"}\n',
        '{"ask": "write"}\n',
        "\u00e4\n",
        '{"ask": "write", "family": "arptables", "steps": []}\n',
    ],
)
def test_what_is_no_request_is_answered_and_the_next_one_too(request_: str) -> None:
    first, second = answers(request_, {"ask": "unlock"})
    assert first["refused"] == "other"
    assert second == {}


@pytest.mark.parametrize(
    "step",
    [
        ["append", "jailbridge", 0, RULE],
        ["insert", "INPUT", 1, {**RULE, "source": None, "target": "jailbridge", "comment": "jailbridge"}],
        ["delete", "DOCKER-USER", 0, {**RULE, "match_set": "jailbridge4"}],
        ["make", "jailbridge-probe", 0, None],
        ["append", "jailbridge", 0, {**RULE, "target": "REJECT", "options": ["--reject-with", "tcp-reset"]}],
        ["append", "jailbridge", 0, {**RULE, "target": "TARPIT", "options": ["--tarpit"], "protocol": "tcp"}],
    ],
)
def test_our_own_steps_pass(step: list[object]) -> None:
    check(step, "iptables")


@pytest.mark.parametrize(
    "step",
    [
        [],
        "append",
        ["flush", "INPUT", 0, None],
        ["remove", "FORWARD", 0, None],
        ["append", "OUTPUT", 0, RULE],
        ["append", "jailbridge", 1, RULE],
        ["insert", "INPUT", 0, RULE],
        ["insert", "INPUT", 1 << 20, RULE],
        ["append", "jailbridge", 0, {**RULE, "target": "NFLOG"}],
        ["append", "jailbridge", 0, {**RULE, "target": "ACCEPT"}],
        ["append", "jailbridge", 0, {**RULE, "options": ["--nflog-prefix", "x"]}],
        ["append", "jailbridge", 0, {**RULE, "target": "REJECT", "options": []}],
        ["append", "jailbridge", 0, {**RULE, "target": "REJECT", "options": ["--reject-with", "!tcp-reset"]}],
        ["append", "jailbridge", 0, {**RULE, "comment": "a b"}],
        ["append", "jailbridge", 0, {**RULE, "comment": "x" * 201}],
        ["append", "jailbridge", 0, {**RULE, "comment": ["a"]}],
        ["append", "jailbridge", 0, {**RULE, "match_set": "!a"}],
        ["append", "jailbridge", 0, {**RULE, "protocol": "udp"}],
        ["append", "jailbridge", 0, {**RULE, "source": "!192.0.2.7"}],
        ["append", "jailbridge", 0, {**RULE, "source": "2001:db8::/64"}],
        ["append", "jailbridge", 0, {**RULE, "source": 5}],
        ["append", "jailbridge", 0, {**RULE, "source": "192.0.2.7/24"}],
        ["append", "jailbridge", 0, {"target": "DROP"}],
        ["append", "jailbridge", 0, None],
    ],
)
def test_no_other_step_comes_near_the_c_code(step: object) -> None:
    with pytest.raises(Refused):
        check(step, "iptables")
