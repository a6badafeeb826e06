import pytest

from jailbridge.model.network import parse_network
from jailbridge.model.plan import Action, Change, Plan, StoreSummary


def summary(*, reachable: bool = True, enforcing: bool | None = True) -> StoreSummary:
    return StoreSummary(reachable=reachable, enforcing=enforcing, desired=1, observed=1)


@pytest.mark.parametrize("enforcing", [True, None])
def test_a_plan_without_changes_over_stores_in_force_agrees(enforcing: bool | None) -> None:
    assert Plan(changes=(), stores={"firewall": summary(enforcing=enforcing)}).agrees
    assert Plan(changes=(), stores={}).agrees


@pytest.mark.parametrize("bad", [summary(reachable=False), summary(enforcing=False)])
def test_a_store_out_of_reach_or_not_in_force_is_no_agreement(bad: StoreSummary) -> None:
    assert not Plan(changes=(), stores={"fail2ban": summary(), "firewall": bad}).agrees


def test_a_change_is_no_agreement() -> None:
    change = Change(store="firewall", action=Action.ADD, network=parse_network("192.0.2.7"), why="missing")
    assert not Plan(changes=(change,), stores={"firewall": summary()}).agrees
