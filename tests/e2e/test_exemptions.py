"""Who is never banned, on a real host: its resolver, whom hosts.allow lets in, and who is logged in to its sshd."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from jailbridge import process
from jailbridge.demo.lab import ATTACKER, HOST, INNOCENT, SECOND, Failed, Lab
from jailbridge.process import Running

WITHOUT_FAIL2BAN = "enabled = false"
# Debian's sshd may be only unpacked.
SSHD = shutil.which("sshd", path=f"{process.SEARCH_PATH}{os.pathsep}{os.environ['PATH']}")
CONFIG = """
ListenAddress {host}
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
PidFile none
# Its keys are below /tmp.
StrictModes no
PermitRootLogin prohibit-password
UsePAM no
UseDNS no
"""
# The account of sshd's unprivileged half, and a /run with the utmp that it writes to.
WITH_OWN_RUN = """
mount -t tmpfs none /run && mkdir /run/sshd && touch /run/utmp &&
{ cat /etc/passwd; echo sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin; } >"$0/passwd" &&
mount --bind "$0/passwd" /etc/passwd && exec "$@"
"""
WITH_OWN_RESOLV_CONF = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
HOLD = f"""
import socket, time
peer = socket.create_connection(("{HOST}", 22), 10, ("{SECOND}", 0))
print(peer.recv(4), flush=True)
time.sleep(1000)
"""

pytestmark = pytest.mark.e2e


def banned(lab: Lab) -> set[str]:
    return {ban["address"] for ban in json.loads(lab.jailbridge("list", "--json").out)}


def is_running(lab: Lab, daemon: Running) -> Callable[[], bool]:
    def answers() -> bool:
        if daemon.poll() is not None:
            raise Failed(lab.tail("jailbridge"))
        return lab.settings.control.socket.is_socket()

    return answers


# Lists and resolvers


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text(f"nameserver {INNOCENT}\n")
    return path


@pytest.fixture
def hosts_allow(tmp_path: Path) -> Path:
    path = tmp_path / "hosts.allow"
    path.write_text(f"sshd: {SECOND}\nALL: {ATTACKER}\n")
    return path


@pytest.fixture
def guarded(make_lab: Callable[..., Lab], resolv_conf: Path, hosts_allow: Path) -> Lab:
    """A host with a resolver and a hosts.allow, under a running daemon."""
    lab = make_lab(WITHOUT_FAIL2BAN, policy=f'hosts_allow = "{hosts_allow}"')
    argv = ["unshare", "--mount", "sh", "-c", WITH_OWN_RESOLV_CONF, str(resolv_conf), *lab.jailbridge_argv("run")]
    lab.wait("jailbridge run answers", is_running(lab, lab.spawn("jailbridge", argv)))
    return lab


def test_a_resolver_and_whom_hosts_allow_lets_in_may_scan_and_nobody_else(guarded: Lab, hosts_allow: Path) -> None:
    for source in (INNOCENT, ATTACKER, SECOND):
        assert guarded.scan(source).code == 0
    guarded.wait("the third scanner is banned", lambda: SECOND in banned(guarded))
    assert banned(guarded) == {SECOND}
    refused = guarded.jailbridge("ban", INNOCENT)
    assert refused.code == 1
    assert f"{INNOCENT} is exempt: nameserver in /etc/resolv.conf" in refused.err
    refused = guarded.jailbridge("ban", ATTACKER)
    assert refused.code == 1
    assert f"{ATTACKER} is exempt: {hosts_allow}:2" in refused.err


def test_a_resolver_masks_a_ban_while_it_is_one_and_a_list_ends_it(
    guarded: Lab, resolv_conf: Path, hosts_allow: Path
) -> None:
    hosts_allow.write_text("")
    resolv_conf.write_text("")
    guarded.wait("nobody is exempt", lambda: guarded.jailbridge("ban", INNOCENT, ATTACKER).code == 0)
    assert guarded.connect(INNOCENT) == guarded.connect(ATTACKER) == "timed out"

    resolv_conf.write_text(f"nameserver {INNOCENT}\n")
    hosts_allow.write_text(f"ALL: {ATTACKER}\n")
    guarded.wait("the list ends a ban", lambda: banned(guarded) == {INNOCENT})
    guarded.wait("both get through", lambda: {guarded.connect(INNOCENT), guarded.connect(ATTACKER)} == {"connected"})

    resolv_conf.write_text("")
    hosts_allow.write_text("")
    guarded.wait("the mask is gone", lambda: guarded.connect(INNOCENT, 0.3) == "timed out")
    assert guarded.connect(ATTACKER) == "connected"


def test_check_config_tells_what_counts_and_what_is_not_obeyed(make_lab: Callable[..., Lab], hosts_allow: Path) -> None:
    lab = make_lab(WITHOUT_FAIL2BAN, policy=f'hosts_allow = "{hosts_allow}"\nallow = ["{INNOCENT}"]')
    answer = lab.jailbridge("check-config")
    assert answer.code == 0
    assert answer.out.splitlines() == [
        f"{hosts_allow}:1 is not obeyed: it is for 'sshd', and not for ALL",
        f"{lab.config}: in order; 2 networks allowed: 1 by policy.allow, 1 by {hosts_allow}",
    ]
    hosts_allow.unlink()
    answer = lab.jailbridge("check-config")
    assert answer.code == 1
    assert answer.err == f"jailbridge: {hosts_allow} is not there; nobody new is banned until it is\n"


# Sessions


@pytest.fixture
def outside(lab: Lab) -> Iterator[Callable[..., Running]]:
    """Start a program outside, its output in NAME.log on the disk."""
    with ExitStack() as stack:

        def start(name: str, argv: list[str]) -> Running:
            with (lab.disk / f"{name}.log").open("wb") as log:
                running = process.start(["ip", "netns", "exec", lab.outside, *argv], log=log)
            stack.callback(running.wait)
            stack.callback(running.kill)
            return running

        yield start


@contextmanager
def logged_in(lab: Lab, outside: Callable[..., Running], key: Path) -> Iterator[None]:
    # fmt: off
    client = outside("ssh", [
        "ssh", "-tt", "-F", "none", "-i", str(key), "-b", ATTACKER, "-o", "UserKnownHostsFile=/dev/null",
        "-o", "StrictHostKeyChecking=no", f"root@{HOST}", "echo in; exec sleep 1000",
    ])
    # fmt: on
    lab.wait("logged in", lambda: "in" in lab.tail("ssh", 1).split() or client.poll() is not None)
    assert client.poll() is None, lab.tail("ssh") + lab.tail("sshd", 20)
    try:
        yield
    finally:
        client.kill()
        client.wait()


@pytest.mark.needs("sshd")
@pytest.mark.needs("ssh")
def test_who_is_logged_in_is_exempt_until_logged_out_and_a_mere_connection_is_not(
    lab: Lab, outside: Callable[..., Running]
) -> None:
    folder = lab.disk / "sshd"
    folder.mkdir()
    key = folder / "key"
    made = process.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    assert made.code == 0, made.err
    (folder / "config").write_text(CONFIG.format(host=HOST, folder=folder))
    argv = [str(SSHD), "-D", "-e", "-f", str(folder / "config")]
    sshd = lab.spawn("sshd", ["unshare", "--mount", "sh", "-c", WITH_OWN_RUN, str(folder), *argv])
    lab.wait("sshd listens", lambda: "listening" in lab.tail("sshd", 1) or sshd.poll() is not None)
    assert sshd.poll() is None, lab.tail("sshd")
    beside_sshd = ["nsenter", "--target", str(sshd.pid), "--mount", "--root"]
    daemon = lab.spawn("jailbridge", [*beside_sshd, *lab.jailbridge_argv("run")])
    lab.wait("jailbridge run answers", is_running(lab, daemon))

    outside("hold", [sys.executable, "-I", "-c", HOLD])
    lab.wait("sshd talks to the mere connection", lambda: "SSH-" in lab.tail("hold"))
    with logged_in(lab, outside, key):
        refused = lab.jailbridge("ban", ATTACKER)
        assert refused.code == 1
        assert f"{ATTACKER} is exempt: session of root from {ATTACKER} (utmp)" in refused.err
        for source in (ATTACKER, SECOND):
            assert lab.scan(source).code == 0
        lab.wait("the mere connection's source is banned", lambda: SECOND in banned(lab))
        assert banned(lab) == {SECOND}
    lab.wait("logged out", lambda: lab.jailbridge("ban", ATTACKER).code == 0)
