"""History: series read back from the store."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
import numpy as np

from optwatch.daemon.assembly import Record, add_up, assemble
from optwatch.daemon.chunks import ChunkKind, split
from optwatch.daemon.writer import read_schema
from optwatch.series.coverage import Coverage
from optwatch.series.merge import merge, select
from optwatch.series.norms import Norms
from optwatch.series.points import Column, Points, Samples
from optwatch.wire.histograms import WIDTH
from optwatch.wire.messages import Schema, TensorInfo

PART = 1_024
"""Steps whose per-tensor records are in memory at once."""
WINDOW = 16_384
"""Rows that are merged at once."""


class _Chunk(msgspec.Struct, frozen=True, array_like=True):
    id: int
    rank: int
    schema: str
    incarnation: int
    first: int
    last: int
    rows: int


class History:
    """Reads through its own connection, in the thread that made it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._schemas: dict[tuple[str, int, str], Schema] = {}

    def schema(self, run: str, optimizer: int, digest: str) -> Schema:
        """Raises `ValueError` where the store has none of that digest."""
        key = run, optimizer, digest
        if key not in self._schemas:
            if len(self._schemas) > 1_000:
                self._schemas.clear()
            self._schemas[key] = read_schema(self._connection, *key)
        return self._schemas[key]

    def points(
        self,
        run: str,
        optimizer: int,
        rank: int | None = None,
        first: int | None = None,
        last: int | None = None,
    ) -> Iterator[Points]:
        """Scalars in order of step, merged over ranks or of one rank, a window at a time.

        Where a later incarnation repeated steps, its numbers count. What is written after the first window
        was asked for is not in it.
        """
        with self._one_state():
            yield from self._points(run, optimizer, rank, first, last)

    def _points(
        self, run: str, optimizer: int, rank: int | None, first: int | None, last: int | None
    ) -> Iterator[Points]:
        chunks = self._chunks(run, optimizer, "s", rank, first, last)
        ceilings = self._ceilings(run, optimizer)
        pending: dict[int, list[Points]] = {}
        waiting = 0
        norms = Norms() if rank is None else None
        incarnation = -1
        for at, chunk in enumerate(chunks):
            if chunk.incarnation > incarnation:  # other processes, which may hold other parts
                incarnation = chunk.incarnation
                if (merged := merge(pending, norms)) is not None:
                    yield merged
                pending, waiting = {}, 0
                if norms is not None:
                    norms.forget()
            points = self._read_scalars(run, optimizer, chunk)
            points = _between(
                points, first, min(last or ceilings[chunk.incarnation], ceilings[chunk.incarnation])
            )
            pending.setdefault(chunk.rank, []).append(points)
            waiting += len(points)
            end = at + 1 == len(chunks)
            if waiting < WINDOW and not end:
                continue
            bound = np.iinfo(np.int64).max if end else chunks[at + 1].first
            ready = {r: [select(p, p.step < bound) for p in parts] for r, parts in pending.items()}
            pending = {r: [select(p, p.step >= bound) for p in parts] for r, parts in pending.items()}
            waiting = sum(len(p) for parts in pending.values() for p in parts)
            if (merged := merge(ready, norms)) is not None:
                yield merged

    def points_by_rank(self, run: str, optimizer: int, first: int) -> dict[int, list[Points]]:
        """Scalars from a step on, of each rank in order of step: one reading for all the ranks of a job."""
        out: dict[int, list[Points]] = {}
        with self._one_state():
            ceilings = self._ceilings(run, optimizer)
            for chunk in self._chunks(run, optimizer, "s", None, first, None):
                points = _between(
                    self._read_scalars(run, optimizer, chunk), first, ceilings[chunk.incarnation]
                )
                if len(points):
                    out.setdefault(chunk.rank, []).append(points)
        return out

    def sampled_points(
        self, run: str, optimizer: int, first: int | None = None, last: int | None = None
    ) -> Iterator[Points]:
        """The merged series with its per-tensor records, in order of step."""
        with self._one_state():
            for whole in self._points(run, optimizer, None, first, last):
                for start in range(0, len(whole), PART):
                    part = select(whole, slice(start, start + PART))
                    records = self.records(
                        run, optimizer, int(part.step[0]), int(part.step[-1]), limit=len(part)
                    )
                    yield with_samples(part, records)

    def ranks(self, run: str, optimizer: int) -> list[int]:
        """The ranks that have sent any scalars."""
        rows = self._connection.execute(
            "SELECT DISTINCT rank FROM chunk WHERE run = ? AND optimizer = ? AND kind = 's' ORDER BY rank",
            (run, optimizer),
        )
        return [rank for (rank,) in rows]

    def records(
        self, run: str, optimizer: int, first: int | None, last: int | None, limit: int
    ) -> list[Record]:
        """The last `limit` per-tensor records of a range, in order of step, one per step.

        A step at which ranks hold parts of the tensors and some part is missing is left out.
        """
        with self._one_state():
            return assemble(self._newest("t", self._samples_of, run, optimizer, first, last, limit))

    def parts(self, run: str, optimizer: int, first: int, limit: int) -> list[dict[int, Record]]:
        """Per-tensor records from a step on as the ranks have sent them, rank → record, for `limit` steps."""
        with self._one_state():
            return self._newest("t", self._samples_of, run, optimizer, first, None, limit)

    def histograms(
        self,
        run: str,
        optimizer: int,
        first: int | None,
        last: int | None,
        limit: int,
        tensor: str | None = None,
    ) -> list[Record]:
        """The last `limit` histograms of a range, of all tensors or of the one of a name: records without
        stats, whose counts are [T, WIDTH] (`wire.histograms`). What is incomplete is left out likewise."""

        schemas: dict[str, Schema] = {}

        def read(run: str, optimizer: int, chunk: _Chunk) -> Iterator[Record]:
            return self._histograms_of(run, optimizer, chunk, tensor, schemas)

        with self._one_state():
            return assemble(self._newest("h", read, run, optimizer, first, last, limit), add_up)

    def histograms_from(self, run: str, optimizer: int, first: int) -> Iterator[Record]:
        """All histograms from a step on, in order of step."""
        with self._one_state():
            chunks = sorted(
                self._chunks(run, optimizer, "h", None, first, None), key=lambda chunk: chunk.last
            )
            begins = sorted({max(chunk.first, first) for chunk in chunks})
            ends = [begin - 1 for begin in begins[1:]] + [chunk.last for chunk in chunks[-1:]]
            for begin, end in zip(begins, ends, strict=True):
                yield from self.histograms(run, optimizer, begin, end, limit=end - begin + 1)

    def _newest(
        self,
        kind: ChunkKind,
        read: "Callable[[str, int, _Chunk], Iterator[Record]]",
        run: str,
        optimizer: int,
        first: int | None,
        last: int | None,
        limit: int,
    ) -> list[dict[int, Record]]:
        """rank → its record, for each of the last `limit` steps that have any."""
        chunks = self._chunks(run, optimizer, kind, None, first, last)
        ceilings = self._ceilings(run, optimizer)
        found: dict[int, dict[int, Record]] = {}
        for chunk in sorted(chunks, key=lambda chunk: (chunk.last, -chunk.rank), reverse=True):
            if len(found) >= limit and chunk.last < min(sorted(found)[-limit:], default=0):
                break
            ceiling = ceilings[chunk.incarnation]
            for record in read(run, optimizer, chunk):
                if (first is None or record.step >= first) and record.step <= min(ceiling, last or ceiling):
                    found.setdefault(record.step, {})[chunk.rank] = record
        return [found[step] for step in sorted(found)[-limit:]] if limit else []

    def _samples_of(self, run: str, optimizer: int, chunk: _Chunk) -> Iterator[Record]:
        schema = self.schema(run, optimizer, chunk.schema)
        step, stats, counts = split("t", schema, chunk.rows, self._blob(chunk.id))
        shape = (chunk.rows, len(schema.tensors), -1) if schema.tensors else (chunk.rows, 0, 0)
        stats, counts = stats.reshape(shape), counts.reshape(shape)
        for row, number in enumerate(step[:, 0].tolist()):
            yield Record(number, schema, stats[row], counts[row])

    def _histograms_of(
        self, run: str, optimizer: int, chunk: _Chunk, tensor: str | None, schemas: dict[str, Schema]
    ) -> Iterator[Record]:
        whole = self.schema(run, optimizer, chunk.schema)
        rows = [at for at, info in enumerate(whole.tensors) if tensor in (None, info.name)]
        if not rows:
            return
        tensors = tuple(whole.tensors[at] for at in rows)
        schema = schemas.setdefault(
            chunk.schema, msgspec.structs.replace(whole, tensors=tensors, stats=(), counts=())
        )
        step, counts = split("h", whole, chunk.rows, self._blob(chunk.id))
        counts = counts.reshape(chunk.rows, len(whole.tensors), WIDTH)
        nothing = np.empty((len(rows), 0), np.float32)
        for row, number in enumerate(step[:, 0].tolist()):
            yield Record(number, schema, nothing, counts[row] if tensor is None else counts[row, rows])

    def coverage(self, run: str, optimizer: int) -> dict[tuple[int, int], Coverage]:
        """For each (incarnation, rank) the steps whose scalars are in the store."""
        out: dict[tuple[int, int], Coverage] = {}
        with self._one_state():
            for chunk in self._chunks(run, optimizer, "s", None, None, None):
                covered = out.setdefault((chunk.incarnation, chunk.rank), Coverage())
                if chunk.rows == chunk.last - chunk.first + 1:
                    covered.add_range(chunk.first, chunk.last)
                else:
                    covered.add(self._read_scalars(run, optimizer, chunk).step)
        return out

    @contextmanager
    def _one_state(self) -> Iterator[None]:
        """See one state of the store in several reads: the writer merges chunks into others meanwhile."""
        if self._connection.in_transaction:  # inside a longer read
            yield
            return
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("ROLLBACK")

    def _chunks(
        self, run: str, optimizer: int, kind: str, rank: int | None, first: int | None, last: int | None
    ) -> list[_Chunk]:
        rows = self._connection.execute(
            "SELECT id, rank, schema, incarnation, first, last, rows FROM chunk "
            "WHERE run = ? AND optimizer = ? AND kind = ? AND (? IS NULL OR rank = ?) "
            "AND (? IS NULL OR last >= ?) AND (? IS NULL OR first <= ?) ORDER BY first, level DESC, id",
            (run, optimizer, kind, rank, rank, first, first, last, last),
        ).fetchall()
        return [_Chunk(*row) for row in rows]

    def _ceilings(self, run: str, optimizer: int) -> dict[int, int]:
        """For each incarnation the last step that no later one repeated."""
        rows = self._connection.execute(
            "SELECT incarnation, MIN(first) FROM chunk WHERE run = ? AND optimizer = ? "
            "GROUP BY incarnation ORDER BY incarnation DESC",
            (run, optimizer),
        ).fetchall()
        ceilings: dict[int, int] = {}
        ceiling = int(np.iinfo(np.int64).max)
        for incarnation, first in rows:
            ceilings[incarnation] = ceiling
            ceiling = min(ceiling, first - 1)
        return ceilings

    def _read_scalars(self, run: str, optimizer: int, chunk: _Chunk) -> Points:
        schema = self.schema(run, optimizer, chunk.schema)
        step, wall, values, logged = split("s", schema, chunk.rows, self._blob(chunk.id))
        return scalar_points(step[:, 0], wall[:, 0], values, logged, schema)

    def _blob(self, chunk: int) -> bytes:
        (data,) = self._connection.execute("SELECT data FROM chunk WHERE id = ?", (chunk,)).fetchone()
        return bytes(data)


def scalar_points(
    step: np.ndarray,
    wall: np.ndarray,
    values: np.ndarray,
    logged: np.ndarray,
    schema: Schema,
    samples: Samples | None = None,
) -> Points:
    """Blocks of a batch as points: step [n], wall [n], values [n, S], logged [n, S]."""
    was = logged != 0
    return Points(
        step.copy(),  # not a view that would keep a whole message in memory
        {
            name: Column(np.where(was[:, at], values[:, at], np.nan), was[:, at])
            for at, name in enumerate(schema.scalars)
        },
        wall.copy(),
        samples,
    )


def samples(step: np.ndarray, stats: np.ndarray, counts: np.ndarray, schema: Schema) -> Samples | None:
    """Blocks of a batch as samples: step [k], stats [k, T, S], counts [k, T, C]; None for k = 0."""
    if len(step) == 0:
        return None
    return Samples(
        step,
        tuple(tensor.name for tensor in schema.tensors),
        np.array([_numel(tensor) for tensor in schema.tensors], dtype=np.int64),
        {name: stats[:, :, at] for at, name in enumerate(schema.stats)},
        {name: counts[:, :, at] for at, name in enumerate(schema.counts)},
    )


def with_samples(points: Points, records: Sequence[Record]) -> Points:
    """Points with the records of their steps: those that have the schema of the last of them."""
    own = [record for record in records if points.step[0] <= record.step <= points.step[-1]]
    own = [record for record in own if record.schema == own[-1].schema]
    return Points(points.step, points.columns, points.wall, record_samples(own)) if own else points


def record_samples(records: Sequence[Record]) -> Samples | None:
    """Records of one schema as samples."""
    if not records:
        return None
    return samples(
        np.array([record.step for record in records], dtype=np.int64),
        np.stack([record.stats for record in records]),
        np.stack([record.counts for record in records]),
        records[0].schema,
    )


def _numel(tensor: TensorInfo) -> int:
    numel = 1
    for length in tensor.shape:
        numel = min(numel * length, 1 << 62)
    return numel


def _between(points: Points, first: int | None, last: int) -> Points:
    where = points.step <= last
    if first is not None:
        where &= points.step >= first
    return points if where.all() else select(points, where)
