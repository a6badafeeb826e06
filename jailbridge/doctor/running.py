"""Whether a daemon answers and what it says of the stores; without one these are looked at from here."""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jailbridge import service_files
from jailbridge.config import Settings
from jailbridge.daemon.control import call
from jailbridge.daemon.wiring import attached_stores
from jailbridge.errors import JailBridgeError
from jailbridge.service_files import DAEMON, RESPOND


def daemon(settings: Settings) -> Iterator[str]:
    """Yield that no daemon answers, or what it says of itself."""
    if (status := _status(settings)) is None:
        yield f"no daemon answers at {settings.control.socket}, nothing new is banned: {_start(DAEMON, 'run')}"
        return
    yield from status["problems"]
    if status["paused"]:
        until = status["paused_until"] or "`jailbridge resume`"
        yield f"paused until {until}: no store holds a ban; `jailbridge resume` ends that"


def stores(settings: Settings) -> Iterator[str]:
    """Yield the stores that are out of reach, not in force, or have something to say."""
    status = _status(settings)
    standing = status["stores"] if status is not None else dict(_observed(settings))
    is_wanted = settings.policy.enforce and not (status is not None and status["paused"])
    for name, store in standing.items():
        yield from problems(name, store, is_wanted=is_wanted)


def problems(name: str, store: Mapping[str, Any], *, is_wanted: bool) -> Iterator[str]:
    """Yield what is the matter with a store of a plan; `is_wanted`: it is to be in force."""
    if not store["reachable"]:
        yield f"{name} is out of reach: {store['problem'] or 'the log tells why'}"
        return
    if store["problem"]:
        yield f"{name}: {store['problem']}"
    if store["enforcing"] is False and is_wanted:
        yield f"{name} is not in force, whom it holds gets in: `jailbridge reconcile`, and see who undoes that"


def responder(settings: Settings) -> Iterator[str]:
    """Yield that nobody runs the commands, or sends the mail, that the configuration asks for."""
    queue = settings.respond.queue
    if settings.respond.is_asked_for and not is_held(queue.with_name(queue.name + ".lock")):
        yield f"nobody works on {queue}, no command is run and no mail sent: {_start(RESPOND, 'respond')}"


def is_held(lock: Path) -> bool:
    """Tell whether a process holds a lock file (flock(2))."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _status(settings: Settings) -> Any:
    """Return what `jailbridge status` shows; None where no daemon answers. Raises JailBridgeError."""
    with suppress(ConnectionError):
        return call(settings.control.socket, "status", {})
    return None


def _observed(settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    for attached in attached_stores(settings):
        try:
            seen = attached.store.observe(datetime.now(UTC))
        except JailBridgeError as error:
            yield attached.store.name, {"reachable": False, "enforcing": None, "problem": str(error)}
        else:
            yield attached.store.name, {"reachable": True, "enforcing": seen.enforcing, "problem": seen.problem}


def _start(unit: str, command: str) -> str:
    return f"systemctl enable --now {unit}" if service_files.runs_systemd() else f"start `jailbridge {command}`"
