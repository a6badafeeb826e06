from ipaddress import ip_address

import pytest

from jailbridge.sensor.solicited import ANYBODY, Solicited

SERVER, OTHER = (int(ip_address(text)) for text in ("192.0.2.53", "192.0.2.99"))
PORT = 40000


def test_an_answer_is_solicited_for_a_minute() -> None:
    solicited = Solicited()
    solicited.sent(4, PORT, SERVER, 100.0)
    assert solicited.answers(4, PORT, SERVER, 100.0)
    assert solicited.answers(4, PORT, SERVER, 159.9)
    assert not solicited.answers(4, PORT, SERVER, 160.0)


def test_another_remote_another_port_or_the_other_ip_version_is_not_solicited() -> None:
    solicited = Solicited()
    solicited.sent(4, PORT, SERVER, 0.0)
    assert not solicited.answers(4, PORT, OTHER, 1.0)
    assert not solicited.answers(4, PORT + 1, SERVER, 1.0)
    assert not solicited.answers(6, PORT, SERVER, 1.0)


def test_each_question_starts_the_minute_anew() -> None:
    solicited = Solicited(keep_s=10.0)
    solicited.sent(4, PORT, SERVER, 0.0)
    solicited.sent(4, PORT, SERVER, 9.0)
    assert solicited.answers(4, PORT, SERVER, 18.0)


@pytest.mark.parametrize("group", ["239.255.255.250", "224.0.0.251", "255.255.255.255", "ff02::fb"])
def test_anybody_may_answer_a_question_to_a_group(group: str) -> None:
    solicited, address = Solicited(), ip_address(group)
    solicited.sent(address.version, PORT, int(address), 0.0)
    assert solicited.answers(address.version, PORT, OTHER, 1.0)
    assert not solicited.answers(address.version, PORT + 1, OTHER, 1.0)
    assert not solicited.answers(address.version, PORT, OTHER, 60.0)


@pytest.mark.parametrize("address", ["223.255.255.255", "fe80::1", "feff::1"])
def test_a_question_to_one_host_is_for_that_host(address: str) -> None:
    solicited, asked = Solicited(), ip_address(address)
    solicited.sent(asked.version, PORT, int(asked), 0.0)
    assert solicited.answers(asked.version, PORT, int(asked), 1.0)
    assert not solicited.answers(asked.version, PORT, OTHER, 1.0)


def test_the_caller_may_say_anybody_for_a_subnets_broadcast_address() -> None:
    solicited = Solicited()
    solicited.sent(4, PORT, ANYBODY, 0.0)
    assert solicited.answers(4, PORT, OTHER, 1.0)


def test_what_was_repeated_outlives_what_was_asked_after_it() -> None:
    solicited = Solicited(max_entries=2)
    for port in (1, 2, 1, 3):
        solicited.sent(4, port, SERVER, 0.0)
    assert [port for port in (1, 2, 3) if solicited.answers(4, port, SERVER, 0.0)] == [1, 3]


def test_a_flood_of_questions_stays_bounded_and_the_oldest_go_first() -> None:
    solicited = Solicited(max_entries=100)
    for number in range(1000):
        solicited.sent(4, PORT, SERVER + number, 0.0)
        solicited.sent(4, 53, OTHER, 0.0)
    assert len(solicited) == 100
    assert solicited.answers(4, 53, OTHER, 1.0)
    assert solicited.answers(4, PORT, SERVER + 999, 1.0)
    assert not solicited.answers(4, PORT, SERVER + 900, 1.0)
