"""Mail: what it says, whom it goes to, and what becomes of it at real servers and at a real sendmail's place."""

import logging
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from jailbridge.config.responding import MailSettings, On
from jailbridge.errors import GiveUp, RetryLater
from jailbridge.model.network import Network
from jailbridge.respond import mail
from jailbridge.respond.mail import MailPostbox, Whois, mail_postboxes, mail_problems
from jailbridge.respond.postbox import Batch
from tests.servers import LOOPBACK, Authority, Mail, MailServer, make_authority, stubborn
from tests.unit.respond.test_digest import event
from tests.unit.respond.test_templates import HOSTILE

USER, PASSWORD = "jailbridge", "s:ecret"
ONE = Batch(
    listed=(replace(event("203.0.113.7"), ports=("tcp/23", "udp/161"), reason="scan: tcp/23"),), counted={}, total=1
)


def settings(server: str | None = None, **more: object) -> MailSettings:
    return MailSettings.model_validate({"to": ("root",), "server": server, "timeout": timedelta(seconds=10), **more})


def postbox(server: str | None = None, whois: Whois | None = None, **more: object) -> MailPostbox:
    (made,) = mail_postboxes(settings(server, **more), host="box.example.org", whois=whois)
    return made


def through(server: MailServer, batch: Batch = ONE, whois: Whois | None = None, **more: object) -> Mail:
    box = postbox(server.url, whois, **more)
    (message,) = box.compose(batch)
    box.send(message)
    (taken,) = server.mails
    return taken


def problems(**more: object) -> list[tuple[str, str]]:
    return list(mail_problems(settings(**more)))  # type: ignore[arg-type]


# What it says


def test_a_mail_tells_of_a_ban_in_text_and_html() -> None:
    with MailServer() as server:
        taken = through(server)
    message = taken.message
    assert taken.recipients == ["root"]
    assert taken.sender == "jailbridge@box.example.org"
    assert message["From"] == "jailbridge@box.example.org"
    assert message["To"] == "root"
    assert message["Subject"] == "[box.example.org] 203.0.113.7 banned: tcp/23 udp/161"
    assert message["Auto-Submitted"] == "auto-generated"
    assert abs(message["Date"].datetime - datetime.now(UTC)) < timedelta(minutes=5)
    for kind in ("plain", "html"):
        for told in ("203.0.113.7", "tcp/23 udp/161", "scan: tcp/23", "permanent"):
            assert told in taken.text(kind)
    assert not message.defects


def test_a_batch_that_is_composed_again_after_a_crash_is_the_same_message_to_a_mail_reader() -> None:
    def identity(box: MailPostbox, batch: Batch = ONE) -> str:
        found = re.search(rb"Message-ID: (<\S+@box\.example\.org>)\r\n", box.compose(batch)[0])
        assert found is not None
        return found[1].decode()

    assert identity(postbox()) == identity(postbox())
    assert identity(postbox()) != identity(postbox(to=("admin",)))
    assert identity(postbox()) != identity(postbox(), replace(ONE, total=2))


def test_a_digest_is_one_mail() -> None:
    listed = tuple(event(f"203.0.113.{n}") for n in range(20))
    with MailServer() as server:
        taken = through(server, Batch(listed=listed, counted={"203.0.113.0/24": 180, "192.0.2.0/24": 99}, total=305))
    assert taken.message["Subject"] == "[box.example.org] 305 bans"
    for kind in ("plain", "html"):
        text = taken.text(kind)
        assert text.count("203.0.113.") == 21
        assert re.search(r"180\D+203\.0\.113\.0/24", text)
        assert "6 more are not named here" in text


def test_whois_is_shown_and_asked_once_for_a_source() -> None:
    asked = []

    def whois(network: Network) -> SimpleNamespace | None:
        asked.append(str(network))
        known = SimpleNamespace(name="Ünïnet <x>", country="DE", network="203.0.113.0/24", abuse="abuse@example.net")
        return known if str(network) == "203.0.113.7" else None

    twice = (*ONE.listed, *ONE.listed, event("192.0.2.1"), event("192.0.2.9", what=On.UNBAN))
    with MailServer() as server:
        taken = through(server, Batch(listed=twice, counted={}, total=4), whois)
    assert asked == ["203.0.113.7", "192.0.2.1"]
    assert taken.text().count("Ünïnet <x> (DE)  203.0.113.0/24  abuse@example.net") == 2
    assert taken.text("html").count("Ünïnet &lt;x&gt; (DE)") == 2
    assert taken.raw.isascii()


def test_a_whois_that_is_slow_holds_up_no_mail(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def whois(network: Network) -> None:
        asked.append(network)
        time.sleep(0.2)

    monkeypatch.setattr(mail, "WHOIS_LIMIT_S", 0.1)
    listed = tuple(event(f"203.0.113.{n}") for n in range(100))
    assert b"203.0.113.99" in postbox(whois=whois).compose(Batch(listed=listed, counted={}, total=100))[0]
    assert len(asked) == 1


def test_nobody_writes_headers_or_marks_but_we() -> None:
    hostile = replace(event("203.0.113.7"), reason=HOSTILE, ports=("tcp/23\r\nBcc: x@example.org",))
    whose = SimpleNamespace(name=HOSTILE, country=HOSTILE, network=HOSTILE, abuse=HOSTILE)
    with MailServer() as server:
        (box,) = mail_postboxes(
            settings(server.url), host="box\r\nBcc: y@example.org\n\n<b>", whois=lambda network: whose
        )
        (message,) = box.compose(Batch(listed=(hostile,), counted={}, total=1))
        box.send(message)
        (taken,) = server.mails
    assert taken.recipients == ["root"]
    names = [name for name, _ in taken.message.items()]
    assert sorted(names) == sorted(set(names))
    assert set(names) == {
        *("From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type")
    }
    assert len(taken.raw) < 20_000
    assert "<script" not in taken.text("html")
    assert not set(taken.text()) & set("\x00\x1b\u202e\u2028")
    assert all(len(line) < 1000 for line in taken.raw.split(b"\r\n"))


# Whom it goes to


def test_everybody_has_a_postbox_and_who_is_told_of_a_network_gets_only_that() -> None:
    lan = {"network": "192.0.2.0/24", "to": ("user", "admin")}
    other = {"network": "2001:db8::/32", "to": ("user",)}
    boxes = mail_postboxes(
        settings(to=("root", "admin", "root"), network=(lan, other), on=(On.BAN,)), host="box", whois=None
    )
    wanted = {
        box.name: [
            address
            for address in ("192.0.2.7", "198.51.100.1", "2001:db8::/64", "192.0.0.0/16")
            if box.wants(event(address))
        ]
        for box in boxes
    }
    everything = ["192.0.2.7", "198.51.100.1", "2001:db8::/64", "192.0.0.0/16"]
    assert wanted == {
        "mail root": everything,
        "mail admin": everything,
        "mail user": ["192.0.2.7", "2001:db8::/64"],
    }
    assert not any(box.wants(event("192.0.2.7", what=On.UNBAN)) for box in boxes)


def test_ends_of_bans_are_told_where_they_are_asked_for() -> None:
    assert postbox(on=(On.BAN, On.UNBAN)).wants(event("192.0.2.7", what=On.UNBAN))


# Templates of the administrator's


def test_own_templates_take_the_place_of_ours(tmp_path: Path) -> None:
    (tmp_path / "subject.txt.j2").write_text("Ärger:\n{{ events[0].address }}\r\nBcc: x@example.org\n")
    (tmp_path / "html.j2").write_text("<p>{{ events[0].reason }}</p>")
    hostile = Batch(listed=(replace(ONE.listed[0], reason="<b>"),), counted={}, total=1)
    with MailServer() as server:
        taken = through(server, hostile, templates=tmp_path)
    assert taken.message["Subject"] == "Ärger: 203.0.113.7 Bcc: x@example.org"
    assert taken.message["Bcc"] is None
    assert taken.text("html") == "<p>&lt;b&gt;</p>\r\n"
    assert "  Reason   <b>" in taken.text(), "where there is no template of theirs, there is ours"


def test_an_empty_html_template_makes_a_mail_of_text_alone(tmp_path: Path) -> None:
    (tmp_path / "html.j2").touch()
    with MailServer() as server:
        assert through(server, templates=tmp_path).message.get_content_type() == "text/plain"


def test_a_template_that_fails_later_is_told_of_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = (
        "{% for e in events %}{% if e.address == '203.0.113.7' and total > 50 %}\n{{ e.oops }}{% endif %}{% endfor %}"
    )
    (tmp_path / "text.j2").write_text(text)
    (tmp_path / "html.j2").write_text("{% for n in range(total) %}{{ 'x' * 100000 }}{% endfor %}")
    (tmp_path / "subject.txt.j2").write_text("{% if total < 50 %}few{% endif %}")
    assert problems(templates=tmp_path) == [
        (
            "respond.mail.templates",
            f"{tmp_path}/html.j2: makes a text of over 1000000 characters: let it show fewer events",
        )
    ]
    (tmp_path / "html.j2").write_text(
        "{% if total > 50 %}{% for n in range(total) %}{{ 'x' * 100000 }}{% endfor %}{% endif %}"
    )
    assert problems(templates=tmp_path) == []
    with MailServer() as server, caplog.at_level(logging.ERROR):
        taken = through(server, replace(ONE, total=100, counted={"203.0.113.0/24": 99}), templates=tmp_path)
    assert "203.0.113.7" in taken.text()
    assert "203.0.113.7" in taken.text("html")
    assert taken.message["Subject"] == "[box.example.org] 100 bans"
    assert [record.message.partition(f"{tmp_path}/")[2] for record in caplog.records] == [
        "text.j2:2: 'dict object' has no attribute 'oops'",
        "html.j2: makes a text of over 1000000 characters: let it show fewer events",
    ]


def test_a_folder_without_templates_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "subjekt.txt.j2").touch()
    ((key, problem),) = problems(templates=tmp_path)
    assert key == "respond.mail.templates"
    assert problem == f"{tmp_path} has none of subject.txt.j2, text.j2, html.j2"


def test_each_broken_template_is_a_problem_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "subject.txt.j2").write_text("{{ adress }}")
    (tmp_path / "text.j2").write_text("\n{% endfor %}")
    found = problems(templates=tmp_path)
    assert [key for key, _ in found] == ["respond.mail.templates"] * 2
    assert [problem.partition(": ")[0] for _, problem in found] == [
        f"{tmp_path}/subject.txt.j2:1",
        f"{tmp_path}/text.j2:2",
    ]


# Servers


@pytest.mark.parametrize("kind", ["starttls", "tls"])
def test_tls_with_a_login(kind: str, authority: Authority, monkeypatch: pytest.MonkeyPatch, secret_file: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    secret_file.write_text(f"{USER}:{PASSWORD}\n")
    login = (USER, PASSWORD) if kind == "starttls" else None
    with MailServer(**{kind: authority.context()}, login=login) as server:
        taken = through(server, credentials=secret_file if login else None)
    assert taken.recipients == ["root"]
    assert taken.user == (USER if login else None)


@pytest.mark.parametrize("kind", ["starttls", "tls"])
def test_a_certificate_of_nobody_we_trust_is_refused_before_anything_is_said(kind: str, authority: Authority) -> None:
    with MailServer(**{kind: authority.context()}) as server:  # type: ignore[arg-type]
        with pytest.raises(RetryLater, match="certificate cannot be trusted: "):
            through(server)
        assert server.mails == []


def test_a_certificate_for_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_authority(tmp_path, "DNS:other.example.org")
    monkeypatch.setenv("SSL_CERT_FILE", str(other.file))
    with MailServer(starttls=other.context()) as server:
        with pytest.raises(RetryLater, match="certificate cannot be trusted: IP address mismatch"):
            through(server)
        assert server.mails == []


def test_a_server_without_tls_gets_neither_mail_nor_login_where_tls_is_asked_for(secret_file: Path) -> None:
    secret_file.write_text(f"{USER}\n{PASSWORD}\n")
    with MailServer() as server:
        box = postbox(server.url.replace("smtp:", "smtp+starttls:"), credentials=secret_file)
        with pytest.raises(RetryLater, match="STARTTLS"):
            box.send(box.compose(ONE)[0])
        assert server.mails == []


def test_a_login_without_tls_on_this_machine(secret_file: Path) -> None:
    secret_file.write_text(f"{USER}\n{PASSWORD}\n")
    with MailServer(login=(USER, PASSWORD)) as server:
        assert problems(server=server.url, credentials=secret_file) == []
        assert through(server, credentials=secret_file).user == USER


def test_a_wrong_login_loses_no_mail(secret_file: Path) -> None:
    with MailServer(login=(USER, PASSWORD)) as server:
        box = postbox(server.url, credentials=secret_file)
        secret_file.write_text(f"{USER}:wrong\n")
        with pytest.raises(RetryLater, match=r"refuses the login: 535 .*respond\.mail\.credentials"):
            box.send(box.compose(ONE)[0])
        secret_file.chmod(0o644)
        with pytest.raises(RetryLater, match=r"respond\.mail\.credentials: .* may be read by others"):
            box.send(box.compose(ONE)[0])
        box = postbox(server.url)
        with pytest.raises(RetryLater, match="530"):
            box.send(box.compose(ONE)[0])


def test_a_server_that_wants_us_later_is_asked_later_and_one_that_never_wants_it_is_not() -> None:
    with MailServer() as server:
        box = postbox(server.url)
        (message,) = box.compose(ONE)
        server.answers = ["451 4.7.1 greylisted, \x1b[31mlater", "554 5.7.1 no"]
        with pytest.raises(RetryLater, match=r"refuses the message: 451 '4.7.1 greylisted, .*later'"):
            box.send(message)
        with pytest.raises(GiveUp, match=r"refuses the message: 554 '5\.7\.1 no'"):
            box.send(message)
        server.recipient_answers = ["450 busy", "550 no such user"]
        with pytest.raises(RetryLater, match="450"):
            box.send(message)
        with pytest.raises(GiveUp, match="550"):
            box.send(message)
        box.send(message)
        assert len(server.mails) == 1


def test_a_server_that_is_down_gets_it_when_it_is_back() -> None:
    with MailServer() as server:
        box = postbox(server.url)
        (message,) = box.compose(ONE)
        server.down()
        with pytest.raises(RetryLater, match=rf"mail server {LOOPBACK}:{server.port}: Connection refused"):
            box.send(message)
        server.up()
        box.send(message)
        assert len(server.mails) == 1


def test_a_host_that_nobody_knows_is_tried_again() -> None:
    box = postbox("smtp://nobody.invalid")
    with pytest.raises(RetryLater, match=r"mail server nobody\.invalid:25: "):
        box.send(box.compose(ONE)[0])


@pytest.mark.parametrize(
    ("say", "every_s"), [(b"", 0.0), (b"2", 0.05), (b"220-not yet\r\n", 0.01), (b"x" * 1000, 0.01)]
)
@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_a_server_that_hangs_or_never_comes_to_an_end_is_left(scheme: str, say: bytes, every_s: float) -> None:
    with stubborn(say, every_s) as port:
        box = postbox(f"{scheme}://{LOOPBACK}:{port}", timeout=timedelta(seconds=0.3))
        begun = time.monotonic()
        with pytest.raises(RetryLater):
            box.send(box.compose(ONE)[0])
        assert time.monotonic() - begun < 20


# sendmail


def test_sendmail_gets_the_message_with_its_recipients_in_it(tmp_path: Path) -> None:
    program = tmp_path / "sendmail"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/words\nenv >{tmp_path}/env\ncat >{tmp_path}/mail\n')
    program.chmod(0o755)
    box = postbox(sendmail=program)
    box.send(box.compose(ONE)[0])
    assert (tmp_path / "words").read_text() == "-t\n-oi\n"
    taken = (tmp_path / "mail").read_bytes()
    assert b"\r" not in taken
    assert b"\nTo: root\n" in taken
    assert taken.startswith(b"From: jailbridge\n"), "a name alone is the mail system's to complete"
    assert b"203.0.113.7" in taken
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert names <= {"PATH", "LANG", "PWD", "SHLVL", "_", "OLDPWD"}


@pytest.mark.parametrize(("code", "kind"), [(75, RetryLater), (69, RetryLater), (1, RetryLater), (67, GiveUp)])
def test_sendmails_exit_code_tells_whether_to_try_again(tmp_path: Path, code: int, kind: type[Exception]) -> None:
    program = tmp_path / "sendmail"
    program.write_text(f'#!/bin/sh\ncat >/dev/null\necho "what\'s \x1b[31mwrong" >&2\nexit {code}\n')
    program.chmod(0o755)
    box = postbox(sendmail=program)
    with pytest.raises(kind, match=rf"refuses the message: code={code} what's \[31mwrong"):
        box.send(box.compose(ONE)[0])


def test_a_machine_without_sendmail_is_told_the_remedy(tmp_path: Path) -> None:
    box = postbox(sendmail=tmp_path / "none")
    with pytest.raises(
        RetryLater, match=r"none cannot be started: No such file or directory: .* respond\.mail\.server"
    ):
        box.send(box.compose(ONE)[0])


# Settings


@pytest.mark.parametrize(
    ("text", "login"),
    [
        ("user\npass word\n", ("user", "pass word")),
        ("user\r\npassword\r\n", ("user", "password")),
        ("user:pass:word", ("user", "pass:word")),
        ("u:ser\npassword\n\n", ("u:ser", "password")),
    ],
)
def test_credentials_are_two_lines_or_one(secret_file: Path, text: str, login: tuple[str, str]) -> None:
    secret_file.write_text(text)
    assert mail.credentials(secret_file) == login


@pytest.mark.parametrize("text", ["", "user", "user\n", ":password", "a\nb\nc", "user:pässword"])
def test_credentials_that_are_none_are_a_problem(secret_file: Path, text: str) -> None:
    secret_file.write_text(text)
    ((key, problem),) = problems(server="smtps://mail.example.org", credentials=secret_file)
    assert key == "respond.mail.credentials"
    assert problem.startswith(f"{secret_file} should have ")
    assert "pass" not in problem.replace("password", "")


def test_what_the_settings_cannot_mean_is_a_problem(secret_file: Path, tmp_path: Path) -> None:
    secret_file.write_text("user:password")
    assert "name it in respond.mail.server" in problems(credentials=secret_file)[0][1]
    assert "for all to read" in problems(server="smtp://mail.example.org", credentials=secret_file)[0][1]
    assert "no mail server's address" in problems(server="smtp://mail.example.org:99999")[0][1]
    secret_file.chmod(0o640)
    assert f"chmod 600 {secret_file}" in problems(server="smtps://m.example.org", credentials=secret_file)[0][1]
    missing = tmp_path / "missing"
    assert "No such file" in problems(server="smtps://m.example.org", credentials=missing)[0][1]
    assert "Is a directory" in problems(server="smtps://m.example.org", credentials=tmp_path)[0][1]
    assert "not a regular file" in problems(server="smtps://m.example.org", credentials=Path("/dev/null"))[0][1]
    assert problems() == []
