"""What makes JailBridge a service of a host: units, the sensor's account and history, a rotation, a configuration.

They are put below a root folder and taken away again; where systemd runs from that root, it is told. Nothing is enabled
or started here: that is the administrator's to do. Knows nothing of fail2ban's folder, which `definitions` looks after.
"""

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import jailbridge
from jailbridge import owned_files, process
from jailbridge.errors import FatalError
from jailbridge.owned_files import shipped

RESTORE, SENSOR, DAEMON, RESPOND = UNITS = (
    "jailbridge-restore.service",
    "jailbridge-sensor.service",
    "jailbridge.service",
    "jailbridge-respond.service",
)
SETS = "jailbridge-sets.service"
"""Not enabled: RESTORE has it started before itself."""
CONFIG, STATE = "etc/jailbridge/jailbridge.toml", "var/lib/jailbridge"
_PLACES = {
    **{f"systemd/{unit}": f"etc/systemd/system/{unit}" for unit in (*UNITS, SETS)},
    "sysusers.d/jailbridge.conf": "etc/sysusers.d/jailbridge.conf",
    "tmpfiles.d/jailbridge.conf": "etc/tmpfiles.d/jailbridge.conf",
    "logrotate.d/jailbridge": "etc/logrotate.d/jailbridge",
}
"""Below packaging, and below the root."""
OURS = tuple(_PLACES.values())

ROOT = Path("/")
# sd_booted(3).
BOOTED = Path("/run/systemd/system")
# How the units as they are shipped call the program.
_SHIPPED_AS = "/usr/local/bin/jailbridge"
# Of no user, and from no current folder.
_AS_MODULE = ("-I", "-m", "jailbridge")
# What the units keep out (ProtectHome=, PrivateTmp=).
_HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108
# No blank, quote, % or $: each means something in a unit (systemd.service(5), COMMAND LINES).
_PLAIN = re.compile(r"/[\w/.+@:-]+", re.ASCII)
# To stop a service may take as long as systemd waits for it.
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What an installation did, or would do.

    changed  files whose text is new, the configuration among them where there was none
    running  units of which an older version runs on
    missing  programs that would have to be asked, and are not on this machine
    """

    changed: tuple[Path, ...]
    running: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What an uninstallation did, or would do.

    stopped  units that ran, and were stopped
    removed  files that are gone, and the ledger's folder
    edited   files in our places that are not as we wrote them
    dropins  folders with an administrator's changes to our units
    """

    stopped: tuple[str, ...]
    removed: tuple[Path, ...]
    edited: tuple[Path, ...]
    dropins: tuple[Path, ...]


def program(*, check: bool = True) -> list[str]:
    """Return how this very installation is called. Raises FatalError where a service could not call it (`check`)."""
    called = shutil.which(sys.argv[0])
    if called is not None and Path(called).name == "jailbridge":
        command = [str(Path(called).absolute())]
    else:
        command = [sys.executable, *_AS_MODULE]
    if check:
        for path in (Path(command[0]), Path(sys.executable), Path(jailbridge.__file__)):
            _check_reachable(path)
    return command


def render(command: Sequence[str]) -> Mapping[str, str]:
    """Return our files, path below the root -> text; the units call the program by `command`. Raises FatalError."""
    for word in command:
        if not _PLAIN.fullmatch(word) and word not in _AS_MODULE:
            raise FatalError(f"a unit cannot call {word!r}: install jailbridge at a path of plain letters")
    texts = {place: _text(name).replace(_SHIPPED_AS, " ".join(command)) for name, place in _PLACES.items()}
    return {place: owned_files.sealed(text) for place, text in texts.items()}


def install(texts: Mapping[str, str], root: Path = ROOT, *, force: bool = False, dry_run: bool = False) -> Installed:
    """Put our files, and a configuration where there is none, below the root.

    On the running system: make the sensor's account and its history, and have systemd read its units. `force`: what
    somebody edited in a file of ours is lost. Raises FatalError, before anything is written, for a file that is not
    ours or was edited; RetryLater.
    """
    config = root / CONFIG
    changed = owned_files.changes(texts, root, force=force, remedy=_remedy)
    is_new = owned_files.content(config) is None
    if dry_run:
        return Installed(changed=(*changed, *[config] * is_new))
    owned_files.write(texts, root, force=force, remedy=_remedy)
    if is_new:
        owned_files.put(config, _text("jailbridge.toml").encode())
    missing = _take_up() if root == ROOT else []
    running = [unit for unit in (SENSOR, DAEMON, RESPOND) if root / _unit(unit) in changed and is_active(root, unit)]
    return Installed(changed=(*changed, *[config] * is_new), running=tuple(running), missing=tuple(missing))


def uninstall(root: Path = ROOT, *, purge: bool = False, force: bool = False, dry_run: bool = False) -> Removed:
    """Stop and disable our services and take our files away; the account and the history stay.

    `purge`: configuration and ledger go too. `force`: so does what somebody edited in a file of ours. Raises
    FatalError, RetryLater.
    """
    paths = owned_files.removable((root / place for place in OURS), force=force)
    extra = [path for path in (root / CONFIG, root / STATE) if purge and path.exists()]
    units = [path.name for path in paths if path.name in UNITS]
    stopped = [unit for unit in units if unit != RESTORE and is_active(root, unit)]
    if not dry_run:
        if units and runs_systemd(root):
            _ask("systemctl", "disable", "--now", "--quiet", *units)
        owned_files.remove(paths, force=force)
        for path in extra:
            _purge(path)
        for path in (*paths, *extra):
            _tidy(path, root)
        if units and runs_systemd(root):
            _ask("systemctl", "daemon-reload")
    places = [root / place for place in OURS]
    dropins = [root / f"{_unit(unit)}.d" for unit in (*UNITS, SETS)]
    return Removed(
        stopped=tuple(stopped),
        removed=(*paths, *extra),
        edited=tuple(path for path in places if path not in paths and (path.exists() or path.is_symlink())),
        dropins=tuple(path for path in dropins if path.exists()),
    )


def runs_systemd(root: Path = ROOT) -> bool:
    """Tell whether this root's systemd runs."""
    return root == ROOT and BOOTED.is_dir() and process.has("systemctl")


def is_active(root: Path, unit: str) -> bool:
    """Tell whether a unit runs."""
    return runs_systemd(root) and process.run([process.find("systemctl", "systemd"), "is-active", unit]).code == 0


def _take_up() -> list[str]:
    """Make account and history, tell systemd; return the programs that are missing for it. All can be repeated."""
    if not process.has("systemd-sysusers"):
        return ["systemd-sysusers"]
    _ask("systemd-sysusers", str(ROOT / _PLACES["sysusers.d/jailbridge.conf"]))
    _ask("systemd-tmpfiles", "--create", str(ROOT / _PLACES["tmpfiles.d/jailbridge.conf"]))
    if runs_systemd():
        _ask("systemctl", "daemon-reload")
    return []


def _ask(name: str, *arguments: str) -> None:
    result = process.run([process.find(name, "systemd"), *arguments], timeout_s=TIMEOUT_S)
    if result.code != 0:
        raise FatalError(f"{name} {' '.join(arguments)} failed: {result.first_error}")


def _check_reachable(path: Path) -> None:
    """See that a service without privileges, and with a view of the files of its own, gets at a file."""
    for real in {path, path.resolve()}:
        closed = [folder for folder in real.parents if folder in _HIDDEN or not folder.stat().st_mode & 0o001]
        if closed:
            raise FatalError(
                f"jailbridge needs {real}, and services may not enter {closed[-1]}: install it for all, "
                "PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin pipx install, with a Python that is there for all"
            )


def _purge(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
            return
        path.unlink()
    except OSError as error:
        raise FatalError(f"{path} cannot be removed: {error.strerror}") from None


def _tidy(path: Path, root: Path) -> None:
    """Take away the folders above that are empty now; of the running system only what is ours: others know the rest."""
    above = path.relative_to(root).parents[:-1]
    with suppress(OSError):
        for folder in above if root != ROOT else above[: path == root / CONFIG]:
            (root / folder).rmdir()


def _unit(name: str) -> str:
    return _PLACES[f"systemd/{name}"]


def _remedy(path: Path) -> str:
    """A unit has drop-ins, the rest has not."""
    return (
        f"put your change into a drop-in (systemctl edit {path.name}), then"
        if path.suffix == ".service"
        else owned_files.SAVE_IT
    )


def _text(name: str) -> str:
    return (shipped() / "packaging" / name).read_text(encoding="utf-8")
