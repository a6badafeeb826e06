"""What our action tells: others' doings are news, the answers to our own are not, and nothing of it ever raises."""

import logging
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from jailbridge.stores.fail2ban_news import JailNews


@pytest.fixture
def news(tmp_path: Path) -> Iterator[JailNews]:
    made = JailNews(tmp_path / "wake")
    assert made.heard(), "nobody listened until now"
    yield made
    made.close()


def tell(path: Path, *texts: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for text in texts:
            sender.sendto(text.encode(), str(path))


def test_silence_is_no_news(news: JailNews) -> None:
    assert not news.heard()
    assert not news.heard()


@pytest.mark.parametrize("told", ["ban 192.0.2.7", "unban 192.0.2.7", "flush", "start", "", "\xff\0", "x" * 9000])
def test_what_another_did_is_news_once(news: JailNews, tmp_path: Path, told: str) -> None:
    tell(tmp_path / "wake", told)
    assert news.heard()
    assert not news.heard()


def test_the_answer_to_what_we_had_done_is_none(news: JailNews, tmp_path: Path) -> None:
    tell(tmp_path / "wake", "ban 2001:db8::/64", "ban 192.0.2.7")
    news.disregard(["ban 192.0.2.7", "ban 2001:db8::/64", "ban 192.0.2.8"])
    assert not news.heard()
    tell(tmp_path / "wake", "ban 192.0.2.8")
    assert news.heard(), "that was another's, later"


def test_among_our_own_anothers_is_heard(news: JailNews, tmp_path: Path) -> None:
    tell(tmp_path / "wake", "ban 192.0.2.7", "unban 192.0.2.8", "ban 192.0.2.9")
    news.disregard(["ban 192.0.2.7", "ban 192.0.2.9"])
    news.disregard(["ban 192.0.2.10"])
    assert news.heard()
    assert not news.heard()


def test_the_socket_is_its_users_alone_and_takes_the_place_of_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "wake"
    for _ in range(2):
        news = JailNews(path)
        assert news.heard()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        tell(path, "stop")
        assert news.heard()
        news.close()
    with pytest.raises(ConnectionRefusedError):
        tell(path, "stop")


def test_what_stands_in_its_place_stays_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (path := tmp_path / "wake").write_text("mine")
    news = JailNews(path)
    with caplog.at_level(logging.WARNING):
        assert not news.heard()
        assert not news.heard()
        news.disregard(["ban 192.0.2.7"])
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: {os.strerror(98)}: what others do in fail2ban is seen only when it is read: set control.socket"
    ]
    assert path.read_text() == "mine"
    path.unlink()
    assert news.heard()
    news.close()
