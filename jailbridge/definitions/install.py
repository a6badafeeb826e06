"""Puts our definitions into fail2ban's folder and takes them out again. Never touches a file that is not ours.

Ours is what begins with our mark. Knows nothing of what the files say; fail2ban itself judges that.
"""

import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jailbridge import process
from jailbridge.definitions.render import MARK
from jailbridge.errors import FatalError, RetryLater

FAIL2BAN = Path("/etc/fail2ban")
CLIENT = "fail2ban-client"
TEST_TIMEOUT_S = 60.0
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

    @property
    def reload_needed(self) -> bool:
        """Tell whether a running fail2ban must be told (`fail2ban-client reload`)."""
        return bool(self.changed)


def write(definitions: Mapping[str, str], directory: Path) -> list[Path]:
    """Write the definitions below `directory`, each at once or not at all; return the files that changed.

    Raises FatalError, before anything is written, for a file that we did not write; and when the folder cannot be
    written.
    """
    changed = [directory / name for name in outdated(definitions, directory)]
    for path in changed:
        _check_ours(path)
    for path in changed:
        _replace(path, definitions[path.relative_to(directory).as_posix()].encode())
    return changed


def outdated(definitions: Mapping[str, str], directory: Path) -> list[str]:
    """Return the names of the definitions that are missing below `directory` or say something else there."""
    return [name for name, text in definitions.items() if _content(directory / name) != text.encode()]


def install(
    definitions: Mapping[str, str], directory: Path = FAIL2BAN, *, logs: Iterable[Path] = (), client: str = CLIENT
) -> Installed:
    """Write the definitions, have fail2ban test its whole configuration, and put everything back if it objects.

    `logs` are the files that the jail follows; the missing ones are created, empty. Definitions of ours that are not
    among these (another rendering's) are removed. Raises FatalError with fail2ban's own words when the test fails.
    """
    if not directory.is_dir():
        raise FatalError(
            f"{directory} is not there: apt install fail2ban, or name its configuration folder with --into"
        )
    before = {directory / name: _content(directory / name) for name in OURS}
    created = tuple(log for log in logs if _create(log))
    try:
        obsolete = _remove(directory / name for name in OURS if name not in definitions)
        changed = write(definitions, directory)
        tested = _test(directory, client, "nothing was changed")
    except (FatalError, RetryLater) as error:
        for path, content in before.items():
            _restore(path, content)
        for log in created:
            log.unlink(missing_ok=True)
        if isinstance(error, _Refused):
            _test(directory, client, "without our files too: mend that first; nothing was changed")
        raise
    _log.info("installed directory=%s changed=%d tested=%s", directory, len(changed) + len(obsolete), tested)
    return Installed(changed=(*changed, *obsolete), created=created, tested=tested)


def uninstall(directory: Path = FAIL2BAN) -> list[Path]:
    """Remove our files below `directory`; return them. What somebody else wrote under our names stays.

    Raises FatalError when the folder cannot be written.
    """
    return _remove(directory / name for name in OURS)


def _remove(paths: Iterable[Path]) -> list[Path]:
    removed = []
    for path in paths:
        if (content := _content(path)) is None or not _is_ours(content):
            continue
        try:
            path.unlink()
        except OSError as error:
            raise _unwritable(path, error) from None
        removed.append(path)
    return removed


def _check_ours(path: Path) -> None:
    content = _content(path)
    if path.is_symlink() or (content is not None and not _is_ours(content)):
        raise FatalError(f"{path} was not written by jailbridge: move it away first")


def _is_ours(content: bytes) -> bool:
    return content.startswith(f"# {MARK}".encode())


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise FatalError(f"{path} cannot be read: {error.strerror}") from None


def _replace(path: Path, content: bytes) -> None:
    """Rename over a finished copy: fail2ban never reads half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as copy:
            try:
                copy.write(content)
                copy.flush()
                os.fchmod(copy.fileno(), 0o644)
                os.fsync(copy.fileno())
                Path(copy.name).replace(path)
            except BaseException:
                Path(copy.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise _unwritable(path, error) from None


def _restore(path: Path, content: bytes | None) -> None:
    if _content(path) == content:
        return
    if content is None:
        path.unlink(missing_ok=True)
    else:
        _replace(path, content)


def _create(log: Path) -> bool:
    try:
        log.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(log, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))
            return True
    except OSError as error:
        raise _unwritable(log, error) from None
    return False


def _test(directory: Path, client: str, when: str) -> bool:
    try:
        program = process.find(client, "fail2ban")
    except FatalError:
        return False
    result = process.run([program, "-c", str(directory), "-t"], timeout_s=TEST_TIMEOUT_S)
    if result.code != 0:
        raise _Refused(f"fail2ban refuses its configuration in {directory}, {when}: {_complaint(result)}")
    return True


def _complaint(result: process.Result) -> str:
    """The first line that fail2ban logged as an error: `DATE TIME,MS LOGGER [PID]: ERROR   TEXT`."""
    lines = [line.partition("ERROR")[2].strip() for line in (result.err + result.out).splitlines() if "ERROR" in line]
    return lines[0] if lines and lines[0] else result.first_error


def _unwritable(path: Path, error: OSError) -> FatalError:
    return FatalError(f"{path} cannot be written: {error.strerror}")
