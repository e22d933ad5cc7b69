"""A loss curve and a gradient norm in one line of text each, with the alarms under them."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from optwatch.series.points import Points
from optwatch.wire.findings import Finding

WIDTH = 64
LEVELS = "▁▂▃▄▅▆▇█"
GONE = "×"


class Sketch:
    """Collects the two columns; `lines` draws them, the greatest value of each part, on a log scale."""

    def __init__(self) -> None:
        self._steps: list[npt.NDArray[np.int64]] = []
        self._columns: dict[str, list[npt.NDArray[np.float64]]] = {"loss": [], "grad_norm": []}

    def add(self, points: Points) -> None:
        self._steps.append(points.step)
        for name, parts in self._columns.items():
            column = points.column(name)
            # What was logged as NaN is drawn as gone, what was not logged is left out.
            parts.append(np.where(column.logged & np.isnan(column.values), np.inf, column.values))

    def lines(self, alarms: Sequence[Finding]) -> list[str]:
        """One line a column that was logged, and one of marks where alarms began."""
        if not self._steps or not sum(map(len, self._steps)):
            return []
        steps = np.concatenate(self._steps)
        places = np.linspace(0, len(steps), min(WIDTH, len(steps)) + 1).astype(int)
        lines = []
        for name, parts in self._columns.items():
            values = np.concatenate(parts)
            if (~np.isnan(values)).any():
                known = values[np.isfinite(values)]
                span = f"{known.min():.4g} … {known.max():.4g}" if len(known) else "never finite"
                lines.append(f"{name:<9} {_bar(values, places)} {span}")
        marks = [" "] * (len(places) - 1)
        for finding in alarms:
            at = int(np.searchsorted(places, np.searchsorted(steps, finding.onset_step), "right")) - 1
            marks[min(max(at, 0), len(marks) - 1)] = "▲"
        if alarms:
            lines.append(f"{'':<9} {''.join(marks).rstrip()}")
        return lines


def _bar(values: npt.NDArray[np.float64], places: npt.NDArray[np.int64]) -> str:
    peaks = [_peak(values[start:stop]) for start, stop in pairwise(places.tolist())]
    known = [math.log(abs(peak) + 1e-12) for peak in peaks if math.isfinite(peak)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    text = ""
    for peak in peaks:
        if math.isnan(peak):
            text += " "
        elif math.isinf(peak):
            text += GONE
        else:
            share = (math.log(abs(peak) + 1e-12) - low) / (high - low) if high > low else 0.0
            text += LEVELS[min(int(share * len(LEVELS)), len(LEVELS) - 1)]
    return text


def _peak(values: npt.NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else math.nan
