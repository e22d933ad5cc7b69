"""A run as TensorBoard shows it: scalars, a layout of charts, findings and commands, hyper-parameters."""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optwatch.export.names import CHARTS, MARKERS, column_tag, derived, sample_scalars, tensor_scalars
from optwatch.export.text import command_text, finding_text
from optwatch.series.points import Points, Samples
from optwatch.wire.actions import Command
from optwatch.wire.findings import SEVERITIES, Finding
from optwatch.wire.messages import ConfigValue, OptimizerInfo

MOST_HPARAMS = 200
"""More hyper-parameters than this make a table that nobody can read."""


class ExportError(Exception):
    """Why nothing can be written: one sentence for the user."""


class RunWriter:
    """Writes one run into its own directory; going on with an earlier one adds nothing twice.

    That is `<name>-<first 8 characters of the run's id>` under `directory`. Each step is one event with
    all its values and the agent's wall time; a value that was not logged is left out, one that was logged
    as non-finite stays so. With `tensors`, each statistic of each tensor is written too.
    """

    def __init__(self, directory: Path, run: str, name: str, *, tensors: bool = False) -> None:
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
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._written = events.read_written(self.path, MARKERS)
            self._writer = events.open_writer(self.path)
        except OSError as error:
            raise ExportError(f"cannot write TensorBoard files to {self.path}: {error.strerror}") from None
        self._wall = time.time()
        """The agent's clock at the last step, for what has no time of its own."""
        if events.LAYOUT_TAG not in self._written.tags:
            self._writer.add_event(events.layout_event(self._wall, CHARTS))

    def points(self, points: Points) -> None:
        """Write the next points; steps that the directory already holds are passed over."""
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

    def finding(self, finding: Finding) -> None:
        """Write a finding as it stands now, and a marker of its severity (0 watch … 3 critical)."""
        severity = float(SEVERITIES.index(finding.severity))
        self._mark(f"{MARKERS}finding_severity", finding.step, severity)
        tag = f"findings/{finding.id}_{finding.kind}"
        self._text(tag, finding.resolved_step or finding.step, finding_text(finding))

    def command(self, command: Command) -> None:
        """Write a command as it stands now, and a marker at the step of its effect."""
        if command.step is not None:
            self._mark(f"{MARKERS}command_{command.action}", command.step, 1.0)
        tag = f"commands/{command.id}_{command.action}"
        self._text(tag, command.step or max(self._written.last, 0), command_text(command))

    def hparams(self, config: Mapping[str, ConfigValue], optimizers: Sequence[OptimizerInfo]) -> None:
        """Write the run's configuration and its optimizers' options, once a directory."""
        values = hyper_parameters(config, optimizers)
        event = self._events.hparams_event(self._wall, values, trial=self._run)
        if not values or event.summary.value[0].tag in self._written.tags:
            return
        self._written.tags.add(event.summary.value[0].tag)
        self._writer.add_event(event)

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
