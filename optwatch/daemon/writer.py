"""The writer thread: commits whole units, and keeps the number of chunks small."""

import logging
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from typing import Any

from optwatch.daemon.chunks import join, kind_of
from optwatch.daemon.schemas import read_shape
from optwatch.daemon.statements import execute

log = logging.getLogger(__name__)

Statement = tuple[str, tuple[Any, ...]]
Stream = tuple[str, int, str, int]
"""Run, optimizer, kind of chunk, rank."""

FAN_IN = 64
"""Chunks of one level in a stream that are merged into one of the next."""
TIDYING = 0.25
"""Seconds after a commit in which merges are begun."""
MAX_CHUNK_BYTES = 4 << 20
LEVELS = 3
RETRY = 1.0
"""Seconds between two attempts while the disk is full or the file cannot be written."""

NEVER = (OverflowError, ValueError, sqlite3.InterfaceError, sqlite3.ProgrammingError, sqlite3.DataError)
"""What no later attempt would make good: a number or a text that SQLite does not know."""


class Writer:
    """Owns the connection that writes. A unit that cannot be written stays first in line until it can."""

    def __init__(self, connection: sqlite3.Connection, notify: Callable[[], None]) -> None:
        self.trouble = ""
        self.committed = 0
        self.backlog = 0
        self._connection = connection
        self._notify = notify
        self._queue: deque[tuple[int, list[Statement], set[Stream], int]] = deque()
        self._ticket = 0
        self._closing = False
        self._changed = threading.Condition()
        self._small = _small_chunks(connection)
        self._thread = threading.Thread(target=self._run, name="optwatch-writer", daemon=True)
        self._thread.start()

    def put(self, unit: list[Statement], streams: set[Stream]) -> int:
        """Queue one unit; the ticket that `committed` reaches when it is in the file."""
        if not unit:
            return self._ticket
        size = sum(len(v) if isinstance(v, bytes) else 16 for _, values in unit for v in values)
        with self._changed:
            self._ticket += 1
            self._queue.append((self._ticket, unit, streams, size))
            self.backlog += size
            self._changed.notify_all()
            return self._ticket

    def wait(self, timeout: float) -> bool:
        """Wait until everything that was put is committed, or nothing can be; whether it is."""
        with self._changed:
            self._changed.wait_for(lambda: self.committed >= self._ticket or self.trouble, timeout)
            return self.committed >= self._ticket

    def close(self) -> None:
        """Commit what is left, as far as it can be, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            log.warning("the store's log could not be folded in: %s", error)
        self._connection.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                units = list(self._queue)
            if self._commit(units):
                with self._changed:
                    for _, _, _, size in units:
                        self._queue.popleft()
                        self.backlog -= size
                    self.committed = units[-1][0]
                    self._changed.notify_all()
                self._notify()
                self._tidy(units)
            else:
                with self._changed:
                    self._changed.notify_all()
                    if self._closing:
                        log.error("the store could not be written at the end: %s", self.trouble)
                        return
                    self._changed.wait_for(lambda: self._closing, RETRY)

    def _commit(self, units: list[tuple[int, list[Statement], set[Stream], int]]) -> bool:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            statements = (statement for _, unit, _, _ in units for statement in unit)
            for sql, alike in groupby(statements, key=itemgetter(0)):
                self._execute(sql, [values for _, values in alike])
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if not self.trouble:
                log.error("the store cannot be written: %s", error)
            self.trouble = f"the store cannot be written: {error}"
            self._roll_back()
            return False
        if self.trouble:
            log.warning("the store can be written again")
        self.trouble = ""
        return True

    def _execute(self, sql: str, rows: list[tuple[Any, ...]]) -> None:
        try:
            self._connection.execute("SAVEPOINT alike")
            execute(self._connection, sql, rows)
            self._connection.execute("RELEASE alike")
        except NEVER:
            self._connection.execute("ROLLBACK TO alike")
            for values in rows:
                try:
                    self._connection.execute(sql, values)
                except NEVER as error:
                    log.error("left out what the store can never take: %r in %s", error, sql)
            self._connection.execute("RELEASE alike")

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                log.error("a transaction could not be rolled back: %s", error)

    def _tidy(self, units: list[tuple[int, list[Statement], set[Stream], int]]) -> None:
        for _, _, streams, _ in units:
            self._small.update((stream, 0) for stream in streams)
        end = time.monotonic() + TIDYING
        for stream, level in [key for key, count in self._small.items() if count >= FAN_IN]:
            if time.monotonic() > end:  # what waits to be committed goes first
                return
            del self._small[stream, level]
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                merge_level(self._connection, stream, level)
                self._connection.execute("COMMIT")
            except (sqlite3.Error, ValueError) as error:
                log.warning("chunks of run %s could not be merged: %s", stream[0], error)
                self._roll_back()
            if level + 1 < LEVELS - 1:
                self._small[stream, level + 1] += 1


def _small_chunks(connection: sqlite3.Connection) -> "Counter[tuple[Stream, int]]":
    """By stream and level, the chunks that wait to be merged: those of daemons before this one, too."""
    rows = connection.execute(
        "SELECT run, optimizer, kind, rank, level, COUNT(*) FROM chunk "
        "GROUP BY run, optimizer, kind, rank, level"
    )
    return Counter({((r, o, k, n), level): count for r, o, k, n, level, count in rows if level < LEVELS - 1})


def merge_level(connection: sqlite3.Connection, stream: Stream, level: int) -> int:
    """Merge the chunks of one level of a stream into few of the next; how many there were.

    All of a level go at once, so a higher level is always older than a lower one.

    Raises:
        ValueError: a chunk does not fit its schema.
    """
    rows = connection.execute(
        "SELECT id, schema, incarnation, first, last, rows, data FROM chunk "
        "WHERE run = ? AND optimizer = ? AND kind = ? AND rank = ? AND level = ? ORDER BY id",
        (*stream, level),
    ).fetchall()
    run, optimizer, kind, rank = stream
    for (digest, incarnation), group in groupby(rows, key=lambda row: (row[1], row[2])):
        schema = read_shape(connection, run, optimizer, digest)
        for batch in _by_size(list(group)):
            connection.execute(
                "INSERT INTO chunk (run, optimizer, kind, rank, level, schema, incarnation, first, last, "
                "rows, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    run,
                    optimizer,
                    kind,
                    rank,
                    level + 1,
                    digest,
                    incarnation,
                    min(row[3] for row in batch),
                    max(row[4] for row in batch),
                    sum(row[5] for row in batch),
                    join(kind_of(kind), schema, [(row[5], row[6]) for row in batch]),
                ),
            )
    connection.execute(
        "DELETE FROM chunk WHERE run = ? AND optimizer = ? AND kind = ? AND rank = ? AND level = ?",
        (*stream, level),
    )
    return len(rows)


def _by_size(rows: list[tuple[Any, ...]]) -> list[list[tuple[Any, ...]]]:
    batches: list[list[tuple[Any, ...]]] = [[]]
    size = 0
    for row in rows:
        if batches[-1] and size + len(row[6]) > MAX_CHUNK_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(row)
        size += len(row[6])
    return batches
