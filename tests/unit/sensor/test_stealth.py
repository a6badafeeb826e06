"""What Stealth makes of packets that come apart: the order in which a real ring fills cannot be had at will."""

import os
import struct
import threading
from collections.abc import Iterator, Sequence

import pytest

from jailbridge.model.event import Protocol
from jailbridge.sensor import bpf, stealth
from jailbridge.sensor.listening import Listening
from jailbridge.sensor.packet import ACK, SYN, Probe
from jailbridge.sensor.ring import Captured
from jailbridge.sensor.stealth import Stealth

HOST, PEER = 0x7F000001, 0xC6336407  # 127.0.0.1 every host has; 198.51.100.7
PORT, DEADLINE_S = 20001, 10
PACKET_HOST = 0


def tcp(source: int, destination: int, source_port: int, port: int, flags: int) -> bytes:
    ip = struct.pack("!BBHHHBBHII", 0x45, 0, 40, 0, 0, 64, 6, 0, source, destination)
    return ip + struct.pack("!HHIIBBHHH", source_port, port, 0, 0, 0x50, flags, 0, 0, 0)


def attempt(port: int) -> Captured:
    return PACKET_HOST, 1, tcp(PEER, HOST, 40000, port, SYN)


def welcome(port: int) -> Captured:
    return bpf.PACKET_OUTGOING, 1, tcp(HOST, PEER, port, 40000, SYN | ACK)


class Script:
    """In the place of Capture: each round of the ring as the test has it, then the stop."""

    dropped = 0

    def __init__(self, rounds: Sequence[Sequence[list[Captured]]], stop: threading.Event) -> None:
        self._rounds, self._stop = list(rounds), stop
        self._readable, self._writable = os.pipe()
        os.write(self._writable, b"x")

    def fileno(self) -> int:
        return self._readable

    def batches(self) -> Iterator[list[Captured]]:
        if self._rounds:
            yield from self._rounds.pop(0)

    def count_drops(self) -> int:
        return 0

    def refilter(self, program: object) -> None:
        pass

    def close(self) -> None:
        os.close(self._readable)
        os.close(self._writable)


def probed(
    monkeypatch: pytest.MonkeyPatch,
    *rounds: Sequence[list[Captured]],
    live: Sequence[frozenset[int]] = (),
    skip_live: bool = True,
) -> list[int]:
    """Return the ports that counted. `live`: the listening TCP ports at each reading, the last one for good."""
    stop, seen = threading.Event(), list[int]()
    answers = [frozenset[int](), *live]

    def ask(protocol: Protocol) -> frozenset[int]:
        if protocol is Protocol.UDP:
            return frozenset()
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def take(probes: Sequence[Probe], now: float) -> None:
        seen.extend(probe.port for probe in probes)
        if 1 in seen:
            stop.set()

    monkeypatch.setattr(stealth, "Capture", lambda *_, **__: Script([*rounds, [[attempt(1)]]], stop))
    monkeypatch.setattr(stealth, "Listening", lambda: Listening(ask=ask))
    with Stealth([(1, 65535)], [], skip_live=skip_live) as sensor:
        runner = threading.Thread(target=sensor.run, args=(stop, take))
        runner.start()
        runner.join(DEADLINE_S)
        stop.set()
        runner.join()
    return seen


def test_a_host_that_lets_the_sender_in_only_in_the_next_batch_does_not_count_him(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert probed(monkeypatch, [[attempt(PORT)], [welcome(PORT)]]) == [1]


def test_a_host_that_lets_the_sender_in_only_in_the_next_round_does_not_count_him(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert probed(monkeypatch, [[attempt(PORT)]], [[welcome(PORT)]]) == [1]


def test_a_service_that_is_seen_only_after_the_attempt_to_reach_it_does_not_count_the_sender(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = [frozenset[int](), frozenset({PORT})]
    assert probed(monkeypatch, [[attempt(PORT)]], live=live) == [1]


def test_whom_nobody_answers_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(probed(monkeypatch, [[attempt(PORT)], [welcome(PORT + 1)], [attempt(PORT + 2)]])) == [
        1, PORT, PORT + 2,
    ]  # fmt: skip


def test_where_live_ports_count_too_an_answer_excuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(probed(monkeypatch, [[attempt(PORT), welcome(PORT)]], skip_live=False)) == [1, PORT]


class Storm(Script):
    """A ring that is never empty: in each round of it the live ports become due to be read between two batches."""

    def __init__(self, readings: "BetweenBatches", stop: threading.Event) -> None:
        super().__init__([], stop)
        self._readings = readings

    def batches(self) -> Iterator[list[Captured]]:
        for port in range(PORT, PORT + 4):
            self._readings.due = True
            yield [attempt(port)]
        self._readings.due = False


class BetweenBatches(Listening):
    due = True

    def refresh(self, now: float, age_s: float = 0.0) -> bool:
        due, self.due = self.due, False
        return due


def test_a_storm_that_never_lets_up_holds_no_attempt_back(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, seen = threading.Event(), set[int]()
    readings = BetweenBatches()

    def take(probes: Sequence[Probe], now: float) -> None:
        seen.update(probe.port for probe in probes)
        if len(seen) == 4:
            stop.set()

    monkeypatch.setattr(stealth, "Capture", lambda *_, **__: Storm(readings, stop))
    monkeypatch.setattr(stealth, "Listening", lambda: readings)
    with Stealth([(1, 65535)], []) as sensor:
        runner = threading.Thread(target=sensor.run, args=(stop, take))
        runner.start()
        runner.join(DEADLINE_S)
        stop.set()
        runner.join()
    assert seen == {*range(PORT, PORT + 4)}
