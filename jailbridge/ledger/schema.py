"""The ledger's tables, as numbered migrations, each recorded in its own transaction. Times are epoch seconds, UTC."""

import contextlib
import secrets
import sqlite3
from pathlib import Path

from jailbridge.errors import FatalError

# "JBdg": tells our file from any other SQLite database (https://www.sqlite.org/pragma.html#pragma_application_id).
APPLICATION_ID = 0x4A426467

MIGRATIONS = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    -- live bans; until NULL is permanent
    CREATE TABLE ban (
        network TEXT PRIMARY KEY, since REAL NOT NULL, until REAL, origin TEXT NOT NULL, reason TEXT NOT NULL,
        evidence TEXT, port INTEGER, file TEXT, "offset" INTEGER, line TEXT, forced INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX ban_until ON ban (until) WHERE until IS NOT NULL;
    -- the end of a network's last ban
    CREATE TABLE tombstone (
        network TEXT PRIMARY KEY, ended REAL NOT NULL, why TEXT NOT NULL, bans INTEGER NOT NULL, marks TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    -- where a ban was written (attempted) and read back (confirmed)
    CREATE TABLE placement (
        store TEXT NOT NULL, network TEXT NOT NULL, state TEXT NOT NULL, PRIMARY KEY (store, network)
    ) STRICT, WITHOUT ROWID;
    -- the last token that was read back from a store
    CREATE TABLE store (name TEXT PRIMARY KEY, token TEXT NOT NULL) STRICT, WITHOUT ROWID;
    -- how far each followed file has been read
    CREATE TABLE position (
        path TEXT PRIMARY KEY, device INTEGER NOT NULL, inode INTEGER NOT NULL, "offset" INTEGER NOT NULL,
        head TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    -- ordered, append-only: what happened to which network, and why
    CREATE TABLE feed (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, what TEXT NOT NULL, network TEXT NOT NULL,
        why TEXT NOT NULL
    ) STRICT;
    """,
    """
    -- the end of the ban that was made or changed; NULL is permanent, and what an unban has
    ALTER TABLE feed ADD COLUMN until REAL;
    -- the oldest tombstones go first
    CREATE INDEX tombstone_ended ON tombstone (ended);
    -- what was seen of a network and where its ban was placed, bounded; noted is when we came to know
    CREATE TABLE story (
        sequence INTEGER PRIMARY KEY, noted REAL NOT NULL, time REAL NOT NULL, what TEXT NOT NULL,
        network TEXT NOT NULL, detail TEXT NOT NULL, file TEXT, "offset" INTEGER, line TEXT
    ) STRICT;
    CREATE INDEX story_network ON story (network);
    -- networks that an operator allowed
    CREATE TABLE allowed (
        network TEXT PRIMARY KEY, time REAL NOT NULL, reason TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    -- what the logs told of a live ban (ports between blanks), and a number for a key: with the networks' texts for one
    -- a storm writes every page of the table at every turn
    CREATE TABLE numbered_ban (
        network TEXT PRIMARY KEY, since REAL NOT NULL, until REAL, origin TEXT NOT NULL, reason TEXT NOT NULL,
        evidence TEXT, port INTEGER, file TEXT, "offset" INTEGER, line TEXT, forced INTEGER NOT NULL,
        first_seen REAL, last_seen REAL, sightings INTEGER, ports TEXT
    ) STRICT;
    INSERT INTO numbered_ban SELECT *, NULL, NULL, NULL, NULL FROM ban;
    DROP TABLE ban;
    ALTER TABLE numbered_ban RENAME TO ban;
    CREATE INDEX ban_until ON ban (until) WHERE until IS NOT NULL;
    """,
    """
    -- until when the store itself was told to hold it; NULL where it was told no end
    ALTER TABLE placement ADD COLUMN until REAL;
    -- the last sequence number that was given out for a store
    CREATE TABLE attempt (store TEXT PRIMARY KEY, sequence INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO attempt SELECT name, (SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'sequence')
        FROM (SELECT name FROM store UNION SELECT store FROM placement);
    -- whether a log line had led to the ban
    ALTER TABLE tombstone ADD COLUMN logged INTEGER NOT NULL DEFAULT 0;
    """,
    """
    -- whose ban was made, changed or ended, and what the logs had told of it then (ports between blanks)
    ALTER TABLE feed ADD COLUMN origin TEXT;
    ALTER TABLE feed ADD COLUMN evidence TEXT;
    ALTER TABLE feed ADD COLUMN ports TEXT;
    """,
    """
    -- when a store was written last
    ALTER TABLE attempt ADD COLUMN time REAL;
    """,
)


class DamagedLedger(FatalError):
    """What is there was a ledger, and cannot be read any more."""


def connect(path: Path, *, create: bool) -> sqlite3.Connection:
    """Open the ledger file, bringing an older one up to date.

    Raises FatalError for what is not a ledger, DamagedLedger for what cannot be told from a torn one.
    """
    try:
        exists = path.exists()
        if not exists and not create:
            raise FatalError(f"there is no ledger at {path} yet: start `jailbridge run`, or ban something")
        if not exists:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FatalError(f"ledger {path} cannot be opened: {reason}") from None
    try:
        _prepare(connection, path)
    except sqlite3.Error as error:
        connection.close()
        if is_damage(error):
            raise damaged(path) from None
        raise FatalError(f"ledger {path} cannot be used: {error}") from None
    except FatalError:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    # One look, since another process may be making this ledger just now.
    connection.execute("BEGIN")
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    connection.execute("COMMIT")
    if application != APPLICATION_ID and (application or version or tables):
        raise unsound(path)
    if version > len(MIGRATIONS):
        raise FatalError(
            f"ledger {path} was written by a newer JailBridge (form {version}): upgrade, or restore a backup"
        )
    _use_wal(connection)
    connection.execute("PRAGMA foreign_keys = ON")
    # A storm touches pages all over the tables, since networks are their keys: 64 MiB hold 200,000 bans.
    connection.execute("PRAGMA cache_size = -65536")
    connection.execute("PRAGMA wal_autocheckpoint = 8000")
    while version < len(MIGRATIONS):
        version = _migrated(connection)
    connection.execute("INSERT OR IGNORE INTO meta VALUES ('id', ?), ('sequence', '0')", (secrets.token_hex(6),))
    if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        raise damaged(path)


def _use_wal(connection: sqlite3.Connection) -> None:
    for _ in range(10):
        if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            return
        # Unlike any other statement this one does not wait for a process that does the same; an empty write does.
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")


def _migrated(connection: sqlite3.Connection) -> int:
    """Make the next migration, unless another process did so first; return the version reached."""
    connection.execute("BEGIN IMMEDIATE")
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version < len(MIGRATIONS):
        for statement in MIGRATIONS[version].split(";\n"):
            connection.execute(statement)
        version += 1
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {version}")
    connection.execute("COMMIT")
    return version


def is_damage(error: sqlite3.Error) -> bool:
    """Tell whether it is the file that is at fault, and not the disk, the permissions or another process."""
    # An extended code ends in its primary one (https://www.sqlite.org/rescode.html).
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def unsound(path: Path) -> FatalError:
    """Return the error for a file that is there but is no ledger."""
    return FatalError(_unsound(path))


def damaged(path: Path) -> DamagedLedger:
    """Return the error for a file that is a torn ledger, for all that can be told."""
    return DamagedLedger(_unsound(path))


def _unsound(path: Path) -> str:
    return (
        f"{path} is not a sound JailBridge ledger: move it away (bans in the stores are then taken over), "
        "restore a backup, or set ledger.path"
    )
