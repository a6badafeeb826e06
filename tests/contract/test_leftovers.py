"""After a change of the backend nothing of the one before goes on cutting anybody off."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from jailbridge import process
from jailbridge.config.settings import FirewallBackend, FirewallSettings
from jailbridge.daemon import wiring
from jailbridge.model.network import parse_network
from jailbridge.model.plan import Action, Change
from jailbridge.model.token import Token
from jailbridge.stores import leftovers

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
    assert bool(leftovers.clear(present)) is (before is not present and not was_rewritten)
    left = everything()
    assert ("table inet jailbridge" in left) is (present is FirewallBackend.NFTABLES)
    assert ("create jailbridge4" in left) is (present is FirewallBackend.IPSET)
    assert (":jailbridge " in left) is (present is not FirewallBackend.NFTABLES)
    assert "203.0.113.9" in left
    assert wiring.firewall(FirewallSettings(backend=present)).observe(datetime.now(UTC)).enforcing
    assert leftovers.clear(present) == ()
