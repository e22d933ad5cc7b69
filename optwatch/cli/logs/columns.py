"""From the names and cells of a log to the columns that detectors know."""

import math
import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from optwatch.cli.errors import Wrong
from optwatch.series.points import Column, Points

ALIASES: dict[str, tuple[str, ...]] = {
    "step": ("step", "global_step", "steps", "iteration", "iter", "iterations", "trainer_global_step"),
    "loss": (
        "loss",
        "train_loss",
        "training_loss",
        "loss_train",
        "train_loss_step",
        "lm_loss",
        "train_lm_loss",
        "batch_loss",
        "total_loss",
        "train_total_loss",
    ),
    "val_loss": (
        "val_loss",
        "eval_loss",
        "valid_loss",
        "validation_loss",
        "loss_val",
        "loss_eval",
        "loss_validation",
        "eval_val_loss",
    ),
    "grad_norm": (
        "grad_norm",
        "gradient_norm",
        "train_grad_norm",
        "global_grad_norm",
        "total_grad_norm",
        "gnorm",
        "optwatch_grad_norm",
    ),
    "grad_norm_raw": ("grad_norm_raw", "grad_norm_unclipped"),
    "lr": ("lr", "learning_rate", "train_learning_rate", "train_lr", "lr_0", "optimizer_lr"),
    "loss_scale": ("loss_scale", "train_loss_scale", "grad_scale", "amp_scale"),
}
"""Names that a column goes by, the usual one first; case and punctuation do not count."""

MISSING = frozenset({"", "null", "none", "na", "n/a", "-"})
"""Cells where nothing was logged. `nan` and `inf` were logged, as non-finite."""


def choose(headers: Sequence[str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Which header gives which column; `wanted` (column → header) goes before what is guessed.

    Raises:
        Wrong: a wanted header is not there.
    """
    for name, header in wanted.items():
        if header not in headers:
            raise Wrong(f"no column {header!r} for {name}; there are {', '.join(headers)}")
    plain: dict[str, str] = {}
    for header in headers:
        plain.setdefault(_plain(header), header)
    chosen = dict(wanted)
    for name, aliases in ALIASES.items():
        found = next((plain[alias] for alias in aliases if alias in plain), None)
        if name not in chosen and found is not None:
            chosen[name] = found
    return chosen


def _plain(header: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", header.strip().lower()).strip("_")


def to_column(cells: Sequence[str], header: str) -> Column:
    """The numbers of a column of text.

    Raises:
        Wrong: a cell that is no number.
    """
    try:
        values = np.array([float(cell) if cell else math.nan for cell in cells], np.float64)
        logged = np.array([cell != "" for cell in cells], bool)
    except ValueError:
        plain = [cell.strip().lower() for cell in cells]
        logged = np.array([cell not in MISSING for cell in plain], bool)
        values = np.full(len(plain), np.nan)
        for row in np.flatnonzero(logged).tolist():
            try:
                values[row] = float(plain[row])
            except ValueError:
                raise Wrong(f"column {header!r}, row {row + 1}: {cells[row]!r} is no number") from None
    return Column(values, logged)


def to_points(step: Column | None, columns: Mapping[str, Column], notes: list[str]) -> Points:
    """Points in order of step, one a step, from rows in any order.

    Rows without a step take no part; of two rows of one step, what the later one logged counts (a run
    that resumed from a checkpoint logs the same steps again). What is left out is said in `notes`. A
    column without one finite value was not logged, except the loss.

    Raises:
        Wrong: there is no loss, or no row.
    """
    if "loss" not in columns:
        raise Wrong("no loss among the columns: say which it is with --column loss=HEADER")
    rows = len(columns["loss"].values)
    kept = {}
    for name, column in columns.items():
        if name != "loss" and not np.isfinite(column.values).any():
            notes.append(f"{name}: not one finite value, taken as not logged")
            continue
        kept[name] = column
    if step is None:
        notes.append("no step column: rows are counted from 1")
        return Points(np.arange(1, rows + 1, dtype=np.int64), kept)
    whole = np.isfinite(step.values) & (np.abs(step.values) < 2**53)
    if not whole.any():
        raise Wrong("no row with a step")
    if (dropped := rows - int(whole.sum())) > 0:
        notes.append(f"{dropped} rows without a step left out")
    numbers = np.rint(np.where(whole, step.values, 0)).astype(np.int64)
    order = np.flatnonzero(whole)
    order = order[np.argsort(numbers[order], kind="stable")]
    steps, inverse = np.unique(numbers[order], return_inverse=True)
    if len(steps) == len(order):
        return Points(
            steps, {name: Column(column.values[order], column.logged[order]) for name, column in kept.items()}
        )
    merged = {}
    for name, column in kept.items():
        values, logged = np.full(len(steps), np.nan), np.zeros(len(steps), bool)
        rows_logged = column.logged[order]
        values[inverse[rows_logged]] = column.values[order][rows_logged]
        logged[inverse[rows_logged]] = True
        merged[name] = Column(values, logged)
    return Points(steps, merged)


def unknown(names: Collection[str]) -> str | None:
    """The first name that no detector knows, None where all are known."""
    return next((name for name in names if name not in ALIASES), None)
