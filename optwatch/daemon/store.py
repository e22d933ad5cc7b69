"""The store: everything the daemon was told and has concluded, in one SQLite file.

The serving thread describes what to write; `submit` hands the lot over as one unit, and the writer
thread commits it, never a part of it. What a ticket covers is in the file once `committed` has
reached it: that is the moment to acknowledge.
"""

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from optwatch.daemon.chunks import ChunkKind, histogram_chunk, scalar_chunk, tensor_chunk
from optwatch.daemon.errors import StartError
from optwatch.daemon.statements import ACKNOWLEDGE
from optwatch.daemon.tables import connect, migrate
from optwatch.daemon.writer import Statement, Stream, Writer
from optwatch.wire.actions import Command
from optwatch.wire.findings import Finding
from optwatch.wire.frames import BatchBlocks
from optwatch.wire.messages import Event, Hello, Schema

FILE = "optwatch.db"


class Store:
    """One directory, one daemon: a second one is turned away by a lock."""

    def __init__(self, directory: Path, notify: Callable[[], None] = lambda: None) -> None:
        """Open or make the store. `notify` is called from the writer thread after each commit.

        Raises:
            StartError: the directory cannot be written, another daemon has it, or it is no store.
        """
        self.directory = directory
        self.path = str(directory / FILE)
        self._lock = _lock(directory)
        try:
            connection = connect(self.path)
            migrate(connection, self.path)
            self.reader = connect(self.path, read_only=True)
        except sqlite3.Error as error:
            os.close(self._lock)
            raise StartError(f"cannot use the store {self.path}: {error}") from None
        except StartError:
            os.close(self._lock)
            raise
        self._unit: list[Statement] = []
        self._streams: set[Stream] = set()
        self._writer = Writer(connection, notify)

    @property
    def trouble(self) -> str:
        """Why nothing can be written now, "" while all is well."""
        return self._writer.trouble

    @property
    def backlog(self) -> int:
        """Bytes that wait to be written."""
        return self._writer.backlog

    @property
    def committed(self) -> int:
        """The last ticket that is in the file."""
        return self._writer.committed

    def submit(self) -> int:
        """Hand over all that was described since the last time, to be committed whole; its ticket."""
        unit, self._unit = self._unit, []
        streams, self._streams = self._streams, set()
        return self._writer.put(unit, streams)

    def settle(self, timeout: float = 5.0) -> bool:
        """Wait until all that was submitted is committed; whether it is."""
        return self._writer.wait(timeout)

    def close(self) -> None:
        """Commit what is left and let go of the file."""
        self.submit()
        self.reader.close()
        self._writer.close()
        os.close(self._lock)

    # --- what to write --------------------------------------------------------------------------------

    def save_run(self, run: str, started: float, heard: float, head: msgspec.Struct) -> None:
        self._write(
            "INSERT INTO run VALUES (?, ?, ?, ?) ON CONFLICT (run) DO UPDATE SET "
            "started = excluded.started, heard = excluded.heard, head = excluded.head",
            run,
            started,
            heard,
            _encode(head),
        )

    def save_session(self, hello: Hello, acked: int, left: bool) -> None:
        self._write(
            "INSERT INTO session VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (session) DO UPDATE SET "
            "acked = excluded.acked, hello = excluded.hello, left = excluded.left",
            hello.session,
            hello.run,
            hello.rank,
            acked,
            _encode(hello),
            int(left),
        )

    def acknowledge(self, session: str, acked: int) -> None:
        """Remember, with the data itself, up to where a session's messages are taken."""
        self._write(ACKNOWLEDGE, acked, session)

    def save_schema(self, run: str, schema: Schema) -> None:
        self._write(
            "INSERT OR REPLACE INTO schema VALUES (?, ?, ?, ?)",
            run,
            schema.optimizer,
            schema.digest,
            _encode(schema),
        )

    def add_batch(self, hello: Hello, schema: Schema, blocks: BatchBlocks, *, tensors: bool) -> None:
        """Add the rows of one batch; its per-tensor records and histograms only with `tensors`."""
        if len(blocks.step):
            self._add_chunk(hello, schema, "s", blocks.step, scalar_chunk(blocks))
        if tensors and len(blocks.sample_step):
            self._add_chunk(hello, schema, "t", blocks.sample_step, tensor_chunk(blocks))
        if tensors and len(blocks.histogram_step):
            self._add_chunk(hello, schema, "h", blocks.histogram_step, histogram_chunk(blocks))

    def add_marker(self, run: str, event: Event) -> None:
        self._write(
            "INSERT OR IGNORE INTO marker VALUES (?, ?, ?, ?, ?, ?)",
            event.session,
            event.seq,
            run,
            event.step,
            event.kind,
            event.text,
        )

    def save_finding(self, finding: Finding) -> None:
        self._write(
            "INSERT OR REPLACE INTO finding VALUES (?, ?, ?)", finding.run, finding.id, _encode(finding)
        )

    def drop_findings(self, run: str) -> None:
        self._write("DELETE FROM finding WHERE run = ?", run)

    def save_command(self, command: Command, record: msgspec.Struct) -> None:
        self._write(
            "INSERT OR REPLACE INTO command VALUES (?, ?, ?)", command.run, int(command.id), _encode(record)
        )

    def save_checkpoint(self, run: str, data: bytes) -> None:
        self._write("INSERT OR REPLACE INTO checkpoint VALUES (?, ?)", run, data)

    def save_lane(self, run: str, optimizer: int, data: bytes) -> None:
        self._write("INSERT OR REPLACE INTO lane VALUES (?, ?, ?)", run, optimizer, data)

    def save_page(self, run: str, optimizer: int, number: int, data: bytes) -> None:
        self._write("INSERT OR REPLACE INTO page VALUES (?, ?, ?, ?)", run, optimizer, number, data)

    def drop_pages(self, run: str, optimizer: int, first: int) -> None:
        """Drop the pages from the number `first` on."""
        self._write("DELETE FROM page WHERE run = ? AND optimizer = ? AND number >= ?", run, optimizer, first)

    def audit(self, at: float, who: str, run: str, what: str, detail: str) -> None:
        self._write(
            "INSERT INTO audit (at, who, run, what, detail) VALUES (?, ?, ?, ?, ?)",
            at,
            who,
            run,
            what,
            detail,
        )

    def _add_chunk(self, hello: Hello, schema: Schema, kind: ChunkKind, step: Any, data: bytes) -> None:
        self._streams.add((hello.run, schema.optimizer, kind, hello.rank))
        self._write(
            "INSERT INTO chunk "
            "(run, optimizer, kind, rank, level, schema, incarnation, first, last, rows, data) "
            "VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?)",
            hello.run,
            schema.optimizer,
            kind,
            hello.rank,
            schema.digest,
            hello.incarnation,
            int(step[0]),
            int(step[-1]),
            len(step),
            data,
        )

    def _write(self, sql: str, *values: Any) -> None:
        self._unit.append((sql, values))


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Have a store alone for a while. Raises `StartError` where a daemon has it, or it cannot be written."""
    descriptor = _lock(directory)
    try:
        yield
    finally:
        os.close(descriptor)


def _encode(message: msgspec.Struct) -> bytes:
    return msgspec.msgpack.encode(message)


def _lock(directory: Path) -> int:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(
            f"cannot write the store {directory}: {error.strerror or error}; give another --store DIR"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StartError(
            f"another daemon has the store {directory}: use that one, stop it, or give another --store"
        ) from None
    return descriptor
