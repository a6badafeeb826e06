"""The detector against the plainest possible statement of what it should say."""

from collections import defaultdict
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from jailbridge.model.event import Protocol
from jailbridge.model.network import Address, Network, host_network, parse_network, source_network
from jailbridge.sensor.detector import Detector, Sighting

WINDOW_S = 60.0
addresses = st.one_of(
    st.integers(0xC0000200, 0xC0000203).map(IPv4Address),
    st.tuples(st.integers(0, 2), st.integers(0, 3)).map(
        lambda parts: IPv6Address((0x20010DB8 << 96) + (parts[0] << 64) + parts[1])
    ),
)
ports = st.tuples(st.integers(1, 6), st.sampled_from(Protocol))
probes = st.tuples(addresses, ports, st.integers(0, 25))
streams = st.lists(probes, max_size=60)


def see(detector: Detector, address: Address, port: int, protocol: Protocol, now: float) -> Sighting:
    return detector.see(address.version, int(address), port, protocol, now)


def timed(
    stream: list[tuple[Address, tuple[int, Protocol], int]],
) -> list[tuple[Address, tuple[int, Protocol], float]]:
    now, out = 0.0, []
    for address, port, pause_s in stream:
        now += pause_s
        out.append((address, port, now))
    return out


@given(stream=streams, trigger=st.integers(1, 5), prefix=st.sampled_from([32, 64, 127, 128]))
def test_it_agrees_with_a_list_of_everything_ever_seen(
    stream: list[tuple[Address, tuple[int, Protocol], int]], trigger: int, prefix: int
) -> None:
    detector = Detector(trigger, WINDOW_S, prefix)
    seen: dict[Network, list[tuple[float, tuple[int, Protocol]]]] = defaultdict(list)
    reported: dict[Network, float] = {}
    for address, port, now in timed(stream):
        network = source_network(address, prefix)
        within = {other for when, other in seen[network] if now - when < WINDOW_S}
        quiet = network in reported and now - reported[network] < WINDOW_S
        reached = len(within | {port}) >= trigger
        sighting = see(detector, address, *port, now)
        assert sighting.new == (port not in within)
        assert sighting.triggered == (reached or quiet)
        assert sighting.newly_triggered == (reached and not quiet)
        seen[network].append((now, port))
        if sighting.newly_triggered:
            reported[network] = now


@given(
    order=st.permutations([(port, protocol) for port in range(1, 6) for protocol in Protocol]),
    n=st.integers(1, 10),
)
def test_the_nth_distinct_port_triggers_in_any_order(order: list[tuple[int, Protocol]], n: int) -> None:
    detector = Detector(n, WINDOW_S, 64)
    newly = [see(detector, IPv4Address("192.0.2.1"), *port, 0.0).newly_triggered for port in order]
    assert newly == [at == n for at in range(1, 11)]


@given(
    stream=st.lists(st.tuples(st.integers(0, 1 << 32), st.integers(1, 65535), st.floats(0, 5)), max_size=200),
    max_sources=st.integers(1, 8),
    max_ports=st.integers(1, 8),
    max_sightings=st.integers(1, 20),
)
def test_no_stream_fills_more_than_the_maxima(
    stream: list[tuple[int, int, float]], max_sources: int, max_ports: int, max_sightings: int
) -> None:
    detector = Detector(3, WINDOW_S, 64, max_sources=max_sources, max_ports=max_ports, max_sightings=max_sightings)
    now = 0.0
    for number, port, pause_s in stream:
        now += pause_s
        see(detector, IPv6Address(number % 16 << 64), port, Protocol.UDP, now)
        assert 1 <= detector.sources <= max_sources
        assert 1 <= detector.sightings <= max(max_sightings, max_ports, 3)
        assert detector.sightings <= detector.sources * max(max_ports, 3)


@given(
    stream=streams,
    forgotten=st.sampled_from(["0.0.0.0/0", "192.0.2.0/31", "192.0.2.1/32", "2001:db8::/64", "::/0"]),
)
def test_forgetting_a_network_is_as_if_its_sources_had_never_come(
    stream: list[tuple[Address, tuple[int, Protocol], int]], forgotten: str
) -> None:
    network = parse_network(forgotten)
    full, partial = Detector(3, WINDOW_S, 64), Detector(3, WINDOW_S, 64)
    now = 0.0
    for address, port, now in timed(stream):
        see(full, address, *port, now)
        if not network.holds(host_network(address)):
            see(partial, address, *port, now)
    full.forget(network)
    everyone = {address for address, _, _ in timed(stream)}
    for address in sorted(everyone, key=lambda address: (address.version, int(address))):
        for number in (1, 2, 3):
            ours, theirs = (see(one, address, number, Protocol.TCP, now) for one in (full, partial))
            assert ours == theirs


@given(stream=streams)
def test_taking_back_what_could_not_be_reported_makes_it_come_again(
    stream: list[tuple[Address, tuple[int, Protocol], int]],
) -> None:
    detector = Detector(3, WINDOW_S, 64)
    for address, port, now in timed(stream):
        sighting = see(detector, address, *port, now)
        detector.take_back(address.version, int(address), *port, sighting)
        assert see(detector, address, *port, now) == sighting


@given(stream=streams, trigger=st.integers(1, 5), prefix=st.sampled_from([64, 128]))
def test_without_every_port_a_source_is_reported_first_at_the_same_probe_and_then_once_a_window(
    stream: list[tuple[Address, tuple[int, Protocol], int]], trigger: int, prefix: int
) -> None:
    full = Detector(trigger, WINDOW_S, prefix)
    lean = Detector(trigger, WINDOW_S, prefix, every_port=False)
    reported: dict[Network, float] = {}
    for address, port, now in timed(stream):
        network = source_network(address, prefix)
        first = see(full, address, *port, now).newly_triggered and network not in reported
        newly = see(lean, address, *port, now).newly_triggered
        if network not in reported:
            assert newly == first
        elif newly:
            assert now - reported[network] >= WINDOW_S
        if newly:
            reported[network] = now
    assert lean.sightings <= lean.sources * trigger
