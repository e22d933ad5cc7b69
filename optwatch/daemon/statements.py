"""Statements: many of a kind as few, for each one that SQLite executes lets go of the interpreter.

With a thousand ranks the serving thread takes ten thousand batches a second. Were each a statement of its
own, the writer's thread would fight with it for the interpreter twenty thousand times a second.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any

ACKNOWLEDGE = "UPDATE session SET acked = ? WHERE session = ?"
SIZES = (256, 32)
"""Rows of one statement: few different texts, so that SQLite need not parse them again."""


def execute(connection: sqlite3.Connection, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Execute a statement once for each of the rows, in their order."""
    at = 0
    most = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // max(len(rows[0]), 1)
    for size in SIZES:
        several = _of_several(sql, size) if size <= min(most, len(rows) - at) else None
        while several and len(rows) - at >= size:
            connection.execute(several, [value for row in rows[at : at + size] for value in row])
            at += size
    connection.executemany(sql, rows[at:])


def _of_several(sql: str, rows: int) -> str | None:
    """The same for several rows, None where there is no such text."""
    if sql == ACKNOWLEDGE and sqlite3.sqlite_version_info >= (3, 33):
        told = ", ".join(["(?, ?)"] * rows)
        return (
            f"WITH told (acked, session) AS (VALUES {told}) UPDATE session SET acked = told.acked "  # noqa: S608
            "FROM told WHERE session.session = told.session"
        )
    head, values, row = sql.rpartition("VALUES ")
    if not values or not sql.startswith("INSERT") or not row.endswith(")"):
        return None
    return head + values + ", ".join([row] * rows)
