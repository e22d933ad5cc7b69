"""Publishing: what changed in a run, to whoever is subscribed, at most four times a second."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import zmq

from optwatch.daemon.changes import Changes
from optwatch.daemon.lane import tensor_reply
from optwatch.daemon.run import Run
from optwatch.daemon.runs import Runs
from optwatch.daemon.status import run_info, run_status
from optwatch.series.points import Points
from optwatch.series.reduce import reduce_rows
from optwatch.series.timeline import rows
from optwatch.wire.frames import RUNS_TOPIC, SeriesBlocks, pack
from optwatch.wire.requests import Delta, Ended, RunList, Series
from optwatch.wire.sending import send

PERIOD = 0.25
LIST_PERIOD = 1.0
MAX_POINTS = 4_000
"""Rows of one `Delta`; more than that in a quarter of a second are reduced."""


class Publisher:
    """Numbers every change of a run, and sends it where somebody listens."""

    def __init__(
        self, socket: "zmq.Socket[Any]", runs: Runs, also: Sequence[Callable[[Run, Changes], None]]
    ) -> None:
        """`also` are told all that is published, whether anybody is subscribed or not."""
        self.subscribers: dict[bytes, int] = {}
        self._socket = socket
        self._runs = runs
        self._also = also
        self._changes: dict[str, Changes] = {}
        self._list_seq = 0
        self.due = 0.0
        """When something is published again."""
        self._next_list = 0.0
        self._list_changed = True

    def of(self, run: Run) -> Changes:
        """Where changes of a run are put for the next `Delta`."""
        return self._changes.setdefault(run.head.run, Changes())

    def subscriptions(self, now: float) -> None:
        """Take note of who came and went; a newcomer is told something at once."""
        while True:
            try:
                event = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            topic = event[1:]
            if event[:1] == b"\x01" and len(topic) <= 256:
                self.subscribers[topic] = self.subscribers.get(topic, 0) + 1
                self._greet(topic, now)
            elif topic in self.subscribers:
                self.subscribers[topic] -= 1
                if self.subscribers[topic] <= 0:
                    del self.subscribers[topic]

    def tick(self, now: float) -> None:
        """Publish what changed, if it is time."""
        if now < self.due:
            return
        self.due = max(self.due + PERIOD, now + PERIOD / 2)
        for run in self._runs.by_id.values():
            if run.touched:
                self.flush(run, now)
        if self._list_changed and now >= self._next_list:
            self._next_list = now + LIST_PERIOD
            self._list_changed = False
            self._publish_list(now)

    def flush(self, run: Run, now: float) -> int:
        """Publish what changed in a run now; the number of its last `Delta`."""
        changes = self.of(run)
        if run.touched:
            run.touched = False
            self._list_changed = True
            self._publish(run, changes, now)
        return changes.seq

    def part(self, reason: str) -> None:
        """The last word, to everybody."""
        for topic in self.subscribers:
            self._send([topic, *pack(Ended(reason))])

    def _greet(self, topic: bytes, now: float) -> None:
        if topic == RUNS_TOPIC:
            self._publish_list(now)
        elif (run := self._runs.by_id.get(topic.decode(errors="replace"))) is not None:
            run.touched = True
            self.flush(run, now)

    def _publish(self, run: Run, changes: Changes, now: float) -> None:
        changes.seq += 1
        for tell in self._also:
            tell(run, changes)
        topic = run.head.run.encode()
        if topic in self.subscribers:
            series, series_blocks = _series(run, changes.points)
            tensors, tensor_blocks = tensor_reply(changes.records)
            delta = Delta(
                run=run.head.run,
                seq=changes.seq,
                status=run_status(run, now),
                findings=tuple(changes.findings.values()),
                commands=tuple(changes.commands.values()),
                markers=tuple(changes.markers),
                series=series,
                tensors=tensors,
            )
            self._send([topic, *pack(delta, (*series_blocks.blocks(), *tensor_blocks.blocks()))])
        fresh = Changes()
        fresh.seq = changes.seq
        self._changes[run.head.run] = fresh

    def _publish_list(self, now: float) -> None:
        self._list_seq += 1
        if RUNS_TOPIC in self.subscribers:
            infos = tuple(run_info(run, now) for run in self._runs.newest_first())
            self._send([RUNS_TOPIC, *pack(RunList(self._list_seq, infos))])

    def _send(self, parts: list[Any]) -> None:
        try:
            send(self._socket, parts)
        except zmq.ZMQError:
            return  # the subscriber sees the gap in the numbers and asks for the View


def _series(run: Run, points: list[Points]) -> tuple[Series, SeriesBlocks]:
    columns = run.lane(0).timeline.columns
    parts = [rows(part, columns) for part in points]
    if parts:
        step, values, logged = (np.concatenate(block) for block in zip(*parts, strict=True))
    else:
        step, values = np.empty(0, dtype=np.int64), np.empty((0, len(columns)))
        logged = np.empty((0, len(columns)), dtype=bool)
    reduced = len(step) > MAX_POINTS
    if reduced:
        step, values, logged = reduce_rows(step, values, logged, MAX_POINTS // 2)
    return Series(columns=columns, reduced=reduced), SeriesBlocks(step, values, logged.view(np.uint8))
