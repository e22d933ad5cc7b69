"""Which charts a run has, and what each of them shows of a snapshot. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from optwatch.wire.findings import ALARMS
from optwatch_tui import formats
from optwatch_tui.history import F8, I8
from optwatch_tui.look import Extent, Look, Places, Smoothing, nearest, smoothed
from optwatch_tui.model import Snapshot


@dataclass(frozen=True, eq=False)
class Line:
    """One line of a chart: n points, `step` [n] not decreasing, `value` f8[n].

    `low` and `high`, f8[n]: a range that is drawn behind it. `raw`: its values where `value` is smoothed.
    `sign`: a character on it that tells it apart.
    """

    label: str
    role: str
    step: Places
    value: F8
    dashed: bool = False
    low: F8 | None = None
    high: F8 | None = None
    raw: F8 | None = None
    sign: str = ""

    def at(self, place: float) -> tuple[float, float] | None:
        """The lowest and the highest of the values nearest to a place, as they were measured."""
        near = nearest(self.step, place)
        if near is None:
            return None
        first, last = np.searchsorted(self.step, near), np.searchsorted(self.step, near, side="right")
        values = (self.value if self.raw is None else self.raw)[int(first) : int(last)]
        return float(values.min()), float(values.max())


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step, and what it was."""

    step: float
    glyph: str
    role: str
    text: str


@dataclass(frozen=True, eq=False)
class Picture:
    """Everything that a chart draws. `lines`: the most important first; `seconds`: what the axis counts."""

    title: str
    lines: tuple[Line, ...]
    level: tuple[str, float] | None
    marks: tuple[Mark, ...]
    first: float
    last: float
    log: bool
    cursor: float | None = None
    smoothing: Smoothing = "off"
    seconds: bool = False


@dataclass(frozen=True)
class ChartSpec:
    """A kind of chart. `log`: the axis at first, None: chosen by the values. `smooth`: whether it may be."""

    key: str
    title: str
    lines: Callable[[Snapshot], tuple[Line, ...]]
    log: bool | None
    level: Callable[[Snapshot], tuple[str, float] | None] = lambda snapshot: None
    smooth: bool = True


def extent(snapshot: Snapshot) -> Extent:
    """The first and the newest step of a run."""
    steps = snapshot.columns.step
    return (float(steps[0]), float(steps[-1])) if len(steps) else (0.0, 1.0)


def picture(spec: ChartSpec, snapshot: Snapshot, look: Look, log: bool | None) -> Picture:
    """What a chart shows now; `log` None: as the chart's kind or its values ask for."""
    lines = tuple(line for line in spec.lines(snapshot) if len(line.step))
    first, last = look.window.edges(extent(snapshot))
    chosen = spec.log if log is None else log
    return Picture(
        title=spec.title,
        lines=smooth(lines, look.smoothing, (first, last)) if spec.smooth else lines,
        level=spec.level(snapshot),
        marks=marks(snapshot),
        first=first,
        last=last,
        log=wants_log(lines) if chosen is None else chosen,
        cursor=look.cursor,
        smoothing=look.smoothing if spec.smooth else "off",
    )


def smooth(lines: tuple[Line, ...], smoothing: Smoothing, view: Extent) -> tuple[Line, ...]:
    """The same lines, those that are dense enough smoothed, each of these with what it was."""
    if smoothing == "off":
        return lines
    out = []
    for line in lines:
        value = smoothed(line.step, line.value, view, smoothing)
        out.append(line if value is line.value else replace(line, value=value, raw=line.value))
    return tuple(out)


def marks(snapshot: Snapshot) -> tuple[Mark, ...]:
    """Alarms at their onset, applied actions and the user's marks."""
    found = [
        Mark(f.onset_step, "▲" if f.severity == "warning" else "✖", f.severity, f"{f.kind}: {f.summary}")
        for f in snapshot.findings
        if f.severity in ALARMS
    ]
    acted = [
        Mark(
            c.step, "✓", "ok", f"{formats.command(c)}{'' if c.outcome is None else f': {c.outcome.verdict}'}"
        )
        for c in snapshot.commands
        if c.step is not None
    ]
    noted = [Mark(m.step, "◆", "third", m.text) for m in snapshot.markers if m.kind == "mark"]
    return (*noted, *acted, *found)  # the last one is seen where several fall into one cell


def marks_near(given: Sequence[Mark], place: float, within: float) -> list[Mark]:
    """Those at most `within` from a place, the nearest first."""
    near = [mark for mark in given if abs(mark.step - place) <= within]
    return sorted(near, key=lambda mark: abs(mark.step - place))


def wants_log(lines: tuple[Line, ...]) -> bool:
    """Whether to take a logarithmic axis: a few large values would flatten all the rest, none is negative."""
    values = np.concatenate([line.value for line in lines]) if lines else np.empty(0)
    values = values[np.isfinite(values)]
    if not len(values) or values.min() < 0:
        return False
    middle = np.median(values)
    return bool(middle > 0 and values.max() > 20 * middle)


def _loss(snapshot: Snapshot) -> tuple[Line, ...]:
    columns = snapshot.columns
    return (
        Line("", "first", *columns.column("loss")),
        Line("val", "second", *columns.column("val_loss"), dashed=True),
    )


def _grad_norm(snapshot: Snapshot) -> tuple[Line, ...]:
    columns = snapshot.columns
    return (
        Line("", "first", *columns.column("grad_norm")),
        Line("unclipped", "second", *columns.column("grad_norm_raw"), dashed=True),
    )


def _clip(snapshot: Snapshot) -> tuple[str, float] | None:
    return None if snapshot.status.clip is None else ("clip", snapshot.status.clip)


def _lr(snapshot: Snapshot) -> tuple[Line, ...]:
    columns = snapshot.columns
    step, scheduled = columns.column("lr")
    if "lr_scale" not in columns.names or not len(step):
        return (Line("", "first", step, scheduled),)
    rows = columns.logged[:, columns.names.index("lr")]
    scale = columns.filled("lr_scale", 1.0)[rows]
    return (
        Line("", "first", step, scheduled * scale),
        Line("scheduled", "second", step, scheduled, dashed=True),
    )


def _update_ratio(snapshot: Snapshot) -> tuple[Line, ...]:
    columns = snapshot.columns
    update, param = columns.filled("update_norm", np.nan), columns.filled("param_norm", np.nan)
    there = ~np.isnan(update) & ~np.isnan(param)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = update[there] / param[there]
    return (Line("", "first", columns.step[there], ratio),)


def _moments(snapshot: Snapshot) -> tuple[Line, ...]:
    first = snapshot.moments.column("exp_avg_rms")
    step, second = snapshot.moments.column("exp_avg_sq_mean")
    return (
        Line("1st", "first", *first),
        Line("√2nd", "second", step, np.sqrt(np.maximum(second, 0.0)), dashed=True),
    )


def _rms_t(snapshot: Snapshot) -> tuple[Line, ...]:
    return (Line("", "first", *snapshot.moments.column("rms_t")),)


def _step_time(snapshot: Snapshot) -> tuple[Line, ...]:
    step, seconds = snapshot.columns.column("step_time")
    return (Line("", "first", step, seconds * 1000),)


CHARTS: tuple[ChartSpec, ...] = (
    ChartSpec("loss", "loss", _loss, None),
    ChartSpec("grad_norm", "grad norm", _grad_norm, True, _clip),
    ChartSpec("lr", "lr", _lr, False, smooth=False),
    ChartSpec("update_ratio", "update/param", _update_ratio, True),
    ChartSpec("moments", "moments rms", _moments, True),
    ChartSpec("step_time", "step ms", _step_time, None),
    ChartSpec("rms_t", "RMS_t", _rms_t, None),
)


_CHARTED = frozenset(
    {
        "loss",
        "val_loss",
        "grad_norm",
        "grad_norm_raw",
        "lr",
        "lr_scale",
        "update_norm",
        "param_norm",
        "step_time",
    }
)
"""Columns that `CHARTS` show."""
MOST_COLUMNS = 64


def column_charts(names: Sequence[str]) -> tuple[ChartSpec, ...]:
    """A chart for each further column that was logged, such as an accuracy; at most `MOST_COLUMNS`."""

    def spec(name: str) -> ChartSpec:
        return ChartSpec(
            name, name, lambda snapshot: (Line("", "first", *snapshot.columns.column(name)),), None
        )

    further = [name for name in names if name not in _CHARTED]
    return tuple(spec(name) for name in further[:MOST_COLUMNS])


def tensor_charts(name: str) -> tuple[ChartSpec, ...]:
    """The charts of one tensor."""

    def stat(snapshot: Snapshot, key: str) -> tuple[I8, F8]:
        samples = snapshot.samples
        names = [tensor.name for tensor in samples.tensors]
        if name not in names:
            return samples.step[:0], np.empty(0)
        values = samples.stat(key)[:, names.index(name)].astype(np.float64)
        there = ~np.isnan(values)
        return samples.step[there], values[there]

    def spread(snapshot: Snapshot, label: str, middle: str, low: str, high: str) -> Line:
        """A statistic with the range of its elements behind it, where all three were measured."""
        step, value = stat(snapshot, middle)
        ends = []
        for end in (low, high):
            at, values = stat(snapshot, end)
            full = np.full(len(step), np.nan)
            _, mine, its = np.intersect1d(step, at, return_indices=True)
            full[mine] = values[its]
            ends.append(full)
        return Line(label, "first", step, value, low=ends[0], high=ends[1])

    def gradient(snapshot: Snapshot) -> tuple[Line, ...]:
        return (
            spread(snapshot, "rms", "grad_rms", "grad_rms", "grad_max"),
            Line("max", "second", *stat(snapshot, "grad_max"), dashed=True),
        )

    def second_moment(snapshot: Snapshot) -> tuple[Line, ...]:
        return (
            spread(snapshot, "mean", "exp_avg_sq_mean", "exp_avg_sq_min", "exp_avg_sq_max"),
            Line("max", "second", *stat(snapshot, "exp_avg_sq_max"), dashed=True),
            Line("min", "third", *stat(snapshot, "exp_avg_sq_min"), dashed=True),
        )

    def shares(snapshot: Snapshot) -> tuple[Line, ...]:
        samples = snapshot.samples
        names = [tensor.name for tensor in samples.tensors]
        quiet = Line("under ε", "first", *stat(snapshot, "eps_share"))
        if name not in names or "grad_zeros" not in samples.counts:
            return (quiet,)
        at = names.index(name)
        zeros = samples.count_values[:, at, samples.counts.index("grad_zeros")].astype(np.float64)
        measured = ~np.isnan(samples.stat("grad_rms")[:, at])
        share = zeros[measured] / max(samples.numel()[at], 1.0)
        return (quiet, Line("zero gradient", "second", samples.step[measured], share, dashed=True))

    def ratio(snapshot: Snapshot) -> tuple[Line, ...]:
        step, update = stat(snapshot, "update_rms")
        param_step, param = stat(snapshot, "param_rms")
        both, at, param_at = np.intersect1d(step, param_step, return_indices=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (Line("", "first", both, update[at] / param[param_at]),)

    def moments(snapshot: Snapshot) -> tuple[Line, ...]:
        step, second = stat(snapshot, "exp_avg_sq_mean")
        return (
            Line("1st", "first", *stat(snapshot, "exp_avg_rms")),
            Line("√2nd", "second", step, np.sqrt(second), dashed=True),
        )

    def rms_t(snapshot: Snapshot) -> tuple[Line, ...]:
        return (Line("", "first", *stat(snapshot, "rms_t")),)

    return (
        ChartSpec("gradient", "gradient", gradient, True),
        ChartSpec("ratio", "update/param", ratio, True),
        ChartSpec("second", "2nd moment", second_moment, True),
        ChartSpec("tensor_moments", "moments rms", moments, True),
        ChartSpec("tensor_rms_t", "RMS_t", rms_t, None),
        ChartSpec("shares", "share of elements", shares, False),
    )
