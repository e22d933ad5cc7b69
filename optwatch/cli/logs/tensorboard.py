"""TensorBoard run directories as points."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from optwatch.cli.errors import Wrong
from optwatch.cli.logs.columns import choose, to_points
from optwatch.series.points import Column, Points

EVENTS = "events.out.tfevents.*"
WALL = "wall"
"""The clock goes the way of a column here; no column that is looked for has this name."""


def run_directories(path: Path) -> list[Path]:
    """The directories at and under `path` that hold event files, in order of name."""
    return sorted({file.parent for file in path.rglob(EVENTS)})


def read_tensorboard(path: Path, wanted: Mapping[str, str], notes: list[str]) -> Points:
    """All scalars of one run directory.

    Raises:
        Wrong: TensorBoard is not installed, or there is no loss among the tags.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ModuleNotFoundError:
        raise Wrong("reading TensorBoard files needs an extra: pip install 'optwatch[tensorboard]'") from None
    events = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 1, "images": 1})
    events.Reload()
    tags = events.Tags()["scalars"]
    chosen = choose(tags, wanted)
    if "loss" not in chosen:
        raise Wrong(f"no loss among the tags {', '.join(tags) or '(none)'}: say it with --column loss=TAG")
    chosen.pop("step", None)
    series = {name: events.Scalars(tag) for name, tag in chosen.items()}
    rows = sum(map(len, series.values()))
    steps = np.empty(rows)
    columns = {name: Column(np.full(rows, np.nan), np.zeros(rows, bool)) for name in (*series, WALL)}
    row = 0
    for name, scalars in series.items():
        end = row + len(scalars)
        steps[row:end] = [scalar.step for scalar in scalars]
        columns[name].values[row:end] = [scalar.value for scalar in scalars]
        columns[WALL].values[row:end] = [scalar.wall_time for scalar in scalars]
        for column in (columns[name], columns[WALL]):
            column.logged[row:end] = True
        row = end
    points = to_points(Column(steps, np.ones(rows, bool)), columns, notes)
    known = {name: column for name, column in points.columns.items() if name != WALL}
    return Points(points.step, known, points.column(WALL).values)
