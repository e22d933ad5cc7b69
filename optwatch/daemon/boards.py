"""Boards: all runs as TensorBoard files, live, in a thread of its own.

Merged points come as they are published. What was not written, after a restart or since the disk was slow, is
made up for from the store, and so are histograms and the ranks' own series, every two seconds; the writer
itself passes over what the directory already holds.
"""

import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from optwatch.daemon.changes import Changes
from optwatch.daemon.errors import StartError
from optwatch.daemon.head import Head
from optwatch.daemon.history import History
from optwatch.daemon.ledger import read_commands, read_findings
from optwatch.daemon.run import Run
from optwatch.daemon.tables import connect
from optwatch.series.points import Points
from optwatch.wire.actions import Command
from optwatch.wire.findings import Finding
from optwatch.wire.messages import OptimizerInfo

if TYPE_CHECKING:
    import sqlite3

    from optwatch.export.tensorboard import RunWriter

log = logging.getLogger(__name__)

Ranks = Literal["merged", "apart"]

QUEUED = 10_000
"""Changes that may wait for a slow disk; what further ones had is made up for from the store."""
LOOK = 2.0
"""Seconds between two looks into the store, and two flushes."""


@dataclass(frozen=True)
class _Update:
    head: Head
    points: Mapping[int, tuple[Points, ...]]
    """By the optimizer's number."""
    findings: tuple[Finding, ...]
    commands: tuple[Command, ...]


@dataclass
class _Board:
    """The writers of one run."""

    head: Head
    writers: "dict[int, RunWriter]" = field(default_factory=dict)
    """By the optimizer's number: its steps are its own, and so is its directory."""
    ranks: "dict[tuple[int, int], RunWriter]" = field(default_factory=dict)
    """By optimizer and rank: what each rank alone has measured."""
    failed: bool = False

    def name(self, optimizer: int) -> str:
        """What an optimizer's directory is named after."""
        known = self.head.optimizers
        return optimizer_name(self.head.name, optimizer, known[optimizer] if optimizer < len(known) else None)

    def all(self) -> "Iterator[RunWriter]":
        yield from self.writers.values()
        yield from self.ranks.values()


class Boards:
    """Takes what changed in runs and writes it under one directory."""

    def __init__(self, directory: Path, store: str, ranks: Ranks = "merged", tensors: bool = False) -> None:
        """Raises `StartError` where the package is missing or the directory cannot be written."""
        try:
            from optwatch.export import events  # noqa: F401  the import is the check
        except ModuleNotFoundError:
            raise StartError("--tensorboard needs its extra: pip install 'optwatch[tensorboard]'") from None
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartError(f"cannot write TensorBoard files to {directory}: {error.strerror}") from None
        self._directory = directory
        self._store = store
        self._ranks = ranks
        self._tensors = tensors
        self._queue: queue.Queue[_Update | None] = queue.Queue(QUEUED)
        self._boards: dict[str, _Board] = {}
        self._thread = threading.Thread(target=self._run, name="optwatch-tensorboard", daemon=True)
        self._thread.start()

    def tell(self, run: Run, changes: Changes) -> None:
        """Take what changed in a run. Never waits."""
        points = {0: tuple(changes.points)} if changes.points else {}
        points |= {optimizer: tuple(parts) for optimizer, parts in changes.further.items()}
        if not (points or changes.findings or changes.commands or run.head.ended):
            return
        update = _Update(run.head, points, tuple(changes.findings.values()), tuple(changes.commands.values()))
        try:
            self._queue.put_nowait(update)
        except queue.Full:
            log.warning("run %s: TensorBoard files fall behind", run.head.name)

    def close(self) -> None:
        """Write what waits and close all files."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        connection = connect(self._store, read_only=True)
        history = History(connection)
        next_look = time.monotonic() + LOOK
        while True:
            try:
                update = self._queue.get(timeout=max(next_look - time.monotonic(), 0.0))
                if update is None:
                    break
                board = self._boards.setdefault(update.head.run, _Board(update.head))
                with _Fault(board):
                    self._write(board, update, history, connection)
            except queue.Empty:
                self._look(history)
                next_look = time.monotonic() + LOOK
        self._look(history)
        for board in self._boards.values():
            with _Fault(board):
                for writer in board.all():
                    writer.close()

    def _write(
        self, board: _Board, update: _Update, history: History, connection: "sqlite3.Connection"
    ) -> None:
        if board.failed:
            return
        new = not board.writers
        known = range(max(len(board.head.optimizers), 1)) if new else (0,)
        for optimizer in sorted({*update.points, *known}):
            writer = self._writer(board, optimizer)
            for points in update.points.get(optimizer, ()):
                if points.step[0] > writer.last + 1:
                    self._make_up(writer, history, board.head.run, optimizer, int(points.step[0]) - 1)
                writer.points(points)
            if new and optimizer not in update.points:
                self._make_up(writer, history, board.head.run, optimizer, None)
        writer = board.writers[0]
        if new:
            writer.hparams(board.head.config, board.head.optimizers)
            for finding in read_findings(connection, board.head.run):
                writer.finding(finding)
            for entry in read_commands(connection, board.head.run):
                writer.command(entry.command)
        for finding in update.findings:
            writer.finding(finding)
        for command in update.commands:
            writer.command(command)
        if update.head.ended:
            writer.end()

    def _writer(self, board: _Board, optimizer: int) -> "RunWriter":
        from optwatch.export.tensorboard import RunWriter

        if optimizer not in board.writers:
            name = board.name(optimizer)
            board.writers[optimizer] = RunWriter(self._directory, board.head.run, name, tensors=self._tensors)
        return board.writers[optimizer]

    def _make_up(
        self, writer: "RunWriter", history: History, run: str, optimizer: int, last: int | None
    ) -> None:
        for points in history.sampled_points(run, optimizer, first=writer.last + 1, last=last):
            writer.points(points)

    def _look(self, history: History) -> None:
        """Write what is only in the store, and put everything on disk."""
        for board in self._boards.values():
            with _Fault(board):
                if not board.failed:
                    for optimizer, writer in board.writers.items():
                        write_histograms(history, writer, board.head.run, optimizer)
                        if self._ranks == "apart":
                            self._write_ranks(board, optimizer, history)
                    for writer in board.all():
                        writer.flush()

    def _write_ranks(self, board: _Board, optimizer: int, history: History) -> None:
        from optwatch.export.tensorboard import RunWriter

        run, name = board.head.run, board.name(optimizer)
        for rank in history.ranks(run, optimizer):
            key = optimizer, rank
            if key not in board.ranks:
                board.ranks[key] = RunWriter(self._directory, run, name, rank=rank)
            writer = board.ranks[key]
            for points in history.points(run, optimizer, rank, first=writer.last + 1):
                writer.points(points)


class _Fault:
    """A run whose files cannot be written any more must not end those of the others."""

    def __init__(self, board: _Board) -> None:
        self._board = board

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        log.error("run %s: no more TensorBoard files", self._board.head.name, exc_info=error)
        self._board.failed = True
        return True


def optimizer_name(run: str, number: int, optimizer: OptimizerInfo | None) -> str:
    """What an optimizer's directory is named after: the first has the run's own name."""
    if number == 0:
        return run
    return f"{run}-{optimizer.name if optimizer is not None and optimizer.name else number}"


def write_histograms(history: History, writer: "RunWriter", run: str, optimizer: int) -> None:
    """Write the histograms that the store has and the directory has not."""
    for record in history.histograms_from(run, optimizer, writer.spread + 1):
        writer.histograms(record.step, [tensor.name for tensor in record.schema.tensors], record.counts)
