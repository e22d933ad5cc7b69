"""Several runs over one another: their lines, aligned by step or by time, and where they differ. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from optwatch.wire.findings import ALARMS, Finding
from optwatch.wire.requests import RunStatus
from optwatch_tui import charts, formats
from optwatch_tui.charts import Line, Mark, Picture
from optwatch_tui.history import F8, Columns
from optwatch_tui.look import Extent, Look
from optwatch_tui.rows import Item, Row

MOST = 8
"""Runs that can be told apart."""
Alignment = Literal["step", "time"]
CHARTS: tuple[tuple[str, str, bool | None], ...] = (
    ("loss", "loss", None),
    ("val_loss", "val loss", None),
    ("grad_norm", "grad norm", True),
    ("lr", "lr", False),
)
"""Column, title, and whether the axis is logarithmic at first (None: by the values)."""


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """One of the runs."""

    status: RunStatus
    columns: Columns
    findings: tuple[Finding, ...]

    def places(self, align: Alignment) -> F8:
        """Where its rows lie on the axis, f8[n]: steps, or seconds of training since its first step.

        Time is the sum of the step times, so that a pause between two parts of a run does not count.
        """
        step: F8 = self.columns.step.astype(np.float64)
        if align == "step" or not len(step):
            return step
        seconds = self.columns.filled("step_time", np.nan)
        known = np.isfinite(seconds)
        if not known.any():
            seconds, known = np.ones(len(step)), np.ones(len(step), dtype=np.bool_)
        seconds = np.interp(step, step[known], seconds[known])
        # Reduced history has pairs of rows at one step, the shortest and the longest: their mean counts.
        at, place = np.unique(step, return_inverse=True)
        mean = np.bincount(place, seconds) / np.bincount(place)
        passed: F8 = np.cumsum(np.diff(at, prepend=at[0] - 1) * mean)
        where: F8 = passed[place]
        return where


def extent(runs: Sequence[ComparedRun], align: Alignment) -> Extent | None:
    """From the first to the last place of any of them."""
    ends = [places[[0, -1]] for run in runs if len(places := run.places(align))]
    if not ends:
        return None
    return float(min(first for first, _ in ends)), float(max(last for _, last in ends))


def picture(
    chart: tuple[str, str, bool | None],
    runs: Sequence[ComparedRun],
    align: Alignment,
    look: Look,
    log: bool | None,
) -> Picture:
    """One column of all of them."""
    column, title, logarithmic = chart
    lines = []
    for at, run in enumerate(runs):
        if column in run.columns.names:
            rows = run.columns.logged[:, run.columns.names.index(column)]
            values = run.columns.column(column)[1]
            if column == "lr":
                values = values * run.columns.filled("lr_scale", 1.0)[rows]
            lines.append(Line(f"{at + 1}", f"run{at}", run.places(align)[rows], values, sign=f"{at + 1}"))
    shown = tuple(line for line in lines if len(line.step))
    first, last = look.window.edges(extent(runs, align) or (0.0, 1.0))
    chosen = logarithmic if log is None else log
    return Picture(
        title=title,
        lines=charts.smooth(shown, look.smoothing, (first, last)) if column != "lr" else shown,
        level=None,
        marks=marks(runs, align),
        first=first,
        last=last,
        log=charts.wants_log(shown) if chosen is None else chosen,
        cursor=look.cursor,
        smoothing=look.smoothing if column != "lr" else "off",
        seconds=align == "time",
    )


def marks(runs: Sequence[ComparedRun], align: Alignment) -> tuple[Mark, ...]:
    """The alarms of all of them at their onset."""
    out = []
    for at, run in enumerate(runs):
        for finding in run.findings:
            if finding.severity in ALARMS and len(run.columns.step):
                place = float(np.interp(finding.onset_step, run.columns.step, run.places(align)))
                glyph = "▲" if finding.severity == "warning" else "✖"
                text = f"{at + 1} {run.status.name}: {finding.kind}: {finding.summary}"
                out.append(Mark(place, glyph, finding.severity, text))
    return tuple(out)


def settings(run: ComparedRun) -> dict[str, str]:
    """Everything that was chosen for a run: its configuration and the options of its optimizers."""
    chosen = {name: _shown(value) for name, value in run.status.config.items()}
    for optimizer in run.status.optimizers:
        chosen[f"{optimizer.name}"] = optimizer.kind
        for at, group in enumerate(optimizer.groups):
            place = f"{optimizer.name}[{at}]" if len(optimizer.groups) > 1 else optimizer.name
            chosen |= {f"{place}.{name}": _shown(value) for name, value in group.options.items()}
    return chosen


def differences(runs: Sequence[ComparedRun]) -> list[tuple[str, tuple[str, ...]]]:
    """The settings that are not the same in all of them: name, and the value in each (–: none)."""
    all_of_them = [settings(run) for run in runs]
    names = sorted({name for chosen in all_of_them for name in chosen})
    table = [(name, tuple(chosen.get(name, "–") for chosen in all_of_them)) for name in names]
    return [(name, values) for name, values in table if len(set(values)) > 1]


def table(runs: Sequence[ComparedRun], width: int) -> list[Item]:
    """A line for each fact, a column for each run: state, step, losses, then the settings that differ."""
    if not runs:
        return []
    label = min(24, max(12, width // 4))
    cell = max(6, (width - label - 2) // len(runs))

    def item(name: str, values: Sequence[str], role: str) -> Item:
        cells: Row = tuple((f" {formats.plain(value)[: cell - 1]:<{cell - 1}}", role) for value in values)
        return Item(name, (((f" {formats.plain(name)[: label - 1]:<{label}}", "muted"), *cells),))

    names: Row = tuple(
        (f" {at + 1} {_end_of(run.status.name, cell - 4):<{cell - 3}}", f"run{at}")
        for at, run in enumerate(runs)
    )
    best = [run.columns.column("loss")[1] for run in runs]
    items = [
        Item("run", (((f" {'run':<{label}}", "muted"), *names),)),
        item("id", [run.status.run[:8] for run in runs], "muted"),
        item("state", [run.status.state for run in runs], "text"),
        item("step", [formats.count(run.status.step) for run in runs], "text"),
        item("loss", [formats.number(run.status.loss) for run in runs], "value"),
        item(
            "lowest loss",
            [formats.number(float(np.nanmin(v)) if np.isfinite(v).any() else None) for v in best],
            "value",
        ),
    ]
    if "val_loss" in {name for run in runs for name in run.columns.names}:
        items.append(
            item("val loss", [formats.number(run.columns.last("val_loss")) for run in runs], "value")
        )
    items.append(item("findings", [_worst(run) for run in runs], "text"))
    return [*items, *(item(name, values, "text") for name, values in differences(runs))]


def _end_of(name: str, room: int) -> str:
    """A name that fits; the runs of a sweep begin alike."""
    name = formats.plain(name)
    return name if len(name) <= room else "…" + name[len(name) - room + 1 :]


def _worst(run: ComparedRun) -> str:
    alarms = [finding for finding in run.findings if finding.severity in ALARMS]
    return f"{len(alarms)}: {alarms[-1].kind}" if alarms else "–"


def _shown(value: object) -> str:
    return formats.setting(float(value)) if type(value) is float else str(value)
