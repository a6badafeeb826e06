"""Webhooks: what is sent to a real web server, and what becomes of its answers."""

import json
import logging
import re
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from jailbridge.config.responding import On, WebhookSettings
from jailbridge.errors import FatalError, GiveUp, RetryLater
from jailbridge.respond.postbox import Batch
from jailbridge.respond.sending import RetryAfter
from jailbridge.respond.templates import Template, samples
from jailbridge.respond.webhook import (
    MAX_WAIT,
    WebhookPostbox,
    read_headers,
    retry_after,
    webhook_postboxes,
    webhook_problems,
)
from tests.servers import LOOPBACK, Authority, WebServer, stubborn
from tests.unit.respond.test_digest import NOW, event
from tests.unit.respond.test_mail import ONE
from tests.unit.respond.test_templates import HOSTILE

DOCS = (Path(__file__).parents[3] / "docs" / "respond.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^<!-- (\w+\.j2) -->\n+```jinja\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL))


def settings(url: str, **more: object) -> WebhookSettings:
    return WebhookSettings.model_validate({"url": url, "timeout": timedelta(seconds=10), **more})


def postbox(url: str, **more: object) -> WebhookPostbox:
    (made,) = webhook_postboxes([settings(url, **more)], host="box.example.org")
    return made


def send(box: WebhookPostbox, batch: Batch = ONE) -> None:
    (body,) = box.compose(batch)
    box.send(body)


def problems(*webhooks: WebhookSettings) -> list[tuple[str, str]]:
    return list(webhook_problems(webhooks))


def test_a_ban_is_posted_as_json() -> None:
    with WebServer() as server:
        send(postbox(server.url), replace(ONE, counted={"203.0.113.0/24": 5}, total=8))
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/hook?a=b")
    assert request.headers["Content-Type"] == "application/json"
    assert request.json == {
        "host": "box.example.org",
        "events": [
            {
                "address": "203.0.113.7",
                "port": "23",
                "ports": "tcp/23 udp/161",
                "protocol": "tcp",
                "mode": "manual",
                "reason": "scan: tcp/23",
                "until": "permanent",
                "time": "2026-11-22T06:30:59Z",
                "what": "ban",
                "origin": "sensor",
            }
        ],
        "counted": {"203.0.113.0/24": 5},
        "rest": 2,
        "total": 8,
    }


def test_outsiders_text_breaks_out_of_nothing() -> None:
    hostile = Batch(listed=(replace(event("203.0.113.7"), reason='"}],' + HOSTILE),), counted={}, total=1)
    with WebServer() as server:
        send(postbox(server.url), hostile)
    (told,) = server.requests[0].json["events"]
    assert told["reason"].startswith('"}],evil Bcc:')
    assert told["reason"].isprintable()
    assert len(server.requests[0].body) < 2000


def test_it_is_told_of_the_networks_and_the_kinds_that_were_chosen() -> None:
    box = postbox("http://box.test/", networks=("192.0.2.0/24",), on=(On.BAN, On.UNBAN))
    assert box.wants(event("192.0.2.7"))
    assert box.wants(event("192.0.2.7", what=On.UNBAN))
    assert not box.wants(event("192.0.3.7"))
    box = postbox("http://box.test/")
    assert box.wants(event("192.0.3.7"))
    assert not box.wants(event("192.0.3.7", what=On.UNBAN))


def test_its_name_is_its_own_and_tells_no_secret() -> None:
    one = postbox("https://hooks.test/secret").name
    assert one.startswith("webhook hooks.test ")
    assert "secret" not in one
    assert one == postbox("https://hooks.test/secret", timeout=timedelta(seconds=1)).name
    assert one != postbox("https://hooks.test/secret", networks=("192.0.2.0/24",)).name
    assert one != postbox("https://hooks.test/secret", on=(On.UNBAN,)).name
    assert one != postbox("https://hooks.test/other").name


# Templates


def test_the_documentation_has_its_examples() -> None:
    assert set(EXAMPLES) == {"ntfy.j2", "slack.j2", "matrix.j2"}


@pytest.mark.parametrize("name", ["ntfy.j2", "slack.j2", "matrix.j2"])
def test_the_documentations_examples_work(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(EXAMPLES[name], encoding="utf-8")
    assert problems(settings("https://hooks.test/x", template=path)) == []
    for values in samples():
        told = json.loads(Template(path).render(values))
        text = told["message"] if name == "ntfy.j2" else told["text"]
        assert values["host"] in json.dumps(told)
        assert values["events"][0]["address"] in text
        assert text.strip() == text
    listed = tuple(replace(event(f"203.0.113.{n}"), reason="<&>*_`\"'\\" + HOSTILE[:500]) for n in range(200))
    (body,) = postbox("https://hooks.test/x", template=path).compose(Batch(listed=listed, counted={}, total=5000))
    assert json.loads(body)
    assert b"5000" in body
    # ntfy makes a file of what is longer; Slack and Matrix cut it.
    assert len(body) < 4096
    assert name != "slack.j2" or b"<&>" not in body


def test_a_template_may_make_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "text.j2"
    path.write_text("{{ events[0].address }} ü\n")
    with WebServer() as server:
        send(postbox(server.url, template=path, content_type="text/plain"))
    assert server.requests[0].body.decode() == "203.0.113.7 ü\n"
    assert server.requests[0].headers["Content-Type"] == "text/plain"


def test_a_template_that_makes_no_json_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "hook.j2"
    path.write_text('{"text": "{{ events[0].reason }}", "address": {{ events[0].address }}}')
    ((key, problem),) = problems(settings("https://hooks.test/x", template=path))
    assert key == "respond.webhook.0.template"
    assert problem.startswith(f"{path}: does not make JSON (use the filter tojson): ")
    path.write_text("\n{{ adress }}")
    assert problems(settings("https://hooks.test/x", template=path)) == [(key, f"{path}:2: 'adress' is undefined")]


def test_a_template_that_fails_later_is_told_of_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "hook.j2"
    path.write_text('{"text": "{{ events[0].reason }}"}')
    quoted = Batch(listed=(replace(event("203.0.113.7"), reason='say "no"'),), counted={}, total=1)
    with caplog.at_level(logging.ERROR):
        (body,) = postbox("https://hooks.test/x", template=path).compose(quoted)
    assert json.loads(body)["events"][0]["reason"] == 'say "no"'
    assert f"the general JSON is sent: {path}: does not make JSON" in caplog.text


# Answers


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413, 422])
def test_what_is_refused_is_not_said_again(status: int) -> None:
    with WebServer() as server:
        server.answers = [(status, {})]
        with pytest.raises(GiveUp, match=rf"webhook 127\.0\.0\.1 \w+: HTTP {status} 'what it\\r\\nsays'"):
            send(postbox(server.url))
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_what_may_be_better_later_is_said_again(status: int) -> None:
    with WebServer() as server:
        server.answers = [(status, {})]
        box = postbox(server.url)
        (body,) = box.compose(ONE)
        with pytest.raises(RetryLater, match=f"HTTP {status}"):
            box.send(body)
        box.send(body)
    assert [request.body for request in server.requests] == [body, body]


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_says_how_long_it_wants_to_be_spared(status: int) -> None:
    with WebServer() as server:
        server.answers = [(status, {"Retry-After": "120"}), (status, {"Retry-After": "99999"})]
        with pytest.raises(RetryAfter) as raised:
            send(postbox(server.url))
        assert raised.value.after == timedelta(minutes=2)
        with pytest.raises(RetryAfter) as raised:
            send(postbox(server.url))
        assert raised.value.after == MAX_WAIT


@pytest.mark.parametrize(
    ("text", "wait"),
    [
        ("0", timedelta(0)),
        (" 7 ", timedelta(seconds=7)),
        ("Sun, 22 Nov 2026 06:31:59 GMT", timedelta(minutes=1)),
        ("Sun, 22 Nov 2026 05:00:00 GMT", timedelta(0)),
        ("Sun, 22 Nov 2099 05:00:00 GMT", MAX_WAIT),
        ("99999999999999999999", None),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("Sun, 99 Nov 2026 06:31:59 GMT", None),
    ],
)
def test_how_long_is_a_number_of_seconds_or_a_date(text: str, wait: timedelta | None) -> None:
    assert retry_after(text, NOW) == wait


def test_a_redirect_is_not_followed() -> None:
    with WebServer() as other, WebServer() as server:
        server.answers = [(302, {"Location": other.url}), (307, {"Location": "file:///etc/passwd"})]
        for _ in range(2):
            with pytest.raises(GiveUp, match=r"leads elsewhere .*respond\.webhook\.url"):
                send(postbox(server.url))
        assert other.requests == []


def test_a_server_that_is_down_is_tried_again() -> None:
    with WebServer() as server:
        url = server.url
    with pytest.raises(RetryLater, match="Connection refused"):
        send(postbox(url))
    with pytest.raises(RetryLater):
        send(postbox("https://nobody.invalid/x"))


@pytest.mark.parametrize(
    ("say", "every_s"), [(b"", 0.0), (b"H", 0.05), (b"HTTP/1.1 500 no\r\nA: b\r\n", 0.01), (b"x" * 1000, 0.01)]
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_hangs_or_never_comes_to_an_end_is_left(scheme: str, say: bytes, every_s: float) -> None:
    with stubborn(say, every_s) as port:
        begun = time.monotonic()
        with pytest.raises(RetryLater):
            send(postbox(f"{scheme}://{LOOPBACK}:{port}/", timeout=timedelta(seconds=0.3)))
        assert time.monotonic() - begun < 20


def test_a_body_without_an_end_is_not_read() -> None:
    with stubborn(b"HTTP/1.1 200 fine\r\n\r\n" + b"x" * 10_000, 0.01) as port:
        send(postbox(f"http://{LOOPBACK}:{port}/", timeout=timedelta(seconds=0.3)))


def test_a_refusal_counts_whatever_becomes_of_its_words() -> None:
    with (
        stubborn(b"HTTP/1.1 404 no\r\nContent-Length: 9999\r\n\r\n", 0.2) as port,
        pytest.raises(GiveUp, match="HTTP 404"),
    ):
        send(postbox(f"http://{LOOPBACK}:{port}/", timeout=timedelta(seconds=0.3)))


def test_a_certificate_is_checked(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    with WebServer(tls=authority.context()) as server:
        with pytest.raises(RetryLater, match="certificate cannot be trusted"):
            send(postbox(server.url))
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        send(postbox(server.url))
    assert len(server.requests) == 1


def test_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with WebServer() as server:
        send(postbox(server.url))
    assert len(server.requests) == 1


# Settings


def test_headers_come_from_a_file_that_only_root_may_read(secret_file: Path) -> None:
    secret_file.write_text("# ours\n\nAuthorization: Bearer tk: x \nX-Tags: a,b\r\n")
    with WebServer() as server:
        box = postbox(server.url, headers_file=secret_file)
        send(box)
        secret_file.chmod(0o644)
        with pytest.raises(RetryLater, match=r"respond\.webhook\.headers_file: .* may be read by others"):
            send(box)
    assert server.requests[0].headers["Authorization"] == "Bearer tk: x"
    assert server.requests[0].headers["X-Tags"] == "a,b"


@pytest.mark.parametrize("line", ["Authorization", "Bad name: x", ": x", "A: ü", "A: \x07b", "A: a\x0bb", "Host: x"])
def test_a_line_that_is_no_header_is_named(secret_file: Path, line: str) -> None:
    secret_file.write_text(f"A: b\n{line}\n")
    with pytest.raises(FatalError, match=rf"{secret_file}:2: "):
        read_headers(secret_file)
    ((key, problem),) = problems(settings("https://hooks.test/x", headers_file=secret_file))
    assert key == "respond.webhook.0.headers_file"
    assert problem.startswith(f"{secret_file}:2: ")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://hooks.test:99999/", "is no address"),
        ("https://[::1/x", "is no address"),
        ("https:///x", "names no host"),
        ("https://me:secret@hooks.test/", "headers_file"),
        ("https://hooks.test/#top", "fragment"),
    ],
)
def test_an_address_that_cannot_be_used_is_a_problem(url: str, said: str) -> None:
    found = problems(settings(url))
    assert [key for key, _ in found] == ["respond.webhook.0.url"]
    assert said in found[0][1]


def test_what_the_settings_cannot_mean_is_a_problem() -> None:
    fine = settings("https://hooks.test/x")
    assert problems(fine, settings("https://hooks.test/x", on=(On.UNBAN,))) == []
    assert [key for key, _ in problems(fine, fine)] == ["respond.webhook.1.url"]
    assert [key for key, _ in problems(settings("https://hooks.test/x", content_type="text/plain"))] == [
        "respond.webhook.0.content_type"
    ]
