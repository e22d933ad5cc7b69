"""Mirrors: runs of other tools, which the script has open, as tellers of what optwatch finds in it.

| name | what it is |
| --- | --- |
| `optwatch/COLUMN` | the newest value of each chosen column of the series (`optwatch/grad_norm`) |
| `optwatch/global_step` | its step (W&B, Trackio; MLflow's own step is it) |
| `optwatch/alarms` | findings of severity warning or critical so far |
| `optwatch/actions` | actions that were applied so far |
| `optwatch/ledger` | findings and applied actions as text, the newest `MOST_LINES` |

No library is imported here that the script has not imported itself.
"""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from optwatch.wire.actions import Command
from optwatch.wire.findings import ALARMS, Finding
from optwatch.wire.limits import MAX_TEXT
from optwatch.wire.messages import News
from optwatch_agent.mirroring import Mirror

SCALARS = ("loss", "grad_norm", "grad_norm_raw", "update_norm", "param_norm", "lr", "lr_scale")
"""Columns that are mirrored where none are named."""
MOST_LINES = 200
"""Lines of a ledger."""
MOST_ALERTS = 50
"""Alerts of one run, where the tool has alerts."""
_IN_FORCE = frozenset({"applied", "judged", "undone"})


def mirror_of(run: Any, columns: tuple[str, ...]) -> Mirror:
    """The mirror for a run of W&B, MLflow or Trackio, or for a function.

    Raises:
        TypeError: it is none of these.
    """
    packages = {kind.__module__.partition(".")[0] for kind in type(run).__mro__}
    if "wandb" in packages and hasattr(run, "define_metric"):
        return WandbMirror(run, columns)
    if "mlflow" in packages and (hasattr(run, "info") or hasattr(run, "log_batch")):
        return MlflowMirror(run, columns)
    if "trackio" in packages and hasattr(run, "log"):
        return TrackioMirror(run, columns)
    if callable(run) and not isinstance(run, type):
        return Listener(run)
    raise TypeError(f"a W&B, MLflow or Trackio run, or a function, not {type(run).__name__}")


class Listener:
    """A function that is called with each `Finding` and `Command`, anew whenever one has changed."""

    columns: tuple[str, ...] = ()

    def __init__(self, function: Callable[[Finding | Command], object]) -> None:
        self._function = function

    def __str__(self) -> str:
        return f"the mirror {getattr(self._function, '__qualname__', self._function)}"

    def take(self, news: News) -> None:
        for finding in news.findings:
            self._function(finding)
        for command in news.commands:
            self._function(command)


class Ledger:
    """Findings and applied actions of a run as they stand, counted and written down."""

    def __init__(self) -> None:
        self._findings: dict[int, Finding] = {}
        self._commands: dict[str, Command] = {}

    def take(self, news: News) -> tuple[list[Finding], list[Command]]:
        """Take news in: the findings that have become alarms with it, and the actions that were applied."""
        alarms = [f for f in news.findings if _is_alarm(f) and not _is_alarm(self._findings.get(f.id))]
        applied = [c for c in news.commands if _is_applied(c) and not _is_applied(self._commands.get(c.id))]
        self._findings.update((finding.id, finding) for finding in news.findings)
        self._commands.update((command.id, command) for command in news.commands)
        return alarms, applied

    def counts(self) -> dict[str, float]:
        return {
            "optwatch/alarms": float(sum(map(_is_alarm, self._findings.values()))),
            "optwatch/actions": float(sum(map(_is_applied, self._commands.values()))),
        }

    def text(self) -> str:
        """A line each, in order of step."""
        lines = [(f.step, finding_line(f)) for f in self._findings.values()]
        lines += [(c.step or 0, action_line(c)) for c in self._commands.values() if _is_applied(c)]
        return "\n".join(line for _, line in sorted(lines)[-MOST_LINES:])


class WandbMirror:
    """A run of Weights & Biases.

    Nothing is committed: values wait for the script's own next `run.log`, or its `finish`, so that the run's
    step is the script's alone. Alarms are alerts too.
    """

    def __init__(self, run: Any, columns: tuple[str, ...]) -> None:
        self.columns = columns
        self._run = run
        self._ledger = Ledger()
        self._alerts = 0
        run.define_metric("optwatch/global_step", hidden=True)
        run.define_metric("optwatch/*", step_metric="optwatch/global_step")

    def __str__(self) -> str:
        return "mirroring to W&B"

    def take(self, news: News) -> None:
        alarms, applied = self._ledger.take(news)
        if values := _newest(news, self.columns):
            self._run.log(values | self._ledger.counts(), commit=False)
        if news.findings or applied:
            self._run.summary["optwatch/ledger"] = self._ledger.text()
        for finding in alarms:
            self._alerts += 1
            if self._alerts <= MOST_ALERTS:
                level = "ERROR" if finding.severity == "critical" else "WARN"
                self._run.alert(f"optwatch: {finding.kind}", finding_line(finding), level)


class MlflowMirror:
    """A run of MLflow: metrics at their global_step, and the artifact `optwatch/ledger.txt`."""

    def __init__(self, run: Any, columns: tuple[str, ...]) -> None:
        mlflow = sys.modules["mlflow"]
        if hasattr(run, "log_batch"):  # a client
            self._client, run = run, mlflow.active_run()
            if run is None:
                raise TypeError("an MLflow client with an active run, or the run itself")
        else:
            self._client = mlflow.MlflowClient(tracking_uri=mlflow.get_tracking_uri())
        self.columns = columns
        self._id = run.info.run_id
        self._metric = mlflow.entities.Metric
        self._ledger = Ledger()

    def __str__(self) -> str:
        return "mirroring to MLflow"

    def take(self, news: News) -> None:
        _, applied = self._ledger.take(news)
        now = int(time.time() * 1_000)
        metrics = [
            self._metric(_mlflow_name(name), value, now, step)
            for step, name, value in _logged(news, self.columns)
        ]
        if (step := _last_step(news)) is not None:
            metrics += [self._metric(name, count, now, step) for name, count in self._ledger.counts().items()]
        for start in range(0, len(metrics), 1_000):  # the most that MLflow takes at once
            self._client.log_batch(self._id, metrics=metrics[start : start + 1_000])
        if news.findings or applied:
            self._client.log_text(self._id, self._ledger.text() + "\n", "optwatch/ledger.txt")


class TrackioMirror:
    """A run of Trackio: rows beside those of the script's last step, and alerts."""

    def __init__(self, run: Any, columns: tuple[str, ...]) -> None:
        self.columns = columns
        self._run = run
        self._ledger = Ledger()
        self._alerts = 0

    def __str__(self) -> str:
        return "mirroring to Trackio"

    def take(self, news: News) -> None:
        alarms, applied = self._ledger.take(news)
        # `log` would move the run's own step on: with the last one that it has given it stays as it is.
        step = max(getattr(self._run, "_next_step", 0) - 1, 0)
        if values := _newest(news, self.columns):
            self._run.log(values | self._ledger.counts(), step=step)
        levels = sys.modules["trackio"].AlertLevel
        told = [(f"optwatch: {f.kind}", finding_line(f), _trackio_level(levels, f)) for f in alarms]
        told += [(f"optwatch: {c.action}", action_line(c), levels.INFO) for c in applied]
        for title, text, level in told:
            self._alerts += 1
            if self._alerts <= MOST_ALERTS:
                self._run.alert(title, text, level, step=step)


def finding_line(finding: Finding) -> str:
    """A finding on one line, with its likely causes."""
    causes = ", ".join(f"{cause.cause} {cause.weight:.1f}" for cause in finding.causes)
    over = "" if finding.resolved_step is None else f", over at step {finding.resolved_step}"
    line = f"step {finding.step}: {finding.severity} {finding.kind}{over}: {finding.summary}"
    return f"{line} (cause: {causes})"[:MAX_TEXT] if causes else line[:MAX_TEXT]


def action_line(command: Command) -> str:
    """An applied action on one line."""
    args = "".join(f" {name}={value}" for name, value in command.args.items())
    outcome = f", {command.outcome.verdict}" if command.outcome is not None else ""
    state = "" if command.state != "undone" else ", undone"
    return f"step {command.step}: {command.action}{args}, asked by {command.asked_by}{outcome}{state}"[
        :MAX_TEXT
    ]


def _logged(news: News, columns: tuple[str, ...]) -> Iterator[tuple[int, str, float]]:
    """The step, the name and the value of all that was logged in these columns."""
    for step, row in zip(news.steps, news.values, strict=True):
        for name, value in zip(news.columns, row, strict=True):
            if value is not None and name in columns:
                yield step, f"optwatch/{name}", value


def _newest(news: News, columns: tuple[str, ...]) -> dict[str, Any]:
    """The last value of each column, and the step of the last row or, without rows, of what was found."""
    values: dict[str, Any] = {name: value for _, name, value in _logged(news, columns)}
    if (step := _last_step(news)) is not None:
        values["optwatch/global_step"] = step
    return values


def _last_step(news: News) -> int | None:
    steps = [*news.steps, *(f.step for f in news.findings)]
    steps += [command.step for command in news.commands if command.step is not None]
    return max(steps, default=None)


def _mlflow_name(name: str) -> str:
    """A name that MLflow takes."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)


def _trackio_level(levels: Any, finding: Finding) -> Any:
    return levels.ERROR if finding.severity == "critical" else levels.WARN


def _is_alarm(finding: Finding | None) -> bool:
    return finding is not None and finding.severity in ALARMS


def _is_applied(command: Command | None) -> bool:
    return command is not None and command.state in _IN_FORCE and command.step is not None
