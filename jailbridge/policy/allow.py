"""Reads the allow files: PortSentry's `portsentry.ignore` syntax, `ADDRESS` or `ADDRESS/bits` a line, `#` comments."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from jailbridge.config.settings import DEFAULT_ALLOW_FILES, PolicySettings
from jailbridge.errors import ParseError, RetryLater
from jailbridge.model.network import Network, parse_network

# An allow file is a short list; something much larger is not one.
MAX_BYTES = 4 << 20


def allowed(settings: PolicySettings) -> list[tuple[Network, str]]:
    """Return every allowed network with the place that says so.

    Raises RetryLater for a file that cannot be read or understood: then nobody new may be banned. The default files
    may be missing; one that the configuration names may not.
    """
    entries = [(network, "policy.allow") for network in settings.allow]
    for path in settings.allow_files:
        entries += _read(path, may_be_missing=path in DEFAULT_ALLOW_FILES)
    return entries


def parse_list(text: str, where: str) -> Iterator[tuple[Network, str]]:
    """Yield (network, WHERE:LINE) for a list, one network a line, `#` comments. Raises ParseError, the line named."""
    # Not splitlines(), which also ends a line, or a comment, where no editor shows an end.
    for number, line in enumerate(text.split("\n"), start=1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        try:
            yield parse_network(entry), f"{where}:{number}"
        except ParseError as error:
            raise ParseError(f"{where}:{number}: {error}") from None


def _read(path: Path, *, may_be_missing: bool) -> list[tuple[Network, str]]:
    try:
        return list(parse_list(_text(path), str(path)))
    except FileNotFoundError:
        # A link whose target is away (not mounted yet) is a list that cannot be read.
        if may_be_missing and not path.is_symlink():
            return []
        raise RetryLater(f"allow file {path} is not there; nobody new is banned until it is") from None
    except OSError as error:
        raise RetryLater(
            f"allow file {path} cannot be read: {error.strerror}; nobody new is banned until it can"
        ) from None
    except ParseError as error:
        raise RetryLater(f"allow file {error}; nobody new is banned until it is mended") from None


def _text(path: Path) -> str:
    # A pipe would be waited for.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise RetryLater(f"allow file {path} is not a regular file; nobody new is banned until it is")
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise RetryLater(f"allow file {path} is over {MAX_BYTES >> 20} MiB; nobody new is banned until it is a list")
    return data.decode("utf-8-sig", errors="replace")
