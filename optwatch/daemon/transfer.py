"""Transfer: a run out of one store, as a file of its own, and into another one, bit for bit.

The file is itself a store with one run in it, so that its version and its checks are those of a store.
"""

import sqlite3
from pathlib import Path

import msgspec

from optwatch.daemon.errors import StartError
from optwatch.daemon.head import Head, find_run
from optwatch.daemon.retention import OF_A_RUN
from optwatch.daemon.store import FILE, lock
from optwatch.daemon.tables import VERSION, connect, migrate
from optwatch.daemon.upkeep import check_file

TABLES = (*OF_A_RUN, "audit")


class _Known(msgspec.Struct, frozen=True):
    head: Head


def export_run(directory: Path, wanted: str, path: Path) -> tuple[Head, int]:
    """Write a run to a new file, also while a daemon has the store; the run, and the size of the file.

    Raises:
        StartError: there is no store, or the file is there already or cannot be written.
        UnknownRun: there is no such run; the message names those that there are.
    """
    source = directory / FILE
    if not source.is_file():
        raise StartError(f"there is no store in {directory}")
    if path.exists():
        raise StartError(f"{path} is there already: give another name")
    head = find_run([_Known(head) for head in _heads(source)], wanted).head
    try:
        target = connect(str(path))
        migrate(target, str(path))
        _copy(target, source, head.run)
        target.execute("PRAGMA journal_mode = DELETE")  # one file, nothing beside it
        target.close()
    except sqlite3.Error as error:
        path.unlink(missing_ok=True)
        raise StartError(f"cannot export to {path}: {error}") from None
    return head, path.stat().st_size


def import_run(path: Path, directory: Path) -> Head:
    """Take a run from a file into a store, which is made where there is none; the run.

    Raises:
        StartError: the file is not a sound one of one run, the store has the run already or cannot be
            written, or a daemon has it.
    """
    if not path.is_file():
        raise StartError(f"there is no file {path}")
    report = check_file(path)
    if report.problems:
        raise StartError(f"{path} is not a run that can be imported: {report.problems[0]}")
    heads = _heads(path)
    if len(heads) != 1:
        raise StartError(f"{path} holds {len(heads)} runs: only a file that export has made can be imported")
    (head,) = heads
    with lock(directory):
        target = directory / FILE
        try:
            connection = connect(str(target))
            migrate(connection, str(target))
            if connection.execute("SELECT 1 FROM run WHERE run = ?", (head.run,)).fetchone():
                raise StartError(f"the store {directory} has the run {head.name} ({head.run[:8]}) already")
            _copy(connection, path, head.run)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()
        except sqlite3.Error as error:
            raise StartError(f"cannot import into {directory}: {error}") from None
    return head


def _heads(path: Path) -> list[Head]:
    try:
        connection = connect(str(path), read_only=True)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise StartError(f"{path} has version {version}, this optwatch reads {VERSION}")
        rows = connection.execute("SELECT head FROM run").fetchall()
        connection.close()
        return [msgspec.msgpack.decode(data, type=Head) for (data,) in rows]
    except (sqlite3.Error, msgspec.DecodeError) as error:
        raise StartError(f"cannot read {path}: {error}") from None


def _copy(target: sqlite3.Connection, source: Path, run: str) -> None:
    """All rows of a run, in one transaction. Numbers of rows are each store's own."""
    target.execute("ATTACH ? AS source", (str(source),))
    target.execute("BEGIN")  # not IMMEDIATE, which would lock the source for its daemon too
    for table in TABLES:
        columns = [name for _, name, *_ in target.execute(f"PRAGMA main.table_info({table})")]
        if table in ("chunk", "audit"):
            columns.remove("id")
        named = ", ".join(columns)
        order = " ORDER BY id" if table in ("chunk", "audit") else ""
        target.execute(
            f"INSERT INTO main.{table} ({named}) "  # noqa: S608  names of our own tables
            f"SELECT {named} FROM source.{table} WHERE run = ?{order}",
            (run,),
        )
    target.execute("COMMIT")
    target.execute("DETACH source")
