"""Ledger: a run's findings and commands read back from the store."""

import sqlite3

import msgspec

from optwatch.daemon.commands import Entry
from optwatch.wire.findings import Finding


def read_findings(connection: sqlite3.Connection, run: str) -> list[Finding]:
    """All of a run's findings in order of id."""
    rows = connection.execute("SELECT data FROM finding WHERE run = ? ORDER BY id", (run,))
    return [msgspec.msgpack.decode(data, type=Finding) for (data,) in rows]


def read_commands(connection: sqlite3.Connection, run: str) -> list[Entry]:
    """All of a run's commands in order of id, with what the book keeps of them."""
    rows = connection.execute("SELECT data FROM command WHERE run = ? ORDER BY id", (run,))
    return [msgspec.msgpack.decode(data, type=Entry) for (data,) in rows]
