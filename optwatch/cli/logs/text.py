"""Logs that are text: CSV, JSON lines, and the trainer_state.json of Hugging Face's Trainer."""

import csv
import gzip
import json
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np

from optwatch.cli.errors import Wrong
from optwatch.cli.logs.columns import choose, to_column, to_points
from optwatch.series.points import Column, Points

BATCH = 65_536
"""Rows that are held as text at a time."""


def read_csv(path: Path, wanted: Mapping[str, str], notes: list[str]) -> Points:
    """A table with a header; separated by comma, semicolon or tab, whichever the header has most of.

    Raises:
        Wrong: no table, no loss, or a cell that is no number.
    """
    with _open(path) as file:
        head = file.readline()
        if not head.strip():
            raise Wrong("the file is empty")
        separator = max(",;\t", key=head.count)
        headers = [name.strip() for name in next(csv.reader([head], delimiter=separator))]
        chosen = choose(headers, wanted)
        places = {name: headers.index(header) for name, header in chosen.items()}
        if (columns := _all_numbers(path, separator, places)) is not None:
            return to_points(columns.pop("step", None), columns, notes)
        cells: dict[str, list[Column]] = {name: [] for name in places}
        rows = csv.reader(file, delimiter=separator)
        while batch := [row for row in islice(rows, BATCH) if row]:
            width = max(places.values(), default=0)
            short = next((row for row in batch if len(row) <= width), None)
            if short is not None:
                raise Wrong(f"a row of {len(short)} cells under {len(headers)} headers: {short}")
            for name, place in places.items():
                cells[name].append(to_column([row[place] for row in batch], chosen[name]))
    columns = {name: _join(parts) for name, parts in cells.items() if parts}
    return to_points(columns.pop("step", None), columns, notes)


def _all_numbers(path: Path, separator: str, places: Mapping[str, int]) -> dict[str, Column] | None:
    """The columns of a table in which every cell is a number, by numpy's reader; None where it is no such."""
    try:
        with _open(path) as file, warnings.catch_warnings(action="ignore"):  # of a table without a row
            file.readline()
            table = np.loadtxt(
                file,
                delimiter=separator,
                usecols=list(places.values()),
                comments=None,
                quotechar='"',
                ndmin=2,
            )
    except (ValueError, IndexError):
        return None
    if not len(table):
        return None
    return {
        name: Column(np.ascontiguousarray(table[:, at]), np.ones(len(table), bool))
        for at, name in enumerate(places)
    }


def read_json(path: Path, wanted: Mapping[str, str], notes: list[str]) -> Points:
    """JSON lines, a list of objects, or a trainer_state.json with its log_history.

    Raises:
        Wrong: no such JSON, or no loss in it.
    """
    records = list(_records(path))
    headers = list(dict.fromkeys(name for record in records for name in record))
    if not headers:
        raise Wrong("no record with a name and a value")
    chosen = choose(headers, wanted)
    columns = {
        name: to_column([_cell(record.get(header)) for record in records], header)
        for name, header in chosen.items()
    }
    return to_points(columns.pop("step", None), columns, notes)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with _open(path) as file:
        try:
            if path.name.removesuffix(".gz").endswith(".json"):
                document = json.load(file)
                if isinstance(document, dict):
                    document = document.get("log_history")
                if not isinstance(document, list):
                    raise Wrong("neither a list of records nor a trainer_state.json with its log_history")
            else:
                document = (json.loads(line) for line in file if line.strip())
            for record in document:
                if not isinstance(record, dict):
                    raise Wrong(f"not a record with names and values: {str(record)[:60]}")
                yield dict(_flat(record))
        except (json.JSONDecodeError, RecursionError) as error:
            raise Wrong(f"no JSON: {error}") from None


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested names joined by a slash."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _cell(value: Any) -> str:
    return "" if value is None or isinstance(value, list) else str(value)


def _join(parts: list[Column]) -> Column:
    return Column(
        np.concatenate([part.values for part in parts]), np.concatenate([part.logged for part in parts])
    )


def _open(path: Path) -> TextIO:
    if path.name.endswith(".gz"):
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return path.open(encoding="utf-8-sig", newline="")
