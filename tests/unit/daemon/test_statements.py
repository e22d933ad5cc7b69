"""Statements that were made one of many do what the many would have done."""

import sqlite3

import pytest

from optwatch.daemon.statements import ACKNOWLEDGE, SIZES, execute

ROWS = sum(SIZES) + 5


def sessions(rows: int) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE session (session TEXT PRIMARY KEY, acked INTEGER NOT NULL)")
    insert = "INSERT INTO session (session, acked) VALUES (?, ?)"
    execute(connection, insert, [(f"s{at}", 0) for at in range(rows)])
    return connection


@pytest.mark.parametrize("rows", [1, SIZES[-1], ROWS])
def test_each_row_is_there_once_and_is_brought_up_to_date(rows: int) -> None:
    connection = sessions(rows)
    execute(connection, ACKNOWLEDGE, [(at + 1, f"s{at}") for at in range(rows)])
    found = connection.execute("SELECT session, acked FROM session").fetchall()
    assert sorted(found) == sorted((f"s{at}", at + 1) for at in range(rows))


def test_with_few_variables_at_a_time_it_is_the_same() -> None:
    connection = sessions(ROWS)
    connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 3)
    execute(connection, ACKNOWLEDGE, [(7, f"s{at}") for at in range(ROWS)])
    assert connection.execute("SELECT COUNT(*) FROM session WHERE acked = 7").fetchone() == (ROWS,)


def test_a_statement_of_another_kind_is_executed_for_each_row() -> None:
    connection = sessions(ROWS)
    execute(connection, "DELETE FROM session WHERE session = ?", [(f"s{at}",) for at in range(ROWS - 1)])
    assert connection.execute("SELECT session FROM session").fetchall() == [(f"s{ROWS - 1}",)]
