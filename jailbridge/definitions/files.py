"""Our files below fail2ban's folder: told from everybody else's, written at once or not at all, taken away again."""

from collections.abc import Mapping
from pathlib import Path

from jailbridge import owned_files


def write(definitions: Mapping[str, str], directory: Path, *, force: bool = False) -> list[Path]:
    """Write the definitions below `directory`, as `owned_files.write` does; return the files that changed."""
    return owned_files.write(definitions, directory, force=force, remedy=_remedy)


def _remedy(path: Path) -> str:
    # fail2ban reads a .local after the .conf of that name (jail.conf(5)).
    return f"put your change into {path.stem}.local, then" if path.suffix == ".conf" else owned_files.SAVE_IT
