"""Shows what a log tells, checks, counts and converts it. What draws is imported where it is drawn with."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jailbridge.cli.times import time_text
from jailbridge.errors import GiveUp, ParseError
from jailbridge.history.formats import Reader, reader
from jailbridge.history.lines import LogFile
from jailbridge.model.event import MAX_LINE, Dialect, ScanEvent, TailFormat
from jailbridge.model.network import shown

DONE, REFUSED = 0, 2


def events(path: Path, as_json: bool, form: str = TailFormat.AUTO, prefixes: Sequence[str] = ()) -> None:
    """Print the events of a file, name the refused lines on stderr. Raises GiveUp for an unreadable file."""
    read, now, number, refused = _reading(form, prefixes), datetime.now(UTC), 0, 0
    with LogFile(path) as log, _progress(log, beside_output=True) as batches:
        for lines in batches:
            for line in lines:
                number += 1
                try:
                    seen = read(line, now)
                except ParseError as error:
                    refused += 1
                    _name_refused(log, number, line, error)
                    continue
                if seen is not None:
                    told = event_answer(number, *seen)
                    sys.stdout.write(json.dumps(told) + "\n" if as_json else _text(told))
    sys.stdout.flush()
    if refused:
        sys.stderr.write(f"{log.name}: {refused} lines refused\n")


def check(path: Path, as_json: bool, form: str = TailFormat.AUTO, prefixes: Sequence[str] = ()) -> int:
    """Say what is wrong with a file's lines; return the exit code. Raises GiveUp for an unreadable file."""
    from jailbridge.cli import history_check
    from jailbridge.history.checking import Check
    from jailbridge.history.plain import times_of

    found = Check(_grammar(form, prefixes), datetime.now(UTC), times_of(TailFormat(form)))
    with LogFile(path) as log, _progress(log) as batches:
        for lines in batches:
            found.add(lines)
    answer = history_check.answer(found, log)
    sys.stdout.write(json.dumps(answer) + "\n" if as_json else history_check.text(answer))
    return REFUSED if found.refused else DONE


def stats(path: Path, as_json: bool, top: int, form: str = TailFormat.AUTO, prefixes: Sequence[str] = ()) -> None:
    """Count what a file's events tell together. Raises GiveUp for an unreadable file."""
    from jailbridge.cli import history_stats
    from jailbridge.history.statistics import MOST_BUCKETS, Statistics

    statistics, counts = Statistics(), {"lines": 0, "foreign": 0, "refused": 0}
    read, now = _reading(form, prefixes), datetime.now(UTC)
    with LogFile(path) as log, _progress(log) as batches:
        for lines in batches:
            counts["lines"] += len(lines)
            seen = []
            for line in lines:
                try:
                    told = read(line, now)
                except ParseError:
                    counts["refused"] += 1
                    continue
                if told is not None:
                    seen.append(told)
                else:
                    counts["foreign"] += 1
            statistics.add(seen)
    rows = MOST_BUCKETS if as_json else history_stats.ROWS
    answer = {"file": log.name, **counts, **history_stats.answer(statistics, top, rows)}
    if as_json:
        sys.stdout.write(json.dumps(answer) + "\n")
    else:
        history_stats.show(answer)


def convert(path: Path, to: str, form: str = TailFormat.AUTO, prefixes: Sequence[str] = ()) -> int:
    """Print a file's lines in another dialect; what is lost is said on stderr. Return the exit code. Raises GiveUp."""
    from jailbridge.history.convert import Change, LeftOut, converted

    read, now, dialect = _reading(form, prefixes), datetime.now(UTC), Dialect(to)
    left_out: Counter[str] = Counter()
    changes: Counter[Change] = Counter()
    number = refused = foreign = written = 0
    with LogFile(path) as log, _progress(log, beside_output=True) as batches:
        for lines in batches:
            for line in lines:
                number += 1
                try:
                    seen = read(line, now)
                    if seen is None:
                        foreign += 1
                        continue
                    text, changed = converted(*seen, dialect)
                except LeftOut as reason:
                    left_out[str(reason)] += 1
                except ParseError as error:
                    refused += 1
                    _name_refused(log, number, line, error)
                else:
                    written += 1
                    changes.update(changed)
                    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    say = [f"{number} lines read, {written} written for PortSentry {to}; names are not kept, times are this host's"]
    say += [f"{times} left out: {reason}" for reason, times in left_out.most_common()]
    say += [f"{times} changed: {what}: {before} → {after}" for (what, before, after), times in changes.most_common()]
    say += [f"{foreign} lines are none of PortSentry's"] if foreign else []
    say += [f"{refused} lines refused"] if refused else []
    sys.stderr.write("".join(f"{log.name}: {one}\n" for one in say))
    return REFUSED if refused else DONE


def event_answer(number: int, event: ScanEvent, dialect: Dialect) -> dict[str, Any]:
    """Return an event as the JSON of `history events` shows it."""
    return {
        "line": number,
        "time": time_text(event.time),
        "address": str(event.address),
        "port": event.port,
        "protocol": event.protocol.value,
        "kind": event.kind.value,
        "flags": None if event.flags is None else event.flags.letters,
        "ignored": event.ignored,
        "triggered": event.triggered,
        "dialect": dialect.value,
    }


def _grammar(form: str, prefixes: Sequence[str]) -> Reader:
    if form == TailFormat.KERNEL and not prefixes:
        raise GiveUp("--format kernel reads no line without --prefix: name the --log-prefix of your LOG rules")
    if prefixes and form not in {TailFormat.KERNEL, TailFormat.AUTO}:
        raise GiveUp(f"--prefix is for lines of the kernel, which --format {form} does not read: leave one out")
    for prefix in prefixes:
        # An empty one would believe every rule.
        if not (prefix and prefix.isascii() and prefix.isprintable()):
            raise GiveUp(f"--prefix {shown(prefix)} is no prefix of a LOG rule: it is printable ASCII, and not empty")
    return reader(TailFormat(form), prefixes)


def _reading(form: str, prefixes: Sequence[str]) -> Reader:
    read = _grammar(form, prefixes)

    def limited(line: bytes, now: datetime) -> tuple[ScanEvent, Dialect] | None:
        if len(line) > MAX_LINE:
            raise ParseError(f"longer than {MAX_LINE} bytes")
        return read(line, now)

    return limited


@contextmanager
def _progress(log: LogFile, *, beside_output: bool = False) -> Iterator[Iterator[list[bytes]]]:
    """Yield the file's batches; a bar on stderr shows how far they are, at a terminal where no output runs past it."""
    if not sys.stderr.isatty() or (beside_output and sys.stdout.isatty()):
        yield log.batches()
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(escape(log.name), total=log.size)

        def watched() -> Iterator[list[bytes]]:
            for lines in log.batches():
                yield lines
                if log.size is not None:
                    bar.update(task, completed=log.place)

        yield watched()


def _name_refused(log: LogFile, number: int, line: bytes, error: ParseError) -> None:
    sys.stderr.write(f"{log.name}:{number}: refused: {error}: {shown(line.decode('latin-1'))}\n")


def _text(told: dict[str, Any]) -> str:
    said = " ".join(name for name in ("ignored", "triggered") if told[name])
    kind = told["flags"] if told["kind"] == "other" and told["flags"] else told["kind"]
    return (
        f"{told['time']}  {told['address']:<39} {told['protocol']}/{told['port']:<5} {kind:<8} {said}".rstrip() + "\n"
    )
