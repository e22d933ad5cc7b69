"""A run as a figure for notebooks and papers: what the terminal UI shows of it, drawn by matplotlib.

`optwatch.plot("digits")` reads from the daemon that runs, else from this user's store.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from optwatch.wire.actions import Command
from optwatch.wire.findings import ALARMS, Finding
from optwatch.wire.places import state_dir

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

F8 = npt.NDArray[np.float64]

_COLOURS = {"critical": "#d62728", "warning": "#e08a00", "action": "#2a8f3c"}
_NAMED = 12
"""Findings and actions, each, that are named in the figure's legend."""


class Watched(Protocol):
    """What `optwatch.attach` returns."""

    @property
    def run(self) -> str: ...


@dataclass(frozen=True)
class Story:
    """A run as it is drawn. `step` i8[n]; each of `columns` f8[n], NaN where nothing was logged."""

    title: str
    step: npt.NDArray[np.int64]
    columns: dict[str, F8]
    findings: Sequence[Finding]
    commands: Sequence[Command]

    def column(self, name: str) -> F8:
        return self.columns.get(name, np.full(len(self.step), np.nan))


def plot(
    run: str | Watched,
    *,
    daemon: str | None = None,
    store: str | PathLike[str] | None = None,
    points: int = 2_000,
) -> "Figure":
    """Draw a run: loss, gradient norm, learning rate, update ratio, with what was found and done in it.

    Args:
        run: its name (the newest run of it), the beginning of its id, or what `attach` returned.
        daemon: the daemon's address, by default the one that runs here.
        store: the directory of a store to read instead; by default this user's, where no daemon answers.
        points: about how many steps are drawn; the extremes of what lies between are kept.

    Raises:
        LookupError: there is no such run, and those that there are are named; or no daemon and no store.
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "optwatch.plot needs matplotlib, which is not installed here: pip install 'optwatch[plot]'",
            name=error.name,
        ) from None
    wanted = run if isinstance(run, str) else run.run
    return draw(_stored(Path(store), wanted, points) if store is not None else _known(daemon, wanted, points))


def draw(story: Story) -> "Figure":
    """The figure of a story, of four charts over one axis of steps."""
    figure = _figure()
    loss, norm, lr, ratio = figure.subplots(4, 1, sharex=True, height_ratios=(3, 2, 1, 1.4))
    _line(loss, story, story.column("loss"), "loss")
    _line(loss, story, story.column("val_loss"), "val_loss", second=True)
    _line(norm, story, story.column("grad_norm"), "grad norm")
    _line(norm, story, story.column("grad_norm_raw"), "before the script's clipping", second=True)
    _line(norm, story, story.column("clip"), "clipped to", second=True)
    scheduled, scale = story.column("lr"), story.column("lr_scale")
    _line(lr, story, scheduled * np.where(np.isnan(scale), 1.0, scale), "learning rate")
    if np.isfinite(scale).any():
        _line(lr, story, scheduled, "as scheduled", second=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        _line(ratio, story, story.column("update_norm") / story.column("param_norm"), "update / parameters")
    for axes, label in ((loss, "loss"), (norm, "grad norm"), (lr, "lr"), (ratio, "update/param")):
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        _choose_scale(axes)
    for finding in story.findings:
        if finding.severity in ALARMS:
            _mark(figure, finding.onset_step, finding.severity)
    for command in story.commands:
        if command.step is not None:
            _mark(figure, command.step, "action")
    for axes in (loss, norm, lr):
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(loc="best", fontsize="small")
    ratio.set_xlabel("step")
    figure.suptitle(story.title)
    if text := _told(story):
        figure.supxlabel(text, x=0.01, ha="left", fontsize="small", family="monospace")
    return figure


def _figure() -> "Figure":
    from matplotlib.figure import Figure

    class RunFigure(Figure):
        """A figure that a notebook shows by itself, whether pyplot is there or not."""

        def _repr_png_(self) -> bytes:
            held = io.BytesIO()
            self.savefig(held, format="png")
            return held.getvalue()

    return RunFigure(figsize=(9, 8), layout="constrained")


def _line(axes: "Axes", story: Story, values: F8, label: str, second: bool = False) -> None:
    there = np.isfinite(values)
    if there.any():
        style: dict[str, Any] = {"color": "C1", "linestyle": "--"} if second else {"color": "C0"}
        dots = "." if there.sum() <= 40 else None  # sampled now and then
        axes.plot(story.step[there], values[there], label=label, linewidth=1.2, marker=dots, **style)


def _choose_scale(axes: "Axes") -> None:
    """A logarithmic axis where a few large values would flatten the rest."""
    lines = [np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()]
    values = np.concatenate(lines) if lines else np.empty(0)
    if len(values) and values.min() > 0 and values.max() > 20 * np.median(values):
        axes.set_yscale("log")


def _mark(figure: "Figure", step: int, kind: str) -> None:
    for axes in figure.axes:
        axes.axvline(step, color=_COLOURS[kind], linestyle="-" if kind == "action" else ":", linewidth=1.2)


def _told(story: Story) -> str:
    """The newest alarms and actions, a line each, in order of step."""
    alarms = [f for f in story.findings if f.severity in ALARMS][-_NAMED:]
    applied = [c for c in story.commands if c.step is not None][-_NAMED:]
    lines = [(f.onset_step, f"step {f.onset_step}  {f.severity} {f.kind}: {f.summary}") for f in alarms]
    for command in applied:
        args = "".join(f" {name}={value}" for name, value in command.args.items())
        verdict = f": {command.outcome.verdict}" if command.outcome is not None else ""
        lines.append((command.step or 0, f"step {command.step}  {command.action}{args}{verdict}"))
    # A dollar sign would begin mathematics.
    return "\n".join(line[:120].replace("$", r"\$") for _, line in sorted(lines))


def _known(daemon: str | None, wanted: str, points: int) -> Story:
    """From the daemon, else from this user's store."""
    from optwatch.client import Client, DaemonUnreachable, Refusal
    from optwatch.client.several import daemon_of

    try:
        client = Client(daemon_of(wanted, daemon))
    except DaemonUnreachable as error:
        directory = state_dir()
        if daemon is not None or not directory.exists():
            raise LookupError(str(error)) from None
        return _stored(directory, wanted, points)
    with client:
        try:
            view, blocks, _ = client.view(wanted, points)
        except Refusal as error:
            raise LookupError(error.reason) from None
    columns = {
        name: np.where(blocks.logged[:, at] != 0, blocks.values[:, at], np.nan)
        for at, name in enumerate(view.series.columns)
    }
    return Story(view.status.name, blocks.step, columns, view.findings, view.commands)


def _stored(directory: Path, wanted: str, points: int) -> Story:
    from optwatch.cli.archive import Archive
    from optwatch.cli.errors import Wrong
    from optwatch.series.timeline import Timeline

    try:
        archive = Archive(directory)
        head = archive.find(wanted)
    except Wrong as error:
        raise LookupError(str(error)) from None
    timeline = Timeline()
    for part in archive.history.sampled_points(head.run, 0):
        timeline.append(part)
    step, values, logged = timeline.window(None, None, timeline.columns, points)
    columns = {
        name: np.where(logged[:, at], values[:, at], np.nan) for at, name in enumerate(timeline.columns)
    }
    return Story(head.name, step, columns, archive.findings(head.run), archive.commands(head.run))
