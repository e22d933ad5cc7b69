"""Boards: all runs as TensorBoard files, live, in a thread of its own.

After a restart a run's file is first brought up to date from the store; the writer itself passes over
what the directory already holds.
"""

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optwatch.daemon.changes import Changes
from optwatch.daemon.errors import StartError
from optwatch.daemon.head import Head
from optwatch.daemon.history import History
from optwatch.daemon.run import Run
from optwatch.daemon.tables import connect
from optwatch.series.points import Points
from optwatch.wire.actions import Command
from optwatch.wire.findings import Finding

if TYPE_CHECKING:
    from optwatch.export.tensorboard import RunWriter

log = logging.getLogger(__name__)

QUEUED = 10_000
"""Changes that may wait for a slow disk; further ones are left out, and made up for at the next start."""
FLUSH = 2.0
"""Seconds between two flushes."""


@dataclass(frozen=True)
class _Update:
    head: Head
    points: tuple[Points, ...]
    findings: tuple[Finding, ...]
    commands: tuple[Command, ...]


class Boards:
    """Takes what changed in runs and writes it under one directory."""

    def __init__(self, directory: Path, store: str) -> None:
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
        self._queue: queue.Queue[_Update | None] = queue.Queue(QUEUED)
        self._writers: dict[str, RunWriter | None] = {}
        self._thread = threading.Thread(target=self._run, name="optwatch-tensorboard", daemon=True)
        self._thread.start()

    def tell(self, run: Run, changes: Changes) -> None:
        """Take what changed in a run. Never waits."""
        update = _Update(
            run.head,
            tuple(changes.points),
            tuple(changes.findings.values()),
            tuple(changes.commands.values()),
        )
        if not (update.points or update.findings or update.commands):
            return
        try:
            self._queue.put_nowait(update)
        except queue.Full:
            log.warning("run %s: TensorBoard files fall behind, some steps are left out", run.head.name)

    def close(self) -> None:
        """Write what waits and close all files."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        from optwatch.export.tensorboard import RunWriter

        history = History(connect(self._store, read_only=True))
        while True:
            try:
                update = self._queue.get(timeout=FLUSH)
            except queue.Empty:
                self._each(RunWriter.flush)
                continue
            if update is None:
                break
            try:
                self._write(update, history)
            except Exception:  # a writer that fails must not end those of the other runs
                log.exception("run %s: no more TensorBoard files", update.head.name)
                self._writers[update.head.run] = None
        self._each(RunWriter.close)

    def _each(self, what: "Callable[[RunWriter], None]") -> None:
        for run, writer in self._writers.items():
            if writer is None:
                continue
            try:
                what(writer)
            except Exception:  # as above
                log.exception("run %s: no more TensorBoard files", run)
                self._writers[run] = None

    def _write(self, update: _Update, history: History) -> None:
        from optwatch.export.tensorboard import RunWriter

        head = update.head
        if head.run not in self._writers:
            writer = RunWriter(self._directory, head.run, head.name)
            self._writers[head.run] = writer
            writer.hparams(head.config, head.optimizers)
            last = int(update.points[0].step[0]) - 1 if update.points else None
            for points in history.points(head.run, 0, last=last):
                writer.points(points)
        if (known := self._writers[head.run]) is None:
            return
        for points in update.points:
            known.points(points)
        for finding in update.findings:
            known.finding(finding)
        for command in update.commands:
            known.command(command)
