"""Ledger: a run's findings, commands and markers read back from the store."""

import sqlite3

import msgspec

from optwatch.daemon.entries import Entry
from optwatch.wire.findings import Finding
from optwatch.wire.requests import Marker


def read_findings(connection: sqlite3.Connection, run: str) -> list[Finding]:
    """All of a run's findings in order of id."""
    rows = connection.execute("SELECT data FROM finding WHERE run = ? ORDER BY id", (run,))
    return [msgspec.msgpack.decode(data, type=Finding) for (data,) in rows]


def read_commands(connection: sqlite3.Connection, run: str) -> list[Entry]:
    """All of a run's commands in order of id, with what the book keeps of them."""
    rows = connection.execute("SELECT data FROM command WHERE run = ? ORDER BY id", (run,))
    return [msgspec.msgpack.decode(data, type=Entry) for (data,) in rows]


def read_markers(connection: sqlite3.Connection, run: str, most: int = -1) -> list[Marker]:
    """The last `most` of a run's markers (-1: all), in order of step."""
    rows = connection.execute(
        "SELECT step, kind, text FROM (SELECT * FROM marker WHERE run = ? ORDER BY step DESC LIMIT ?) "
        "ORDER BY step",
        (run, most),
    )
    return [Marker(*row) for row in rows]
