"""History: series read back from the store."""

import math
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby

import msgspec
import numpy as np

from optwatch.daemon.assembly import Record, add_up, assemble
from optwatch.daemon.blocks import scalar_points, with_samples
from optwatch.daemon.chunks import ChunkKind, split, split_alike, split_rows
from optwatch.daemon.tables import again
from optwatch.daemon.writer import read_schema
from optwatch.series.coverage import Coverage
from optwatch.series.merge import merge, select
from optwatch.series.norms import Norms
from optwatch.series.points import Points
from optwatch.wire.histograms import WIDTH
from optwatch.wire.messages import Schema

PART = 1_024
"""Steps whose per-tensor records are in memory at once."""
WINDOW = 65_536
"""Rows of all ranks together that are read, and then merged, at once."""
RECORD_BYTES = 256 << 20
"""Per-tensor records that are read at once: of a thousand parts of the tensors those of a few steps."""
SMALL = 256
"""Rows of a chunk up to which all of it is read, whatever part is wanted."""
AT_ONCE = 512
"""Chunks that are read at once: a thousand ranks have thousands, of a few rows each."""
LEAST_PIECE = 64
"""Rows of a chunk that are read at once, at least, where a window has less room for each rank."""


class _Chunk(msgspec.Struct, frozen=True, array_like=True, gc=False):
    id: int
    rank: int
    schema: str
    incarnation: int
    first: int
    last: int
    rows: int


Place = tuple[int, Callable[[], Record]]
"""A step, and what reads its record."""


class _Piece(msgspec.Struct, frozen=True, gc=False):
    """The rows of a chunk from `start` to before `stop`; `first` is the step of the first of them."""

    chunk: _Chunk
    start: int
    stop: int
    first: int


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
        norms: Norms | None = None,
    ) -> Iterator[Points]:
        """Scalars in order of step, merged over ranks or of one rank, a window at a time.

        Where a later incarnation repeated steps, its numbers count. What is written after the first window
        was asked for is not in it. `norms` knows the parts of norms that lie before `first`, and learns.
        """
        with self._one_state():
            yield from self._points(run, optimizer, rank, first, last, norms)

    def _points(
        self,
        run: str,
        optimizer: int,
        rank: int | None,
        first: int | None,
        last: int | None,
        norms: Norms | None = None,
    ) -> Iterator[Points]:
        chunks = self._chunks(run, optimizer, "s", rank, first, last)
        ceilings = self._ceilings(run, optimizer)
        if rank is None and norms is None:
            norms = Norms()
        chunks.sort(key=lambda chunk: chunk.incarnation)  # stable: in order of step within each
        for incarnation, own in groupby(chunks, key=lambda chunk: chunk.incarnation):
            if norms is not None:
                norms.begin(incarnation)
            ceiling = ceilings[incarnation]
            yield from self._points_of(
                run, optimizer, list(own), first, ceiling if last is None else min(last, ceiling), norms
            )

    def _points_of(
        self,
        run: str,
        optimizer: int,
        chunks: list[_Chunk],
        first: int | None,
        last: int,
        norms: Norms | None,
    ) -> Iterator[Points]:
        """The points of one incarnation's chunks."""
        room = max(WINDOW // len({chunk.rank for chunk in chunks}), LEAST_PIECE)
        pieces = sorted(
            (piece for chunk in chunks for piece in _pieces(chunk, first, last, room)),
            key=lambda piece: piece.first,
        )
        pending: dict[int, list[Points]] = {}
        fresh = 0
        for at, (piece, points) in enumerate(self._read_scalars(run, optimizer, pieces)):
            points = _between(points, piece.chunk, first, last)
            if len(points):
                pending.setdefault(piece.chunk.rank, []).append(points)
                fresh += len(points)
            end = at + 1 == len(pieces)
            # Not whenever much is pending: what cannot be handed on yet would be gone through each time.
            if fresh < WINDOW and not end:
                continue
            fresh = 0
            ready, pending = _cut(pending, np.iinfo(np.int64).max if end else pieces[at + 1].first)
            if (merged := merge(ready, norms)) is not None:
                yield merged

    def points_by_rank(self, run: str, optimizer: int, first: int) -> dict[int, list[Points]]:
        """Scalars from a step on, of each rank in order of step: one reading for all the ranks of a job."""
        out: dict[int, list[Points]] = {}
        with self._one_state():
            ceilings = self._ceilings(run, optimizer)
            pieces = [
                piece
                for chunk in self._chunks(run, optimizer, "s", None, first, None)
                for piece in _pieces(chunk, first, ceilings[chunk.incarnation], WINDOW)
            ]
            for piece, points in self._read_scalars(run, optimizer, pieces):
                points = _between(points, piece.chunk, first, ceilings[piece.chunk.incarnation])
                if len(points):
                    out.setdefault(piece.chunk.rank, []).append(points)
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
                        run, optimizer, int(part.step[0]), int(part.step[-1]), len(part), size=None
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
        self,
        run: str,
        optimizer: int,
        first: int | None,
        last: int | None,
        limit: int,
        size: int | None = RECORD_BYTES,
    ) -> list[Record]:
        """The last `limit` per-tensor records of a range, in order of step, one per step.

        A step at which ranks hold parts of the tensors and some part is missing is left out. Fewer come, but
        one, where what is read for them would be over `size` bytes; None: however much it is. In memory are
        the parts of one step at a time.
        """
        with self._one_state():
            newest = self._newest("t", self._samples_of, run, optimizer, first, last, limit, size)
            return assemble(newest)[::-1]

    def parts(self, run: str, optimizer: int, first: int, limit: int) -> list[dict[int, Record]]:
        """Per-tensor records from a step on as the ranks have sent them, rank → record, for the last `limit`
        steps, or for fewer where they would be over `RECORD_BYTES`."""
        with self._one_state():
            newest = self._newest("t", self._samples_of, run, optimizer, first, None, limit, RECORD_BYTES)
            return list(newest)[::-1]

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

        def read(run: str, optimizer: int, chunk: _Chunk) -> Iterator[Place]:
            return self._histograms_of(run, optimizer, chunk, tensor, schemas)

        with self._one_state():
            newest = self._newest("h", read, run, optimizer, first, last, limit, None)
            return assemble(newest, add_up)[::-1]

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
        places: "Callable[[str, int, _Chunk], Iterator[Place]]",
        run: str,
        optimizer: int,
        first: int | None,
        last: int | None,
        limit: int,
        size: int | None,
    ) -> Iterator[dict[int, Record]]:
        """rank → its record, for each of the last `limit` steps that have any, the newest first."""
        if limit <= 0:
            return
        left = math.inf if size is None else size
        chunks = self._chunks(run, optimizer, kind, None, first, last)
        chunks.sort(key=lambda chunk: (chunk.last, -chunk.rank), reverse=True)
        ceilings = self._ceilings(run, optimizer)
        found: dict[int, dict[int, Callable[[], Record]]] = {}
        for at, chunk in enumerate(chunks):
            ceiling = ceilings[chunk.incarnation] if last is None else min(ceilings[chunk.incarnation], last)
            for step, read in places(run, optimizer, chunk):
                if (first is None or step >= first) and step <= ceiling:
                    found.setdefault(step, {})[chunk.rank] = read
            rest = chunks[at + 1].last if at + 1 < len(chunks) else -1  # steps beyond it are all there
            for step in sorted((step for step in found if step > rest), reverse=True):
                records = {rank: read() for rank, read in found.pop(step).items()}
                limit -= 1
                left -= sum(record.stats.nbytes + record.counts.nbytes for record in records.values())
                yield records
                if limit <= 0 or left <= 0:
                    return

    def _samples_of(self, run: str, optimizer: int, chunk: _Chunk) -> Iterator[Place]:
        schema = self.schema(run, optimizer, chunk.schema)

        def read(row: int) -> Record:
            with self._connection.blobopen("chunk", "data", chunk.id, readonly=True) as blob:
                step, stats, counts = split_rows("t", schema, chunk.rows, blob, row, row + 1)
            shape = (len(schema.tensors), -1) if schema.tensors else (0, 0)
            return Record(int(step[0, 0]), schema, stats.reshape(shape), counts.reshape(shape))

        with self._connection.blobopen("chunk", "data", chunk.id, readonly=True) as blob:
            steps = np.frombuffer(blob.read(8 * chunk.rows), "<i8")
        for row, step in enumerate(steps.tolist()):
            yield step, partial(read, row)

    def _histograms_of(
        self, run: str, optimizer: int, chunk: _Chunk, tensor: str | None, schemas: dict[str, Schema]
    ) -> Iterator[Place]:
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
            of = counts[row] if tensor is None else counts[row, rows]
            yield number, partial(Record, number, schema, nothing, of)

    def coverage(self, run: str, optimizer: int) -> dict[tuple[int, int], Coverage]:
        """For each (incarnation, rank) the steps whose scalars are in the store or were thinned out."""
        out: dict[tuple[int, int], Coverage] = {}
        with self._one_state():
            for incarnation, rank, first, last in self._connection.execute(
                "SELECT incarnation, rank, first, last FROM covered WHERE run = ? AND optimizer = ?",
                (run, optimizer),
            ):
                out.setdefault((incarnation, rank), Coverage()).add_range(first, last)
            for chunk in self._chunks(run, optimizer, "s", None, None, None):
                whose = chunk.incarnation, chunk.rank
                if (covered := out.get(whose)) is None:
                    covered = out[whose] = Coverage()
                if chunk.rows == chunk.last - chunk.first + 1 or covered.holds(chunk.first, chunk.last):
                    covered.add_range(chunk.first, chunk.last)
                else:
                    schema = self.schema(run, optimizer, chunk.schema)
                    covered.add(split("s", schema, chunk.rows, self._blob(chunk.id))[0][:, 0])
        return out

    @contextmanager
    def _one_state(self) -> Iterator[None]:
        """See one state of the store in several reads: the writer merges chunks into others meanwhile.

        Through a connection of its own, since each blob that was read in part leaves something behind in its
        connection until that is closed.
        """
        if self._connection.in_transaction:  # inside a longer read
            yield
            return
        lasting, self._connection = self._connection, again(self._connection)
        try:
            self._connection.execute("BEGIN")
            yield
        finally:
            self._connection.close()
            self._connection = lasting

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

    def _read_scalars(
        self, run: str, optimizer: int, pieces: Sequence[_Piece]
    ) -> Iterator[tuple[_Piece, Points]]:
        """The rows of pieces, in their order."""
        for start in range(0, len(pieces), AT_ONCE):
            some = pieces[start : start + AT_ONCE]
            small = {piece.chunk.id: piece.chunk for piece in some if piece.chunk.rows <= SMALL}
            whole = self._read_whole(run, optimizer, list(small.values()))
            for piece in some:
                if (points := whole.get(piece.chunk.id)) is None:
                    yield piece, self._read_part(run, optimizer, piece)
                elif piece.stop - piece.start == len(points):
                    yield piece, points
                else:
                    yield piece, select(points, slice(piece.start, piece.stop))

    def _read_whole(self, run: str, optimizer: int, chunks: Sequence[_Chunk]) -> dict[int, Points]:
        """Chunk → its rows, those with the same columns and as many rows taken apart together."""
        marks = ", ".join("?" * len(chunks))
        ids = [chunk.id for chunk in chunks]
        data = dict(self._connection.execute(f"SELECT id, data FROM chunk WHERE id IN ({marks})", ids))  # noqa: S608 - marks only
        alike: dict[tuple[str, int], list[int]] = {}
        for chunk in chunks:
            alike.setdefault((chunk.schema, chunk.rows), []).append(chunk.id)
        out = {}
        for (digest, rows), own in alike.items():
            schema = self.schema(run, optimizer, digest)
            step, wall, values, logged = split_alike("s", schema, rows, [data[id] for id in own])
            points = scalar_points(step[:, 0], wall[:, 0], values, logged, schema)
            for at, id in enumerate(own):
                out[id] = select(points, slice(at * rows, (at + 1) * rows))
        return out

    def _read_part(self, run: str, optimizer: int, piece: _Piece) -> Points:
        chunk = piece.chunk
        schema = self.schema(run, optimizer, chunk.schema)
        with self._connection.blobopen("chunk", "data", chunk.id, readonly=True) as blob:
            step, wall, values, logged = split_rows("s", schema, chunk.rows, blob, piece.start, piece.stop)
        return scalar_points(step[:, 0], wall[:, 0], values, logged, schema)

    def _blob(self, chunk: int) -> bytes:
        (data,) = self._connection.execute("SELECT data FROM chunk WHERE id = ?", (chunk,)).fetchone()
        return bytes(data)


def _pieces(chunk: _Chunk, first: int | None, last: int, most: int) -> Iterator[_Piece]:
    """A chunk in pieces of `most` rows. What lies outside of a range is left out where a row's place follows
    from its step, which is where no step is missing; else it is one piece."""
    if chunk.rows != chunk.last - chunk.first + 1:
        yield _Piece(chunk, 0, chunk.rows, chunk.first)
        return
    begin = 0 if first is None else max(first - chunk.first, 0)
    end = min(chunk.rows, last - chunk.first + 1)
    for start in range(begin, end, most):
        yield _Piece(chunk, start, min(start + most, end), chunk.first + start)


def _cut(
    pending: Mapping[int, Sequence[Points]], bound: int
) -> tuple[dict[int, list[Points]], dict[int, list[Points]]]:
    """What lies before a step, and what does not: rank → points."""
    before: dict[int, list[Points]] = {}
    behind: dict[int, list[Points]] = {}
    for rank, parts in pending.items():
        for points in parts:
            early = points.step < bound
            if early.all():
                before.setdefault(rank, []).append(points)
            elif not early.any():
                behind.setdefault(rank, []).append(points)
            else:
                before.setdefault(rank, []).append(select(points, early))
                behind.setdefault(rank, []).append(select(points, ~early))
    return before, behind


def _between(points: Points, chunk: _Chunk, first: int | None, last: int) -> Points:
    """Those points of a chunk that lie in a range."""
    if chunk.last <= last and (first is None or first <= chunk.first):
        return points
    where = points.step <= last
    if first is not None:
        where &= points.step >= first
    return points if where.all() else select(points, where)
