"""Whose a source is, in a mail: asked of a registry, in the lab, that says evil things, leads astray and has no end."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from jailbridge.demo.lab import Lab
from tests.e2e.test_respond_mail import read, start_mail_server
from tests.servers import make_authority

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

# Of the world outside, as the lab has it: no packet leaves that.
REGISTRY, SOURCE, ASTRAY, ENDLESS = "9.9.9.9", "8.8.8.8", "8.8.4.4", "1.1.1.1"
HOSTILE = "evil\r\nBcc: all@example.org\x00\x1b[2J\u202e <script>alert(1)</script> {{ 7 * 7 }}"
SAID = {
    "startAddress": "8.8.8.0",
    "endAddress": "8.8.8.255",
    "country": "US",
    "entities": [
        {
            "roles": ["registrant", "abuse"],
            "vcardArray": [
                "vcard",
                [["fn", {}, "text", HOSTILE], ["email", {}, "text", f"abuse@example.net{HOSTILE}"]],
            ],
        }
    ],
}
# Where the question goes first, and a registry, which is asked by https.
SERVERS = f"""
import contextlib, http.server, ssl, sys, threading
class First(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        address = self.path.rpartition("/")[2]
        if address == "{ENDLESS}":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(b" " * 10_000_000)
            return
        self.send_response(302)
        there = "127.0.0.1" if address == "{ASTRAY}" else "{REGISTRY}"
        self.send_header("Location", f"https://{{there}}:8443/ip/{{address}}")
        self.end_headers()
    def log_message(self, *args): pass
class Registry(First):
    def do_GET(self):
        print(self.path, flush=True)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(open(sys.argv[2], "rb").read())
class Server(http.server.ThreadingHTTPServer):
    def get_request(self):
        peer, address = super().get_request()
        print(peer.getsockname()[0], flush=True)
        return peer, address
first = http.server.ThreadingHTTPServer(("127.0.0.1", 8043), First)
registry = Server(("0.0.0.0", 8443), Registry)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
registry.socket = context.wrap_socket(registry.socket, server_side=True)
threading.Thread(target=first.serve_forever).start()
registry.serve_forever()
"""
RESPOND = """
[respond.limits]
every = "1s"
[respond.mail]
to = ["root"]
server = "smtp://127.0.0.1:2525"
[respond.whois]
server = "http://127.0.0.1:8043"
"""


def start_registries(lab: Lab, certificate: Path) -> None:
    (lab.disk / "said").write_text(json.dumps(SAID))
    assert lab.on_host("ip", "address", "add", f"{REGISTRY}/32", "dev", "lo").code == 0
    lab.spawn("registry", [sys.executable, "-I", "-c", SERVERS, str(certificate), str(lab.disk / "said")])
    lab.wait("they listen", lambda: all(port in lab.on_host("ss", "-Hltn").out for port in (":8043", ":8443")))


def has_mails(lab: Lab, number: int) -> bool:
    return len(read(lab)) == number


def test_a_mail_tells_whose_the_source_is_and_no_evil_of_it_gets_through(
    make_lab: Callable[..., Lab], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = make_authority(tmp_path, f"IP:{REGISTRY},IP:127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    lab = make_lab("enabled = false")
    with lab.config.open("a", encoding="utf-8") as file:
        file.write(RESPOND)
    start_registries(lab, authority.certificate)
    start_mail_server(lab)
    lab.start_daemon()
    texts, pages = {}, {}
    for source in (SOURCE, ASTRAY, ENDLESS):
        before = len(read(lab))
        assert lab.jailbridge("ban", source, "--for", "1h").code == 0
        lab.wait("a mail comes", partial(has_mails, lab, before + 1), timeout_s=60)
        (mail,) = [mail for mail in read(lab) if f" {source} banned" in mail["Subject"]]
        assert mail["Bcc"] is None
        text, page = mail.get_body(("plain",)), mail.get_body(("html",))
        assert text is not None
        assert page is not None
        texts[source], pages[source] = text.get_content(), page.get_content()
    told = texts[SOURCE].replace("\r\n", "\n")
    assert "  Whois    evil Bcc: all@example.org [2J <script>alert(1)</script> {{ 7 (US)\n" in told
    assert "           8.8.8.0/24\n           abuse@example.netevil Bcc:" in told
    assert not set("\x00\x1b\u202e") & set(told + pages[SOURCE])
    assert "<script>" not in pages[SOURCE]
    assert "Whois" not in texts[ASTRAY] + texts[ENDLESS]
    log = lab.tail("jailbridge", 100)
    assert f"network={ASTRAY}: leads to 127.0.0.1, which is not a public address" in log
    assert f"network={ENDLESS}: 127.0.0.1: the answer is over 256 KiB" in log
    # Asked once, from where it may be, and nobody came to the inside.
    assert lab.tail("registry", 100).splitlines() == [REGISTRY, f"/ip/{SOURCE}"]
