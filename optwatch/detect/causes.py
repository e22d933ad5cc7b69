"""From a finding and what else the run shows to ranked causes and remedies."""

from collections.abc import Sequence
from typing import Any

import msgspec

from optwatch.detect.base import Signal
from optwatch.detect.memory import from_state, to_state
from optwatch.series.points import Points
from optwatch.wire.findings import Cause, Remedy
from optwatch.wire.messages import OptimizerInfo


class History(msgspec.Struct):
    seen: int = 0


class Evidence:
    """What the causes are judged by, over the last points of the run."""

    def __init__(self) -> None:
        self._history = History()

    def update(self, points: Points) -> None:
        self._history.seen += len(points)

    def setup(self, optimizers: Sequence[OptimizerInfo]) -> None:
        pass

    def acted(self, step: int, action: str) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return to_state(self._history)

    def restore(self, state: dict[str, Any]) -> None:
        self._history = from_state(state, History)


def explain(signal: Signal, evidence: Evidence) -> tuple[tuple[Cause, ...], tuple[Remedy, ...]]:
    """The causes of a signal, likeliest first, and what to do."""
    return signal.causes, signal.remedies
