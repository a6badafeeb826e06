"""Mail to a real server: no storm, whatever happens; and a scan that becomes a mail."""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from jailbridge.config.responding import LimitSettings, MailSettings
from jailbridge.demo.lab import ATTACKER, SECOND, Lab
from jailbridge.respond.mail import MailPostbox, mail_postboxes
from tests.e2e.responding import HOUR, MINUTE, START, STORM, Working, storm, working
from tests.servers import MailServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

LIMITS = LimitSettings()
# What a mail tells, for a test to count.
COUNTABLE = (
    """{{ {"told": events|map(attribute="address")|list, "counted": counted, "rest": rest, "total": total}|tojson }}"""
)


def postbox(server: MailServer, **more: object) -> MailPostbox:
    settings = MailSettings.model_validate({"to": ("root",), "server": server.url, **more})
    (made,) = mail_postboxes(settings, host="box", whois=None)
    return made


class Inbox:
    """What a server has taken, and when that was."""

    def __init__(self, server: MailServer) -> None:
        self._server = server
        self.times: list[datetime] = []

    def look(self, now: datetime) -> None:
        self.times += [now] * (len(self._server.mails) - len(self.times))

    @property
    def told(self) -> list[dict[str, Any]]:
        return [json.loads(mail.text()) for mail in self._server.mails]

    def check(self, number: int) -> None:
        """Nobody is lost, nobody is told twice, and no limit is passed."""
        listed = Counter(address for told in self.told for address in told["told"])
        counted = sum(sum(told["counted"].values()) + told["rest"] for told in self.told)
        assert set(listed.values()) <= {1}
        assert listed.total() + counted == number
        assert sum(told["total"] for told in self.told) == number
        for told in self.told:
            of_network = Counter(address.rpartition(".")[0] for address in told["told"])
            assert max(of_network.values(), default=0) <= LIMITS.per_network
        for time in self.times:
            assert sum(time - HOUR < other <= time for other in self.times) <= LIMITS.per_hour


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "text.j2").write_text(COUNTABLE)
    (folder / "html.j2").touch()
    return folder


def run_to_the_end(work: Working, inbox: Inbox) -> None:
    while (due := work.work()) is not None:
        inbox.look(work.now)
        work.now = due
    inbox.look(work.now)


def test_5000_bans_in_a_minute_are_one_mail_at_once_and_a_few_digests(tmp_path: Path, templates: Path) -> None:
    with MailServer() as server, working(tmp_path / "queue", postbox(server, templates=templates)) as work:
        inbox = Inbox(server)

        def look(second: int) -> None:
            work.work()
            inbox.look(work.now)

        storm(work, look)
        in_the_minute = len(server.mails)
        run_to_the_end(work, inbox)
    assert inbox.times[0] == START, "the first ban is told at once"
    assert in_the_minute <= 1 + STORM // LIMITS.count
    assert 2 <= len(server.mails) <= in_the_minute + 1
    inbox.check(STORM)


def test_a_storm_below_the_count_is_one_mail_and_one_digest(tmp_path: Path, templates: Path) -> None:
    limits = LIMITS.model_copy(update={"count": 100_000})
    with MailServer() as server, working(tmp_path / "queue", postbox(server, templates=templates), limits) as work:
        inbox = Inbox(server)
        work.ban("198.51.100.7")
        work.work()
        inbox.look(work.now)
        assert inbox.told[0]["told"] == ["198.51.100.7"]
        storm(work)
        assert len(server.mails) == 1
        run_to_the_end(work, inbox)
    assert inbox.times == [START, START + LIMITS.every]
    inbox.check(STORM + 1)


def test_a_storm_that_goes_on_for_hours_keeps_to_the_limits(tmp_path: Path, templates: Path) -> None:
    limits = LIMITS.model_copy(update={"count": 30})
    with MailServer() as server, working(tmp_path / "queue", postbox(server, templates=templates), limits) as work:
        inbox = Inbox(server)
        number = 0
        for _ in range(100):
            work.ban(*(f"10.0.{n >> 6}.{n & 63}" for n in range(number, number + 40)))
            number += 40
            work.work()
            inbox.look(work.now)
            work.now += MINUTE
        run_to_the_end(work, inbox)
    inbox.check(number)
    assert len(server.mails) >= LIMITS.per_hour * 1.5, "it was the hour's limit that held"


def test_a_server_that_was_down_loses_nothing_and_floods_nobody(tmp_path: Path, templates: Path) -> None:
    with MailServer() as server, working(tmp_path / "queue", postbox(server, templates=templates)) as work:
        inbox = Inbox(server)
        server.down()
        storm(work)
        work.go_on(5 * HOUR)
        work.restart()
        work.ban("198.51.100.7")
        work.go_on(5 * HOUR)
        assert server.mails == []
        server.up()
        back = work.now
        run_to_the_end(work, inbox)
    assert len(server.mails) == 2, "what was to be told first, and a digest of all the rest"
    assert inbox.times[0] - back <= timedelta(minutes=10)
    inbox.check(STORM + 1)


def test_a_server_that_says_later_gets_the_same_mail_again(tmp_path: Path, templates: Path) -> None:
    with MailServer() as server, working(tmp_path / "queue", postbox(server, templates=templates)) as work:
        inbox = Inbox(server)
        server.answers = ["451 4.7.1 greylisted"] * 3
        work.ban("203.0.113.7")
        work.work()
        work.ban("203.0.113.8")
        run_to_the_end(work, inbox)
    assert [told["told"] for told in inbox.told] == [["203.0.113.7"], ["203.0.113.8"]]
    assert inbox.times[0] == START + timedelta(seconds=10 + 20 + 40)
    assert inbox.times[1] - inbox.times[0] == LIMITS.every


def test_what_a_server_will_never_take_is_given_up_loudly_and_holds_up_nothing(
    tmp_path: Path, templates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with MailServer() as server, working(tmp_path / "queue", postbox(server, templates=templates)) as work:
        inbox = Inbox(server)
        server.answers = ["554 5.7.1 never"]
        work.ban("203.0.113.7")
        work.work()
        work.ban("203.0.113.8")
        run_to_the_end(work, inbox)
    assert [told["told"] for told in inbox.told] == [["203.0.113.8"]]
    given_up = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(given_up) == 1
    assert "mail root" in given_up[0]
    assert "554 '5.7.1 never'" in given_up[0]


# The whole program, in a lab

RESPOND = """
[respond.limits]
every = "1s"
[respond.mail]
to = ["root"]
server = "smtp://127.0.0.1:2525"
[[respond.mail.network]]
network = "{network}"
to = ["neighbour@example.org"]
"""


def start_mail_server(lab: Lab) -> None:
    folder = lab.disk / "mails"
    (folder / "new").mkdir(parents=True, exist_ok=True)
    (folder / "cur").mkdir(exist_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    handler = ["-c", "aiosmtpd.handlers.Mailbox", str(folder)]
    lab.spawn("smtp", [sys.executable, "-m", "aiosmtpd", "-n", "-l", "127.0.0.1:2525", *handler])
    lab.wait("the mail server listens", lambda: ":2525" in lab.on_host("ss", "-Hltn").out)


def taken(lab: Lab) -> list[tuple[str, str]]:
    """Return recipient and subject of the mails that came."""
    return sorted((mail["To"], mail["Subject"]) for mail in read(lab))


def read(lab: Lab) -> list[EmailMessage]:
    files = sorted((lab.disk / "mails" / "new").iterdir())
    return [message_from_bytes(file.read_bytes(), policy=policy.SMTP) for file in files]


def test_a_scan_becomes_a_mail_and_neither_a_restart_nor_a_restore_sends_it_again(
    make_lab: Callable[..., Lab],
) -> None:
    lab = make_lab("enabled = false")
    with lab.config.open("a", encoding="utf-8") as file:
        file.write(RESPOND.format(network=f"{SECOND}/32"))
    start_mail_server(lab)
    daemon = lab.start_daemon()
    lab.scan(ATTACKER)
    lab.wait("a mail comes", lambda: len(taken(lab)) == 1, timeout_s=30)
    ((recipient, subject),) = taken(lab)
    assert recipient == "root"
    assert re.fullmatch(rf"\[\S+\] {re.escape(ATTACKER)} banned: tcp/\d+.*", subject)
    part = read(lab)[0].get_body(("plain",))
    assert part is not None
    text = part.get_content()
    assert f"  Address  {ATTACKER}\n" in text
    assert "  Mode     stealth\n" in text

    lab.kill(daemon)
    lab.cut_power()
    lab.power_on()
    start_mail_server(lab)
    assert lab.jailbridge("restore").code == 0
    lab.start_daemon()
    lab.scan(SECOND)
    lab.wait("both are told of the second", lambda: len(taken(lab)) >= 3, timeout_s=30)
    told = taken(lab)
    assert [to for to, _ in told] == ["neighbour@example.org", "root", "root"]
    assert sum(ATTACKER in subject for _, subject in told) == 1
    assert sum(SECOND in subject for _, subject in told) == 2


def test_a_template_that_is_wrong_is_said_before_anything_runs(make_lab: Callable[..., Lab], tmp_path: Path) -> None:
    lab = make_lab("enabled = false")
    with lab.config.open("a", encoding="utf-8") as file:
        file.write(RESPOND.format(network=f"{SECOND}/32"))
    text = lab.config.read_text(encoding="utf-8")
    lab.config.write_text(
        text.replace("[respond.mail]\n", f'[respond.mail]\ntemplates = "{tmp_path}"\n'), encoding="utf-8"
    )
    (tmp_path / "text.j2").write_text("Hello,\n{{ adress }}\n")
    answer = lab.jailbridge("run")
    assert answer.code == 1
    assert "Traceback" not in answer.err
    assert f"respond.mail.templates: {tmp_path}/text.j2:2: 'adress' is undefined" in answer.err
