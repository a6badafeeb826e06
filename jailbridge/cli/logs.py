"""How a running daemon logs: one event, one line. To stderr as text, or to the journal where systemd reads stderr.

Outsiders' text stays within its line, and its field: what cannot be printed is escaped here, whoever logged it.
"""

import logging
import sys

from jailbridge.cli import journal

_FORMAT = "level=%(levelname)s part=%(name)s %(message)s"


class OneLine(logging.Formatter):
    """Formats a record as one line; a trace has lines of its own, none of which can be taken for a record."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """Return the line, without a trace."""
        return escaped(super().formatMessage(record))

    def formatException(self, ei: object) -> str:  # noqa: N802 - logging's own name
        """Return the trace's lines, indented."""
        lines = super().formatException(ei).split("\n")  # type: ignore[arg-type]
        return "\n".join(f"  {escaped(line)}" for line in lines)


class JournalHandler(logging.Handler):
    """Sends each record to the journal with its fields; as text to stderr where the journal cannot be reached."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send it; never raises."""
        try:
            text, priority = self.format(record), journal.PRIORITIES.get(record.levelno, journal.NOTICE)
            fields = [(key, escaped(value)) for key, value in journal.fields(record.msg, record.args)]
            own = [("MESSAGE", text), ("PRIORITY", str(priority)), ("SYSLOG_IDENTIFIER", "jailbridge")]
            try:
                journal.send([*own, ("JAILBRIDGE_PART", record.name), *fields])
            except OSError:
                sys.stderr.write(journal.prefixed(text, priority))
                sys.stderr.flush()
        except Exception:  # noqa: BLE001 - as logging's own handlers do
            self.handleError(record)


def log_to_stderr(verbose: bool) -> None:
    """Send our log lines to stderr; the journal adds the time, a terminal does not."""
    handler: logging.Handler
    if journal.reads(sys.stderr):
        handler = JournalHandler()
        handler.setFormatter(OneLine("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(OneLine(f"time=%(asctime)s {_FORMAT}", "%Y-%m-%dT%H:%M:%S%z"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])
    logging.getLogger("watchdog").setLevel(logging.WARNING)


def escaped(text: str) -> str:
    """Return the text with everything unprintable escaped, so that it is one line and moves no cursor."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
