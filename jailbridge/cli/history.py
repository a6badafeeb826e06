"""Shows what a history file tells."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from jailbridge.errors import GiveUp, ParseError
from jailbridge.history.dialects import parse
from jailbridge.model.event import Dialect, ScanEvent
from jailbridge.model.network import shown

# The longest line that PortSentry writes is well below; the tailer refuses the same.
MAX_LINE = 4096


def events(path: Path, as_json: bool) -> None:
    """Print the events of a file, one a line. Raises GiveUp for a file that cannot be read, an output not written."""
    refused = 0
    # The bar stands on stderr, and only where no events run past it; the events never pass through it.
    hidden = not sys.stderr.isatty() or sys.stdout.isatty()
    bar = Progress(console=Console(stderr=True), transient=True, redirect_stdout=False, disable=hidden)
    try:
        with bar:
            for number, line in _lines(path, bar):
                try:
                    event, dialect = _event(line)
                except ParseError as error:
                    refused += 1
                    sys.stderr.write(f"{path}:{number}: refused: {error}: {shown(line.decode('latin-1'))}\n")
                    continue
                told = event_answer(number, event, dialect)
                sys.stdout.write(json.dumps(told) + "\n" if as_json else _text(told))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise GiveUp(f"the output cannot be written: {error.strerror}") from None
    if refused:
        sys.stderr.write(f"{path}: {refused} lines refused\n")


def event_answer(number: int, event: ScanEvent, dialect: Dialect) -> dict[str, Any]:
    """Return an event as the JSON of `history events` shows it; its time is RFC 3339, UTC."""
    return {
        "line": number,
        "time": event.time.isoformat(timespec="milliseconds" if event.time.microsecond else "seconds").replace(
            "+00:00", "Z"
        ),
        "address": str(event.address),
        "port": event.port,
        "protocol": event.protocol.value,
        "kind": event.kind.value,
        "flags": None if event.flags is None else event.flags.letters,
        "ignored": event.ignored,
        "triggered": event.triggered,
        "dialect": dialect.value,
    }


def _lines(path: Path, bar: Progress) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) in bounded memory: of a longer line only its beginning. Raises GiveUp."""
    number, head = 0, b""
    try:
        file = bar.open(path, "rb", description=escape(path.name))
    except OSError as error:
        raise _unreadable(path, error) from None
    with file:
        while chunk := _chunk(path, file):
            if not chunk.endswith(b"\n"):
                head = head or chunk
                continue
            number += 1
            yield number, (head or chunk).removesuffix(b"\n")
            head = b""
    if head:
        yield number + 1, head


def _event(line: bytes) -> tuple[ScanEvent, Dialect]:
    if len(line) > MAX_LINE:
        raise ParseError(f"longer than {MAX_LINE} bytes")
    return parse(line)


def _chunk(path: Path, file: BinaryIO) -> bytes:
    try:
        return file.readline(MAX_LINE + 2)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> GiveUp:
    return GiveUp(f"{path} cannot be read: {error.strerror}")


def _text(told: dict[str, Any]) -> str:
    said = " ".join(name for name in ("ignored", "triggered") if told[name])
    kind = told["flags"] if told["kind"] == "other" and told["flags"] else told["kind"]
    return (
        f"{told['time']}  {told['address']:<39} {told['protocol']}/{told['port']:<5} {kind:<8} {said}".rstrip() + "\n"
    )
