"""What is carried to a store one change at a time is what it would get if all of it were looked at."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from jailbridge.model.ban import Ban, Origin
from jailbridge.model.network import Network, parse_network
from jailbridge.model.plan import Capabilities
from jailbridge.reconcile.diff import fit
from jailbridge.reconcile.shelf import Shelf

NOW = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
FILE = Capabilities(overlaps=True, ends=False, volatile=False, early=False, limit=4)
ADDRESSES = [parse_network(text) for text in (*(f"192.0.2.{n}" for n in range(8)), "2001:db8::/64", "2001:db8:1::/64")]
lasting = st.one_of(st.none(), st.integers(1, 3))
changes = st.lists(st.tuples(st.sampled_from(ADDRESSES), st.booleans(), lasting), max_size=8)


def ban(network: Network, hours: int | None) -> Ban:
    until = NOW + timedelta(hours=hours) if hours is not None else None
    return Ban(network=network, since=NOW, until=until, origin=Origin.OPERATOR, reason="test")


@given(rounds=st.lists(changes, max_size=6))
def test_a_store_with_a_limit_ends_up_with_the_longest_bans(
    rounds: list[list[tuple[Network, bool, int | None]]],
) -> None:
    wanted: dict[Network, Ban] = {}
    shelf = Shelf(
        name="file",
        capabilities=FILE,
        token=None,
        proven=True,
        enforcing=None,
        foreign=0,
        bans=dict[Network, datetime | None](),
        placements={},
        undecided=set(),
    )
    for some in rounds:
        for network, comes, hours in some:
            if comes:
                wanted[network] = ban(network, hours)
            else:
                wanted.pop(network, None)
            shelf.expect(network)
        shelf.note(shelf.turn(wanted, NOW), [])
        assert set(shelf.bans) == set(fit(wanted, FILE))
        assert not shelf.waiting
