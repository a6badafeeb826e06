"""Our files below fail2ban's folder: told from everybody else's, written at once or not at all, taken away again."""

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from jailbridge.definitions.render import is_as_written, is_ours
from jailbridge.errors import FatalError


def content(path: Path) -> bytes | None:
    """Return what a file holds, None where there is none. Raises FatalError."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise FatalError(f"{path} cannot be read: {error.strerror}") from None


def outdated(definitions: Mapping[str, str], directory: Path) -> list[str]:
    """Return the names of the definitions that are missing below `directory` or say something else there."""
    return [name for name, text in definitions.items() if content(directory / name) != text.encode()]


def write(definitions: Mapping[str, str], directory: Path, *, force: bool = False) -> list[Path]:
    """Write the definitions below `directory`; return the files that changed.

    Raises FatalError, before anything is written, for a file that we did not write, and one of ours that somebody has
    edited (`force`: that is lost); and when the folder cannot be written.
    """
    changed = [directory / name for name in outdated(definitions, directory)]
    for path in changed:
        _check_ours(path, force=force)
    for path in changed:
        put(path, definitions[path.relative_to(directory).as_posix()].encode())
    return changed


def put(path: Path, text: bytes | None) -> None:
    """Make a file hold this, or be gone (None). fail2ban never reads half a file. Raises FatalError."""
    if content(path) == text:
        return
    try:
        if text is None:
            path.unlink()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as copy:
            try:
                copy.write(text)
                copy.flush()
                os.fchmod(copy.fileno(), 0o644)
                os.fsync(copy.fileno())
                Path(copy.name).replace(path)
            except BaseException:
                Path(copy.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise unwritable(path, error) from None


def remove(paths: Iterable[Path], *, force: bool = False) -> list[Path]:
    """Remove those that are as we wrote them, with `force` those that somebody has edited too; return them."""
    removed = []
    for path in paths:
        text = content(path)
        if text is not None and is_ours(text) and (force or is_as_written(text)):
            put(path, None)
            removed.append(path)
    return removed


def unwritable(path: Path, error: OSError) -> FatalError:
    """Return the error that says so."""
    return FatalError(f"{path} cannot be written: {error.strerror}")


def _check_ours(path: Path, *, force: bool) -> None:
    text = content(path)
    if path.is_symlink() or (text is not None and not is_ours(text)):
        raise FatalError(f"{path} was not written by jailbridge: move it away first")
    if text is not None and not force and not is_as_written(text):
        remedy = f"put your change into {path.stem}.local, then" if path.suffix == ".conf" else "save what you need,"
        raise FatalError(f"{path} was edited by hand: {remedy} run this again with --force")
