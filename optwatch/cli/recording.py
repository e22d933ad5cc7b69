"""Recording: what once was trained, as an agent would send it: out of a store, or from a log."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from optwatch.cli.archive import Archive, default_store
from optwatch.cli.errors import Wrong
from optwatch.cli.logs.read import Source, read, sources
from optwatch.daemon.assembly import Record
from optwatch.daemon.head import Head
from optwatch.export.text import arguments
from optwatch.series.merge import select
from optwatch.series.points import Column, Points
from optwatch.series.timeline import rows
from optwatch.wire.frames import BatchBlocks
from optwatch.wire.histograms import WIDTH
from optwatch.wire.messages import ConfigValue, Event, OptimizerInfo, Schema
from optwatch.wire.requests import Marker

F8 = npt.NDArray[np.float64]
Part = tuple[Schema, BatchBlocks]
Records = Callable[[int, int, int], tuple[list[Record], list[Record]]]
"""first step, last step, at most so many → per-tensor statistics, and histograms."""

ROWS = 1_024
"""Steps of a part at most."""
PART_BYTES = 4 << 20
"""Bytes of per-tensor statistics in a part, about."""
LOG_PACE = 10.0
"""Points a second of a log that has no clock."""
MAX_STEP = np.iinfo(np.int64).max
PAUSE = 5.0
"""Seconds that nothing may happen; a pause that is longer, and ten times the usual step, is cut to it."""


@dataclass(frozen=True)
class Track:
    """The series of one optimizer. `due` f8[n]: seconds after the beginning at which each step was done."""

    optimizer: int
    points: Points
    due: F8
    wall: F8
    tensors: Schema | None = None
    """The tensors of its newest records."""
    records: Records | None = None

    def parts(self) -> Iterator[Part]:
        """All of it in order, in parts of one schema each."""
        like, size = self.tensors, ROWS
        if like is not None:
            a_row = len(like.tensors) * (4 * len(like.stats) + 8 * len(like.counts))
            size = min(max(PART_BYTES // max(a_row, 1), 1), ROWS)
        for start in range(0, len(self.points), size):
            points = select(self.points, slice(start, start + size))
            wall = self.wall[start : start + size]
            first, last = int(points.step[0]), int(points.step[-1])
            found, spread = self.records(first, last, len(points)) if self.records else ([], [])
            groups = [list(group) for _, group in groupby(found, key=_holding)] or [[]]
            ends = [int(np.searchsorted(points.step, group[0].step)) for group in groups[1:]] + [len(points)]
            begin = 0
            for group, end in zip(groups, ends, strict=True):
                like = group[0].schema if group else like
                yield _part(
                    self.optimizer,
                    select(points, slice(begin, end)),
                    wall[begin:end],
                    like,
                    group,
                    spread,
                )
                begin = end


@dataclass(frozen=True)
class Recording:
    """A run that can be sent again. `events` in order of step, with no session and number yet."""

    name: str
    tracks: tuple[Track, ...]
    events: tuple[Event, ...] = ()
    optimizers: tuple[OptimizerInfo, ...] = ()
    config: Mapping[str, ConfigValue] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Of the first optimizer."""
        return len(self.tracks[0].points)


def find_recording(wanted: str, store: Path | None, columns: Mapping[str, str]) -> Recording:
    """The log or store at a path, else the run of a name or id in a store (None: the usual one).

    Raises:
        Wrong: there is none, or nothing in it that could be sent.
    """
    if store is None and Path(wanted).exists():
        found = sources(wanted)
        if len(found) != 1:
            raise Wrong(
                f"{wanted} holds {len(found)} runs: name one"
                + (f" and say --store {wanted}" if found and found[0].run else "")
            )
        (source,) = found
        if not source.run:
            return _from_log(source, columns)
        archive = Archive(Path(wanted))
        return _from_store(archive, archive.find(source.run))
    try:
        archive = Archive(store or default_store())
        head = archive.find(wanted)
    except Wrong as error:
        raise error if store else Wrong(f"{wanted}: no such file or directory, and {error}") from None
    return _from_store(archive, head)


def _from_log(source: Source, columns: Mapping[str, str]) -> Recording:
    notes: list[str] = []
    name = Path(source.path).resolve().name
    (points,) = read(source, columns, notes)
    _check(name, points)
    wall = points.wall
    (due,) = _clock([np.full(len(points), np.nan) if wall is None else wall])
    if wall is None:
        wall = due + Path(source.path).stat().st_mtime - due[-1]  # as if it had been written just then
    return Recording(name, (Track(0, points, due, wall),), notes=tuple(notes))


def _from_store(archive: Archive, head: Head) -> Recording:
    history, run = archive.history, head.run
    series = {}
    for optimizer in range(max(len(head.optimizers), 1)):
        # All at once: a transaction as long as the replay would keep the daemon from tidying its file.
        parts = list(history.points(run, optimizer))
        if parts or optimizer == 0:
            _check(head.name, *parts)
            series[optimizer] = _whole(parts)
    walls = [points.wall for points in series.values() if points.wall is not None]
    tracks = []
    for (optimizer, points), due, wall in zip(series.items(), _clock(walls), walls, strict=True):
        newest = history.records(run, optimizer, None, None, limit=1)

        def records(
            first: int, last: int, limit: int, optimizer: int = optimizer
        ) -> tuple[list[Record], list[Record]]:
            return (
                history.records(run, optimizer, first, last, limit),
                history.histograms(run, optimizer, first, last, limit),
            )

        schema = newest[0].schema if newest else None
        tracks.append(Track(optimizer, points, due, wall, schema, records if newest else None))
    actions = [
        Marker(command.step, "note", f"{command.action} {arguments(command.args)}".rstrip() + " was applied")
        for command in archive.commands(run)
        if command.step is not None
    ]
    return Recording(
        head.name,
        tuple(tracks),
        tuple(map(_event, sorted([*archive.markers(run), *actions], key=lambda marker: marker.step))),
        head.optimizers,
        head.config,
        head.versions,
    )


def _event(marker: Marker) -> Event:
    said = msgspec.structs.asdict(marker)
    return msgspec.convert({"session": "", "seq": 0, "optimizer": 0, **said}, Event)


def _check(name: str, *parts: Points) -> None:
    if not sum(map(len, parts)):
        raise Wrong(f"{name}: there is no step in it")
    if parts[0].step[0] < 0:
        raise Wrong(f"{name}: its first step is {parts[0].step[0]}, and a run has no step below 0")


def _whole(parts: list[Points]) -> Points:
    """Parts in their order as one, with the columns of all."""
    names = dict.fromkeys(name for points in parts for name in points.columns)
    found = {name: [points.column(name) for points in parts] for name in names}
    return Points(
        np.concatenate([points.step for points in parts]),
        {
            name: Column(
                np.concatenate([column.values for column in columns]),
                np.concatenate([column.logged for column in columns]),
            )
            for name, columns in found.items()
        },
        np.concatenate([np.full(len(p), np.nan) if p.wall is None else p.wall for p in parts]),
    )


def _clock(walls: Sequence[F8]) -> list[F8]:
    """When each step is due, in seconds after the first of all: by the clock that they were recorded with."""
    told = [np.fmax.accumulate(np.where(np.isfinite(wall), wall, np.nan)) for wall in walls]
    begin = min((float(np.nanmin(wall)) for wall in told if np.isfinite(wall).any()), default=None)
    if begin is None:
        return [np.arange(len(wall)) / LOG_PACE for wall in walls]
    told = [np.where(np.isnan(wall), begin, wall) for wall in told]
    moments = np.unique(np.concatenate(told))
    gaps = np.diff(moments)
    longest = max(PAUSE, 10 * float(np.median(gaps))) if len(gaps) else PAUSE
    elapsed = np.concatenate(([0.0], np.cumsum(np.minimum(gaps, longest))))
    return [elapsed[np.searchsorted(moments, wall)] for wall in told]


def _holding(record: Record) -> tuple[Any, ...]:
    return record.schema.tensors, record.schema.stats, record.schema.counts


def _part(
    optimizer: int, points: Points, wall: F8, like: Schema | None, found: list[Record], spread: list[Record]
) -> Part:
    """Points and the records of their steps, which all have the tensors of `like`."""
    schema = Schema(
        session="",
        optimizer=optimizer,
        digest="",
        scalars=tuple(points.columns),
        tensors=like.tensors if like else (),
        stats=like.stats if like else (),
        counts=like.counts if like else (),
    )
    spread = [
        each
        for each in spread
        if points.step[0] <= each.step <= points.step[-1] and each.schema.tensors == schema.tensors
    ]
    step, values, logged = rows(points, schema.scalars)
    shape = len(found), len(schema.tensors)
    blocks = BatchBlocks(
        step=step,
        wall=wall,
        scalars=values,
        logged=logged.astype(np.uint8),
        sample_step=np.array([each.step for each in found], np.int64),
        stats=np.array([each.stats for each in found], np.float32).reshape(*shape, len(schema.stats)),
        counts=np.array([each.counts for each in found], np.uint64).reshape(*shape, len(schema.counts)),
        histogram_step=np.array([each.step for each in spread], np.int64),
        histograms=np.array([each.counts for each in spread], np.uint32).reshape(
            len(spread), len(schema.tensors), WIDTH
        ),
    )
    return schema, blocks


def cut(blocks: BatchBlocks, stop: int) -> tuple[BatchBlocks, BatchBlocks]:
    """The first `stop` rows with the records of their steps, and the others."""
    last = blocks.step[stop - 1]
    return _rows(blocks, slice(None, stop), -1, last), _rows(blocks, slice(stop, None), last, MAX_STEP)


def _rows(blocks: BatchBlocks, where: slice, after: int, last: int) -> BatchBlocks:
    sampled = (blocks.sample_step > after) & (blocks.sample_step <= last)
    spread = (blocks.histogram_step > after) & (blocks.histogram_step <= last)
    return BatchBlocks(
        blocks.step[where],
        blocks.wall[where],
        blocks.scalars[where],
        blocks.logged[where],
        blocks.sample_step[sampled],
        blocks.stats[sampled],
        blocks.counts[sampled],
        blocks.histogram_step[spread],
        blocks.histograms[spread],
    )
