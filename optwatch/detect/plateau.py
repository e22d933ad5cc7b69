"""Plateau: the loss no longer falls.

An alarm where it is stuck near its start, or stopped when the LR collapsed; after progress it is not.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from optwatch.detect.base import Signal
from optwatch.detect.collapse import Collapse, Rates, collapse
from optwatch.detect.memory import (
    BATCH,
    HUGE,
    Blocks,
    from_state,
    median,
    start_error,
    start_of,
    to_state,
    trend,
)
from optwatch.series.points import Column, Points
from optwatch.wire.findings import Kind, Severity

WINDOW = 200
"""Points that a plateau lasts at least; half of what has passed, if that is more."""
STUCK_AFTER = 400
"""Points before a run can be called stuck: healthy ones start late, flat for hundreds of points."""
START = 20
"""Points that L0 is taken from: it decides on what is an alarm, and so is not left to a few noisy ones."""
GROUPS = 20
FALL = -1.645
"""One-sided 5 % of the Mann-Kendall statistic."""
GROWTH = 2.326
"""One-sided 1 % of the same: a gradient that grows announces the escape from a saddle."""
DROP = 0.01
"""A fall over the window by less than this share of what was won is none."""
STUCK = 0.15
"""Less progress than this share of the start is none."""
FINISHED = 0.05
"""An LR below this share of its peak is that of a schedule that ends."""
CONFIRMED = 3
"""Judgements in a row that make a run converged; there is no hurry."""
SOLVED = 0.98
"""Progress by this share of the start leaves nothing to win."""

I8 = npt.NDArray[np.int64]
State = Literal["", "stuck", "halted", "flat", "converged"]
"""What is found: stuck from the start, halted by a collapse of the LR, flat after progress, finished."""


class Memory(msgspec.Struct):
    seen: int = 0
    first: float = math.nan
    error: float = 0.0
    """Standard error of L0."""
    start: list[float] = []
    early_peak: float = -math.inf
    """The greatest loss of the first 50 points."""
    losses: Blocks = msgspec.field(default_factory=Blocks)
    norms: Blocks = msgspec.field(default_factory=Blocks)
    rates: Blocks = msgspec.field(default_factory=Blocks)
    norm: float = 0.0
    lr: float = 0.0
    lr_peak: float = 0.0
    recent: Rates = msgspec.field(default_factory=Rates)
    collapse: Collapse | None = None
    """Of the LR, where one is in force."""
    open: State = ""
    flat: int = 0
    """Judgements in a row that found it flat."""
    level: float = math.inf


@dataclass(frozen=True)
class Course:
    """The last points: medians of equal parts in order, and what they have come to."""

    window: int
    medians: list[float]
    now: float
    won: float
    """By the run, at least a share of its start."""
    drop: float
    """Over the window."""
    progress: float
    """Of the run, as a share of its start."""

    @property
    def slope(self) -> float:
        """The Mann-Kendall statistic."""
        return trend(self.medians)


class Plateau:
    """The course over max(200, half of the run) points as 20 medians: Mann-Kendall finds no decrease at
    5 %, and the drop is < 1 % of L0 - best. P = (L0 - L)/|L0| < 0.15 is stuck.

    A run is also stuck that after 400 points is not below its start. One whose gradient grows, or whose
    LR still warms up, is about to start, and is left in peace. One that fell until its LR collapsed is
    halted (`collapse` has the rule).
    """

    name: ClassVar[str] = "plateau"

    def __init__(self) -> None:
        self._memory = Memory()

    def update(self, points: Points) -> list[Signal]:
        loss, norm, lr = points.column("loss"), points.column("grad_norm"), points.column("lr")
        signals: list[Signal] = []
        if self._take(points.step, loss, norm, lr, signals):
            return signals
        m = self._memory
        for step, x, has_loss, g, rate in zip(
            points.step.tolist(),
            loss.values.tolist(),
            loss.logged.tolist(),
            norm.values.tolist(),
            lr.values.tolist(),
            strict=True,
        ):
            if math.isfinite(rate):
                self._rate(step, rate, signals)
            if math.isfinite(g):
                m.norm = min(g, 1e150)
            if has_loss and math.isfinite(x):
                self._point(step, x if -HUGE < x < HUGE else math.copysign(HUGE, x), signals)
        return signals

    def mark(self, step: int) -> None:
        """The course begins anew, its start stays: progress is that of the run."""
        old = self._memory
        self._memory = Memory(
            first=old.first,
            error=old.error,
            early_peak=old.early_peak,
            lr=old.lr,
            lr_peak=old.lr_peak,
            collapse=old.collapse if old.open == "halted" else None,
            open=old.open,
            level=old.level,
        )

    def acted(self, step: int) -> None:
        """An action gets the time that a run gets, and an LR that it cuts is no collapse."""
        self.mark(step)

    def state(self) -> dict[str, Any]:
        return to_state(self._memory)

    def restore(self, state: dict[str, Any]) -> None:
        self._memory = from_state(state, Memory)

    def _take(self, step: I8, loss: Column, norm: Column, lr: Column, signals: list[Signal]) -> bool:
        """Take many points at once, from one judgement to the next; whether it did."""
        m = self._memory
        if len(step) < BATCH or m.collapse is not None or m.seen < 50 or math.isnan(m.first):
            return False
        known = lr.values[np.isfinite(lr.values)]
        if len(known) and not m.recent.extend(known):
            return False
        norms = _held(np.where(np.isfinite(norm.values), np.minimum(norm.values, 1e150), np.nan), m.norm)
        rates = _held(np.where(np.isfinite(lr.values), lr.values, np.nan), m.lr)
        peaks = np.maximum.accumulate(np.concatenate(([m.lr_peak], rates)))[1:].tolist()
        rows = np.flatnonzero(loss.logged & np.isfinite(loss.values))
        x, g, r = np.clip(loss.values[rows], -HUGE, HUGE).tolist(), norms[rows].tolist(), rates[rows].tolist()
        at = 0
        while at < len(x):
            stop = min(at + m.losses.room, len(x))
            m.norms.extend(g[at:stop])
            m.rates.extend(r[at:stop])
            m.seen += stop - at
            if m.losses.extend(x[at:stop]) and m.seen >= WINDOW:
                row = rows[stop - 1]
                m.norm, m.lr, m.lr_peak = g[stop - 1], r[stop - 1], peaks[row]
                self._judge(int(step[row]), signals)
            at = stop
        m.norm, m.lr, m.lr_peak = float(norms[-1]), float(rates[-1]), peaks[-1]
        return True

    def _rate(self, step: int, rate: float, signals: list[Signal]) -> None:
        m = self._memory
        m.lr = rate
        m.lr_peak = max(m.lr_peak, rate)
        former = m.recent.held_before(rate)
        if m.collapse is None and former:
            m.collapse = collapse(step, former, m.seen, m.losses)
        elif m.collapse is not None and m.collapse.back(rate):
            if m.open == "halted":
                m.open = ""
                signals.append(_over("halted", step, f"the LR is back at {rate:.3g}", {"lr": rate}))
            m.collapse = None

    def _point(self, step: int, x: float, signals: list[Signal]) -> None:
        m = self._memory
        m.seen += 1
        if math.isnan(m.first):
            m.start.append(x)
            if len(m.start) == START:
                m.first = start_of(m.start)
                m.error = min(start_error(m.start), abs(m.first))
        if m.seen <= 50:
            m.early_peak = max(m.early_peak, x)
        m.norms.add(m.norm)
        m.rates.add(m.lr)
        if m.collapse is not None:
            m.collapse.since.add(x)
        if m.losses.add(x) and m.seen >= WINDOW:
            self._judge(step, signals)

    def _judge(self, step: int, signals: list[Signal]) -> None:
        m = self._memory
        window = max(WINDOW, m.seen // 2)
        medians = m.losses.last(window, GROUPS)
        if not medians:
            return
        first, now = m.first, median(medians[-4:])
        course = Course(
            window=window,
            medians=medians,
            now=now,
            won=max(first - min(m.losses.means), STUCK * abs(first)),
            drop=median(medians[:4]) - now,
            progress=(first - now) / abs(first) if first else 0.0,
        )
        found: State = ""
        if m.open in ("", "flat", "converged") and m.collapse is not None and m.collapse.halted():
            found = "halted"
        elif not m.open:
            found = self._found(course)
        elif self._falls_again(course):
            signals.append(_over(m.open, step, "the loss falls again", self._evidence(course)))
            m.open = ""
        if found:
            m.open, m.level = found, now
            signals.append(self._signal(found, step, self._evidence(course)))

    def _falls_again(self, course: Course) -> bool:
        m = self._memory
        if m.open == "stuck":
            return course.progress >= 1.5 * STUCK
        least = DROP * course.won
        return course.now < m.level - 2 * least and course.drop >= least and course.slope < FALL

    def _found(self, course: Course) -> State:
        """What a run shows in which nothing was found so far."""
        m = self._memory
        found: State = ""
        m.flat += 1
        error = math.hypot(m.error, _deviation(course.medians[-8:]) / 2) / abs(m.first or 1)
        if course.progress + 2 * error < STUCK:
            flat = m.seen >= STUCK_AFTER and (course.progress <= 0 or course.slope >= FALL)
            found = "stuck" if flat and not self._starting(course.window) else ""
        elif course.progress >= STUCK and abs(course.drop) < DROP * course.won and abs(course.slope) <= -FALL:
            found = "converged" if self._finished(course.progress) else "flat"
        if not found:
            m.flat = 0
        elif found == "converged" and m.flat < CONFIRMED:
            found = ""
        return found

    def _evidence(self, course: Course) -> dict[str, float | int | str]:
        m = self._memory
        return {
            "window": course.window,
            "progress": course.progress,
            "drop": course.drop,
            "mann_kendall": course.slope,
            "early_peak_over_start": m.early_peak / m.first if m.first else math.nan,
        }

    def _starting(self, window: int) -> bool:
        """Whether the run is about to start: its gradient grows, or its LR still warms up."""
        m = self._memory
        norms = m.norms.last(window, GROUPS)
        grows = trend(norms) > GROWTH and median(norms[-4:]) > 1.15 * median(norms[:4])
        rates = m.rates.last(window, GROUPS)
        return grows or rates[-1] > 1.1 * rates[0]

    def _finished(self, progress: float) -> bool:
        """Whether a flat loss is the end of the run: a schedule that ended, or nothing left to win."""
        m = self._memory
        if m.collapse is not None:
            return False
        return progress >= SOLVED or not m.lr > FINISHED * m.lr_peak

    def _signal(self, found: State, step: int, evidence: dict[str, float | int | str]) -> Signal:
        m = self._memory
        progress, onset = float(evidence["progress"]), step
        if (cut := m.collapse) is not None:
            factor = cut.former / m.lr if m.lr else math.inf
            evidence = {**evidence, "lr_cut": factor, "lr_cut_step": cut.step}
        if found == "stuck":
            text = f"no progress: {m.level:.4g} after {m.seen} points, {progress:.1%} below the start"
        elif found == "halted" and cut is not None:
            onset = cut.step
            text = f"the loss stopped falling when the LR fell from {cut.former:.3g} to {m.lr:.3g} at once"
            evidence = {**evidence, "pace_before": cut.pace, "pace_since": cut.pace_since}
        else:
            window = evidence["window"]
            text = f"the loss is flat at {m.level:.4g} for {window} points, {progress:.0%} below its start"
        return Signal(
            kind=_kind(found),
            step=step,
            onset_step=onset,
            severity=_severity(found),
            summary=text,
            evidence=evidence,
        )


def _kind(found: State) -> Kind:
    return "converged" if found == "converged" else "plateau"


def _severity(found: State) -> Severity:
    return "warning" if found in ("stuck", "halted") else "info"


def _over(found: State, step: int, text: str, evidence: dict[str, float | int | str]) -> Signal:
    return Signal(
        kind=_kind(found),
        step=step,
        onset_step=step,
        severity=_severity(found),
        summary=text,
        over=True,
        evidence=evidence,
    )


def _deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def _held(values: npt.NDArray[np.float64], before: float) -> npt.NDArray[np.float64]:
    """NaN takes the value before it."""
    whole = np.concatenate(([before], values))
    known = np.maximum.accumulate(np.where(np.isnan(whole), 0, np.arange(len(whole))))
    return whole[known][1:]
