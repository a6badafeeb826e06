"""Who detects scans here, us or a real PortSentry, and whether that reaches us: the history, its form, IPv6."""

import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from jailbridge import privileges, service_files
from jailbridge.config import Settings, portsentry_conf
from jailbridge.config.portsentry_conf import Blocking
from jailbridge.config.settings import SensorMode
from jailbridge.doctor.services import state
from jailbridge.errors import FatalError
from jailbridge.history import dialects
from jailbridge.host import surroundings
from jailbridge.importing import old_settings
from jailbridge.importing.notes import Notes
from jailbridge.model.event import Dialect, Protocol, TailFormat
from jailbridge.rivals import portsentry_running, refuse
from jailbridge.service_files import SENSOR

SERVICE = "portsentry.service"
_FORMS = {TailFormat.PORTSENTRY_1: Dialect.PORTSENTRY_1, TailFormat.PORTSENTRY_2: Dialect.PORTSENTRY_2}


def rivals(settings: Settings) -> Iterator[str]:
    """Yield a PortSentry beside our sensor, now or after the next boot, and one that blocks by itself."""
    if _senses(settings):
        if service_files.runs_systemd() and state(SERVICE).is_enabled:
            yield f"{SERVICE} is enabled, and our sensor does not start beside it: systemctl disable --now {SERVICE}"
        refuse()
    elif portsentry_running():
        path = settings.portsentry.conf
        conf = portsentry_conf.load(path)
        for protocol in Protocol:
            if conf.blocking(protocol) is Blocking.BLOCK:
                key = f"BLOCK_{protocol.upper()}"
                yield f'PortSentry blocks by itself, for ever, also whom we exempt: set {key}="0" in {path}'


def history(settings: Settings) -> Iterator[str]:
    """Yield why the history cannot be written or believed."""
    path = settings.history.path
    with suppress(FileNotFoundError):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            yield f"{path} is not a regular file: set history.path to the file itself"
        elif status.st_mode & stat.S_IWOTH:
            yield f"everybody may write {path}, and so have anybody banned: chmod o-w {path}"
        elif service_files.is_active(service_files.ROOT, SENSOR):
            with suppress(FatalError):
                account = privileges.account(privileges.OWN_ACCOUNT)
                if account is not None and status.st_uid != account.uid:
                    yield f"{path} is not {account.name}'s, who is to write it: chown {account.name} {path}"


def unread(settings: Settings, scans: Callable[[Path], Sequence[bytes]]) -> Iterator[str]:
    """Yield each [[tail]] that is read in another dialect than its file has; `scans` returns a file's last scans."""
    for n, tail in enumerate(settings.tail):
        if tail.path is None or tail.format not in _FORMS or not (lines := scans(tail.path)):
            continue
        is_dialect = dialects.parse(lines[0])[1]
        if is_dialect is not _FORMS[tail.format]:
            yield f'tail.{n}.format: the last scan in {tail.path} is in dialect {is_dialect}: set it to "auto"'


def ipv6(settings: Settings) -> Iterator[str]:
    """Yield that nobody here sees scans over IPv6."""
    if _senses(settings) or not portsentry_running():
        return
    if old_settings.read(settings.portsentry.conf, old_settings.DEFAULTS, Notes()).version != 1:
        return
    own = sorted(str(a) for a in surroundings().addresses if a.version == 6 and not (a.is_loopback or a.is_link_local))
    if own:
        yield f"PortSentry 1.2 sees no IPv6, and this host has {own[0]}: let our sensor detect, and stop PortSentry"


def _senses(settings: Settings) -> bool:
    """Tell whether our sensor is to detect: under systemd that its service is enabled says so."""
    if settings.sensor.mode is SensorMode.OFF:
        return False
    if service_files.runs_systemd() and (sensor := state(SENSOR)).is_installed:
        return sensor.is_enabled or sensor.is_active
    return True
