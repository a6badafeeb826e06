"""The benchmark counts what is there and invents nothing."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NOW = datetime(2026, 11, 22, tzinfo=UTC)
LINE = "1795329059 - 11/22/2026 06:30:59 Host: {0}/{0} Port: 11 TCP Blocked\n"


@contextmanager
def module(name: str) -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found  # where dataclasses looks for it
    try:
        spec.loader.exec_module(found)
        yield found
    finally:
        del sys.modules[name]


@pytest.fixture(scope="module")
def figures() -> Iterator[Any]:
    with module("figures") as found:
        yield found


@pytest.fixture(scope="module")
def crowd() -> Iterator[Any]:
    with module("crowd") as found:
        yield found


@pytest.mark.parametrize("name", ["boot", "fail2ban", "sensor", "stores", "tailer"])
def test_a_benchmark_finds_all_that_it_uses_and_says_what_its_rows_are(name: str) -> None:
    """Nothing else runs one: what it takes from the package may have moved."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "no-such-row"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    _, said, rows = done.stderr.partition("no such row: no-such-row; there are ")
    assert said, done.stderr
    read_me = (BENCHMARKS / "README.md").read_text()
    assert [row for row in rows.split() if f"`{row}`" not in read_me] == []
    assert f"$(BIN)/python benchmarks/{name}.py\n" in (BENCHMARKS.parent / "Makefile").read_text()


def test_only_whole_lines_of_a_history_name_a_source(figures: Any) -> None:
    whole = LINE.format("10.1.0.1") + LINE.format("10.1.0.2")
    assert figures.sources(whole) == ["10.1.0.1", "10.1.0.2"]
    assert figures.sources(whole + LINE.format("10.1.0.3").replace("Blocked", "Blo")) == ["10.1.0.1", "10.1.0.2"]


def test_every_report_of_drops_is_added_up(figures: Any) -> None:
    log = "WARNING kernel drops interface=eth0 dropped=40 seen=900\nINFO x=1\nWARNING kernel drops dropped=2\n"
    assert figures.lost(log) == 42


def test_a_rule_counts_for_its_whole_address_and_once(figures: Any) -> None:
    rules = "-A INPUT -s 10.1.0.1/32 -j DROP\n-A INPUT -s 10.1.0.1/32 -j DROP\n-A INPUT -s 10.1.0.22/32 -j DROP\n"
    assert figures.banned(rules, frozenset({"10.1.0.1", "10.1.0.2"})) == 1


def test_a_percentile_is_one_of_the_values(figures: Any) -> None:
    values = [float(number) for number in range(200, 0, -1)]
    assert figures.percentile(values, 0.5) == 100
    assert figures.percentile(values, 0.99) == 198
    assert figures.percentile([7.0], 0.99) == 7


def test_the_times_of_waited_for_children_count(figures: Any) -> None:
    stat = "71 (a) b) S 1 71 71 0 -1 4194560 1 0 0 0 100 20 3 4 20 0 1 0 9 0 0"
    assert figures.ticks(stat) == 127


def test_the_table_gives_the_ratio_first_and_each_sides_spread(figures: Any) -> None:
    sides = {"ours": [{"seen_%": 100.0}, {"seen_%": 90.0}, {"seen_%": 98.5}], "theirs": [{"seen_%": 50.0}]}
    text = figures.table(figures.Row(name="flood", what="why", sides=sides))
    assert "| seen | 1.97 | 98.5 (90 to 100) % | 50 % |" in text


def test_no_ratio_to_nothing(figures: Any) -> None:
    sides = {"ours": [{"missed_n": 1.0}], "theirs": [{"missed_n": 0.0}]}
    assert "| missed | - | 1 | 0 |" in figures.table(figures.Row(name="x", what="y", sides=sides))


def test_fail2ban_regex_says_how_many_lines_it_matched_and_how_long_it_took(figures: Any) -> None:
    report = "...\nLines: 100 lines, 0 ignored, 98 matched, 2 missed\n[processed in 2.25 sec]\n\n"
    assert figures.matched(report) == (98, 2.25)
    with pytest.raises(ValueError, match="not what fail2ban-regex reports"):
        figures.matched("ERROR: no such filter")


def test_a_listing_names_ipv6_networks_too_and_none_by_its_beginning(figures: Any) -> None:
    listing = (
        "add jailbridge6 2001:db8:1:2::/64 timeout 0\nALL: [2001:db8:1:3::]/64\nelements = { 10.1.0.1, 10.1.0.22 }"
    )
    wanted = {"2001:db8:1:2::", "2001:db8:1:3::", "2001:db8:1::", "10.1.0.1", "10.1.0.2"}
    assert figures.banned(listing, frozenset(wanted)) == 3


def test_a_crowd_is_the_same_each_time_and_mixed_as_told(crowd: Any) -> None:
    networks = crowd.crowd(1000, NOW)
    assert networks == crowd.crowd(1000, NOW)
    assert len(networks) == 1000
    assert sum(network.prefixlen == 64 for network in networks) == 150
    ends = [until for until in networks.values() if until is not None]
    assert len(ends) == 50
    assert min(ends) >= NOW + timedelta(days=1)


@pytest.mark.parametrize("load", ["nft_load", "ipset_load"])
def test_what_others_load_names_the_whole_crowd(crowd: Any, figures: Any, load: str) -> None:
    networks = crowd.crowd(1000, NOW)
    names = frozenset(str(network.network_address) for network in networks)
    assert figures.banned(getattr(crowd, load)(networks, NOW), names) == 1000
    assert figures.banned(crowd.hosts_deny(networks), names) == 1000


def test_the_ledgers_bans_are_those_of_the_crowd_and_of_a_history(crowd: Any, figures: Any) -> None:
    networks = crowd.crowd(100, NOW)
    made = list(crowd.bans(networks, NOW, "/history"))
    assert {ban.network: ban.until for ban in made} == networks
    assert figures.sources(made[0].line + "\n") == [str(made[0].network)]
