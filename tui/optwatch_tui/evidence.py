"""Which chart shows what a finding, or an action, is about. Pure."""

import numpy as np

from optwatch.wire.actions import Command
from optwatch.wire.findings import Finding
from optwatch_tui import charts
from optwatch_tui.charts import CHARTS, ChartSpec, Line, Picture, tensor_charts
from optwatch_tui.look import Look, Window
from optwatch_tui.model import Snapshot

_COLUMNS = {
    "exploding_gradient": "grad_norm",
    "clip_saturated": "grad_norm",
    "vanishing_gradient": "grad_norm",
    "stale_second_moment": "moments",
    "epsilon_dominated": "moments",
    "dead_parameters": "update_ratio",
    "misconfigured_optimizer": "lr",
    "straggler": "step_time",
    "stalled_rank": "step_time",
}
"""The chart of a run that shows a kind of finding; the loss shows all others."""


def _loss_scale(snapshot: Snapshot) -> tuple[Line, ...]:
    return (Line("", "first", *snapshot.columns.column("loss_scale")),)


def chart_of(finding: Finding, snapshot: Snapshot) -> ChartSpec:
    """The chart of the column concerned: the tensor's own where it was sampled."""
    if finding.kind == "loss_scale_collapse" and "loss_scale" in snapshot.columns.names:
        return ChartSpec("loss_scale", "loss scale", _loss_scale, True)
    if finding.tensor is not None and any(t.name == finding.tensor for t in snapshot.samples.tensors):
        at = 2 if finding.kind in ("stale_second_moment", "epsilon_dominated") else 0
        return tensor_charts(finding.tensor)[at]
    wanted = _COLUMNS.get(finding.kind, "loss")
    if finding.kind == "divergence" and "loss" not in snapshot.columns.names:
        wanted = "grad_norm"
    return next(spec for spec in CHARTS if spec.key == wanted)


def finding_picture(finding: Finding, snapshot: Snapshot) -> Picture:
    """The column concerned around the onset."""
    spec = chart_of(finding, snapshot)
    return _around(spec, finding.onset_step, snapshot)


def command_picture(command: Command, snapshot: Snapshot) -> Picture:
    """What an action works on, around the step at which it was applied; the newest steps before that."""
    wanted = {"scale_lr": "lr", "clip": "grad_norm"}.get(command.action, "loss")
    if command.state == "judged":
        wanted = "loss"  # it was judged by the loss
    spec = next(each for each in CHARTS if each.key == wanted)
    step = command.step or command.due or snapshot.status.step
    return _around(spec, step, snapshot)


def _around(spec: ChartSpec, step: int, snapshot: Snapshot) -> Picture:
    window = Window.around(step, charts.extent(snapshot))
    return charts.picture(spec, snapshot, Look(window, cursor=float(step)), None)


def timeline(findings: tuple[Finding, ...], first: float, last: float, width: int) -> list[tuple[str, str]]:
    """One cell a column over the run: what was open then, the worst of it. Glyph and role each."""
    rank = {"watch": 1, "info": 2, "warning": 3, "critical": 4}
    worst = np.zeros(width, dtype=np.int64)
    starts: dict[int, str] = {}
    scale = (width - 1) / max(last - first, 1e-9)
    for finding in sorted(findings, key=lambda f: rank[f.severity]):
        end = last if finding.resolved_step is None else finding.resolved_step
        a, b = (
            int(np.clip(round((step - first) * scale), 0, width - 1)) for step in (finding.onset_step, end)
        )
        worst[a : b + 1] = np.maximum(worst[a : b + 1], rank[finding.severity])
        starts[a] = finding.severity
    roles = ("muted", "watch", "info", "warning", "critical")
    cells = [("━" if level else "─", roles[level]) for level in worst.tolist()]
    for at, severity in starts.items():
        cells[at] = ({"watch": "·", "info": "○", "warning": "▲", "critical": "✖"}[severity], severity)
    return cells
