"""Webhooks to a real web server: the limits that mail has, and a scan that becomes a request."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jailbridge.config.responding import LimitSettings, WebhookSettings
from jailbridge.demo.lab import ATTACKER, SECOND, Lab
from jailbridge.respond.webhook import WebhookPostbox, webhook_postboxes
from tests.e2e.responding import START, STORM, Working, storm, working
from tests.servers import WebServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

LIMITS = LimitSettings()


def postbox(server: WebServer, **more: object) -> WebhookPostbox:
    (made,) = webhook_postboxes([WebhookSettings.model_validate({"url": server.url, **more})], host="box")
    return made


def run_to_the_end(work: Working, server: WebServer) -> list[datetime]:
    """Return when each request came."""
    times: list[datetime] = []
    while True:
        due = work.work()
        times += [work.now] * (len(server.requests) - len(times))
        if due is None:
            return times
        work.now = due


def test_5000_bans_in_a_minute_are_a_few_requests_that_tell_of_all(tmp_path: Path) -> None:
    with WebServer() as server, working(tmp_path / "queue", postbox(server)) as work:
        storm(work)
        work.finish()
    told = [request.json for request in server.requests]
    assert len(told) <= 2 + STORM // LIMITS.count
    listed = Counter(event["address"] for one in told for event in one["events"])
    assert set(listed.values()) == {1}
    assert listed.total() + sum(sum(one["counted"].values()) + one["rest"] for one in told) == STORM
    assert sum(one["total"] for one in told) == STORM


def test_a_server_that_is_in_trouble_gets_the_same_again_and_as_late_as_it_wants(tmp_path: Path) -> None:
    with WebServer() as server, working(tmp_path / "queue", postbox(server)) as work:
        server.answers = [(500, {}), (429, {"Retry-After": "300"}), (503, {})]
        work.ban("203.0.113.7")
        times = run_to_the_end(work, server)
    bodies = [request.body for request in server.requests]
    assert len(bodies) == 4
    assert len(set(bodies)) == 1
    assert [time - START for time in times] == [timedelta(seconds=s) for s in (0, 10, 310, 350)]


def test_what_is_refused_is_given_up_loudly_and_holds_up_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with WebServer() as server, working(tmp_path / "queue", postbox(server)) as work:
        server.answers = [(404, {})]
        work.ban("203.0.113.7")
        work.work()
        work.ban("203.0.113.8")
        work.finish()
    assert [request.json["events"][0]["address"] for request in server.requests] == ["203.0.113.7", "203.0.113.8"]
    given_up = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(given_up) == 1
    assert "HTTP 404" in given_up[0]
    assert "hook" not in given_up[0].replace("webhook", ""), "who knows the whole address may write there"


HOOK = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        print(self.headers["Authorization"], body.decode(), flush=True)
        self.send_response(204)
        self.end_headers()
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
"""
RESPOND = """
[respond.limits]
every = "1s"
quiet_for = "1s"
[[respond.webhook]]
url = "http://127.0.0.1:8080/"
headers_file = "{disk}/headers"
on = ["ban", "unban"]
"""


def start_web_server(lab: Lab) -> None:
    lab.spawn("hook", [sys.executable, "-I", "-c", HOOK])
    lab.wait("the web server listens", lambda: ":8080" in lab.on_host("ss", "-Hltn").out)


def told(lab: Lab) -> list[tuple[str, str]]:
    """Return what happened to which address, as the web server was told."""
    rows = (lab.disk / "hook.log").read_text(encoding="utf-8").splitlines()
    bodies: list[dict[str, Any]] = [json.loads(row.removeprefix("Bearer secret ")) for row in rows]
    return [(event["what"], event["address"]) for body in bodies for event in body["events"]]


def test_a_scan_becomes_a_request_and_a_restart_sends_it_no_second_time(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab("enabled = false")
    (lab.disk / "headers").touch(mode=0o600)
    (lab.disk / "headers").write_text("Authorization: Bearer secret\n")
    with lab.config.open("a", encoding="utf-8") as file:
        file.write(RESPOND.format(disk=lab.disk))
    start_web_server(lab)
    daemon = lab.start_daemon()
    lab.scan(ATTACKER)
    lab.wait("it is told", lambda: told(lab) == [("ban", ATTACKER)], timeout_s=30)
    lab.kill(daemon)
    # What it left behind is no sign that the next one answers.
    lab.settings.control.socket.unlink()
    lab.start_daemon()
    assert lab.jailbridge("ban", SECOND, "--for", "1h").code == 0
    lab.wait("the second is told", lambda: len(told(lab)) == 2, timeout_s=30)
    assert lab.jailbridge("unban", SECOND).code == 0
    lab.wait("its end is told", lambda: len(told(lab)) == 3, timeout_s=30)
    assert told(lab) == [("ban", ATTACKER), ("ban", SECOND), ("unban", SECOND)]
