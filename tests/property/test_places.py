"""Placements read back as they were written, whichever of the bans and of others they are of."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from jailbridge.ledger import Ledger
from jailbridge.model.ban import Ban, EndReason, Origin
from jailbridge.model.network import Network
from jailbridge.model.plan import Placement

NOW = datetime(2026, 11, 22, 6, 30, 59, tzinfo=UTC)
NETWORKS = [Network(4, 0xC0000200 + n, 32) for n in range(8)] + [Network(6, 0x20010DB8 << 96, 64)]
SOME = st.sets(st.sampled_from(NETWORKS))


def ban(network: Network) -> Ban:
    return Ban(network=network, since=NOW, until=None, origin=Origin.SENSOR, reason="scan")


@given(banned=SOME, ended=SOME, again=SOME, attempted=SOME, timed=SOME, present=SOME, absent=SOME, doubted=SOME)
def test_what_was_placed_is_read_back(
    banned: set[Network],
    ended: set[Network],
    again: set[Network],
    attempted: set[Network],
    timed: set[Network],
    present: set[Network],
    absent: set[Network],
    doubted: set[Network],
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "ledger")
        with Ledger(path) as ledger:
            ledger.record(map(ban, sorted(banned)), now=NOW)
            ends = {network: NOW + timedelta(hours=1) if network in timed else None for network in attempted}
            ledger.places.attempt("firewall", ends, boot="-", layout=1, now=NOW)
            ledger.places.confirm("firewall", present, absent, None)
            ledger.end(ended, EndReason.OPERATOR, now=NOW)
            ledger.places.miss("firewall", doubted)
        with Ledger(path) as ledger:
            # Read in the midst of a transaction that makes bans.
            ledger.record(map(ban, sorted(again)), now=NOW)
            told = dict(ledger.places.of("firewall"))
            unproven = set(ledger.places.unproven("firewall"))
        expected = dict.fromkeys(attempted, Placement.ATTEMPTED) | dict.fromkeys(present, Placement.CONFIRMED)
        for network in absent:
            expected.pop(network, None)
        for network in (doubted | again) & expected.keys():
            expected[network] = Placement.ATTEMPTED
        assert told == expected
        assert unproven == {network for network, state in expected.items() if state is Placement.ATTEMPTED}
        with Ledger(path) as ledger:
            assert ledger.places.of("firewall") == expected
            assert ledger.places.own_end("firewall", NETWORKS[0]) == (
                NOW + timedelta(hours=1) if NETWORKS[0] in expected and ends.get(NETWORKS[0]) else None
            )
