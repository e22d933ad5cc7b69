"""The store's tables, and how an older store becomes a newer one."""

import sqlite3
from urllib.parse import quote

from optwatch.daemon.errors import StartError

MIGRATIONS = (
    """
    CREATE TABLE run (
        run TEXT PRIMARY KEY, started REAL NOT NULL, heard REAL NOT NULL, head BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE session (
        session TEXT PRIMARY KEY, run TEXT NOT NULL, rank INTEGER NOT NULL, acked INTEGER NOT NULL,
        hello BLOB NOT NULL, left INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX session_of_run ON session (run);
    CREATE TABLE schema (
        run TEXT NOT NULL, optimizer INTEGER NOT NULL, digest TEXT NOT NULL, data BLOB NOT NULL,
        PRIMARY KEY (run, optimizer, digest)
    ) WITHOUT ROWID;
    CREATE TABLE chunk (
        id INTEGER PRIMARY KEY, run TEXT NOT NULL, optimizer INTEGER NOT NULL, kind TEXT NOT NULL,
        rank INTEGER NOT NULL, level INTEGER NOT NULL, schema TEXT NOT NULL, incarnation INTEGER NOT NULL,
        first INTEGER NOT NULL, last INTEGER NOT NULL, rows INTEGER NOT NULL, data BLOB NOT NULL
    );
    CREATE INDEX chunk_of_stream ON chunk (run, optimizer, kind, rank, level);
    CREATE TABLE marker (
        session TEXT NOT NULL, seq INTEGER NOT NULL, run TEXT NOT NULL, step INTEGER NOT NULL,
        kind TEXT NOT NULL, text TEXT NOT NULL, PRIMARY KEY (session, seq)
    ) WITHOUT ROWID;
    CREATE INDEX marker_of_run ON marker (run, step);
    CREATE TABLE finding (
        run TEXT NOT NULL, id INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (run, id)
    ) WITHOUT ROWID;
    CREATE TABLE command (
        run TEXT NOT NULL, id INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (run, id)
    ) WITHOUT ROWID;
    CREATE TABLE checkpoint (run TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY, at REAL NOT NULL, who TEXT NOT NULL, run TEXT NOT NULL,
        what TEXT NOT NULL, detail TEXT NOT NULL
    );
    """,
    "-- The same tables, with chunks of kind h (histograms), which version 1 cannot read.\n",
    """
    DROP INDEX chunk_of_stream;
    CREATE INDEX chunk_of_stream ON chunk
        (run, optimizer, kind, rank, level, incarnation, first, last, rows);
    CREATE TABLE lane (
        run TEXT NOT NULL, optimizer INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (run, optimizer)
    ) WITHOUT ROWID;
    CREATE TABLE page (
        run TEXT NOT NULL, optimizer INTEGER NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL,
        PRIMARY KEY (run, optimizer, number)
    );
    """,
    """
    CREATE TABLE covered (
        run TEXT NOT NULL, optimizer INTEGER NOT NULL, rank INTEGER NOT NULL, incarnation INTEGER NOT NULL,
        first INTEGER NOT NULL, last INTEGER NOT NULL, PRIMARY KEY (run, optimizer, rank, incarnation, first)
    ) WITHOUT ROWID;
    CREATE TABLE thinning (
        run TEXT NOT NULL, optimizer INTEGER NOT NULL, steps BLOB NOT NULL, PRIMARY KEY (run, optimizer)
    );
    """,
    """
    DROP INDEX session_of_run;
    CREATE INDEX session_of_run ON session (run, rank);
    """,
)
VERSION = len(MIGRATIONS)


def connect(path: str, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode, set up as this store wants it."""
    if read_only:
        connection = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, isolation_level=None)
    else:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a new store; an old one stays as it is
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA busy_timeout = 5000")
    return connection


def again(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Another connection to the same store, to read only."""
    ((_, _, path),) = connection.execute("PRAGMA database_list").fetchall()
    return connect(path, read_only=True)


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring a store to this version, each step in one transaction.

    Raises:
        StartError: a newer optwatch wrote this store.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise StartError(
            f"the store {path} has version {version} and this optwatch knows {VERSION}: "
            "upgrade optwatch, or use another --store"
        )
    for number in range(version, VERSION):
        connection.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; PRAGMA user_version = {number + 1}; COMMIT;"
        )
