"""A run as TensorBoard shows it: scalars, charts, findings and commands, histograms, hyper-parameters."""

import math
import re
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from optwatch.export.names import (
    CHARTS,
    GRADIENTS,
    LOG2_GRADIENTS,
    MARKERS,
    ON_LOSS,
    OUTCOME,
    WHOLE_MODEL,
    column_tag,
    derived,
    sample_scalars,
    tensor_scalars,
)
from optwatch.export.spreads import log2_buckets, value_buckets
from optwatch.export.text import command_text, finding_text
from optwatch.series.points import Points, Samples
from optwatch.wire.actions import Command
from optwatch.wire.findings import ALARMS, SEVERITIES, Finding
from optwatch.wire.messages import ConfigValue, OptimizerInfo

MOST_HPARAMS = 200
"""More hyper-parameters than this make a table that nobody can read."""
MOST_ON_LOSS = 100
"""Markers on the curve of the loss: each is a series of its own."""
LEVEL = 200
"""Steps before a marker whose median loss is its height."""
KEPT_LOSSES = 65_536
"""Losses that are remembered, to place a marker on their curve."""


class ExportError(Exception):
    """Why nothing can be written: one sentence for the user."""


class RunWriter:
    """Writes one run into its own directory; going on with an earlier one adds nothing twice.

    That is `<name>-<first 8 characters of the run's id>` under `directory`, and below that `rank_<rank>` for
    what one rank alone has measured. Each step is one event with
    all its values and the agent's wall time; a value that was not logged is left out, one that was logged
    as non-finite stays so. With `tensors`, each tensor's statistics and histograms are written too.
    """

    def __init__(
        self, directory: Path, run: str, name: str, *, rank: int | None = None, tensors: bool = False
    ) -> None:
        """Open the run's directory.

        Raises:
            ExportError: the package `tensorboard` is missing, or the directory cannot be written.
        """
        try:
            from optwatch.export import events
        except ModuleNotFoundError:
            raise ExportError(
                "TensorBoard files need their extra: pip install 'optwatch[tensorboard]'"
            ) from None
        self._events = events
        self._run = run
        self._tensors = tensors
        self.path = directory / run_directory(run, name)
        if rank is not None:
            self.path /= f"rank_{rank}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._written = events.read_written(self.path, (MARKERS, OUTCOME))
            self._writer = events.open_writer(self.path)
        except OSError as error:
            raise ExportError(f"cannot write TensorBoard files to {self.path}: {error.strerror}") from None
        self._wall = time.time()
        """The agent's clock at the last step, for what has no time of its own."""
        self._losses: OrderedDict[int, float] = OrderedDict()
        """The last finite losses by step."""
        self._last_loss: float | None = None
        self._on_loss = {tag for tag, _ in self._written.marks if tag.startswith(ON_LOSS)}
        self._findings: dict[int, Finding] = {}
        self._commands: dict[str, Command] = {}
        if rank is None and events.LAYOUT_TAG not in self._written.tags:
            self._writer.add_event(events.layout_event(self._wall, CHARTS))

    @property
    def last(self) -> int:
        """The last step that the directory holds, -1 for none."""
        return self._written.last

    @property
    def spread(self) -> int:
        """The last step of which the directory holds histograms, -1 for none."""
        return self._written.spread

    def points(self, points: Points) -> None:
        """Write the next points; steps that the directory already holds are passed over."""
        self._remember(points)
        new = points.step > self._written.last
        if not new.any():
            return
        columns: dict[str, tuple[Any, Any]] = {
            column_tag(name): (column.values, column.logged) for name, column in points.columns.items()
        }
        columns |= {tag: (values, ~np.isnan(values)) for tag, values in derived(points).items()}
        chosen = np.flatnonzero(new)
        tags = list(columns)
        values = [column[chosen].tolist() for column, _ in columns.values()]
        logged = [known[chosen].tolist() for _, known in columns.values()]
        steps = points.step[chosen].tolist()
        walls = [time.time()] * len(steps) if points.wall is None else points.wall[chosen].tolist()
        extra = self._samples(points.samples) if points.samples is not None else {}
        for row, (step, wall) in enumerate(zip(steps, walls, strict=True)):
            event = [
                (tag, column[row])
                for tag, column, known in zip(tags, values, logged, strict=True)
                if known[row]
            ]
            event += extra.get(step, ())
            if event:
                self._writer.add_event(self._events.scalars_event(step, wall, event))
        self._written.last, self._wall = steps[-1], walls[-1]

    def histograms(self, step: int, names: Sequence[str], counts: npt.NDArray[np.unsignedinteger]) -> None:
        """Write how the gradients were spread at a step: counts u8[T, WIDTH] of `wire.histograms`."""
        if step <= self._written.spread:
            return
        rows = [(WHOLE_MODEL, counts.sum(axis=0, dtype=np.uint64))]
        rows += zip(names, counts, strict=True) if self._tensors else []
        values = []
        for name, row in rows:
            values.append((GRADIENTS + name, value_buckets(row)))
            values.append((LOG2_GRADIENTS + name, log2_buckets(row)))
        values = [(tag, buckets) for tag, buckets in values if len(buckets)]
        if values:
            self._written.spread = step
            self._writer.add_event(self._events.histograms_event(step, self._wall, values))

    def finding(self, finding: Finding) -> None:
        """Write a finding as it stands now, a marker of its severity (0 watch … 3 critical), and one beside
        the loss where it began."""
        self._findings[finding.id] = finding
        name = f"{finding.id}_{finding.kind}"
        severity = float(SEVERITIES.index(finding.severity))
        self._mark(f"{MARKERS}finding/{finding.kind}", finding.step, severity)
        self._mark_loss(f"{ON_LOSS}finding_{name}", finding.onset_step)
        self._text(f"findings/{name}", finding.resolved_step or finding.step, finding_text(finding))

    def command(self, command: Command) -> None:
        """Write a command as it stands now, and markers at the step of its effect."""
        self._commands[command.id] = command
        name = f"{command.id}_{command.action}"
        if command.step is not None:
            self._mark(f"{MARKERS}command/{command.action}", command.step, 1.0)
            self._mark_loss(f"{ON_LOSS}command_{name}", command.step)
        self._text(f"commands/{name}", command.step or max(self._written.last, 0), command_text(command))

    def end(self) -> None:
        """Write what the run came to: metrics beside its hyper-parameters, and whether it ended well."""
        step = max(self._written.last, 0)
        severities = [finding.severity for finding in self._findings.values()]
        outcome = {
            "steps": float(step),
            "alarms": float(sum(severity in ALARMS for severity in severities)),
            "critical_findings": float(severities.count("critical")),
            "commands_applied": float(sum(c.step is not None for c in self._commands.values())),
        }
        if self._last_loss is not None:
            outcome["loss"] = self._last_loss
        new = [(OUTCOME + name, value) for name, value in outcome.items()]
        new = [(tag, value) for tag, value in new if (tag, step) not in self._written.marks]
        if not new:
            return
        self._written.marks |= {(tag, step) for tag, _ in new}
        self._writer.add_event(self._events.scalars_event(step, self._wall, new))
        if self._events.END_TAG not in self._written.tags:
            self._written.tags.add(self._events.END_TAG)
            well = self._last_loss is None or math.isfinite(self._last_loss)
            self._writer.add_event(self._events.end_event(step, self._wall, well))

    def hparams(self, config: Mapping[str, ConfigValue], optimizers: Sequence[OptimizerInfo]) -> None:
        """Write the run's configuration and its optimizers' options, once a directory."""
        values = hyper_parameters(config, optimizers)
        if not values or self._events.HPARAMS_TAG in self._written.tags:
            return
        self._written.tags.add(self._events.HPARAMS_TAG)
        self._writer.add_event(self._events.hparams_event(self._wall, values, trial=self._run))

    def flush(self) -> None:
        """Put on disk what was written so far."""
        self._writer.flush()

    def close(self) -> None:
        """Put everything on disk and close the file."""
        self._writer.close()

    def _samples(self, samples: Samples) -> dict[int, list[tuple[str, float]]]:
        """The values of each sampled step."""
        columns = sample_scalars(samples) | (tensor_scalars(samples) if self._tensors else {})
        return {
            step: [(tag, float(values[row])) for tag, values in columns.items() if not np.isnan(values[row])]
            for row, step in enumerate(samples.step.tolist())
        }

    def _remember(self, points: Points) -> None:
        loss = points.column("loss")
        for step, value in zip(
            points.step[loss.logged].tolist(), loss.values[loss.logged].tolist(), strict=True
        ):
            self._last_loss = value
            if math.isfinite(value):
                self._losses[step] = value
        while len(self._losses) > KEPT_LOSSES:
            self._losses.popitem(last=False)

    def _mark_loss(self, tag: str, step: int) -> None:
        """A marker at the level that the loss had before a step: TensorBoard cuts off what leaves that."""
        known = [self._losses[at] for at in range(step - LEVEL, step) if at in self._losses]
        known = known or [self._losses[at] for at in (step,) if at in self._losses]
        if not known or (tag not in self._on_loss and len(self._on_loss) >= MOST_ON_LOSS):
            return
        self._on_loss.add(tag)
        self._mark(tag, step, median(known))

    def _mark(self, tag: str, step: int, value: float) -> None:
        if (tag, step) not in self._written.marks:
            self._written.marks.add((tag, step))
            self._writer.add_event(self._events.scalars_event(step, self._wall, [(tag, value)]))

    def _text(self, tag: str, step: int, text: str) -> None:
        if self._written.texts.get(tag) != text:
            self._written.texts[tag] = text
            self._writer.add_event(self._events.text_event(step, self._wall, tag, text))


def run_directory(run: str, name: str) -> str:
    """The name of a run's directory: its own name in plain characters, and enough of its id."""
    plain, number = (re.sub(r"[^A-Za-z0-9._=+-]+", "-", text).strip(".-") for text in (name, run[:8]))
    return f"{plain[:100] or 'run'}-{number}"


def hyper_parameters(
    config: Mapping[str, ConfigValue], optimizers: Sequence[OptimizerInfo]
) -> dict[str, str | float | bool]:
    """The configuration, and each optimizer's kind and options (of a further group where they differ)."""
    found: dict[str, ConfigValue] = dict(config)
    for number, optimizer in enumerate(optimizers):
        prefix = "optimizer" if len(optimizers) == 1 else f"optimizer_{optimizer.name or number}"
        found[prefix] = optimizer.kind
        first = optimizer.groups[0].options if optimizer.groups else {}
        for index, group in enumerate(optimizer.groups):
            for option, value in group.options.items():
                if index == 0:
                    found[f"{prefix}/{option}"] = value
                elif value != first.get(option):
                    found[f"{prefix}/{option}/{index}"] = value
    return {name: value for name, value in list(found.items())[:MOST_HPARAMS] if value is not None}
