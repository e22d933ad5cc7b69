"""Merging: the numbers of several ranks become one series.

Scalars: `step_time` and `arrival` are the slowest rank's; hyper-parameters and global norms, which
replicas share, are the lowest rank's that has them, or added up from parts (see `norms`); of `local_norm`
it is the root of the mean square (see `noise`); everything else (losses, what the user logs) is the mean
over the ranks that logged it. Per-tensor records come merged already (`shards`).
"""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from optwatch.series import noise
from optwatch.series.norms import Norms, parse_part
from optwatch.series.points import Column, Points, Samples, Table
from optwatch.series.pool import Pool, stacked

WAIT = 2.0
"""Seconds that a step waits for the ranks that are alive but have not sent it."""
RETURN = 5.0
"""Seconds that all steps wait, after a restart of the daemon, for the ranks that were there before."""

SHARED = ("lr", "grad_norm", "grad_norm_raw", "update_norm", "param_norm", "clip", "loss_scale", "batch_size")
SLOWEST = ("step_time", "arrival")


class Merger:
    """Waits for all live ranks for a step, but not for ever, and hands on merged points in order."""

    def __init__(self) -> None:
        self.step = -1
        """The last step handed on: an agent's first is 1, that of an old log may be 0."""
        self.late = 0
        """Points that came after their step was handed on: in the store, but in no merged series."""
        self.norms = Norms()
        self._samples: list[Samples] = []
        self._pending = Pending()
        self._reached: dict[int, int] = {}
        self._expected: Collection[int] = ()
        self._expected_until = float("-inf")

    def expect(self, ranks: Collection[int], now: float) -> None:
        """These ranks may come back, and have steps to send that others have sent already."""
        self._expected, self._expected_until = ranks, now + RETURN

    def expecting(self, now: float) -> bool:
        """Whether ranks may still come back."""
        return now < self._expected_until

    def add(self, rank: int, points: Points, now: float) -> None:
        """Take consecutive points of one rank, in order of step."""
        if len(points) == 0:
            return
        self._reached[rank] = int(points.step[-1])
        if points.step[0] <= self.step:
            fresh = points.step > self.step
            self.late += len(points) - int(fresh.sum())
            points = select(points, fresh)
        if len(points):
            self._pending.add(rank, points, now)

    def add_rows(self, ranks: npt.NDArray[np.int64], points: Points, now: float) -> None:
        """Take points of several ranks at once, of steps that are not handed on yet: `ranks` i8[n] says whose
        each is. Each rank's are in order of step, and behind those of it that have the same columns."""
        whose, last = np.unique(ranks[::-1], return_index=True)
        for rank, step in zip(whose.tolist(), points.step[::-1][last].tolist(), strict=True):
            self._reached[rank] = max(step, self._reached.get(rank, step))
        self._pending.add_rows(ranks, points, now)

    def add_samples(self, samples: Samples) -> None:
        """Take per-tensor statistics of whole tensors, in order of step, before their steps are taken."""
        self._samples.append(samples)

    @property
    def furthest(self) -> int:
        """The last step that any rank has sent."""
        return max(self.step, *self._reached.values(), 0)

    def rewind(self, step: int) -> None:
        """Begin again behind `step`: a new incarnation repeats what follows. What is pending of that goes."""
        self.step = min(step, self.step) if self._pending else step
        self._pending.cut(step)
        self._samples.clear()
        self._reached.clear()

    def take(self, live: Collection[int], now: float) -> list[Points]:
        """Points of the steps that are complete: all live ranks have sent them, or they waited enough."""
        if not self._pending:
            return []
        waiting = self.expecting(now)
        if waiting:
            live = {*live, *self._expected}
        upto = min((self._reached.get(rank, -1) for rank in live), default=-1)
        if not (live and waiting):
            before = now - WAIT if live else np.inf
            upto = max(upto, self._pending.reached(before))
        merged = self._pending.merge(upto, self.norms)
        if merged is None:
            return []
        self.step = int(merged.step[-1])
        sampled = [part for samples in self._samples if (part := _upto(samples, self.step))]
        self._samples = [part for samples in self._samples if (part := _beyond(samples, self.step))]
        return _attach(merged, _merge_samples(sampled))


class Pending:
    """The scalars of ranks that have come and are not merged yet."""

    def __init__(self) -> None:
        self._pools: dict[tuple[str, ...], Pool] = {}
        """By the names of their columns."""

    def __bool__(self) -> bool:
        return any(self._pools.values())

    def add(self, rank: int, points: Points, arrived: float = 0.0) -> None:
        """Take points of a rank that lie behind those of it that are here."""
        self._pool(points).add(rank, arrived, points)

    def add_rows(self, ranks: npt.NDArray[np.int64], points: Points, arrived: float = 0.0) -> None:
        """The same of several ranks at once: `ranks` i8[n] says whose each is."""
        self._pool(points).add_rows(ranks, arrived, points)

    def reached(self, before: float) -> int:
        """The last step of what came at a time or before, -1 where there is nothing."""
        return max((pool.reached(before) for pool in self._pools.values()), default=-1)

    def cut(self, step: int) -> None:
        """Let go of what lies behind a step."""
        for pool in self._pools.values():
            pool.cut(step)

    def merge(self, upto: int, norms: Norms | None) -> Points | None:
        """Hand on what there is up to a step: merged, in order of step, None where there is nothing.

        `norms` adds up the columns that are parts of a norm; with None they stay as they are.
        """
        self._pools = {names: pool for names, pool in self._pools.items() if pool}
        if len(self._pools) == 1:  # as nearly always: of a thousand ranks nothing is taken apart
            (pool,) = self._pools.values()
            taken = pool.take_together(upto)
            return None if taken is None else _merged([taken[1]], taken[0], norms)
        pieces = [piece for pool in self._pools.values() for piece in pool.take(upto)]
        pieces.sort(key=lambda piece: piece[0])
        return _merged([points for _, points in pieces], len({rank for rank, _ in pieces}), norms)

    def _pool(self, points: Points) -> Pool:
        return self._pools.setdefault(tuple(points.columns), Pool())


def _merged(pieces: Sequence[Points], ranks: int, norms: Norms | None) -> Points | None:
    """Merge pieces of so many ranks, in order of rank; one piece may hold the rows of several ranks."""
    if not pieces:
        return None
    tables = [points.columns for points in pieces if isinstance(points.columns, Table)]
    alike = len(tables) == len(pieces) and all(table.names == tables[0].names for table in tables)
    table = stacked(tables) if alike else None
    named = pieces[:1] if alike else pieces
    split = norms is not None and any(parse_part(name) for points in named for name in points.columns)
    if len(pieces) == ranks == 1 and not split:
        return pieces[0]
    all_steps = np.concatenate([points.step for points in pieces])
    step, row = np.unique(all_steps, return_inverse=True)
    ends = np.cumsum([len(points) for points in pieces]).tolist()
    rows = [row[end - len(points) : end] for end, points in zip(ends, pieces, strict=True)]
    names = dict.fromkeys(
        name for points in named for name in points.columns if not (split and parse_part(name))
    )
    columns = {}
    for name in names:
        column, at = (table[name], row) if table is not None else _joined(name, pieces, rows)
        columns[name] = _merge_column(name, column, at, len(step))
    if noise.LOCAL in columns:
        told = [at[points.column(noise.LOCAL).logged] for points, at in zip(pieces, rows, strict=True)]
        columns |= noise.fold(columns, np.bincount(np.concatenate(told), minlength=len(step)), ranks)
    if norms is not None and split:
        folded = norms.fold(
            len(step), [(points.columns, at) for points, at in zip(pieces, rows, strict=True)]
        )
        for name, column in folded.items():
            columns[name] = _either(columns[name], column) if name in columns else column
    wall = np.full(len(step), np.inf)
    clocks = [points.wall if points.wall is not None else np.full(len(points), np.inf) for points in pieces]
    with np.errstate(invalid="ignore"):
        np.minimum.at(wall, row, np.concatenate(clocks))
    return Points(step, columns, np.where(np.isfinite(wall), wall, np.nan))


def _joined(name: str, pieces: Sequence[Points], rows: Sequence[np.ndarray]) -> tuple[Column, np.ndarray]:
    """A column of the pieces that have it, one below the other, and the rows that these belong to."""
    having = [
        (points.columns[name], at) for points, at in zip(pieces, rows, strict=True) if name in points.columns
    ]
    values, logged = (
        np.concatenate(each) for each in zip(*((c.values, c.logged) for c, _ in having), strict=True)
    )
    return Column(values, logged), np.concatenate([at for _, at in having])


def _merge_column(name: str, column: Column, at: np.ndarray, n: int) -> Column:
    """Merge a column over ranks; `at`: for each of its numbers the row of n that it belongs to."""
    values, at = column.values[column.logged], at[column.logged]
    count = np.bincount(at, minlength=n)
    merged = np.full(n, np.nan)
    # inf - inf of two ranks is NaN, and the sum of two huge losses inf: both are meant to be.
    with np.errstate(invalid="ignore", over="ignore"):
        if name in SLOWEST:
            merged.fill(-np.inf)
            np.maximum.at(merged, at, values)
        elif name in SHARED or name.startswith(("lr/", "lr_scale")):
            merged[at[::-1]] = values[::-1]  # the last to be written is the lowest rank's
        elif name == noise.LOCAL:
            total = np.zeros(n)
            np.add.at(total, at, np.square(values))
            merged = np.sqrt(total / np.maximum(count, 1))
        else:
            merged = np.bincount(at, values, minlength=n) / np.maximum(count, 1)
    return Column(np.where(count > 0, merged, np.nan), count > 0)


def _either(one: Column, other: Column) -> Column:
    """The values of one, and of the other where it has none."""
    return Column(np.where(one.logged, one.values, other.values), one.logged | other.logged)


def _merge_samples(samples: Sequence[Samples]) -> list[Samples]:
    """One record per step, the first's that has it; a list because names may change on the way."""
    taken: set[int] = set()
    records: list[tuple[int, Samples, int]] = []
    for sample in samples:
        for at, step in enumerate(sample.step.tolist()):
            if step not in taken:
                taken.add(step)
                records.append((step, sample, at))
    records.sort(key=lambda record: record[0])
    runs: list[list[tuple[int, Samples, int]]] = []
    for record in records:
        if runs and _same_tensors(runs[-1][-1][1], record[1]):
            runs[-1].append(record)
        else:
            runs.append([record])
    return [_gather(run) for run in runs]


def _same_tensors(one: Samples, other: Samples) -> bool:
    return one is other or (
        one.names == other.names
        and one.stats.keys() == other.stats.keys()
        and one.counts.keys() == other.counts.keys()
    )


def _gather(records: Sequence[tuple[int, Samples, int]]) -> Samples:
    first = records[0][1]
    return Samples(
        step=np.array([step for step, _, _ in records], dtype=np.int64),
        names=first.names,
        numel=first.numel,
        stats={name: np.stack([s.stats[name][at] for _, s, at in records]) for name in first.stats},
        counts={name: np.stack([s.counts[name][at] for _, s, at in records]) for name in first.counts},
    )


def _attach(points: Points, samples: Sequence[Samples]) -> list[Points]:
    if len(samples) <= 1:
        return [Points(points.step, points.columns, points.wall, samples[0] if samples else None)]
    out: list[Points] = []
    for at, sample in enumerate(samples):
        low = sample.step[0] if at else points.step[0]
        high = samples[at + 1].step[0] if at + 1 < len(samples) else points.step[-1] + 1
        part = select(points, (points.step >= low) & (points.step < high))
        out.append(Points(part.step, part.columns, part.wall, sample))
    return [part for part in out if len(part)]


def _upto(samples: Samples, step: int) -> Samples | None:
    return _pick(samples, samples.step <= step)


def _beyond(samples: Samples, step: int) -> Samples | None:
    return _pick(samples, samples.step > step)


def _pick(samples: Samples, where: np.ndarray) -> Samples | None:
    if where.all():
        return samples
    if not where.any():
        return None
    return Samples(
        samples.step[where],
        samples.names,
        samples.numel,
        {name: stat[where] for name, stat in samples.stats.items()},
        {name: count[where] for name, count in samples.counts.items()},
    )


def select(points: Points, where: np.ndarray | slice) -> Points:
    """The points where a bool[n] is true, or of a slice, with the samples of their steps."""
    step = points.step[where]
    samples = points.samples
    return Points(
        step,
        points.columns.rows(where)
        if isinstance(points.columns, Table)
        else {name: Column(c.values[where], c.logged[where]) for name, c in points.columns.items()},
        None if points.wall is None else points.wall[where],
        None if samples is None else _pick(samples, np.isin(samples.step, step)),
    )
