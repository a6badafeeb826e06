"""Which store is which class."""

import pytest

from jailbridge import process
from jailbridge.config.settings import FirewallBackend, FirewallSettings, Settings
from jailbridge.daemon import wiring
from jailbridge.stores.ipset import IpsetStore
from jailbridge.stores.iptables import IptablesStore
from jailbridge.stores.nftables import NftablesStore


def settings(**firewall: object) -> FirewallSettings:
    return FirewallSettings.model_validate(firewall)


@pytest.mark.parametrize(
    ("asked", "present", "meant"),
    [
        ({}, {"nft", "ipset", "iptables"}, FirewallBackend.NFTABLES),
        ({}, {"ipset", "iptables"}, FirewallBackend.IPSET),
        ({}, {"iptables"}, FirewallBackend.NFTABLES),
        ({}, set(), FirewallBackend.NFTABLES),
        ({"hook": "after:whitelist"}, {"nft"}, FirewallBackend.IPSET),
        ({"target": "REJECT"}, {"nft"}, FirewallBackend.IPSET),
        ({"backend": "iptables"}, {"nft"}, FirewallBackend.IPTABLES),
        ({"backend": "nftables"}, {"ipset", "iptables"}, FirewallBackend.NFTABLES),
    ],
)
def test_the_backend_is_the_one_that_can_do_what_is_asked(
    asked: dict[str, object], present: set[str], meant: FirewallBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "has", lambda program: program in present)
    assert wiring.backend(settings(**asked)) is meant


@pytest.mark.parametrize(
    ("backend", "kind"), [("nftables", NftablesStore), ("ipset", IpsetStore), ("iptables", IptablesStore)]
)
def test_each_backend_is_a_store_of_its_own(backend: str, kind: type) -> None:
    assert isinstance(wiring.firewall(settings(backend=backend)), kind)


def test_what_cuts_a_source_off_is_written_first_and_what_is_disabled_not_at_all() -> None:
    assert [attached.store.name for attached in wiring.attached_stores(Settings())] == [
        "firewall",
        "fail2ban",
        "hosts_deny",
    ]
    off = {"enabled": False}
    none = Settings.model_validate({"stores": {"firewall": off, "fail2ban": off, "hosts_deny": off}})
    assert list(wiring.attached_stores(none)) == []
