"""What the host asked for, against a list of everything it ever sent."""

from hypothesis import given
from hypothesis import strategies as st

from jailbridge.sensor.solicited import ANYBODY, Solicited

KEEP_S = 60.0
GROUPS = {(4, 0xE00000FB), (4, 0xFFFFFFFF), (6, 0xFF << 120 | 1)}
packets = st.tuples(
    st.booleans(),
    st.sampled_from([(4, 0xC0000201), (4, 0xC0000202), (6, 0xC0000201), (6, 0xFE80 << 112 | 1), *sorted(GROUPS)]),
    st.integers(40000, 40002),
    st.sampled_from([0.0, 1.0, 20.0, 59.0, 60.0]),
)


@given(stream=st.lists(packets, max_size=60), most=st.integers(1, 8))
def test_it_agrees_with_a_list_of_everything_ever_sent(
    stream: list[tuple[bool, tuple[int, int], int, float]], most: int
) -> None:
    solicited = Solicited(max_entries=most, keep_s=KEEP_S)
    log: list[tuple[tuple[int, int, int], float]] = []
    now = 0.0
    for sending, (version, remote), port, pause_s in stream:
        now += pause_s
        if sending:
            solicited.sent(version, port, remote, now)
            log.append(((version, port, ANYBODY if (version, remote) in GROUPS else remote), now))
            continue
        newest_first = list(dict.fromkeys(question for question, _ in reversed(log)))[:most]
        expected = any(
            question in newest_first and question in {(version, port, remote), (version, port, ANYBODY)}
            for question, when in log
            if now - when < KEEP_S
        )
        assert solicited.answers(version, port, remote, now) == expected
    assert len(solicited) <= most
