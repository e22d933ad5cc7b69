"""A store read from outside its daemon, whether that is up or not: runs, findings, commands, series."""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

import msgspec

from optwatch.cli.errors import Wrong
from optwatch.client import Client, DaemonError
from optwatch.daemon.head import Head, UnknownRun, find_run
from optwatch.daemon.history import History
from optwatch.daemon.ledger import read_commands, read_findings, read_markers
from optwatch.daemon.store import FILE
from optwatch.daemon.tables import VERSION, connect
from optwatch.wire.actions import Command
from optwatch.wire.findings import Finding
from optwatch.wire.messages import Schema
from optwatch.wire.places import state_dir
from optwatch.wire.requests import Marker


@dataclass(frozen=True)
class ArchivedRun:
    """A run as the store has it."""

    head: Head


class Archive:
    """A daemon's store, read only."""

    def __init__(self, directory: Path) -> None:
        """Open the store in a directory.

        Raises:
            Wrong: there is none, or it cannot be read.
        """
        path = directory / FILE
        if not path.is_file():
            raise Wrong(f"there is no store in {directory}: say where it is with --store DIR")
        try:
            self._connection = connect(str(path), read_only=True)
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version != VERSION:
                raise Wrong(f"the store {path} has version {version}, this optwatch reads {VERSION}")
            rows = self._connection.execute("SELECT head FROM run").fetchall()
        except sqlite3.Error as error:
            raise Wrong(f"cannot read the store {path}: {error}") from None
        self._runs = [ArchivedRun(msgspec.msgpack.decode(head, type=Head)) for (head,) in rows]
        self.history = History(self._connection)

    def heads(self) -> list[Head]:
        """All runs of the store."""
        return [archived.head for archived in self._runs]

    def find(self, wanted: str) -> Head:
        """The run of a name or id.

        Raises:
            Wrong: there is none; the message names those that there are.
        """
        try:
            return find_run(self._runs, wanted).head
        except UnknownRun as error:
            raise Wrong(str(error.args[0])) from None

    def findings(self, run: str) -> list[Finding]:
        """All of a run's findings in order of id."""
        return read_findings(self._connection, run)

    def commands(self, run: str) -> list[Command]:
        """All of a run's commands in order of id."""
        return [entry.command for entry in read_commands(self._connection, run)]

    def schemas(self, run: str) -> list[Schema]:
        """What the batches of a run held, of all its optimizers and ranks."""
        rows = self._connection.execute("SELECT data FROM schema WHERE run = ? ORDER BY optimizer", (run,))
        return [msgspec.msgpack.decode(data, type=Schema) for (data,) in rows]

    def markers(self, run: str) -> list[Marker]:
        """All of a run's marks and other events in order of step."""
        return read_markers(self._connection, run)


def default_store() -> Path:
    """The store of the daemon that runs here, else where this user's daemon would have it."""
    try:
        with Client() as client:
            return Path(client.greeting.store)
    except DaemonError:
        return state_dir()
