"""Lane: one optimizer's series in a run, from the ranks' batches to what screens and detectors take."""

import time
from collections import deque
from collections.abc import Collection, Iterable

import numpy as np

from optwatch.daemon.assembly import MAX_WAITING, Assembly, Record
from optwatch.daemon.blocks import record_samples
from optwatch.daemon.history import History
from optwatch.daemon.resume import Saved, write
from optwatch.daemon.store import Store
from optwatch.series.coverage import Coverage
from optwatch.series.merge import Merger, select
from optwatch.series.norms import Norms
from optwatch.series.points import Points
from optwatch.series.timeline import Timeline
from optwatch.wire.frames import HistogramBlocks, TensorBlocks
from optwatch.wire.histograms import WIDTH
from optwatch.wire.messages import Schema
from optwatch.wire.requests import Histograms, Tensors

RECORD_BYTES = 32 << 20
"""Memory for the newest per-tensor records of one lane."""
LOADED_RECORDS = 128
NEAR = 256
"""Steps that a rank may be behind the first one and still be waited for after a restart."""


class Lane:
    """The live part of a series: merging, the timeline, the newest records, what is to be published."""

    def __init__(self) -> None:
        self.merger = Merger()
        self.assembly = Assembly()
        self.timeline = Timeline()
        self.coverage: dict[tuple[int, int], Coverage] = {}
        """For each (incarnation, rank) the steps whose scalars were taken."""
        self.records: deque[Record] = deque()
        self.incarnation = 0
        """The newest incarnation that sent to it."""
        self._bytes = 0

    def load(
        self, history: History, run: str, optimizer: int, saved: Saved | None, *, returning: bool
    ) -> None:
        """Read from the store what lies behind `saved`, or all of the series: merged as far as all ranks have
        sent, the rest as pending.

        `returning`: whether what is pending waits for the ranks to come back, from when this is done.
        """
        self.coverage = history.coverage(run, optimizer)
        newest = max((incarnation for incarnation, _ in self.coverage), default=0)
        norms, merged = Norms(), -1
        if saved is not None:
            self.timeline, norms, merged = saved.timeline, saved.norms(), saved.state.merged
            # What a newer incarnation has begun to repeat since is no longer merged.
            newer = [c.first for (i, _), c in self.coverage.items() if i > saved.state.incarnation]
            merged = min([merged, *(first - 1 for first in newer)])
        reached = {rank: coverage.last for (i, rank), coverage in self.coverage.items() if i == newest}
        last = max(reached.values(), default=0)
        current = {rank for rank, step in reached.items() if step > last - NEAR}
        complete = max(min((reached[rank] for rank in current), default=0), merged)
        if complete > merged:
            for points in history.points(run, optimizer, first=merged + 1, last=complete, norms=norms):
                self.timeline.append(points)
        norms.begin(newest)
        self.incarnation, self.merger.norms = newest, norms
        self.merger.rewind(complete)
        now = time.monotonic() if returning else float("-inf")
        for ranks, points in history.rows(run, optimizer, complete + 1):
            waiting = np.isin(ranks, list(current))
            self.merger.add_rows(ranks[waiting], select(points, waiting), now)
        self.merger.expect(current, now)
        self.keep(history.records(run, optimizer, None, complete, LOADED_RECORDS, size=RECORD_BYTES))
        self._take_whole(
            self.assembly.restore(history.parts(run, optimizer, complete + 1, limit=MAX_WAITING))
        )

    def save(self, store: Store, run: str, optimizer: int) -> None:
        """Put what `load` begins with into the unit that is about to be submitted."""
        write(store, run, optimizer, self.timeline, self.merger.step, self.incarnation, self.merger.norms)

    @property
    def step(self) -> int:
        """The last step of the merged series."""
        return self.timeline.last_step

    def cover(self, incarnation: int, rank: int, points: Points) -> None:
        """Note that a rank's points were taken, which are in order of step."""
        coverage = self.coverage.setdefault((incarnation, rank), Coverage())
        first, last = int(points.step[0]), int(points.step[-1])
        if last - first + 1 == len(points):  # as nearly always
            coverage.add_range(first, last)
        else:
            coverage.add(points.step)

    def recorded(self) -> int:
        """Steps that at least one rank's scalars are recorded for."""
        return _union(self._counted()).count

    def gaps(self) -> tuple[tuple[int, int], ...]:
        """Step ranges that some rank has lost while it took part, or that nobody has from one to the next."""
        counted = self._counted()
        missing = Coverage()
        for coverage in (*counted, _union(counted)):
            for first, last in coverage.gaps():
                missing.add_range(first, last)
        return tuple(missing.ranges())

    def _counted(self) -> list[Coverage]:
        """What is covered, less what a later incarnation repeated or has yet to come to again; each set of
        steps once, for the ranks of a job have mostly the same."""
        if len({incarnation for incarnation, _ in self.coverage}) <= 1:
            return _different(self.coverage.values())
        counted: list[Coverage] = []
        ceiling: int | None = None
        for incarnation in sorted({incarnation for incarnation, _ in self.coverage}, reverse=True):
            own = [c for (i, _), c in self.coverage.items() if i == incarnation and c.count]
            counted += own if ceiling is None else [coverage.upto(ceiling) for coverage in own]
            firsts = [coverage.first - 1 for coverage in own]
            ceiling = min(firsts if ceiling is None else [*firsts, ceiling], default=None)
        return _different(counted)

    def take(self, live: Collection[int], now: float) -> list[Points]:
        """The points that are complete now, already in the timeline."""
        ready = self.merger.take(live, now)
        for points in ready:
            self.timeline.append(points)
        return ready

    def sample(self, rank: int, records: list[Record]) -> list[Record]:
        """Take a rank's per-tensor records; those of whole tensors that are new."""
        return self._take_whole(self.assembly.add(rank, records))

    def _take_whole(self, whole: list[Record]) -> list[Record]:
        # A rank that comes back may fill in what lies before the newest record, but not within the series.
        unseen = [record for record in whole if record.step > self.merger.step]
        if (sampled := record_samples(unseen)) is not None:
            self.merger.add_samples(sampled)
        return self.keep(whole)

    def begin(self, incarnation: int) -> None:
        """Other processes go on with the run."""
        self.incarnation = incarnation
        self.assembly.clear()
        self.merger.norms.begin(incarnation)

    def keep(self, records: Iterable[Record]) -> list[Record]:
        """Add records behind those that are there, one for each step; those that were added."""
        added = []
        for record in records:
            if self.records and record.step <= self.records[-1].step:
                continue
            self.records.append(record)
            added.append(record)
            self._bytes += record.size
        while self._bytes > RECORD_BYTES and len(self.records) > 1:
            self._drop(self.records.popleft())
        return added

    def rewind(self, step: int) -> None:
        """A new incarnation repeats the steps from `step` on: what was there of them goes."""
        self.merger.rewind(step - 1)
        while self.records and self.records[-1].step >= step:
            self._drop(self.records.pop())

    def _drop(self, record: Record) -> None:
        self._bytes -= record.size


def _different(coverages: Iterable[Coverage]) -> list[Coverage]:
    return list({tuple(coverage.ranges()): coverage for coverage in coverages}.values())


def _union(parts: Iterable[Coverage]) -> Coverage:
    union = Coverage()
    for coverage in parts:
        union.merge(coverage)
    return union


def tensor_reply(records: Collection[Record]) -> tuple[Tensors, TensorBlocks]:
    """Records as they go to a client: those that have the schema of the newest one."""
    if not records:
        return Tensors(tensors=(), stats=(), counts=()), TensorBlocks(
            np.empty(0, np.int64), np.empty((0, 0, 0), np.float32), np.empty((0, 0, 0), np.uint64)
        )
    chosen = list(records)
    schema: Schema = chosen[-1].schema
    names = schema.tensors, schema.stats, schema.counts
    chosen = [r for r in chosen if (r.schema.tensors, r.schema.stats, r.schema.counts) == names]
    return Tensors(tensors=schema.tensors, stats=schema.stats, counts=schema.counts), TensorBlocks(
        np.array([record.step for record in chosen], dtype=np.int64),
        np.stack([record.stats for record in chosen]),
        np.stack([record.counts for record in chosen]),
    )


def histogram_reply(records: Collection[Record]) -> tuple[Histograms, HistogramBlocks]:
    """The same of histograms."""
    if not records:
        return Histograms(()), HistogramBlocks(np.empty(0, np.int64), np.empty((0, 0, WIDTH), np.uint64))
    chosen = list(records)
    tensors = chosen[-1].schema.tensors
    chosen = [record for record in chosen if record.schema.tensors == tensors]
    return Histograms(tensors), HistogramBlocks(
        np.array([record.step for record in chosen], dtype=np.int64),
        np.stack([record.counts for record in chosen]).astype(np.uint64, copy=False),
    )
