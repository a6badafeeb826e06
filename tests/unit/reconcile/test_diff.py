"""The planner: a test for each row of its truth table, and for what a store can hold."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest

from jailbridge.model.ban import Ban, Decision, Origin
from jailbridge.model.network import Network, NetworkSet, network_text, parse_network
from jailbridge.model.plan import Capabilities, External, Observation, ObservedBan, Placement
from jailbridge.model.token import TokenState
from jailbridge.reconcile.diff import END_TOLERANCE, Desired, Presence, View, fit, presence
from jailbridge.reconcile.verdicts import Outcome, outcome

NOW = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
WIDE = Capabilities(overlaps=True, ends=False, volatile=False, early=False)
NARROW = Capabilities(overlaps=False, ends=True, volatile=True, early=True)
EXEMPT = "198.51.100.1"


def net(text: str) -> Network:
    return parse_network(text)


def ban(network: str, until: datetime | None = None, since: datetime = NOW) -> Ban:
    return Ban(network=net(network), since=since, until=until, origin=Origin.SENSOR, reason="scan")


def bans(*networks: str) -> Mapping[Network, Ban]:
    return {net(network): ban(network) for network in networks}


def view(
    *observed: str | ObservedBan,
    capabilities: Capabilities = WIDE,
    placements: Mapping[str, Placement] | None = None,
    token: TokenState = TokenState.CURRENT,
    external: External = External.REVERT,
    enforcing: bool | None = None,
    ever_written: bool = True,
    written: datetime | None = None,
    name: str = "store",
) -> View:
    held = tuple(o if isinstance(o, ObservedBan) else ObservedBan(network=net(o)) for o in observed)
    return View(
        name=name,
        capabilities=capabilities,
        external=external,
        observation=Observation(token="t", enforcing=enforcing, bans=held, foreign=3),
        placements={net(network): state for network, state in (placements or {}).items()},
        token=token,
        ever_written=ever_written,
        written=written,
    )


def unreachable(name: str = "store") -> View:
    return View(
        name=name, capabilities=WIDE, external=External.REVERT, observation=None, placements={}, problem="no answer"
    )


def take(observed: ObservedBan, store: str) -> Decision:
    found = Ban(network=observed.network, since=NOW, until=None, origin=Origin.STORE, reason=f"found in {store}")
    return Decision(network=observed.network, ban=found, why=found.reason)


def decline(observed: ObservedBan, _: str) -> Decision:
    return Decision(network=observed.network, ban=None, why="no")


def is_exempt(observed: ObservedBan, _: bool) -> bool:
    return observed.network == net(EXEMPT)


def planned(
    wanted: Mapping[Network, Ban],
    *views: View,
    adopt: Callable[[ObservedBan, str], Decision] | None = take,
    room: int = 1000,
    forced: bool = False,
) -> Outcome:
    return outcome(Desired(wanted), views, is_exempt, adopt, NOW, room=room, forced=forced)


def steps(result: Outcome) -> list[tuple[str, str, str]]:
    return [
        (change.store, change.action.value, network_text(change.network) if change.network is not None else "-")
        for change in result.plan.changes
    ]


def own(result: Outcome) -> list[tuple[str, str]]:
    return [(action, network) for _, action, network in steps(result)]


# the rows of the truth table


@pytest.mark.parametrize(("held", "wanted"), [(HOUR, 2 * HOUR), (2 * HOUR, HOUR), (None, HOUR), (HOUR, None)])
def test_row_desired_and_observed_with_another_end_is_updated(held: timedelta | None, wanted: timedelta | None) -> None:
    until = NOW + wanted if wanted is not None else None
    seen = ObservedBan(network=net("192.0.2.7"), until=NOW + held if held is not None else None)
    result = planned({net("192.0.2.7"): ban("192.0.2.7", until)}, view(seen, capabilities=NARROW))
    assert own(result) == [("update", "192.0.2.7")]
    assert result.plan.changes[0].until == until


def test_row_desired_and_observed_is_left_alone() -> None:
    assert own(planned(bans("192.0.2.7"), view("192.0.2.7"))) == []
    result = planned(bans("192.0.2.7"), view("192.0.2.7"))
    assert result.plan.agrees


@pytest.mark.parametrize("off", [timedelta(0), END_TOLERANCE, -END_TOLERANCE])
def test_row_desired_and_observed_with_almost_the_same_end_is_left_alone(off: timedelta) -> None:
    seen = ObservedBan(network=net("192.0.2.7"), until=NOW + HOUR + off)
    wanted = {net("192.0.2.7"): ban("192.0.2.7", NOW + HOUR)}
    assert own(planned(wanted, view(seen, capabilities=NARROW))) == []
    later = ObservedBan(network=net("192.0.2.7"), until=NOW + HOUR + 2 * (off or END_TOLERANCE))
    assert own(planned(wanted, view(later, capabilities=NARROW))) == [("update", "192.0.2.7")]


def test_an_end_means_nothing_to_a_store_that_keeps_none() -> None:
    wanted = {net("192.0.2.7"): ban("192.0.2.7", NOW + HOUR)}
    assert own(planned(wanted, view("192.0.2.7"))) == []


@pytest.mark.parametrize("capabilities", [WIDE, NARROW])
def test_row_desired_and_covered_by_what_is_desired_is_left_alone(capabilities: Capabilities) -> None:
    wanted = bans("192.0.2.0/24", "192.0.2.7")
    held = view("192.0.2.0/24", *(["192.0.2.7"] if capabilities.overlaps else []), capabilities=capabilities)
    assert own(planned(wanted, held)) == []


@pytest.mark.parametrize("placement", [None, Placement.ATTEMPTED])
@pytest.mark.parametrize("token", TokenState)
@pytest.mark.parametrize("external", External)
def test_row_desired_not_observed_and_never_seen_there_is_added(
    placement: Placement | None, token: TokenState, external: External
) -> None:
    placements = {"192.0.2.7": placement} if placement else {}
    result = planned(bans("192.0.2.7"), view(placements=placements, token=token, external=external))
    assert own(result) == [("add", "192.0.2.7")]
    assert result.plan.changes[0].why == "scan"


@pytest.mark.parametrize(
    ("token", "external", "why"),
    [
        (TokenState.STALE, External.ADOPT, "lost there"),
        (TokenState.ABSENT, External.ADOPT, "lost there"),
        (TokenState.AHEAD, External.ADOPT, "lost there"),
        (TokenState.ABSENT, External.REVERT, "lost there"),
        (TokenState.CURRENT, External.REVERT, "jailbridge unban"),
    ],
)
def test_row_desired_not_observed_and_seen_there_before_is_added_back_where_nothing_may_be_inferred(
    token: TokenState, external: External, why: str
) -> None:
    result = planned(bans("192.0.2.7"), gone("192.0.2.7", token=token, external=external))
    assert own(result) == [("add", "192.0.2.7")]
    assert why in result.plan.changes[0].why
    assert result.unbanned == {"store": ()}


def test_row_desired_not_observed_and_seen_there_before_is_a_wish_and_ends_the_ban_everywhere() -> None:
    other = view("192.0.2.7", "192.0.2.8", placements=confirmed("192.0.2.7", "192.0.2.8"), name="other")
    missing = gone("192.0.2.7", "192.0.2.8", held=("192.0.2.8",))
    result = planned(bans("192.0.2.7", "192.0.2.8"), other, missing)
    assert steps(result) == [("store", "unban", "192.0.2.7"), ("other", "remove", "192.0.2.7")]
    assert result.unbanned == {"other": (), "store": (net("192.0.2.7"),)}
    assert result.plan.changes[0].why == "taken out of store"
    assert not result.plan.agrees


@pytest.mark.parametrize(("ended", "action"), [(-HOUR, "add"), (timedelta(0), "add"), (HOUR, "unban"), (None, "unban")])
def test_row_desired_not_observed_at_or_after_the_stores_own_end_is_added_back(
    ended: timedelta | None, action: str
) -> None:
    end = NOW + ended if ended is not None else None
    keeps_ends = gone("192.0.2.7", capabilities=NARROW, own_end=end)
    wanted = {net("192.0.2.7"): ban("192.0.2.7", NOW + 2 * HOUR)}
    assert own(planned(wanted, keeps_ends)) == [(action, "192.0.2.7")]
    whys = {"add": "ran out there", "unban": "taken out of store"}
    assert planned(wanted, keeps_ends).plan.changes[0].why == whys[action]
    keeps_none = gone("192.0.2.7", own_end=end)
    assert own(planned(wanted, keeps_none)) == [("unban", "192.0.2.7")]


@pytest.mark.parametrize(
    ("held", "lacking", "is_wish"),
    [(0, 1, True), (0, 3, True), (0, 4, False), (36, 4, True), (35, 4, False), (90, 10, True), (90, 11, False)],
)
def test_row_more_than_three_and_a_tenth_gone_at_once_is_a_loss(held: int, lacking: int, is_wish: bool) -> None:
    networks = [f"10.0.{n}.1" for n in range(held + lacking)]
    missing = gone(*networks, held=networks[:held])
    assert own(planned(bans(*networks), missing)) == [("unban" if is_wish else "add", n) for n in networks[held:]]
    assert own(planned(bans(*networks), missing, forced=True)) == [("unban", n) for n in networks[held:]]


def test_what_was_only_attempted_does_not_count_as_gone() -> None:
    networks = [f"10.0.0.{n}" for n in range(20)]
    missing = gone(networks[0], attempted=networks[1:])
    assert own(planned(bans(*networks), missing))[0] == ("unban", networks[0])


def test_exempt_beats_unban_what_is_masked_is_not_desired_and_nobody_takes_it_for_a_wish() -> None:
    assert own(planned({}, gone(EXEMPT))) == []


def test_unban_beats_adopt_what_another_store_holds_of_it_goes() -> None:
    missing, found = gone("192.0.2.0/24", name="one"), view("192.0.2.7", external=External.ADOPT, name="two")
    result = planned(bans("192.0.2.0/24"), missing, found)
    assert ("one", "unban", "192.0.2.0/24") in steps(result)
    assert "adopt" not in [action for _, action, _ in steps(result)]


def test_unban_beats_loss_what_one_store_lost_and_another_was_told_to_drop_is_not_put_back() -> None:
    lost = gone("192.0.2.7", token=TokenState.ABSENT, name="lost")
    assert steps(planned(bans("192.0.2.7"), lost, gone("192.0.2.7"))) == [("store", "unban", "192.0.2.7")]


def test_adopt_beats_loss_what_a_find_covers_is_not_put_back_in_a_store_without_overlaps() -> None:
    lost = gone("192.0.2.7", token=TokenState.ABSENT, name="lost", capabilities=NARROW)
    found = view("192.0.2.0/24", "192.0.2.7", external=External.ADOPT, placements=confirmed("192.0.2.7"))
    result = planned(bans("192.0.2.7"), lost, found)
    assert steps(result) == [("store", "adopt", "192.0.2.0/24"), ("lost", "add", "192.0.2.0/24")]


def test_a_ban_that_another_still_covers_in_the_store_is_no_wish() -> None:
    covered = gone("192.0.2.7", "192.0.2.0/24", held=["192.0.2.0/24"])
    assert own(planned(bans("192.0.2.7", "192.0.2.0/24"), covered)) == []


def test_a_ban_for_which_the_store_has_no_room_is_no_wish() -> None:
    full = gone("192.0.2.7", "192.0.2.8", held=["192.0.2.8"], capabilities=limited(1))
    wanted = {net(n): ban(n, NOW + hours * HOUR) for n, hours in (("192.0.2.7", 1), ("192.0.2.8", 2))}
    assert own(planned(wanted, full)) == []


def test_an_older_ledger_removes_nothing_that_a_later_one_may_have_written_but_takes_it_over() -> None:
    """Its placements are those of its own time."""
    held = view("192.0.2.7", placements=confirmed("192.0.2.7"), token=TokenState.AHEAD)
    assert own(planned({}, held)) == [("adopt", "192.0.2.7")]
    assert own(planned({}, held, adopt=None)) == []
    assert own(planned({}, held, adopt=decline)) == [("remove", "192.0.2.7")]


def confirmed(*networks: str) -> Mapping[str, Placement]:
    return dict.fromkeys(networks, Placement.CONFIRMED)


def gone(
    *networks: str,
    held: Iterable[str] = (),
    attempted: Iterable[str] = (),
    capabilities: Capabilities = WIDE,
    token: TokenState = TokenState.CURRENT,
    external: External = External.ADOPT,
    own_end: datetime | None = None,
    name: str = "store",
) -> View:
    """Return a store in which these were seen before, and now are not, but for those that are `held`."""
    placements = {**confirmed(*networks), **dict.fromkeys(attempted, Placement.ATTEMPTED)}
    seen = view(*held, capabilities=capabilities, placements=placements, token=token, external=external, name=name)
    return replace(seen, own_end=lambda _: own_end)


@pytest.mark.parametrize(
    ("held", "wanted", "is_updated"),
    [
        (timedelta(days=24), timedelta(days=300), False),
        (timedelta(days=13), timedelta(days=300), False),
        (timedelta(days=11), timedelta(days=300), True),
        (timedelta(days=11), timedelta(days=11), False),
        (timedelta(days=24), timedelta(days=11), True),
        (None, timedelta(days=300), True),
        (timedelta(days=24), None, True),
    ],
)
def test_an_end_further_than_the_store_can_count_is_armed_again_in_time(
    held: timedelta | None, wanted: timedelta | None, is_updated: bool
) -> None:
    short = Capabilities(overlaps=True, ends=True, volatile=True, early=True, longest=timedelta(seconds=2_147_483))
    seen = ObservedBan(network=net("192.0.2.7"), until=NOW + held if held is not None else None)
    until = NOW + wanted if wanted is not None else None
    result = planned({net("192.0.2.7"): ban("192.0.2.7", until)}, view(seen, capabilities=short))
    assert own(result) == ([("update", "192.0.2.7")] if is_updated else [])


@pytest.mark.parametrize("placement", Placement)
@pytest.mark.parametrize("token", [TokenState.CURRENT, TokenState.STALE, TokenState.ABSENT])
@pytest.mark.parametrize("external", External)
@pytest.mark.parametrize("ever_written", [True, False])
def test_row_placed_here_and_no_longer_desired_is_removed(
    placement: Placement, token: TokenState, external: External, ever_written: bool
) -> None:
    held = view(
        "192.0.2.7", placements={"192.0.2.7": placement}, token=token, external=external, ever_written=ever_written
    )
    for adopt in (take, decline, None):
        assert own(planned({}, held, adopt=adopt)) == [("remove", "192.0.2.7")]
        assert planned({}, held, adopt=adopt).plan.changes[0].why == "ended"


@pytest.mark.parametrize("token", TokenState)
@pytest.mark.parametrize("external", External)
@pytest.mark.parametrize("ever_written", [True, False])
def test_row_unknown_and_exempt_or_ended_before_is_removed(
    token: TokenState, external: External, ever_written: bool
) -> None:
    held = view(EXEMPT, token=token, external=external, ever_written=ever_written)
    assert own(planned({}, held)) == [("remove", EXEMPT)]
    assert own(planned({}, held, adopt=None)) == [("remove", EXEMPT)], "its cause is recorded"


def test_row_unknown_and_covered_by_what_is_desired_is_left_alone_where_both_can_be_held() -> None:
    assert own(planned(bans("192.0.2.0/24"), view("192.0.2.0/24", "192.0.2.7", external=External.ADOPT))) == []
    result = planned(bans("192.0.2.0/24"), view("192.0.2.0/24", "192.0.2.7", capabilities=NARROW))
    assert own(result) == [("remove", "192.0.2.7")]
    assert result.plan.changes[0].why == "covered"


def test_row_unknown_by_a_person_is_adopted_where_the_token_is_current_and_external_says_so() -> None:
    result = planned({}, view("192.0.2.7", external=External.ADOPT))
    assert own(result) == [("adopt", "192.0.2.7")]
    assert [found.network for found in result.adopted["store"]] == [net("192.0.2.7")]


def test_row_unknown_by_another_ledger_is_adopted_whatever_external_says() -> None:
    for external in External:
        ahead = view("192.0.2.7", token=TokenState.AHEAD, external=external)
        never = view("192.0.2.7", token=TokenState.ABSENT, external=external, ever_written=False)
        assert own(planned({}, ahead)) == [("adopt", "192.0.2.7")]
        assert own(planned({}, never)) == [("adopt", "192.0.2.7")]


@pytest.mark.parametrize(
    ("token", "external"),
    [
        (TokenState.STALE, External.ADOPT),
        (TokenState.ABSENT, External.ADOPT),
        (TokenState.STALE, External.REVERT),
        (TokenState.ABSENT, External.REVERT),
        (TokenState.CURRENT, External.REVERT),
    ],
)
def test_row_unknown_otherwise_is_removed(token: TokenState, external: External) -> None:
    result = planned({}, view("192.0.2.7", token=token, external=external))
    assert own(result) == [("remove", "192.0.2.7")]
    assert result.plan.changes[0].why == "not in the ledger"
    assert result.adopted == {"store": ()}


@pytest.mark.parametrize("token", [TokenState.STALE, TokenState.ABSENT])
def test_row_unknown_and_younger_than_the_last_writing_is_adopted_where_external_says_so(token: TokenState) -> None:
    """A restart of fail2ban takes its token, and the ledger may be an older copy, or nobody was there to notice."""

    def steps_of(since: datetime | None, written: datetime | None, external: External = External.ADOPT) -> list[str]:
        held = ObservedBan(net("192.0.2.7"), since=since)
        return [action for action, _ in own(planned({}, view(held, token=token, external=external, written=written)))]

    assert steps_of(NOW, NOW - SECOND) == ["adopt"]
    assert steps_of(NOW - SECOND, NOW - SECOND) == ["remove"], "it was seen then, or is an older copy's"
    assert steps_of(NOW + SECOND, NOW - SECOND) == ["remove"], "the clock was set back"
    assert steps_of(NOW, NOW - SECOND, External.REVERT) == ["remove"]
    assert steps_of(None, NOW - SECOND) == steps_of(NOW, None) == ["remove"]


def test_what_is_younger_than_the_last_writing_needs_room_and_waits_for_it() -> None:
    young = [ObservedBan(net(f"192.0.2.{n}"), since=NOW) for n in (1, 2)]
    held = view(*young, token=TokenState.ABSENT, external=External.ADOPT, written=NOW - SECOND)
    result = planned({}, held, room=1)
    assert own(result) == [("adopt", "192.0.2.1")]
    assert result.undecided == {"store": {net("192.0.2.2")}}
    assert result.braked == 1


# policy


def test_what_policy_declines_to_adopt_is_removed() -> None:
    assert own(planned({}, view("192.0.2.7", external=External.ADOPT), adopt=decline)) == [("remove", "192.0.2.7")]


@pytest.mark.parametrize("token", TokenState)
@pytest.mark.parametrize("external", External)
def test_while_policy_cannot_decide_what_is_unknown_stays_as_it_is(token: TokenState, external: External) -> None:
    held = view("192.0.2.7", token=token, external=external)
    assert own(planned({}, held, adopt=None)) == []
    assert own(planned(bans("192.0.2.8"), held, adopt=None)) == [("add", "192.0.2.8")]


def test_while_policy_cannot_decide_an_unknown_network_that_stays_covers_what_is_in_it() -> None:
    for capabilities in (WIDE, NARROW):
        held = view("192.0.2.0/24", capabilities=capabilities)
        assert own(planned(bans("192.0.2.7"), held, adopt=None)) == []
    assert own(planned(bans("192.0.2.0/23"), view("192.0.2.0/24", capabilities=NARROW), adopt=None)) == [
        ("remove", "192.0.2.0/24"),
        ("add", "192.0.2.0/23"),
    ]


# the brake


def test_what_persons_put_there_is_adopted_as_far_as_there_is_room_and_the_rest_left_alone() -> None:
    one = view("192.0.2.1", "192.0.2.2", "192.0.2.3", external=External.ADOPT, name="one")
    two = view("192.0.2.4", "192.0.2.5", external=External.ADOPT, name="two")
    result = planned({}, one, two, room=4)
    adopted = [network for _, action, network in steps(result) if action == "adopt"]
    assert adopted == ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]
    assert not [step for step in steps(result) if step[1] == "remove"]
    assert result.undecided == {"one": set(), "two": {net("192.0.2.5")}}


def test_without_room_what_is_exempt_or_ended_is_removed_all_the_same() -> None:
    held = view(
        EXEMPT, "192.0.2.7", "192.0.2.8", placements={"192.0.2.8": Placement.CONFIRMED}, external=External.ADOPT
    )
    assert own(planned({}, held, room=0)) == [("remove", EXEMPT), ("remove", "192.0.2.8")]


def test_what_another_ledger_wrote_needs_no_room() -> None:
    ahead = view("192.0.2.1", "192.0.2.2", token=TokenState.AHEAD)
    assert own(planned({}, ahead, room=0)) == [("adopt", "192.0.2.1"), ("adopt", "192.0.2.2")]


# several stores


def test_what_one_store_has_adopted_the_others_are_given_in_the_same_plan() -> None:
    result = planned(
        bans("192.0.2.7"),
        view("192.0.2.7", name="one"),
        view("192.0.2.7", "192.0.2.8", external=External.ADOPT, name="two"),
        view("192.0.2.7", "192.0.2.8", external=External.ADOPT, name="three"),
    )
    assert steps(result) == [("two", "adopt", "192.0.2.8"), ("one", "add", "192.0.2.8")]


def test_a_store_that_would_remove_a_ban_keeps_it_if_another_adopts_it() -> None:
    stale = view("192.0.2.8", token=TokenState.STALE, name="stale")
    person = view("192.0.2.8", external=External.ADOPT, name="person")
    for views in permutations([stale, person]):
        assert steps(planned({}, *views)) == [("person", "adopt", "192.0.2.8")]


def test_what_lies_in_an_adopted_network_is_not_adopted_too() -> None:
    one = view("192.0.2.0/24", external=External.ADOPT, name="one")
    two = view("192.0.2.7", external=External.ADOPT, name="two")
    assert steps(planned({}, one, two)) == [("one", "adopt", "192.0.2.0/24"), ("two", "add", "192.0.2.0/24")]


def test_a_store_out_of_reach_changes_nothing_for_the_others() -> None:
    result = planned(bans("192.0.2.7"), unreachable("gone"), view(name="here"))
    assert steps(result) == [("here", "add", "192.0.2.7")]
    summary = result.plan.stores["gone"]
    assert (summary.reachable, summary.enforcing, summary.problem) == (False, None, "no answer")
    assert (summary.desired, summary.observed) == (1, 0)
    assert not planned({}, unreachable()).plan.agrees


def test_a_summary_counts_what_is_desired_observed_and_foreign() -> None:
    summary = planned(bans("192.0.2.7", "192.0.2.0/24"), view("192.0.2.9", capabilities=NARROW)).plan.stores["store"]
    assert (summary.reachable, summary.desired, summary.observed, summary.foreign) == (True, 1, 1, 3)


# in force


@pytest.mark.parametrize(("enforcing", "hooks"), [(False, 1), (True, 0), (None, 0)])
def test_a_store_that_is_not_in_force_is_hooked_first(enforcing: bool | None, hooks: int) -> None:
    result = planned(bans("192.0.2.7"), view("192.0.2.8", enforcing=enforcing))
    assert [action for action, _ in own(result)] == ["hook"] * hooks + ["remove", "add"]


# what a store can hold


def test_removals_come_before_additions() -> None:
    result = planned(bans("10.0.0.0/7"), view("10.0.0.0/8", "192.0.2.7", capabilities=NARROW))
    assert own(result) == [("remove", "10.0.0.0/8"), ("remove", "192.0.2.7"), ("add", "10.0.0.0/7")]


def test_a_store_without_overlaps_gets_the_maximal_networks_and_back() -> None:
    wanted = bans("10.0.0.1", "10.0.0.0/8", "10.1.0.0/16", "2001:db8::/64", "2001:db8::7", "192.0.2.7")
    assert set(fit(wanted, NARROW)) == {net("10.0.0.0/8"), net("2001:db8::/64"), net("192.0.2.7")}
    assert fit(wanted, WIDE) == wanted
    inner = {network: ban for network, ban in wanted.items() if network != net("10.0.0.0/8")}
    held = view(
        "10.0.0.0/8", "2001:db8::/64", "192.0.2.7", capabilities=NARROW, placements={"10.0.0.0/8": Placement.CONFIRMED}
    )
    assert own(planned(inner, held)) == [("remove", "10.0.0.0/8"), ("add", "10.0.0.1"), ("add", "10.1.0.0/16")]


def limited(limit: int) -> Capabilities:
    return Capabilities(overlaps=True, ends=False, volatile=False, early=False, limit=limit)


def test_of_too_many_the_longest_bans_are_held_and_of_equal_ones_the_oldest() -> None:
    listed = [
        ban("192.0.2.1", NOW + HOUR),
        ban("192.0.2.2", NOW + 3 * HOUR),
        ban("192.0.2.3", None, since=NOW - HOUR),
        ban("192.0.2.4", None),
        ban("192.0.2.5", NOW + 2 * HOUR),
    ]
    wanted = {one.network: one for one in listed}
    order = ["192.0.2.3", "192.0.2.4", "192.0.2.2", "192.0.2.5", "192.0.2.1"]
    for limit in range(1, 6):
        assert set(fit(wanted, limited(limit))) == {net(text) for text in order[:limit]}


def test_which_ones_are_held_does_not_depend_on_any_order() -> None:
    networks = ["192.0.2.1", "192.0.2.9", "2001:db8::1", "10.0.0.0/8"]
    held = {frozenset(fit(bans(*order), limited(2))) for order in permutations(networks)}
    assert len(held) == 1


def test_what_is_over_the_limit_goes_and_comes_back_when_there_is_room() -> None:
    short, long = ban("192.0.2.1", NOW + HOUR), ban("192.0.2.2")
    wanted = {short.network: short, long.network: long}
    held = view("192.0.2.1", capabilities=limited(1), placements={"192.0.2.1": Placement.CONFIRMED})
    result = planned(wanted, held)
    assert own(result) == [("remove", "192.0.2.1"), ("add", "192.0.2.2")]
    assert result.plan.changes[0].why == "over its limit"
    assert own(planned({short.network: short}, view(capabilities=limited(1)))) == [("add", "192.0.2.1")]


def test_a_network_over_the_limit_covers_nothing() -> None:
    wide, host = ban("10.0.0.0/8", NOW + HOUR), ban("192.0.2.2")
    wanted = {wide.network: wide, host.network: host}
    held = view("10.0.0.1", capabilities=limited(1), placements={"10.0.0.1": Placement.CONFIRMED})
    assert own(planned(wanted, held)) == [("remove", "10.0.0.1"), ("add", "192.0.2.2")]
    assert own(planned(wanted, view("10.0.0.1", capabilities=limited(1)))) == [
        ("remove", "10.0.0.1"),
        ("add", "192.0.2.2"),
    ]


def test_what_we_placed_inside_a_desired_network_goes_when_it_ended() -> None:
    held = view(
        "10.0.0.0/8", "10.0.0.1", placements={"10.0.0.1": Placement.CONFIRMED, "10.0.0.0/8": Placement.CONFIRMED}
    )
    assert own(planned(bans("10.0.0.0/8"), held)) == [("remove", "10.0.0.1")]


def test_the_plan_is_in_the_stores_order() -> None:
    result = planned(bans("192.0.2.7"), view(name="b"), view(name="a"))
    assert steps(result) == [("b", "add", "192.0.2.7"), ("a", "add", "192.0.2.7")]


# presence


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("192.0.2.7", Presence.PRESENT),
        ("10.0.0.1", Presence.COVERED),
        ("192.0.2.9", Presence.MISSING),
        ("192.0.2.10", Presence.UNSUPPORTED),
    ],
)
def test_a_store_has_a_ban_or_covers_it_or_lacks_it_or_cannot_hold_it(network: str, expected: Presence) -> None:
    fitted, observed = bans("192.0.2.7", "192.0.2.9", "10.0.0.1"), networks("192.0.2.7", "10.0.0.0/8")
    assert presence(net(network), fitted, NetworkSet(observed)) is expected


def networks(*texts: str) -> Iterable[Network]:
    return [net(text) for text in texts]
