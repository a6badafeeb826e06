"""fail2ban's jails that read PortSentry's history, and whom they ban: from its server or, where that is down, its
database, which is only read.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from jailbridge.errors import FatalError, GiveUp, ParseError, RetryLater
from jailbridge.importing.finds import Find
from jailbridge.importing.notes import Note, Notes
from jailbridge.model.network import parse_network, shown
from jailbridge.stores.fail2ban import LIST_TIMEOUT_S, parse_entry
from jailbridge.stores.fail2ban_socket import Fail2banSocket

DATABASE = Path("/var/lib/fail2ban/fail2ban.sqlite3")
# A server that is busy with its database.
_BUSY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Jails:
    """The jails' names, or None where there is no fail2ban, and their bans."""

    names: Sequence[str] | None
    finds: Sequence[Find] = ()


def read(socket: Path, database: Path, histories: Iterable[Path], now: datetime, notes: Notes) -> Jails:
    """Return what fail2ban holds because of these histories; what cannot be read is noted."""
    logs = {str(name) for path in histories for name in (path, os.path.realpath(path))}
    if socket.exists():
        try:
            return _from_server(socket, logs, now, notes)
        except (RetryLater, FatalError, GiveUp) as error:
            notes.not_read.append(Note(str(socket), str(error)))
    if not database.exists():
        return Jails(names=() if socket.exists() else None)
    try:
        return _from_database(database, logs, now, notes)
    except (sqlite3.Error, OSError, ValueError, OverflowError, TypeError) as error:
        notes.not_read.append(Note(str(database), f"is no database of fail2ban, or damaged: {error}"))
        return Jails(names=())


def _from_server(socket: Path, logs: set[str], now: datetime, notes: Notes) -> Jails:
    """Raises RetryLater, FatalError and GiveUp."""
    names, finds = [], list[Find]()
    with Fail2banSocket(socket) as server:
        for jail in _names(server.ask("status")):
            read_logs = server.ask("get", jail, "logpath")
            if not isinstance(read_logs, list) or logs.isdisjoint(map(str, read_logs)):
                continue
            names.append(jail)
            place = f"fail2ban's jail {jail}"
            entries = server.ask("get", jail, "banip", "--with-time", timeout_s=LIST_TIMEOUT_S)
            for number, entry in enumerate(entries if isinstance(entries, list) else [], 1):
                if (ban := parse_entry(str(entry), now)) is None:
                    notes.misunderstood(place, number, f"is no IP network: {shown(str(entry))}")
                else:
                    finds.append(Find(ban.network, place, ban.since, ban.until))
    return Jails(names=names, finds=finds)


def _names(status: object) -> list[str]:
    """Return the jails that `status` lists; it answers with pairs of a title and a value (server/server.py)."""
    pairs = [one for one in status if isinstance(one, list | tuple)] if isinstance(status, list | tuple) else []
    listed = [str(one[1]) for one in pairs if len(one) == 2 and one[0] == "Jail list"]
    return [name.strip() for name in ",".join(listed).split(",") if name.strip()]


def _from_database(path: Path, logs: set[str], now: datetime, notes: Notes) -> Jails:
    """Read the tables `logs` and `bips` (server/database.py). Raises sqlite3.Error and others."""
    if not path.is_file():
        raise ValueError("not a regular file")
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=_BUSY_S)) as database:
        rows = database.execute("SELECT jail, path FROM logs ORDER BY jail").fetchall()
        names = list(dict.fromkeys(str(jail) for jail, log in rows if str(log) in logs))
        finds = [find for jail in names for find in _banned(database, jail, now, notes)]
    return Jails(names=names, finds=finds)


def _banned(database: sqlite3.Connection, jail: str, now: datetime, notes: Notes) -> Iterator[Find]:
    place = f"fail2ban's jail {jail}"
    rows = database.execute("SELECT ip, timeofban, bantime FROM bips WHERE jail = ? ORDER BY timeofban", (jail,))
    for number, (address, banned_at, lasts_s) in enumerate(rows, 1):
        try:
            network = parse_network(str(address))
            since = datetime.fromtimestamp(int(banned_at), UTC)
            until = None if int(lasts_s) < 0 else since + timedelta(seconds=int(lasts_s))
        except (ParseError, ValueError, OverflowError, OSError, TypeError):
            notes.misunderstood(place, number, f"is no ban of an IP network: {shown(str(address))}")
            continue
        if until is None or until > now:
            yield Find(network, place, since, until)
