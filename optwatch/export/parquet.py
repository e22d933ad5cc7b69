"""Parquet: a run's history as columns, for pandas, Polars, DuckDB and Spark.

    scalars.parquet    optimizer, rank, step, wall, and a column for each scalar: as each rank has sent it
    merged.parquet     optimizer, step, wall, and the same columns merged over the ranks
    tensors.parquet    optimizer, step, tensor, and a column for each statistic and count, merged over ranks
    findings.parquet   what was found, evidence and causes as JSON
    commands.parquet   what was asked for and what became of it

A null is what was not logged or not measured; a logged NaN or inf is itself. `wall`: unix seconds.
"""

import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from optwatch.series.points import Points

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 65_536
"""Rows of a row group at most."""


class ParquetError(Exception):
    """It cannot be written; the message is for the user."""


class Table:
    """One file, written a part at a time; only whole ones get their name."""

    def __init__(self, path: Path, columns: Sequence[tuple[str, str]]) -> None:
        """`columns`: name and Arrow type of each.

        Raises:
            ParquetError: pyarrow is not there, or the file cannot be written.
        """
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ModuleNotFoundError:
            raise ParquetError("parquet needs its extra: pip install 'optwatch[parquet]'") from None
        self._pa = pa
        self.path = path
        self._part = path.with_suffix(".part")
        self._schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns])
        self.rows = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._part, self._schema, compression="zstd")
        except OSError as error:
            raise ParquetError(f"cannot write {path}: {error.strerror or error}") from None

    def add(self, rows: int, columns: dict[str, Any]) -> None:
        """Add rows; a column is one value, an array or list, or an array and where it has values. A column
        that is missing is null."""
        if not rows:
            return
        arrays = [self._array(columns.get(field.name), field.type, rows) for field in self._schema]
        self._writer.write_batch(self._pa.record_batch(arrays, schema=self._schema), row_group_size=ROWS)
        self.rows += rows

    def close(self) -> None:
        self._writer.close()
        self._part.replace(self.path)

    def _array(self, given: Any, kind: "pa.DataType", rows: int) -> "pa.Array":
        pa = self._pa
        if isinstance(given, tuple):
            values, there = given
            return pa.array(np.ascontiguousarray(values), kind, mask=~there, from_pandas=False)
        if given is None or isinstance(given, (int, float, str)):
            return pa.array([given] * rows, kind)
        return pa.array(given, kind, from_pandas=False)


def scalar_columns(names: Iterable[str], *, ranks: bool) -> list[tuple[str, str]]:
    """The columns of scalars.parquet, or of merged.parquet."""
    first = [("optimizer", "int32"), *([("rank", "int32")] if ranks else []), ("step", "int64")]
    own = {"optimizer", "rank", "step", "wall"}
    return [*first, ("wall", "float64"), *((name, "float64") for name in names if name not in own)]


def add_points(table: Table, optimizer: int, rank: int | None, points: Points) -> None:
    """Add points as rows."""
    wall = points.wall if points.wall is not None else np.full(len(points), np.nan)
    columns: dict[str, Any] = {"optimizer": optimizer, "step": points.step, "wall": (wall, ~np.isnan(wall))}
    if rank is not None:
        columns["rank"] = rank
    named = {name: (column.values, column.logged) for name, column in points.columns.items()}
    table.add(len(points), named | columns)


def tensor_columns(stats: Iterable[str], counts: Iterable[str]) -> list[tuple[str, str]]:
    """The columns of tensors.parquet."""
    first = [("optimizer", "int32"), ("step", "int64"), ("tensor", "string")]
    return [*first, *((name, "float32") for name in stats), *((name, "uint64") for name in counts)]


def add_samples(table: Table, optimizer: int, points: Points) -> None:
    """Add the per-tensor records of points as rows, one for each step and tensor."""
    if (samples := points.samples) is None:
        return
    steps, tensors = len(samples.step), len(samples.names)
    columns: dict[str, Any] = {
        "optimizer": optimizer,
        "step": np.repeat(samples.step, tensors),
        "tensor": list(samples.names) * steps,
    }
    for name, stat in samples.stats.items():
        values = np.ascontiguousarray(stat).reshape(-1)
        columns[name] = values, ~np.isnan(values)  # NaN: not measured
    for name, count in samples.counts.items():
        columns[name] = np.ascontiguousarray(count).reshape(-1)
    table.add(steps * tensors, columns)


def write_structs(path: Path, kind: type[msgspec.Struct], structs: Sequence[msgspec.Struct]) -> int:
    """A file of findings or commands: numbers and texts as they are, all else as JSON."""
    fields = msgspec.structs.fields(kind)
    table = Table(path, [(field.encode_name, _plain(field.type)) for field in fields])
    rows = [msgspec.to_builtins(each) for each in structs]
    table.add(
        len(rows),
        {
            field.encode_name: [_cell(row.get(field.encode_name), _plain(field.type)) for row in rows]
            for field in fields
        },
    )
    table.close()
    return table.rows


def _plain(kind: Any) -> str:
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    kinds = {each for each in (typing.get_args(kind) if union else (kind,)) if each is not type(None)}
    return "int64" if kinds == {int} else "float64" if kinds == {float} else "string"


def _cell(value: Any, kind: str) -> Any:
    if kind != "string" or value is None or isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()
