"""Writes what the sensor reports into the history, in the dialect that the settings name."""

from collections.abc import Collection, Sequence
from socket import AF_INET, AF_INET6, inet_ntop

from jailbridge.config.settings import HistoryDialect, HistorySettings
from jailbridge.errors import RetryLater
from jailbridge.history.dialects import line_1, line_2, stamp_1, stamp_2
from jailbridge.history.file import HistoryFile
from jailbridge.model.event import Protocol, Report


class HistoryWriter:
    """Appends reports to the history. Safe to use from several threads."""

    def __init__(self, settings: HistorySettings) -> None:
        self._file = HistoryFile(settings.path)
        self._has_all = settings.dialect is HistoryDialect.PORTSENTRY_2

    def has_line(self, report: Report) -> bool:
        """Tell whether the dialect has a line for this report: 1.2 for a source's trigger only, 2.x for each."""
        return self._has_all or report.newly_triggered

    def report(self, batch: Sequence[Report]) -> int:
        """Append the lines of a batch; return how many of its reports are dealt with, from its beginning.

        Those that have no line are, as soon as all before them are. Raises RetryLater when the first one is not.
        """
        written = [n for n, report in enumerate(batch) if self.has_line(report)]
        try:
            done = self._file.append(self._lines([batch[n] for n in written]))
        except RetryLater:
            if written[0] == 0:
                raise
            done = 0
        return written[done] if done < len(written) else len(batch)

    def claim(self, protocols: Collection[Protocol]) -> None:
        """As `HistoryFile.claim`."""
        self._file.claim(protocols)

    def hand_over(self, uid: int, gid: int) -> None:
        """As `HistoryFile.hand_over`."""
        self._file.hand_over(uid, gid)

    def check(self) -> None:
        """As `HistoryFile.check`."""
        self._file.check()

    def close(self) -> None:
        """As `HistoryFile.close`."""
        self._file.close()

    def _lines(self, reports: Sequence[Report]) -> list[str]:
        lines, time, stamps = [], None, ("", ("", ""))
        for event, _, name in reports:
            # A batch has one time, and to make its text costs as much as all the rest.
            if event.time != time:
                time, local = event.time, event.time.astimezone()
                stamps = stamp_1(local), stamp_2(local)
            # As PortSentry makes it, and far quicker than str() of an IPv6 address.
            address = inet_ntop(AF_INET if event.address.version == 4 else AF_INET6, event.address.packed)
            if self._has_all:
                lines.append(line_2(event, stamps[1], address, name))
            else:
                lines.append(line_1(event, stamps[0], address, name))
        return lines
