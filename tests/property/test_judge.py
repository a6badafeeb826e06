"""Whatever stream of lines comes: the order within a second means nothing, and every table stays within its bounds."""

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from jailbridge.config import Settings
from jailbridge.daemon.exemptions import PresentExemptions
from jailbridge.daemon.judge import Judge, Judged
from jailbridge.history.dialects import format_2
from jailbridge.ledger import Ledger
from jailbridge.model.ban import MAX_PORTS, Ban, EndReason, Origin
from jailbridge.model.event import Evidence, Kind, LogLine, Protocol, ScanEvent
from jailbridge.model.network import Address, Network, host_network, network_text, parse_network

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
EVER = datetime.max.replace(tzinfo=UTC)
ADDRESSES: st.SearchStrategy[Address] = st.integers(0, 7).map(lambda n: IPv4Address(0xC6120000 + n)) | st.builds(
    lambda net, host: IPv6Address((0x20010DB8 << 96) + (net << 64) + host), st.integers(0, 1), st.integers(0, 2)
)
DURATIONS = st.sampled_from(["1s", "1m", "1h", "1d", "permanent"])
# Every source has one duration: none of these lies within a network that is banned for a source (see decide).
POLICIES = st.fixed_dictionaries(
    {
        "ban_for": DURATIONS,
        "ban_for_spoofable": DURATIONS,
        "repeat_factor": st.integers(1, 5),
        "allow": st.sampled_from([[], ["198.18.0.0/31"], ["2001:db8::1"]]),
        "network": st.lists(
            st.fixed_dictionaries(
                {"network": st.sampled_from(["198.18.0.0/30", "2001:db8::/48"]), "ban_for": DURATIONS}
            ),
            max_size=2,
            unique_by=lambda rule: rule["network"],
        ),
    }
)


def scan(address: Address, kind: Kind, ms: int, port: int = 23, triggered: bool | None = True) -> bytes:
    protocol = Protocol.UDP if kind is Kind.UDP else Protocol.TCP
    seen = ScanEvent(NOW, address, port, protocol, kind, ignored=False, triggered=triggered)
    return format_2(seen, NOW + timedelta(milliseconds=ms)).encode()


SECONDS = st.lists(
    st.builds(
        scan,
        ADDRESSES,
        st.sampled_from([Kind.SYN, Kind.CONNECT, Kind.UDP]),
        st.integers(0, 999),
        triggered=st.sampled_from([True, True, True, False]),
    ),
    min_size=1,
    max_size=12,
)
PASTS = st.lists(st.tuples(ADDRESSES, st.sampled_from(EndReason), st.integers(-90_000, 900)), max_size=4)


def lines(texts: Sequence[bytes]) -> list[LogLine]:
    return [LogLine("/log", 1, 2, 100 * n, text) for n, text in enumerate(texts)]


def world(folder: str, policy: dict[str, object]) -> tuple[Settings, Ledger, Judge]:
    configured = Settings.model_validate({"tail": [{"path": "/log"}], "policy": {"allow_files": [], **policy}})
    ledger = Ledger(Path(folder) / "ledger")
    return configured, ledger, Judge(configured, ledger, PresentExemptions(configured.policy), lambda: 0.0)


def judged(judge: Judge, configured: Settings, texts: Sequence[bytes], now: datetime) -> Judged:
    return judge.weigh(lines(texts), configured.tail[0], now)


def ends(bans: Sequence[Ban]) -> dict[Network, tuple[datetime, datetime | None, Evidence | None]]:
    return {ban.network: (ban.since, ban.until, ban.evidence) for ban in bans}


@settings(max_examples=60, deadline=None)
@given(policy=POLICIES, texts=SECONDS, past=PASTS, later=st.integers(0, 3), data=st.data())
def test_the_order_of_lines_within_a_second_does_not_matter(
    policy: dict[str, object],
    texts: list[bytes],
    past: list[tuple[Address, EndReason, int]],
    later: int,
    data: st.DataObject,
) -> None:
    now = NOW + timedelta(seconds=later, milliseconds=500)
    with tempfile.TemporaryDirectory() as folder:
        configured, ledger, judge = world(folder, policy)
        with ledger:
            for address, why, ms in past:
                network = host_network(address)
                ledger.record([Ban(network=network, since=NOW, until=None, origin=Origin.SENSOR, reason="x")], now=NOW)
                ledger.end([network], why, now=NOW + timedelta(milliseconds=ms))
            shuffled = data.draw(st.permutations(texts))
            one, other = (judged(judge, configured, given, now) for given in (texts, shuffled))
            assert ends(one.bans) == ends(other.bans)


@settings(max_examples=40, deadline=None)
@given(policy=POLICIES, seconds=st.lists(SECONDS, min_size=1, max_size=5), extra=SECONDS, at=st.integers(0, 4))
def test_more_lines_never_end_a_ban_earlier(
    policy: dict[str, object], seconds: list[list[bytes]], extra: list[bytes], at: int
) -> None:
    def live(given: list[list[bytes]]) -> dict[Network, datetime]:
        with tempfile.TemporaryDirectory() as folder:
            configured, ledger, judge = world(folder, policy)
            with ledger:
                for texts in given:
                    found = judged(judge, configured, texts, NOW + timedelta(milliseconds=999))
                    ledger.record(found.bans, now=NOW, merged=found.merged, story=found.story)
                return {ban.network: ban.until or EVER for ban in ledger.bans().values()}

    fewer, more = live(seconds), live([*seconds[:at], extra, *seconds[at:]])
    assert all(network in more and more[network] >= until for network, until in fewer.items())


STREAMS = st.lists(
    st.lists(
        st.builds(
            scan,
            st.integers(0, 60).map(lambda n: IPv4Address(0xC6120000 + n)),
            st.sampled_from([Kind.SYN, Kind.CONNECT]),
            st.integers(0, 999),
            port=st.integers(1, 65535),
        )
        | st.binary(max_size=80),
        max_size=40,
    ),
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(stream=STREAMS, most=st.integers(1, 20), spoofable=st.integers(1, 30), total=st.integers(1, 40))
def test_no_stream_makes_more_bans_than_the_bounds_allow_or_bans_anybody_exempt(
    stream: list[list[bytes]], most: int, spoofable: int, total: int
) -> None:
    policy: dict[str, object] = {
        "allow": ["198.18.0.0/30"],
        "max_bans": most,
        "max_new_spoofable_per_minute": spoofable,
        "max_new_bans_per_minute": total,
    }
    with tempfile.TemporaryDirectory() as folder:
        configured, ledger, judge = world(folder, policy)
        with ledger:
            for texts in stream:
                found = judged(judge, configured, texts, NOW + timedelta(seconds=1))
                ledger.record(found.bans, now=NOW, merged=found.merged, story=found.story)
                assert len(ledger.bans()) <= most
                assert len(found.story) <= len(texts)
            exempt = parse_network("198.18.0.0/30")
            assert not any(network.overlaps(exempt) for network in ledger.bans())
            assert sum(what == "ban" for _, _, what, _, _ in ledger.feed(0, 10**6)) <= total
            assert all(ban.seen is not None and len(ban.seen.ports) <= MAX_PORTS for ban in ledger.bans().values())
            assert all(network_text(ban.network) in (ban.line or "") for ban in ledger.bans().values())
