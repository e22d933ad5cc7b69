"""Which charts a run has, and what each of them shows of a snapshot. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from optwatch.wire.findings import ALARMS
from optwatch_tui.history import F8, I8
from optwatch_tui.model import Snapshot


@dataclass(frozen=True, eq=False)
class Line:
    """One line of a chart: n points, `step` i8[n] not decreasing, `value` f8[n]."""

    label: str
    role: str
    step: I8
    value: F8
    dashed: bool = False


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step."""

    step: int
    glyph: str
    role: str


@dataclass(frozen=True, eq=False)
class Picture:
    """Everything that a chart draws. `lines`: the most important first."""

    title: str
    lines: tuple[Line, ...]
    level: tuple[str, float] | None
    marks: tuple[Mark, ...]
    first: float
    last: float
    log: bool


@dataclass(frozen=True)
class Window:
    """The steps that are looked at: the whole run, or `span` steps that end `back` before its newest."""

    span: float | None = None
    back: float = 0.0

    def edges(self, snapshot: Snapshot) -> tuple[float, float]:
        steps = snapshot.columns.step
        first, last = (float(steps[0]), float(steps[-1])) if len(steps) else (0.0, 1.0)
        if self.span is None:
            # Some room to grow into: the picture stands still while the line moves on.
            whole = max(last - first, 20.0)
            grain = 10 ** np.floor(np.log10(whole)) / 4
            return first, float(first + np.ceil(whole * 1.005 / grain) * grain)
        return last - self.back - self.span, last - self.back

    def zoomed(self, factor: float, snapshot: Snapshot) -> "Window":
        """Half or twice the steps, with the newest in view kept at the right edge."""
        steps = snapshot.columns.step
        whole = float(steps[-1] - steps[0]) if len(steps) else 1.0
        span = (self.span or whole) * factor
        if span >= whole:
            return Window()
        return Window(max(span, 10.0), min(self.back, max(0.0, whole - span)))

    @classmethod
    def around(cls, step: int, snapshot: Snapshot) -> "Window":
        """A tenth of the run, or 100 steps at least, with a step in its middle."""
        steps = snapshot.columns.step
        if not len(steps):
            return cls()
        whole = float(steps[-1] - steps[0])
        span = max(whole / 10, 100.0)
        if span >= whole:
            return cls()
        return cls(span, min(max(0.0, float(steps[-1]) - step - span / 2), whole - span))

    def panned(self, share: float, snapshot: Snapshot) -> "Window":
        """Moved by a share of its span, within the run."""
        steps = snapshot.columns.step
        if self.span is None or not len(steps):
            return self
        most = max(0.0, float(steps[-1] - steps[0]) - self.span)
        return Window(self.span, min(max(0.0, self.back - share * self.span), most))


@dataclass(frozen=True)
class ChartSpec:
    """A kind of chart. `log`: the axis at first, None to choose by the values."""

    key: str
    title: str
    lines: Callable[[Snapshot], tuple[Line, ...]]
    log: bool | None
    level: Callable[[Snapshot], tuple[str, float] | None] = lambda snapshot: None


def picture(spec: ChartSpec, snapshot: Snapshot, window: Window, log: bool | None) -> Picture:
    """What a chart shows now; `log` None: as the chart's kind or its values ask for."""
    lines = tuple(line for line in spec.lines(snapshot) if len(line.step))
    first, last = window.edges(snapshot)
    chosen = spec.log if log is None else log
    return Picture(
        title=spec.title,
        lines=lines,
        level=spec.level(snapshot),
        marks=marks(snapshot),
        first=first,
        last=last,
        log=_wants_log(lines) if chosen is None else chosen,
    )


def marks(snapshot: Snapshot) -> tuple[Mark, ...]:
    """Alarms at their onset, applied actions and the user's marks."""
    found = [
        Mark(f.onset_step, "▲" if f.severity == "warning" else "✖", f.severity)
        for f in snapshot.findings
        if f.severity in ALARMS
    ]
    acted = [Mark(c.step, "✓", "ok") for c in snapshot.commands if c.step is not None]
    noted = [Mark(m.step, "◆", "third") for m in snapshot.markers if m.kind == "mark"]
    return (*noted, *acted, *found)  # the last one is seen where several fall into one cell


def _wants_log(lines: tuple[Line, ...]) -> bool:
    """Nowhere negative, and a few large values would flatten all the rest."""
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
    ChartSpec("lr", "lr", _lr, False),
    ChartSpec("update_ratio", "update/param", _update_ratio, True),
    ChartSpec("moments", "moments rms", _moments, True),
    ChartSpec("step_time", "step ms", _step_time, None),
    ChartSpec("rms_t", "RMS_t", _rms_t, None),
)


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

    def gradient(snapshot: Snapshot) -> tuple[Line, ...]:
        return (
            Line("rms", "first", *stat(snapshot, "grad_rms")),
            Line("max", "second", *stat(snapshot, "grad_max"), dashed=True),
        )

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
        ChartSpec("tensor_moments", "moments rms", moments, True),
        ChartSpec("tensor_rms_t", "RMS_t", rms_t, None),
    )
