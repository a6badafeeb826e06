import pickle
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from jailbridge.config.settings import Settings, TailSettings
from jailbridge.definitions import render
from jailbridge.definitions.render import logpath
from jailbridge.errors import FatalError, ParseError
from jailbridge.model.network import Network, network_text
from jailbridge.stores.fail2ban import parse_entry
from jailbridge.stores.fail2ban_socket import Refused, decoded

LATER = datetime(2101, 1, 1, tzinfo=UTC)
local_times = st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1))  # noqa: DTZ001 - fail2ban writes no zone
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)
networks: st.SearchStrategy[Network] = st.builds(
    lambda address, length: Network(4, address, 32).supernet(length), st.integers(0, 2**32 - 1), st.integers(0, 32)
) | st.builds(
    lambda address, length: Network(6, address, 128).supernet(length),
    # below ::1:0:0:0 lie the IPv4-mapped addresses, which are another network's text
    st.integers(2**64, 2**128 - 1),
    st.integers(64, 128),
)


@given(values, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_values_come_through_as_they_are(value: object, protocol: int) -> None:
    try:
        assert decoded(pickle.dumps((0, value), protocol)) == value
    except ParseError:
        # Old protocols write bytes as a call of codecs.encode; fail2ban uses the newest, where they are values.
        assert protocol < 3


# Two opcodes let a pickle ask for any amount of memory (a memo's index, a bytearray's size): root's own server could,
# and a test must not.
@given(st.binary(max_size=200).filter(lambda data: b"r" not in data and b"\x96" not in data))
def test_any_bytes_are_a_value_or_a_declared_error(data: bytes) -> None:
    said = ""
    try:
        decoded(data)
    except (ParseError, Refused) as error:
        said = str(error)
    assert "\n" not in said


@given(networks, local_times, st.integers(-1, 10**9))
def test_an_entry_says_the_network_that_was_banned(network: Network, time: datetime, lasts_s: int) -> None:
    ban = parse_entry(f"{network_text(network)} \t{time:%Y-%m-%d %H:%M:%S} + {lasts_s} = x", LATER)
    assert ban is not None
    assert ban.network == network
    assert ban.since == time.replace(microsecond=0, fold=1).astimezone(UTC)
    assert (ban.until is None) is (lasts_s < 0)


@given(st.text())
def test_any_entry_is_a_ban_or_foreign(entry: str) -> None:
    parse_entry(entry, LATER)


@given(st.text(min_size=1))
def test_no_path_adds_a_line_a_comment_a_tag_or_an_interpolation(text: str) -> None:
    path = Path("/" + text)
    try:
        value = logpath(TailSettings(path=path))
    except FatalError:
        return
    assert len(value.splitlines()) == 1
    assert not set(value) & set(";#<>")
    assert "%" not in value.replace("%%", "")
    lines = render(Settings.model_validate({"tail": [{"path": str(path)}]}))["jail.d/jailbridge.conf"].splitlines()
    assert [line for line in lines if line.startswith("logpath = ")] == [f"logpath = {value} head"]
