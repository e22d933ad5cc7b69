"""All detectors over one run: points in, findings out."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from optwatch.detect.base import Concerned, Detector, Signal
from optwatch.detect.causes import causes_of
from optwatch.detect.clip_saturated import ClipSaturated
from optwatch.detect.divergence import Divergence
from optwatch.detect.evidence import Evidence
from optwatch.detect.held_gradient import HeldGradient
from optwatch.detect.lint import lint
from optwatch.detect.loss_scale import LossScale
from optwatch.detect.non_finite import NonFinite
from optwatch.detect.oscillation import Oscillation
from optwatch.detect.overfitting import Overfitting
from optwatch.detect.plateau import Plateau
from optwatch.detect.regain import Regain
from optwatch.detect.remedies import remedies_for
from optwatch.detect.sensitivity import Sensitivity
from optwatch.detect.tensors import Tensors
from optwatch.detect.vanishing import Vanishing
from optwatch.series.points import Column, Points, Samples
from optwatch.wire.findings import ALARMS, SEVERITIES, Finding, Kind
from optwatch.wire.messages import OptimizerInfo

VERSION = 6
"""Of the state: one of another version is not restored."""

DETECTORS: tuple[type[Detector], ...] = (
    NonFinite,
    Divergence,
    Regain,
    Oscillation,
    Plateau,
    Overfitting,
    Vanishing,
    Tensors,
    HeldGradient,
    ClipSaturated,
    LossScale,
    Sensitivity,
)

TOLD_BY: dict[Kind, frozenset[Kind]] = {
    "slow_divergence": frozenset({"divergence", "loss_spike", "oscillation"}),
    "divergence": frozenset({"non_finite"}),
    "loss_spike": frozenset({"non_finite"}),
    "epsilon_dominated": frozenset({"dead_parameters", "vanishing_gradient"}),
}
"""Kinds that are not reported while an alarm of these kinds is open."""

OF_THE_COURSE: frozenset[Kind] = frozenset(
    {"divergence", "slow_divergence", "loss_spike", "oscillation", "plateau"}
)
"""Kinds that say of a loss that it does not fall: no alarms where it need not."""

MARK = "mark"
"""A planned change that is no action."""
MAX_PLANNED = 100
"""Planned changes that wait for their step."""

MAX_FINDINGS = 1_000
"""Findings kept per run; once there are so many, only those already open change."""

PART = 1_024
"""Points that the detectors are given at a time, so that the evidence for causes stays small."""
EARLY = 64
"""Points of a segment that they are given first: these they take one by one, what follows at once."""

WARM_RESTART = 1.5
"""An LR that rises by this factor, within what the run has used before, is a planned change."""


class Panel:
    """Every detector over one run. `update` gives the findings that are new or changed.

    The cut of the points into chunks makes no difference: a planned change that the columns show (an LR
    that returns to a height it had before: a warm restart) splits a chunk where it happens.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self._detectors: tuple[Detector, ...] = tuple(kind() for kind in DETECTORS)
        self._evidence = Evidence()
        self._may_rise = ""
        """Why the loss need not fall while all is well."""
        self._findings: list[Finding] = []
        self._open: dict[str, int] = {}
        self._planned: list[tuple[int, str]] = []
        self._step = -1
        self._lr = math.nan
        self._lr_top = 0.0

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings so far, in the order of their ids."""
        return tuple(self._findings)

    def update(self, points: Points) -> list[Finding]:
        """Take the next points of the run; the findings that they open, change or resolve."""
        with np.errstate(all="ignore"):  # overflow and division by zero are what detectors are for
            return self._update(points)

    def _update(self, points: Points) -> list[Finding]:
        changed: dict[int, Finding] = {}
        for part, changes in self._parts(points):
            for change in changes:
                self._begin(int(part.step[0]), change)
            self._evidence.update(part)
            signals = [
                (signal, detector.name) for detector in self._detectors for signal in detector.update(part)
            ]
            # A stable sort: at one step, in the order of the detectors.
            for signal, name in sorted(signals, key=lambda pair: pair[0].step):
                if (finding := self._take(signal, name)) is not None:
                    changed[finding.id] = finding
        return list(changed.values())

    def setup(self, optimizers: Sequence[OptimizerInfo]) -> list[Finding]:
        """Look over the optimizers as they are set up. The same hint is given once."""
        self._evidence.setup(optimizers)
        self._may_rise = optimizers[0].loss_may_rise if optimizers else ""
        hints = [hint for hint in lint(optimizers) if f"lint/{hint.key}" not in self._open]
        return [finding for hint in hints if (finding := self._take(hint, "lint")) is not None]

    def observe(self, signal: Signal, observer: str) -> list[Finding]:
        """Take what somebody else has seen, who knows more of the run than its points."""
        return [finding] if (finding := self._take(signal, observer)) is not None else []

    def opened(self, observer: str) -> dict[str, Finding]:
        """The findings of an observer that are not over, by the key of its signals."""
        prefix = f"{observer}/"
        return {
            key.removeprefix(prefix): self._findings[number - 1]
            for key, number in self._open.items()
            if key.startswith(prefix)
        }

    def mark(self, step: int) -> None:
        """A planned change at `step`: every detector begins a new segment there.

        A mark may come before the points up to its step do; it waits for them.
        """
        self._plan(step, MARK)

    def acted(self, step: int, action: str) -> None:
        """An action was applied at `step`. It may come before the points up to its step do, too.

        A rollback is a planned change. After any other, only the detectors that it concerns judge anew: a
        plateau gives the action its time, and a divergence is over once the loss falls steadily from where
        the action found it. All else is judged as before, so that an action that does harm is found out.
        """
        self._plan(step, action)

    def _plan(self, step: int, change: str) -> None:
        if step <= self._step:
            self._begin(step, change)
        else:
            self._planned = sorted({*self._planned, (step, change)})[-MAX_PLANNED:]

    def _begin(self, step: int, change: str) -> None:
        for detector in self._detectors:
            if change in (MARK, "rollback"):
                detector.mark(step)
            if change != MARK and isinstance(detector, Concerned):
                detector.acted(step)

    def state(self) -> dict[str, Any]:
        """Everything `restore` needs, as plain values."""
        return {
            "version": VERSION,
            "run": self.run,
            "lr": [self._lr, self._lr_top],
            "planned": list(self._planned),
            "step": self._step,
            "evidence": self._evidence.state(),
            "may_rise": self._may_rise,
            "findings": [msgspec.to_builtins(finding) for finding in self._findings],
            "open": dict(self._open),
            "detectors": {detector.name: detector.state() for detector in self._detectors},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`.

        Raises:
            ValueError: it is none, or one of another version.
        """
        if state.get("version") != VERSION:
            raise ValueError(f"a panel's state of version {state.get('version')!r}, not {VERSION}")
        try:
            self._findings = msgspec.convert(state["findings"], list[Finding])
            self._open = msgspec.convert(state["open"], dict[str, int])
            self._lr, self._lr_top = msgspec.convert(state["lr"], tuple[float, float])
            self._planned = msgspec.convert(state["planned"], list[tuple[int, str]])
            self._step = msgspec.convert(state["step"], int)
            self._evidence.restore(state["evidence"])
            self._may_rise = str(state["may_rise"])
            for detector in self._detectors:
                detector.restore(state["detectors"][detector.name])
        except (KeyError, TypeError, msgspec.ValidationError) as error:
            raise ValueError(f"not a panel's state: {error}") from None

    def _take(self, signal: Signal, detector: str) -> Finding | None:
        """The finding that a signal opens, changes or resolves."""
        key = f"{detector}/{signal.key}"
        opened = self._open.get(key)
        if opened is None:
            if signal.over or self._is_told(signal) or len(self._findings) >= MAX_FINDINGS:
                return None
            number = len(self._findings) + 1
            self._open[key] = number
        else:
            number = opened
        before = self._findings[number - 1] if opened is not None else None
        severity, summary, evidence = signal.severity, signal.summary, dict(signal.evidence)
        if unheard := self._may_rise and signal.kind in OF_THE_COURSE:
            severity = "watch"
            summary += "" if signal.over else f" (no alarm: {self._may_rise}, where the loss need not fall)"
        if before is not None and signal.over:
            summary, evidence = f"{before.summary}; {summary}", {**before.evidence, **evidence}
        elif before is not None:
            severity = max(severity, before.severity, key=SEVERITIES.index)
        also = {self._findings[other - 1].kind for other in self._open.values() if other != number}
        if before is not None and signal.over:
            causes, remedies = before.causes, before.remedies
        elif unheard:
            causes, remedies = (), ()
        else:
            causes = causes_of(signal, self._evidence, also)
            remedies = remedies_for(signal, causes, self._evidence)
        finding = Finding(
            run=self.run,
            id=number,
            kind=signal.kind,
            severity=severity,
            step=before.step if before is not None and before.severity == severity else signal.step,
            onset_step=min(signal.onset_step, before.onset_step) if before else signal.onset_step,
            summary=summary,
            rank=signal.rank,
            tensor=signal.tensor,
            group=signal.group,
            evidence=evidence,
            causes=causes,
            remedies=remedies,
            resolved_step=signal.step if signal.over else None,
        )
        if signal.over:
            del self._open[key]
        if before is None:
            self._findings.append(finding)
        else:
            self._findings[number - 1] = finding
        return finding

    def _is_told(self, signal: Signal) -> bool:
        """Whether an open alarm says it already: a loss that diverged has lost its progress, too."""
        told = TOLD_BY.get(signal.kind, frozenset())
        return any(
            finding.kind in told and (finding.severity in ALARMS or bool(self._may_rise))
            for finding in (self._findings[number - 1] for number in self._open.values())
        )

    def _parts(self, points: Points) -> list[tuple[Points, list[str]]]:
        """The points, cut at planned changes and where the LR returns to a height that it had before."""
        lr = points.column("lr")
        where = np.flatnonzero(lr.logged & np.isfinite(lr.values) & (lr.values > 0))
        changes: dict[int, list[str]] = {}
        if len(where):
            values = lr.values[where]
            former = np.concatenate(([self._lr], values[:-1]))
            top = np.maximum.accumulate(np.concatenate(([self._lr_top], values)))
            risen = (values > WARM_RESTART * former) & (values <= 1.05 * top[:-1])
            changes = {start: [MARK] for start in where[risen].tolist()}
            self._lr, self._lr_top = float(values[-1]), float(top[-1])
        begins = [0] if self._step < 0 else []
        if len(points):
            self._step = int(points.step[-1])
            due = [(step, change) for step, change in self._planned if step <= self._step]
            self._planned = self._planned[len(due) :]
            for step, change in due:
                changes.setdefault(int(np.searchsorted(points.step, step)), []).append(change)
        early = {min(begin + EARLY, len(points)) for begin in (*begins, *changes)}
        cuts = sorted({*range(0, len(points), PART), *changes, *early, len(points)})
        return [(part(points, start, stop), changes.get(start, [])) for start, stop in pairwise(cuts)]


def part(points: Points, start: int, stop: int) -> Points:
    """The points from `start` up to `stop`, with the samples of their steps."""
    if start == 0 and stop == len(points):
        return points
    step = points.step[start:stop]
    samples = points.samples
    if samples is not None:
        # Samples before the first point belong to the first part, those after the last to the last.
        low = step[0] if start else np.iinfo(np.int64).min
        high = step[-1] if stop < len(points) else np.iinfo(np.int64).max
        keep = (samples.step >= low) & (samples.step <= high)
        samples = Samples(
            step=samples.step[keep],
            names=samples.names,
            numel=samples.numel,
            stats={name: block[keep] for name, block in samples.stats.items()},
            counts={name: block[keep] for name, block in samples.counts.items()},
        )
    columns = {
        name: Column(column.values[start:stop], column.logged[start:stop])
        for name, column in points.columns.items()
    }
    wall = None if points.wall is None else points.wall[start:stop]
    return Points(step=step, columns=columns, wall=wall, samples=samples)
