"""How a running daemon logs: one event, one line, to stderr; the journal adds the time, a terminal does not."""

import logging
import os


def log_to_stderr(verbose: bool) -> None:
    """Send our log lines to stderr."""
    time = "" if "JOURNAL_STREAM" in os.environ else "time=%(asctime)s "
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format=f"{time}level=%(levelname)s part=%(name)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )
    logging.getLogger("watchdog").setLevel(logging.WARNING)
