"""The filter, judged by fail2ban itself on every sample line, and by a server that follows a system log."""

import json
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from jailbridge.config.settings import Settings
from jailbridge.definitions import render, write
from tests.contract.kits_fail2ban import INSTALLED, Fail2ban
from tests.e2e.fail2ban_server import FAIL2BANS, Server, eventually, held, now, on_both

pytestmark = pytest.mark.e2e

SAMPLES = Path(__file__).parents[2] / "sample-logs"
FORMATS = ("portsentry-1.2", "portsentry-2", "syslog")


def banned_by_the_filter(
    folder: Path, tail_format: str, log: Path, encoding: str = "latin-1", fail2ban: Fail2ban = INSTALLED
) -> list[str]:
    """The address for each line that the filter for a format matches."""
    write(render(Settings.model_validate({"tail": [{"path": "/log", "format": tail_format}]})), folder)
    done = subprocess.run(
        [fail2ban.program("regex"), "-c", str(folder), "-e", encoding, "-o", "ip", str(log),
         str(folder / "filter.d/jailbridge-portsentry.conf")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


def expectations(sample: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (SAMPLES / f"{sample}.expected.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("fail2ban", FAIL2BANS)
@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
@pytest.mark.parametrize("tail_format", ["auto", "own"])
@pytest.mark.parametrize("sample", FORMATS)
def test_the_filter_bans_exactly_what_each_sample_line_says(
    tmp_path: Path, sample: str, tail_format: str, encoding: str, fail2ban: Fail2ban
) -> None:
    form = sample if tail_format == "own" else "auto"
    banned = banned_by_the_filter(tmp_path, form, SAMPLES / f"{sample}.log", encoding, fail2ban)
    assert banned == [line["fail2ban"] for line in expectations(sample) if line["fail2ban"]]


@pytest.mark.parametrize(
    ("tail_format", "other"),
    [
        *((one, other) for one in FORMATS for other in (*FORMATS, "kernel", "journal") if other != one),
        ("auto", "kernel"),
        ("auto", "journal"),
    ],
)
def test_a_filter_for_one_format_matches_nothing_of_the_others(tmp_path: Path, tail_format: str, other: str) -> None:
    assert banned_by_the_filter(tmp_path, tail_format, SAMPLES / f"{other}.log") == []


@pytest.mark.parametrize("fail2ban", FAIL2BANS)
@pytest.mark.parametrize(
    "line",
    [
        "1795329059 - portsentry[1]: attackalert: TCP SYN/Normal scan from host: x/192.0.2.1 to TCP port: 1",
        "Nov 22 06:31:13 - 11/22/2026 06:30:59 Host: x/192.0.2.1 Port: 15 TCP Blocked",
        "portsentry[1]: attackalert: TCP SYN/Normal scan from host: x/192.0.2.1 to TCP port: 1",
        " portsentry[1]: attackalert: TCP SYN/Normal scan from host: x/192.0.2.1 to TCP port: 1",
        " host portsentry[1]: attackalert: TCP SYN/Normal scan from host: x/192.0.2.1 to TCP port: 1",
        " 06:31:13 host portsentry[1]: attackalert: TCP SYN/Normal scan from host: x/192.0.2.1 to TCP port: 1",
        "Nov 2 06:31:13 host portsentry[1]: attackalert: TCP SYN/Normal scan from host: x/192.0.2.1 to TCP port: 1",
    ],
)
def test_no_line_matches_without_its_formats_time(tmp_path: Path, line: str, fail2ban: Fail2ban) -> None:
    log = tmp_path / "log"
    log.write_text(f"{line}\n")
    assert banned_by_the_filter(tmp_path, "auto", log, fail2ban=fail2ban) == []


@on_both
def test_a_syslog_file_is_followed_and_what_other_programs_are_made_to_say_bans_nobody(server: Server) -> None:
    scan = "portsentry[4]: attackalert: TCP SYN/Normal scan from host: x/{} to TCP port: 1"

    def logged(when: datetime, text: str) -> None:
        with server.history.open("a", encoding="ascii") as syslog:
            syslog.write(f"{when.astimezone():%b %e %H:%M:%S} host {text}\n")

    tail = {"path": str(server.history), "format": "syslog"}
    write(render(Settings.model_validate(server.settings().model_dump() | {"tail": [tail]})), server.directory)
    logged(now() - timedelta(hours=2), scan.format("192.0.2.1"))
    for second in range(300):
        logged(now() - timedelta(seconds=300 - second), "kernel: eth0: link up")
    logged(now(), scan.format("192.0.2.2"))
    server.start()
    eventually(lambda: "192.0.2.2" in held(server.store()))
    logged(now(), f"sshd[5]: Invalid user {scan.format('192.0.2.3')}")
    logged(now(), f"sshd[5]: Invalid user\n {scan.format('192.0.2.4')}\n host {scan.format('192.0.2.5')}")
    logged(now(), scan.format("192.0.2.6"))
    eventually(lambda: "192.0.2.6" in held(server.store()))
    assert set(held(server.store())) == {"192.0.2.2", "192.0.2.6"}
