"""What is known of one run: a view and the deltas after it, folded into frozen snapshots."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from optwatch.wire.actions import OPEN_STATES, Command
from optwatch.wire.findings import SEVERITIES, Finding
from optwatch.wire.frames import SeriesBlocks, TensorBlocks
from optwatch.wire.requests import Delta, Marker, RunStatus, Series, View
from optwatch_tui.history import ColumnHistory, Columns, SampleHistory, Samples

LinkState = Literal["connecting", "live", "lost"]


@dataclass(frozen=True)
class Link:
    """How the daemon is reached. `since`: unix seconds; `reason`: a sentence, why not."""

    state: LinkState
    address: str
    since: float
    reason: str = ""


@dataclass(frozen=True)
class Glance:
    """A run in few numbers: its loss from the beginning to now, and the step it is to end at."""

    loss: tuple[float, ...]
    planned: int | None


@dataclass(frozen=True)
class Snapshot:
    """Everything the screens show of a run, at one moment."""

    status: RunStatus
    findings: tuple[Finding, ...]
    """The newest first."""
    commands: tuple[Command, ...]
    """The newest first."""
    markers: tuple[Marker, ...]
    columns: Columns
    samples: Samples
    moments: Columns
    """`exp_avg_rms`, `exp_avg_sq_mean` and `rms_t` over all tensors, weighted by their elements."""

    @property
    def open_findings(self) -> tuple[Finding, ...]:
        """Those not over yet, the worst first, of equals the newest."""
        still = (finding for finding in self.findings if finding.resolved_step is None)
        return tuple(sorted(still, key=lambda f: -SEVERITIES.index(f.severity)))

    @property
    def proposals(self) -> tuple[Command, ...]:
        return tuple(command for command in self.commands if command.state == "proposed")

    @property
    def under_way(self) -> tuple[Command, ...]:
        """Sent, and not yet applied nor given up."""
        return tuple(c for c in self.commands if c.state in OPEN_STATES and c.state != "proposed")

    @property
    def undoable(self) -> Command | None:
        """The newest applied command that can be taken back: a restart cannot."""
        undone = {command.undo_of for command in self.commands if command.state in ("applied", "judged")}
        for command in self.commands:
            applied = command.state in ("applied", "judged") and command.undo_of is None
            if applied and command.action != "restart" and command.id not in undone:
                return command
        return None


class RunModel:
    """Folds what the daemon says of a run into snapshots. Belongs to the feed's thread."""

    def __init__(self, view: View, series: SeriesBlocks, tensors: TensorBlocks) -> None:
        self.seq = view.seq
        self._status = view.status
        self._findings = {finding.id: finding for finding in view.findings}
        self._commands = {command.id: command for command in view.commands}
        self._markers = list(view.markers)
        self._columns = ColumnHistory()
        self._samples = SampleHistory()
        self._moments = ColumnHistory()
        self._take(view, series, tensors)

    def update(self, delta: Delta, series: SeriesBlocks, tensors: TensorBlocks) -> bool:
        """Take the next delta. False: one is missing, and the view has to be asked for again."""
        if delta.seq <= self.seq:
            return True  # the view had it already
        if delta.seq != self.seq + 1:
            return False
        self.seq = delta.seq
        self._status = delta.status
        self._findings.update((finding.id, finding) for finding in delta.findings)
        self._commands.update((command.id, command) for command in delta.commands)
        self._markers.extend(delta.markers)
        self._take(delta, series, tensors)
        return True

    def snapshot(self) -> Snapshot:
        return Snapshot(
            status=self._status,
            findings=tuple(sorted(self._findings.values(), key=lambda f: f.id, reverse=True)),
            commands=tuple(sorted(self._commands.values(), key=_command_order, reverse=True)),
            markers=tuple(self._markers),
            columns=self._columns.columns(),
            samples=self._samples.samples(),
            moments=self._moments.columns(),
        )

    def _take(self, message: View | Delta, series: SeriesBlocks, tensors: TensorBlocks) -> None:
        self._columns.append(message.series, series)
        self._samples.append(message.tensors, tensors)
        if len(tensors.step) and message.tensors.tensors:
            names = message.tensors
            new = Samples(
                names.tensors, names.stats, names.counts, tensors.step, tensors.stats, tensors.counts
            )
            self._moments.append(Series(columns=_MOMENTS, reduced=False), _moments(new))


_MOMENTS = ("exp_avg_rms", "exp_avg_sq_mean", "rms_t")


def _moments(samples: Samples) -> SeriesBlocks:
    """Root mean square of the first moment and of RMS_t, mean of the second, over all elements."""
    numel = samples.numel()
    columns = []
    for name in _MOMENTS:
        values = samples.stat(name).astype(np.float64)
        power = 1.0 if name == "exp_avg_sq_mean" else 2.0
        there = ~np.isnan(values)
        weight = np.where(there, numel, 0.0)
        total = weight.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (np.where(there, values, 0.0) ** power * weight).sum(axis=1) / total
        columns.append(mean ** (1 / power))
    stacked = np.stack(columns, axis=1)
    return SeriesBlocks(step=samples.step, values=stacked, logged=(~np.isnan(stacked)).astype(np.uint8))


def _command_order(command: Command) -> tuple[int, str]:
    return (int(command.id), "") if command.id.isdecimal() else (1 << 62, command.id)
