"""History: series read back from the store."""

import math
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from optwatch.daemon.assembly import Record, add_up, assemble
from optwatch.daemon.blocks import scalar_points, with_samples
from optwatch.daemon.chunks import ChunkKind, split, split_alike, split_rows
from optwatch.daemon.schemas import in_common, read_columns, read_schema
from optwatch.daemon.tables import again
from optwatch.series.coverage import Coverage
from optwatch.series.merge import Pending, select
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
"""Chunks that one query reads."""
MOST_SCHEMAS = 4_096
"""Schemas that are kept read: where each of a thousand ranks has a part of its own, there are as many."""
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


Key = tuple[str, int, str]
"""Run, optimizer and digest of a schema."""
Rows = tuple[npt.NDArray[np.int64], Points]
"""Rows of several ranks: whose each is, i8[n], and the rows."""
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
        self._schemas: dict[Key, Schema] = {}
        self._columns: dict[Key, Schema] = {}
        """The same without their tensors: what scalars are read with."""

    def schema(self, run: str, optimizer: int, digest: str) -> Schema:
        """Raises `ValueError` where the store has none of that digest."""
        return self._kept(self._schemas, (run, optimizer, digest), lambda *key: in_common(read_schema(*key)))

    def _columns_of(self, run: str, optimizer: int, digest: str) -> Schema:
        return self._kept(self._columns, (run, optimizer, digest), read_columns)

    def _kept(self, kept: dict[Key, Schema], key: Key, read: Callable[..., Schema]) -> Schema:
        if key not in kept:
            if len(kept) >= MOST_SCHEMAS:
                kept.clear()
            kept[key] = read(self._connection, *key)
        return kept[key]

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

    def rows(self, run: str, optimizer: int, first: int) -> Iterator[Rows]:
        """Scalars from a step on as the ranks have sent them, each rank's that have the same columns in order
        of step."""
        with self._one_state():
            for _, last, chunks in self._incarnations(run, optimizer, None, first, None):
                for _, parts in self._windows(run, optimizer, chunks, first, last):
                    yield from parts

    def _points(
        self,
        run: str,
        optimizer: int,
        rank: int | None,
        first: int | None,
        last: int | None,
        norms: Norms | None = None,
    ) -> Iterator[Points]:
        if rank is None and norms is None:
            norms = Norms()
        for incarnation, end, chunks in self._incarnations(run, optimizer, rank, first, last):
            if norms is not None:
                norms.begin(incarnation)
            pending = Pending()
            for upto, parts in self._windows(run, optimizer, chunks, first, end):
                for ranks, points in parts:
                    pending.add_rows(ranks, points)
                if (merged := pending.merge(upto, norms)) is not None:
                    yield merged

    def _incarnations(
        self, run: str, optimizer: int, rank: int | None, first: int | None, last: int | None
    ) -> Iterator[tuple[int, int, list[_Chunk]]]:
        """Each incarnation in order, the last step that is wanted of it, and its chunks in order of step."""
        ceilings = self._ceilings(run, optimizer)
        chunks = self._chunks(run, optimizer, "s", rank, first, last)
        chunks.sort(key=lambda chunk: chunk.incarnation)  # stable: in order of step within each
        for incarnation, own in groupby(chunks, key=lambda chunk: chunk.incarnation):
            ceiling = ceilings[incarnation]
            yield incarnation, ceiling if last is None else min(last, ceiling), list(own)

    def _windows(
        self, run: str, optimizer: int, chunks: Sequence[_Chunk], first: int | None, last: int
    ) -> Iterator[tuple[int, list[Rows]]]:
        """The rows of chunks up to a step, a window at a time (`_read_rows`), and the last step before those
        of the next one."""
        room = max(WINDOW // len({chunk.rank for chunk in chunks}), LEAST_PIECE)
        pieces = sorted(
            (piece for chunk in chunks for piece in _pieces(chunk, first, last, room)),
            key=lambda piece: piece.first,
        )
        begin = end = 0
        while begin < len(pieces):
            rows = 0
            while end < len(pieces) and rows < WINDOW:
                rows += pieces[end].stop - pieces[end].start
                end += 1
            upto = pieces[end].first - 1 if end < len(pieces) else int(np.iinfo(np.int64).max)
            yield upto, self._read_rows(run, optimizer, pieces[begin:end], first, last)
            begin = end

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
                    schema = self._columns_of(run, optimizer, chunk.schema)
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

    def _read_rows(
        self, run: str, optimizer: int, pieces: Sequence[_Piece], first: int | None, last: int
    ) -> list[Rows]:
        """The rows of pieces that lie in a range, for each set of columns those in order of step.

        A thousand ranks have thousands of small chunks: those that are alike are taken apart together.
        """
        parts: dict[tuple[str, ...], list[list[npt.NDArray[Any]]]] = {}
        alike: dict[tuple[str, int], list[_Chunk]] = {}
        for piece in pieces:
            chunk = piece.chunk
            if chunk.rows <= SMALL:
                alike.setdefault((chunk.schema, chunk.rows), []).append(chunk)
                continue
            schema = self._columns_of(run, optimizer, chunk.schema)
            with self._connection.blobopen("chunk", "data", chunk.id, readonly=True) as blob:
                blocks = split_rows("s", schema, chunk.rows, blob, piece.start, piece.stop)
            parts.setdefault(schema.scalars, []).append([np.full(len(blocks[0]), chunk.rank), *blocks])
        for (digest, rows), own in alike.items():
            schema = self._columns_of(run, optimizer, digest)
            blocks = split_alike("s", schema, rows, self._blobs([chunk.id for chunk in own]))
            parts.setdefault(schema.scalars, []).append([np.repeat([c.rank for c in own], rows), *blocks])
        found = (_in_order(names, same, first, last) for names, same in parts.items())
        return [(ranks, points) for ranks, points in found if len(points)]

    def _blobs(self, chunks: Sequence[int]) -> list[bytes]:
        data: dict[int, bytes] = {}
        for start in range(0, len(chunks), AT_ONCE):
            some = chunks[start : start + AT_ONCE]
            marks = ", ".join("?" * len(some))
            data.update(self._connection.execute(f"SELECT id, data FROM chunk WHERE id IN ({marks})", some))  # noqa: S608 - marks only
        return [data[chunk] for chunk in chunks]

    def _blob(self, chunk: int) -> bytes:
        return self._blobs([chunk])[0]


def _pieces(chunk: _Chunk, first: int | None, last: int, most: int) -> Iterator[_Piece]:
    """A chunk in pieces of `most` rows. What lies outside of a range is left out where a row's place follows
    from its step, which is where no step is missing; else, or if it is small, it is one piece."""
    if chunk.rows <= SMALL or chunk.rows != chunk.last - chunk.first + 1:
        yield _Piece(chunk, 0, chunk.rows, chunk.first)
        return
    begin = 0 if first is None else max(first - chunk.first, 0)
    end = min(chunk.rows, last - chunk.first + 1)
    for start in range(begin, end, most):
        yield _Piece(chunk, start, min(start + most, end), chunk.first + start)


def _in_order(
    names: tuple[str, ...], parts: Sequence[Sequence[npt.NDArray[Any]]], first: int | None, last: int
) -> Rows:
    """Rows of the same columns, those that lie in a range, in order of step: of each part whose they are, and
    the blocks of a chunk."""
    ranks, step, wall, values, logged = (np.concatenate(each) for each in zip(*parts, strict=True))
    order = np.argsort(step[:, 0], kind="stable")
    order = order[_within(step[order, 0], first, last)]
    return ranks[order], scalar_points(step[order, 0], wall[order, 0], values[order], logged[order], names)


def _within(step: npt.NDArray[np.int64], first: int | None, last: int) -> slice:
    """The place of a range in steps that are in order."""
    begin = 0 if first is None else int(np.searchsorted(step, first))
    return slice(begin, int(np.searchsorted(step, last, side="right")))
