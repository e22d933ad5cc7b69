"""Overfitting: the validation loss rises while the training loss goes on falling."""

import math
from itertools import pairwise
from typing import Any, ClassVar

import msgspec
import numpy as np

from optwatch.detect.base import Signal
from optwatch.detect.memory import HUGE, from_state, median, push, to_state, trend
from optwatch.series.points import Points

SMOOTH = 3
PATIENCE = 5
"""Evaluations since the best one."""
RISE, LOST = 0.25, 0.02
"""The rise over the best, as a share of the best; and of what the training loss had won by then."""
NOISY, USUAL = 5.0, 20
"""The rise, over the usual change from one of so many evaluations to the next: a net with batch normalisation
at a high LR is evaluated to and fro."""
TREND = 1.645
SPAN = 100
"""Of the training loss's average, in points."""
KEPT = 40


class Memory(msgspec.Struct):
    average: float = math.nan
    """Of the training loss."""
    first: float = math.nan
    """The first training loss."""
    recent: list[float] = []
    """The last validation losses."""
    best: float = math.inf
    best_step: int = 0
    best_train: float = math.nan
    since: list[float] = []
    """Smoothed validation losses since the best one."""
    open: bool = False
    onset: int = 0


class Overfitting:
    """The validation loss (median of 3) is 25 % above its best, 2 % of the progress and 5 times its usual
    change, in a rise by Mann-Kendall at 5 % over 5 evaluations or more; the training loss is below what it
    was at the best one.

    Healthy runs end up to 16 % above their best.
    """

    name: ClassVar[str] = "overfitting"

    def __init__(self) -> None:
        self._memory = Memory()

    def update(self, points: Points) -> list[Signal]:
        held = points.column("val_loss")
        loss = points.column("loss")
        signals: list[Signal] = []
        x, v = (np.clip(column.values, -HUGE, HUGE) for column in (loss, held))
        known = np.isfinite(loss.values)
        begin = 0
        for row in np.flatnonzero(np.isfinite(held.values)).tolist():
            self._train(x[begin : row + 1][known[begin : row + 1]].tolist())
            self._evaluation(int(points.step[row]), float(v[row]), signals)
            begin = row + 1
        self._train(x[begin:][known[begin:]].tolist())
        return signals

    def mark(self, step: int) -> None:
        """A best of another segment is no measure."""
        self._memory = Memory(first=self._memory.first, open=self._memory.open, onset=self._memory.onset)

    def state(self) -> dict[str, Any]:
        return to_state(self._memory)

    def restore(self, state: dict[str, Any]) -> None:
        self._memory = from_state(state, Memory)

    def _train(self, losses: list[float]) -> None:
        """Take the next training losses."""
        if not losses:
            return
        m = self._memory
        m.first = losses[0] if math.isnan(m.first) else m.first
        average = losses[0] if math.isnan(m.average) else m.average
        alpha = 2 / (SPAN + 1)
        for x in losses:  # of the very first, the average is itself
            average += alpha * (x - average)
        m.average = average

    def _evaluation(self, step: int, v: float, signals: list[Signal]) -> None:
        m = self._memory
        push(m.recent, v, USUAL + 1)
        value = median(m.recent[-SMOOTH:])
        if value < m.best:
            m.best, m.best_step, m.best_train, m.since = value, step, m.average, []
        else:
            push(m.since, value, KEPT)
        rise = value - m.best
        usual = median([abs(b - a) for a, b in pairwise(m.recent[-USUAL - 1 :])] or [0.0])
        enough = max(RISE * abs(m.best), LOST * (m.first - m.best), NOISY * usual)
        overfits = (
            len(m.since) >= PATIENCE
            and rise > enough
            and m.average < m.best_train
            and trend(m.since[-KEPT:]) > TREND
        )
        if overfits and not m.open:
            m.open, m.onset = True, m.best_step
            signals.append(self._signal(step, value))
        elif m.open and rise < 0.5 * enough:
            m.open = False
            signals.append(self._signal(step, value))

    def _signal(self, step: int, value: float) -> Signal:
        m = self._memory
        return Signal(
            kind="overfitting",
            step=step,
            onset_step=m.onset,
            severity="warning",
            summary=(
                f"the validation loss rose from {m.best:.4g} to {value:.4g} since step {m.best_step},"
                f" while the training loss went from {m.best_train:.4g} to {m.average:.4g}"
            ),
            over=not m.open,
            evidence={
                "val_loss": value,
                "best_val_loss": m.best,
                "best_step": m.best_step,
                "train_loss": m.average,
                "train_loss_at_best": m.best_train,
            },
        )
