"""Files of ours in folders of others: told from everybody else's, written at once or not at all, taken away again.

Their first line says that they are ours, and bears a checksum of all the rest: so an edit by hand can be told from an
older version. Knows nothing of what they say.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TypeAlias

import jailbridge
from jailbridge.errors import FatalError

MARK = "Written by jailbridge"
"""How the first line of every file of ours begins, behind its `# `; then comes the checksum."""

Remedy: TypeAlias = Callable[[Path], str]
"""What to do about an edit of a file, as the error says it that refuses to overwrite it."""
SAVE_IT = "save what you need,"

_SEAL = re.compile(rf"{MARK} \([0-9a-f]{{16}}\)".encode())


def shipped() -> Traversable:
    """Return where what travels with the program lies: in the wheel, or at the top of the checkout."""
    packaged = files("jailbridge") / "_definitions"
    if packaged.is_dir():
        return packaged
    checkout = Path(jailbridge.__file__).parent.parent
    if all((checkout / name).is_dir() for name in ("filters", "jails", "packaging")):
        return checkout
    raise FatalError("files that belong to jailbridge are missing from this installation: reinstall it")


def sealed(text: str) -> str:
    """Write the checksum into the first line."""
    return text.replace(MARK, f"{MARK} ({hashlib.sha256(text.encode()).hexdigest()[:16]})", 1)


def is_ours(content: bytes) -> bool:
    """Tell whether a file was written by us, whatever became of it since."""
    return content.startswith(f"# {MARK}".encode())


def is_as_written(content: bytes) -> bool:
    """Tell whether a file of ours is still just what we wrote."""
    return content == sealed(_SEAL.sub(MARK.encode(), content, count=1).decode(errors="replace")).encode()


def content(path: Path) -> bytes | None:
    """Return what a file holds, None where there is none. Raises FatalError."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise FatalError(f"{path} cannot be read: {error.strerror}") from None


def outdated(texts: Mapping[str, str], directory: Path) -> list[str]:
    """Return the names of the files that are missing below `directory` or say something else there."""
    return [name for name, text in texts.items() if content(directory / name) != text.encode()]


def changes(
    texts: Mapping[str, str], directory: Path, *, force: bool = False, remedy: Remedy = lambda _: SAVE_IT
) -> list[Path]:
    """Return the files that `write` would change. Raises FatalError as that does before it writes."""
    changed = [directory / name for name in outdated(texts, directory)]
    for path in changed:
        _check_ours(path, remedy, force=force)
    return changed


def write(
    texts: Mapping[str, str], directory: Path, *, force: bool = False, remedy: Remedy = lambda _: SAVE_IT
) -> list[Path]:
    """Write the files, name below `directory` -> sealed text; return those that changed.

    Raises FatalError, before anything is written, for a file that we did not write, and one of ours that somebody has
    edited (`force`: that is lost; `remedy` says where an edit belongs); and when the folder cannot be written.
    """
    changed = changes(texts, directory, force=force, remedy=remedy)
    for path in changed:
        put(path, texts[path.relative_to(directory).as_posix()].encode())
    return changed


def put(path: Path, text: bytes | None) -> None:
    """Make a file hold this, or be gone (None). Nobody ever reads half of it. Raises FatalError."""
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


def removable(paths: Iterable[Path], *, force: bool = False) -> list[Path]:
    """Return those that are as we wrote them, with `force` those that somebody has edited too."""
    there = [(path, text) for path in paths if (text := content(path)) is not None]
    return [path for path, text in there if is_ours(text) and (force or is_as_written(text))]


def remove(paths: Iterable[Path], *, force: bool = False) -> list[Path]:
    """Remove those that are `removable`; return them."""
    removed = removable(paths, force=force)
    for path in removed:
        put(path, None)
    return removed


def unwritable(path: Path, error: OSError) -> FatalError:
    """Return the error that says so."""
    return FatalError(f"{path} cannot be written: {error.strerror}")


def _check_ours(path: Path, remedy: Remedy, *, force: bool) -> None:
    text = content(path)
    if path.is_symlink() or (text is not None and not is_ours(text)):
        raise FatalError(f"{path} was not written by jailbridge: move it away first")
    if text is not None and not force and not is_as_written(text):
        raise FatalError(f"{path} was edited by hand: {remedy(path)} run this again with --force")
