"""After a change of the backend nothing of the one before goes on cutting anybody off."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jailbridge import process
from jailbridge.config import parse
from jailbridge.config.settings import FirewallBackend, FirewallSettings
from jailbridge.daemon import wiring
from jailbridge.daemon.engine import Engine
from jailbridge.daemon.operations import Operations
from jailbridge.ledger import Ledger
from jailbridge.model.network import parse_network
from jailbridge.model.plan import Action, Change
from jailbridge.model.token import Token
from jailbridge.stores import leftovers
from jailbridge.stores.xtables_rules import CHAIN, Family
from jailbridge.tailer.tailer import Tailer
from tests.settings import settings_text

pytestmark = pytest.mark.e2e

BACKENDS = (FirewallBackend.NFTABLES, FirewallBackend.IPSET, FirewallBackend.IPTABLES)


def filled(backend: FirewallBackend) -> None:
    store = wiring.firewall(FirewallSettings(backend=backend))
    changes = [
        Change("firewall", Action.HOOK, None, "test"),
        *(Change("firewall", Action.ADD, parse_network(n), "test") for n in ("192.0.2.7", "2001:db8::/64")),
    ]
    token = Token(ledger="0123456789ab", boot="ba9876543210", layout=store.capabilities.layout, sequence=1)
    assert not store.apply(changes, token, datetime.now(UTC))


def everything() -> str:
    listings = (["nft", "list", "ruleset"], ["ipset", "save"], ["iptables-save"], ["ip6tables-save"])
    return "".join(process.run(words).out for words in listings)


@pytest.mark.parametrize("present", BACKENDS)
@pytest.mark.parametrize("before", BACKENDS)
def test_only_the_present_backend_is_left(
    own_network: Callable[[], None], before: FirewallBackend, present: FirewallBackend
) -> None:
    foreign = ["iptables", "-A", "FORWARD", "-s", "203.0.113.9", "-m", "comment", "--comment", "not ours", "-j", "DROP"]
    assert process.run(foreign).code == 0
    filled(before)
    filled(present)
    # ipset's and iptables' rules stand in the same chain, which the present one has rewritten.
    was_rewritten = before is FirewallBackend.IPTABLES and present is FirewallBackend.IPSET
    assert bool(list(leftovers.clear(present))) is (before is not present and not was_rewritten)
    left = everything()
    assert ("table inet jailbridge" in left) is (present is FirewallBackend.NFTABLES)
    assert ("create jailbridge4" in left) is (present is FirewallBackend.IPSET)
    assert (":jailbridge " in left) is (present is not FirewallBackend.NFTABLES)
    assert "203.0.113.9" in left
    assert wiring.firewall(FirewallSettings(backend=present)).observe(datetime.now(UTC)).enforcing
    assert list(leftovers.clear(present)) == []


# What stands in the comment reads like our own rule and chain, to one who splits lines.
HOSTILE = f'two "lines"\n-A INPUT -m comment --comment {CHAIN} -j {CHAIN}\n-N {CHAIN}\n:{CHAIN} - [0:0]\nit\'s "'


@pytest.mark.parametrize("family", Family)
def test_a_foreign_rule_whose_comment_has_line_breaks_is_neither_ours_nor_a_hindrance(
    own_network: Callable[[], None], family: Family
) -> None:
    filled(FirewallBackend.IPTABLES)
    for chain in ("INPUT", "FORWARD"):
        foreign = [family, "-I", chain, "-p", "tcp", "-m", "comment", "--comment", HOSTILE, "-j", "DROP"]
        assert process.run(foreign).code == 0
    before = process.run([family, "-S"]).out
    assert list(leftovers.clear(FirewallBackend.NFTABLES)) == [f"the chain {CHAIN} of {one}" for one in Family]
    after = process.run([family, "-S"]).out
    assert after.count(HOSTILE.splitlines()[1]) == before.count(HOSTILE.splitlines()[1]) - 1 == 2
    assert list(leftovers.clear(FirewallBackend.NFTABLES)) == []


def test_a_jump_that_lost_its_comment_is_taken_away(own_network: Callable[[], None]) -> None:
    filled(FirewallBackend.IPTABLES)
    assert process.run(["iptables", "-A", "INPUT", "-j", CHAIN]).code == 0
    assert list(leftovers.clear(FirewallBackend.NFTABLES)) == [f"the chain {CHAIN} of {one}" for one in Family]


def test_anothers_rule_that_leads_to_our_chain_stays_and_the_chain_is_empty(own_network: Callable[[], None]) -> None:
    filled(FirewallBackend.IPTABLES)
    assert process.run(["iptables", "-A", "FORWARD", "-s", "203.0.113.9", "-j", CHAIN]).code == 0
    assert list(leftovers.clear(FirewallBackend.NFTABLES)) == [f"the chain {CHAIN} of ip6tables"]
    rules = process.run(["iptables", "-S"]).out.splitlines()
    assert [rule for rule in rules if rule.endswith(f"-j {CHAIN}")] == [f"-A FORWARD -s 203.0.113.9/32 -j {CHAIN}"]
    assert not [rule for rule in rules if rule.startswith(f"-A {CHAIN}")]


def test_a_program_that_does_not_run_keeps_the_rest_for_later_and_never_ends_the_daemon(
    own_network: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    filled(FirewallBackend.IPSET)
    broken = tmp_path / "bin" / "ipset"
    broken.parent.mkdir()
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    monkeypatch.setattr(process, "SEARCH_PATH", f"{broken.parent}{os.pathsep}{process.SEARCH_PATH}")
    settings = parse(settings_text(tmp_path, store="firewall"), "test")
    with Ledger(settings.ledger.path) as ledger:
        operations = Operations(settings, ledger)
        engine = Engine(operations, Tailer([], {}, wake=lambda: None), None)
        engine.make_pass()
        read_again(engine, operations)
        told = [record.message for record in caplog.records if "backend" in record.message]
        assert told == [
            f"the chain {CHAIN} of iptables was another backend's: taken away",
            f"the chain {CHAIN} of ip6tables was another backend's: taken away",
            f"what another backend may have left stays for now: {broken} cannot be started: Exec format error",
        ]
        broken.unlink()
        engine._leftovers_at = 0.0
        read_again(engine, operations)
    assert "jailbridge" not in process.run(["ipset", "list", "-n"]).out


def read_again(engine: Engine, operations: Operations) -> None:
    engine._due = operations.controller._stores["firewall"].read_at = 0.0
    engine.make_pass()
