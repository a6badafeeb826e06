"""Puts our definitions into fail2ban's folder, has fail2ban judge them and take them up; takes them out again.

Knows nothing of what the files say.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jailbridge import process
from jailbridge.definitions.effective import CLIENT, TIMEOUT_S, complaint, jails, refused
from jailbridge.definitions.files import write
from jailbridge.errors import FatalError, RetryLater
from jailbridge.owned_files import content, put, remove, unwritable

FAIL2BAN = Path("/etc/fail2ban")
OURS = ("filter.d/jailbridge-portsentry.conf", "jail.d/jailbridge.conf", "action.d/jailbridge.py")
"""Every path below fail2ban's folder that any rendering of ours writes."""

_log = logging.getLogger("jailbridge.definitions")


class _Refused(FatalError):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What an installation did.

    changed  files whose text is new
    created  log files that were made, empty, because fail2ban refuses to start while one is missing
    tested   whether fail2ban-client was there to judge the whole configuration
    """

    changed: tuple[Path, ...]
    created: tuple[Path, ...]
    tested: bool


def install(
    definitions: Mapping[str, str],
    directory: Path = FAIL2BAN,
    *,
    logs: Iterable[Path] = (),
    client: str = CLIENT,
    force: bool = False,
) -> Installed:
    """Write the definitions, have fail2ban test its whole configuration, and put everything back if it objects.

    `logs` are the files that the jail follows; the missing ones are created, empty. Definitions of ours that are not
    among these (another rendering's) are removed. `force`: what somebody edited in a file of ours is lost. Raises
    FatalError with fail2ban's own words when the test fails.
    """
    if not directory.is_dir():
        raise FatalError(
            f"{directory} is not there: apt install fail2ban, or name its configuration folder with --into"
        )
    before = {directory / name: content(directory / name) for name in OURS}
    created = tuple(log for log in logs if _create(log))
    try:
        changed = write(definitions, directory, force=force)
        obsolete = remove((directory / name for name in OURS if name not in definitions), force=force)
        tested = _test(directory, client, "nothing was changed")
    except (FatalError, RetryLater) as error:
        for path, text in before.items():
            put(path, text)
        for log in created:
            log.unlink(missing_ok=True)
        if isinstance(error, _Refused):
            _test(directory, client, "without our files too: mend that first; nothing was changed")
        raise
    _log.info("installed directory=%s changed=%d tested=%s", directory, len(changed) + len(obsolete), tested)
    return Installed(changed=(*changed, *obsolete), created=created, tested=tested)


def uninstall(directory: Path = FAIL2BAN, *, force: bool = False) -> list[Path]:
    """Remove our files below `directory`; return them. Somebody else's stay, and what somebody edited (but `force`).

    Raises FatalError when the folder cannot be written.
    """
    return remove((directory / name for name in OURS), force=force)


def reload(
    jail: str,
    directory: Path = FAIL2BAN,
    client: str = CLIENT,
    *,
    socket: Path | None = None,
    is_action_new: bool = False,
) -> bool:
    """Have the running fail2ban read its configuration anew; its bans stay. False where none runs.

    `is_action_new`: what our action does is to be read again too. Raises FatalError where fail2ban does not take it.
    """
    if not process.has(client):
        return False
    command = [process.find(client, "fail2ban"), "-c", str(directory), *(["-s", str(socket)] if socket else [])]
    if process.run([*command, "ping"], timeout_s=TIMEOUT_S).code != 0:
        return False
    _told(command, "reload")
    # In a jail which goes on it drops an action that is new, and keeps what it has read of one (server/actions.py).
    meant = jails(directory, client).get(jail, {}).get("addaction", ())
    has = _told(command, "get", jail, "actions").replace(",", " ").split() if meant else []
    if not set(meant) <= set(has) or (is_action_new and "jailbridge" in meant):
        _told(command, "reload", "--restart", jail)
    return True


def _told(command: Sequence[str], *words: str) -> str:
    result = process.run([*command, *words], timeout_s=TIMEOUT_S)
    if result.code != 0:
        raise FatalError(f"the running fail2ban does not take its new configuration: {complaint(result)}")
    return result.out


def _create(log: Path) -> bool:
    try:
        log.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(log, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))
            return True
    except OSError as error:
        raise unwritable(log, error) from None
    return False


def _test(directory: Path, client: str, when: str) -> bool:
    if not process.has(client):
        return False
    if (refusal := refused(directory, client)) is not None:
        raise _Refused(f"fail2ban refuses its configuration in {directory}, {when}: {refusal}")
    return True
