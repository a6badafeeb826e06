"""Our services where systemd runs: installed as this release has them, enabled, running."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from jailbridge import owned_files, process, service_files
from jailbridge.config import Settings
from jailbridge.config.settings import SensorMode
from jailbridge.rivals import portsentry_running
from jailbridge.service_files import DAEMON, RESPOND, RESTORE, ROOT, SENSOR

AGAIN = "run `jailbridge install`"
_PROGRAM = re.compile(r"^ExecStart=(.+) run --without sensor", re.MULTILINE)


class State(NamedTuple):
    """How systemd has a unit."""

    is_installed: bool
    is_enabled: bool
    is_active: bool
    needs_reload: bool


def units(settings: Settings) -> Iterator[str]:
    """Yield what of our services is missing, stale, edited, not enabled, or does not run."""
    if not service_files.runs_systemd():
        return
    if not state(DAEMON).is_installed:
        yield f"nothing starts JailBridge at a boot: {AGAIN}"
        return
    yield from _files(ROOT)
    for unit in wanted(settings, is_left_to_another=bool(portsentry_running())):
        yield from amiss(unit, state(unit))


def wanted(settings: Settings, *, is_left_to_another: bool) -> Iterator[str]:
    """Yield the units that this configuration needs; `is_left_to_another`: a real PortSentry detects."""
    yield from (RESTORE, DAEMON)
    if settings.sensor.mode is not SensorMode.OFF and not is_left_to_another:
        yield SENSOR
    if settings.respond.is_asked_for:
        yield RESPOND


def amiss(unit: str, found: State) -> Iterator[str]:
    """Yield what is the matter with a unit that is wanted."""
    if found.needs_reload:
        yield f"{unit} was changed since systemd read it: systemctl daemon-reload, then systemctl restart {unit}"
    if not found.is_enabled:
        yield f"{unit} is not enabled, a reboot ends it: systemctl enable --now {unit}"
    elif not found.is_active:
        yield f"{unit} does not run: `systemctl status {unit}` says why, systemctl restart {unit}"


def state(unit: str) -> State:
    """Ask systemd for a unit. Raises FatalError and RetryLater."""
    keys = "LoadState,UnitFileState,ActiveState,NeedDaemonReload"
    return parse(process.run([process.find("systemctl", "systemd"), "show", "-p", keys, unit]).out)


def parse(shown: str) -> State:
    """Return what `systemctl show` (systemctl(1)) says of a unit."""
    said: Mapping[str, str] = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    return State(
        is_installed=said.get("LoadState") not in {None, "not-found"},
        is_enabled=said.get("UnitFileState") in {"enabled", "enabled-runtime", "alias", "static", "generated"},
        is_active=said.get("ActiveState") in {"active", "activating", "reloading"},
        needs_reload=said.get("NeedDaemonReload") == "yes",
    )


def _files(root: Path) -> Iterator[str]:
    # As its own unit calls it: what runs here now may be another installation.
    called = _PROGRAM.search((owned_files.content(root / service_files.OURS[2]) or b"").decode("utf-8", "replace"))
    command = called[1].split() if called is not None else service_files.program(check=False)
    if not Path(command[0]).exists():
        yield f"our units call {command[0]}, which is not there: {AGAIN}"
    texts = service_files.render(command)
    for name in owned_files.outdated(texts, root):
        there = owned_files.content(root / name)
        if there is None:
            yield f"{root / name} is not there: {AGAIN}"
        elif not owned_files.is_ours(there):
            yield f"{root / name} was not written by jailbridge: move it away, then {AGAIN}"
        elif owned_files.is_as_written(there):
            yield f"{root / name} is of another version: {AGAIN}"
        else:
            yield f"{root / name} was edited: a change belongs in a drop-in (systemctl edit); {AGAIN} with --force"
