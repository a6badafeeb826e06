"""Our units as systemd itself judges them, without running it: their syntax, their order at boot, their exposure."""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from jailbridge import process
from jailbridge.service_files import DAEMON, RESPOND, RESTORE, SENSOR, SETS, UNITS, render

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (apt install systemd)"
)

TIMEOUT_S = 60.0
DOCS = Path(__file__).parents[2] / "docs" / "services.md"
# Exposure 2.0, in systemd-analyze's own tenths; what restores may load the kernel's modules of iptables.
# What answers runs an administrator's commands as root, which may be setuid.
EXPOSURE = {SENSOR: 20, DAEMON: 20, RESTORE: 26, SETS: 20, RESPOND: 45}
# What others order around the network, as their packages have it; each is wanted, so that its job is in the boot.
EARLY = "[Unit]\nDefaultDependencies=no\nWants=network-pre.target\nBefore=network-pre.target shutdown.target\n"
SERVICE = "[Service]\nType=oneshot\nExecStart=/bin/true\n"
OTHERS = {
    "nftables.service": f"{EARLY}Conflicts=shutdown.target\n{SERVICE}[Install]\nWantedBy=sysinit.target\n",
    "netfilter-persistent.service": f"{EARLY}Wants=systemd-modules-load.service local-fs.target\n"
    f"After=systemd-modules-load.service local-fs.target\n{SERVICE}",
    "ufw.service": f"{EARLY}After=local-fs.target systemd-sysctl.service\n{SERVICE}",
    "firewalld.service": "[Unit]\nWants=network-pre.target\nBefore=network-pre.target\nAfter=dbus.service\n"
    f"Conflicts=shutdown.target\n{SERVICE}",
    "fail2ban.service": "[Unit]\nAfter=network.target iptables.service firewalld.service ip6tables.service "
    f"ipset.service nftables.service\nPartOf=firewalld.service\n{SERVICE}",
    # Whatever brings the network up: ifupdown, networkd.
    "a-network.service": "[Unit]\nDefaultDependencies=no\nWants=network.target network-pre.target\n"
    f"Before=network.target shutdown.target\nAfter=network-pre.target local-fs.target\n{SERVICE}",
}

Verify = Callable[[Mapping[str, str]], str]


@pytest.fixture
def units() -> dict[str, str]:
    """Ours, by name; systemd-analyze looks whether there is what they call."""
    texts = render(["/bin/true"])
    return {unit: texts[f"etc/systemd/system/{unit}"] for unit in (*UNITS, SETS)}


@pytest.fixture
def verify(tmp_path: Path) -> Verify:
    """Return what systemd-analyze has to say of a boot with these units and the others.

    Of a cycle it tells only for what one transaction holds, and by words alone, hence one target that wants all.
    """

    def verify(texts: Mapping[str, str]) -> str:
        for name, text in {**OTHERS, **texts}.items():
            target = "sysinit" if "WantedBy=sysinit.target" in text else "multi-user"
            wanted = tmp_path / f"{target}.target.wants" / name
            wanted.parent.mkdir(exist_ok=True)
            wanted.symlink_to(f"../{name}")
            (tmp_path / name).write_text(text)
        done = process.run(
            ["systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", "multi-user.target", *texts],
            timeout_s=TIMEOUT_S,
            env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        )
        ours = (*texts, "ordering cycle")
        return "\n".join(line for line in (done.out + done.err).splitlines() if any(word in line for word in ours))

    return verify


def test_systemd_takes_them_and_there_is_no_ordering_cycle(units: dict[str, str], verify: Verify) -> None:
    assert verify(units) == ""


def test_a_cycle_would_be_seen(units: dict[str, str], verify: Verify) -> None:
    units[RESTORE] = units[RESTORE].replace("[Unit]\n", "[Unit]\nAfter=fail2ban.service\n")
    assert "ordering cycle" in verify(units)


def test_an_unknown_option_would_be_seen(units: dict[str, str], verify: Verify) -> None:
    units[DAEMON] = units[DAEMON].replace("[Service]\n", "[Service]\nProtectEverything=yes\n")
    assert "ProtectEverything" in verify(units)


@pytest.mark.parametrize("unit", EXPOSURE)
def test_the_exposure_is_small(unit: str, units: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / unit
    path.write_text(units[unit])
    done = process.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE[unit]}", str(path)],
        timeout_s=TIMEOUT_S,
    )
    assert done.code == 0, done.out or done.err


def test_systemd_takes_the_drop_ins_that_we_tell_people_of(
    units: dict[str, str], verify: Verify, tmp_path: Path
) -> None:
    dropins = re.findall(r"^```ini\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for unit in UNITS:
        for n, text in enumerate(dropins):
            dropin = tmp_path / f"{unit}.d" / f"{n}.conf"
            dropin.parent.mkdir(exist_ok=True)
            dropin.write_text(text)
    assert len(dropins) == 3
    assert verify(units) == ""


def test_nothing_requires_the_early_unit_and_it_has_a_time_limit(units: dict[str, str]) -> None:
    """A machine must come up whatever happens there."""
    assert "TimeoutStartSec=60\n" in units[RESTORE]
    assert "RequiredBy=" not in units[RESTORE]
    assert not any(f"{need}=" in text for text in units.values() for need in ("Requires", "Requisite", "BindsTo"))
