"""Boots in trouble: a clock that is wrong, a full disk, a /var that nobody can write, a fail2ban that is not there."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from jailbridge import process
from jailbridge.service_files import DAEMON, RESTORE
from tests.e2e.guest import CLOCK_IS_RIGHT, OPT, UNITS, Guest
from tests.e2e.rebooting import (
    EXPIRED,
    FAIL2BAN,
    FOREIGN,
    HOSTS_DENY,
    LEDGER,
    SERVICES,
    WANTED,
    firewall,
    held,
    hosts_deny,
    networks,
    said_by,
    show,
    untils,
)

pytestmark = [pytest.mark.e2e, pytest.mark.needs("journalctl"), pytest.mark.timeout(180)]

SOON = "203.0.113.70"  # ends in ten minutes
NEW = "203.0.113.71"

# The kernel has one clock for all namespaces. In these units it is off by the seconds in a file: what asks for the time
# of day is answered here, and a new number there is a step of the clock.
OFFSET = "/etc/clock-offset"
CLOCK = f"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static time_t offset(void) {{
    char text[32] = "";
    int before = errno, file = open("{OFFSET}", O_RDONLY | O_CLOEXEC);
    if (file >= 0 && read(file, text, sizeof text - 1) < 0) text[0] = 0;
    if (file >= 0) close(file);
    errno = before;
    return atol(text);
}}
int clock_gettime(clockid_t which, struct timespec *now) {{
    int failed = syscall(SYS_clock_gettime, which, now);
    if (!failed && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
    return failed;
}}
int gettimeofday(struct timeval *now, void *zone) {{
    int failed = syscall(SYS_gettimeofday, now, zone);
    if (!failed && now) now->tv_sec += offset();
    return failed;
}}
time_t time(time_t *now) {{
    struct timespec read;
    clock_gettime(CLOCK_REALTIME, &read);
    if (now) *now = read.tv_sec;
    return read.tv_sec;
}}
"""


def with_these(*addresses: str) -> dict[str, list[str]]:
    return {store: networks([*wanted, *addresses]) for store, wanted in WANTED.items()}


def wait_until_held(guest: Guest, *addresses: str) -> None:
    """Wait until every store holds what is always banned and these, each once, and nothing else."""
    wanted = with_these(*addresses)
    try:
        guest.wait(f"every store holds {addresses}", lambda: held(guest) == wanted, 60)
    except AssertionError:
        assert held(guest) == wanted, guest.run("journalctl", "-b", "-u", "jailbridge*").out
        raise


Timed = tuple[Guest, Mapping[str, object]]


@pytest.fixture(scope="module")
def timed(installed: Guest) -> Iterator[Timed]:
    """A guest whose power was cut while every store held a ban that has ended since, and one that ends in a while.

    And until when the bans last that have not ended.
    """
    with Guest(installed) as guest:
        guest.start()
        guest.do("jailbridge", "ban", SOON, "--for", "10m")
        wait_until_held(guest, SOON)
        before = untils(guest)
        guest.do("jailbridge", "ban", EXPIRED, "--for", "3s")
        over = time.time() + 3
        guest.cut_power()
        time.sleep(max(0.0, over - time.time()))
        yield guest, before


def make_clock_wrong(guest: Guest, offset_s: int) -> None:
    """Have our units and fail2ban live by a clock that is off by so much, and that nobody has set yet."""
    guest.write(f"{OPT}/clock.c", CLOCK)
    library = guest.path(f"{OPT}/clock.so")
    # What makes the virtual environment needs it, too.
    made = process.run(["cc", "-shared", "-fPIC", "-o", str(library), str(guest.path(f"{OPT}/clock.c"))])
    assert made.code == 0, made.err
    for service in SERVICES:
        guest.write(f"{UNITS}/{service}.d/clock.conf", f"[Service]\nEnvironment=LD_PRELOAD={OPT}/clock.so\n")
    guest.write(OFFSET, f"{offset_s}\n")
    guest.path(CLOCK_IS_RIGHT).unlink()


def firewalls_end(guest: Guest, address: str) -> float:
    """Return in how many seconds the firewall lets go of an address by itself."""
    found = json.loads(guest.do("nft", "--json", "list", "set", "inet", "jailbridge", "hosts4"))["nftables"][1]["set"]
    elements = [element["elem"] for element in found["elem"] if isinstance(element, dict)]
    return next(float(element["expires"]) for element in elements if element["val"] == address)


@pytest.mark.parametrize("offset_s", [3600, -3600], ids=["ahead", "behind"])
def test_timed_bans_are_neither_lost_nor_eternal_with_a_clock_that_is_an_hour_off(timed: Timed, offset_s: int) -> None:
    off, before = timed
    with Guest(off) as guest:
        make_clock_wrong(guest, offset_s)
        guest.start()
        # None ends: by this clock they have, or have not for long.
        wait_until_held(guest, SOON, EXPIRED)
        assert guest.do("jailbridge", "reconcile").endswith("agreement\n")
        found = dict(untils(guest))
        assert found.pop(EXPIRED) is not None
        assert found == before
        assert firewalls_end(guest, SOON) > 300
        # It is set: first a step, then word of it, as systemd-timesyncd does.
        guest.write(OFFSET, "0\n")
        guest.write("/run/systemd/timesync/synchronized", "")
        wait_until_held(guest, SOON)
        assert guest.do("jailbridge", "reconcile").endswith("agreement\n")
        assert untils(guest) == before
        assert firewalls_end(guest, SOON) < 600 + 60 + 30
        # Without systemd-timesyncd the kernel is asked, as timedatectl does.
        ours = "from jailbridge.host.boot import *; print(is_synchronised(Path('/none')))"
        said = guest.do("timedatectl", "show", "--value", "--property", "NTPSynchronized")
        assert guest.do(f"{OPT}/bin/python", "-Ic", ours) == {"yes\n": "True\n", "no\n": "False\n"}[said]


# Disks


def before_local_fs(guest: Guest, *commands: str) -> None:
    """Have each boot do so before anything is expected of a disk."""
    guest.write(
        f"{UNITS}/guest-disks.service",
        "[Unit]\nDefaultDependencies=no\nBefore=local-fs.target\n[Install]\nWantedBy=local-fs.target\n"
        "[Service]\nType=oneshot\nRemainAfterExit=yes\n" + "".join(f"ExecStart={one}\n" for one in commands),
    )
    guest.enable("guest-disks.service")


def assert_restored_all_the_same(guest: Guest) -> None:
    assert show(guest, "multi-user.target", "ActiveState") == "active"
    said = said_by(guest, RESTORE)
    assert f"ledger {LEDGER} cannot be" in said, said
    assert "bans were restored from a copy of it all the same\n" in said
    assert show(guest, RESTORE, "Result") == "exit-code"
    # What ended while it was off may be among them: that the clock is right is hardly known so early.
    found = {*networks(firewall(guest))}
    assert {*with_these(SOON)["firewall"]} <= found <= {*with_these(SOON, EXPIRED)["firewall"]}, said
    assert not guest.run("sh", "-c", "ls -d /run/jailbridge-*").out, "a copy was left behind"
    guest.wait("the daemon is loud", lambda: f"ledger {LEDGER} cannot be" in said_by(guest, DAEMON))
    guest.wait("and tries again", lambda: int(show(guest, DAEMON, "NRestarts")) > 0)


def assert_right_again(guest: Guest, before: Mapping[str, object], *addresses: str) -> None:
    wait_until_held(guest, *addresses)
    # Compared as items: what came since does not count.
    assert before.items() <= untils(guest).items()
    assert guest.do("jailbridge", "plan").endswith("agreement\n")
    assert "adopted" not in said_by(guest, DAEMON)
    assert "unbanned everywhere" not in said_by(guest, DAEMON)


def test_with_a_var_that_cannot_be_written_the_firewall_is_whole_and_all_is_right_again_later(timed: Timed) -> None:
    off, before = timed
    with Guest(off) as guest:
        before_local_fs(guest, "mount --bind /var /var", "mount -o remount,bind,ro /var")
        hosts_deny = guest.path(HOSTS_DENY).read_bytes()
        guest.start()
        assert_restored_all_the_same(guest)
        assert guest.path(HOSTS_DENY).read_bytes() == hosts_deny
        assert guest.run("jailbridge", "ban", NEW).code == 1
        guest.do("mount", "-o", "remount,bind,rw", "/var")
        # Which needs /var itself, and gives up sooner than we do.
        guest.do("systemctl", "restart", FAIL2BAN)
        assert_right_again(guest, before, SOON)


SMALL_DISK = """\
size=$(($(du --summarize --block-size=1K "$1" | cut -f 1) + 512))k
mkdir "/run/small$2"
mount -t tmpfs -o "mode=755,size=$size" tmpfs "/run/small$2"
cp -a "$1/." "/run/small$2"
mount --bind "/run/small$2" "$1"
cat /dev/zero >"$1/filler" || true
"""


def test_on_full_disks_nothing_is_lost_or_cut_and_all_is_right_once_there_is_room(timed: Timed) -> None:
    off, before = timed
    folder = str(Path(LEDGER).parent)
    with Guest(off) as guest:
        guest.write(f"{OPT}/small-disk", SMALL_DISK)
        before_local_fs(guest, f"sh -eu {OPT}/small-disk {folder} 1", f"sh -eu {OPT}/small-disk /etc 2")
        guest.start()
        assert_restored_all_the_same(guest)
        guest.do("rm", f"{folder}/filler")
        guest.wait("the daemon is up", lambda: show(guest, DAEMON, "ActiveState") == "active", 60)
        lines = guest.path(HOSTS_DENY).read_text(encoding="utf-8")
        assert guest.run("jailbridge", "ban", NEW).code == 0
        told = guest.run("jailbridge", "status")
        assert told.code == 2
        assert "No space left on device" in told.out
        assert guest.path(HOSTS_DENY).read_text(encoding="utf-8") == lines
        guest.do("rm", "/etc/filler")
        assert_right_again(guest, before, SOON, NEW)
        assert FOREIGN in guest.path(HOSTS_DENY).read_text(encoding="utf-8").splitlines()


# fail2ban


def test_a_fail2ban_that_is_not_there_comes_late_or_hangs_holds_up_nobody(installed: Guest) -> None:
    with Guest(installed) as guest:
        masked = guest.path(f"{UNITS}/{FAIL2BAN}")
        masked.symlink_to("/dev/null")
        guest.start()
        assert show(guest, DAEMON, "ActiveState") == "active"
        others_hold(guest)
        told = guest.run("jailbridge", "status")
        assert told.code == 2
        assert "fail2ban is out of reach" in told.out
        guest.do("jailbridge", "ban", NEW)
        others_hold(guest, NEW)

        guest.path(f"{UNITS}/{FAIL2BAN}").unlink()
        guest.do("systemctl", "daemon-reload")
        guest.do("systemctl", "start", FAIL2BAN)
        wait_until_held(guest, NEW)

        hanging = show(guest, FAIL2BAN, "MainPID")
        guest.do("systemctl", "stop", DAEMON)
        guest.do("nft", "delete", "table", "inet", "jailbridge")
        guest.do("kill", "-STOP", hanging)
        guest.do("systemctl", "start", DAEMON, timeout_s=120)
        others_hold(guest, NEW)
        told = guest.run("jailbridge", "status", timeout_s=120)
        assert told.code == 2
        assert "fail2ban is out of reach" in told.out
        guest.do("kill", "-CONT", hanging)
        wait_until_held(guest, NEW)
        assert guest.do("jailbridge", "plan").endswith("agreement\n")


def others_hold(guest: Guest, *addresses: str) -> None:
    """Wait until the stores beside fail2ban hold what they should."""
    wanted = with_these(*addresses)

    def hold() -> bool:
        return all(networks(store(guest)) == wanted[store.__name__] for store in (firewall, hosts_deny))

    guest.wait("the other stores hold every ban", hold)
