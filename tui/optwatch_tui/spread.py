"""How the gradient of one tensor was spread over the powers of two, as a grid over time. Pure."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from optwatch.wire.histograms import LEAST, NONFINITE, POWERS, ZEROS
from optwatch_tui.history import F8, I8
from optwatch_tui.look import Extent

MOST = 512
"""Histograms that are kept of one tensor."""


@dataclass(frozen=True, eq=False)
class Spread:
    """Histograms of one tensor of a run: `counts` u8[h, WIDTH] (see `wire.histograms`) at `step` i8[h]."""

    run: str
    tensor: str
    step: I8
    counts: npt.NDArray[np.uint64]

    def followed_by(self, step: I8, counts: npt.NDArray[np.uint64]) -> "Spread":
        """With further ones behind it."""
        return replace(
            self,
            step=np.concatenate([self.step, step])[-MOST:],
            counts=np.concatenate([self.counts, counts])[-MOST:],
        )

    def at(self, cursor: float | None) -> int | None:
        """The histogram that stands at a step, without one the newest; None before the first."""
        if not len(self.step):
            return None
        if cursor is None:
            return len(self.step) - 1
        row = int(np.searchsorted(self.step, cursor, side="right")) - 1
        return row if row >= 0 else None


@dataclass(frozen=True)
class Bar:
    """What one line holds of one histogram: shares of all elements, of either sign."""

    negative: float
    positive: float


@dataclass(frozen=True, eq=False)
class SpreadGrid:
    """Lines of so many powers each, the largest first. `lowest`: the lowest power of each line; `per_line`
    powers a line; `share` f8[lines, width]: of all elements, NaN where there is no histogram."""

    lowest: tuple[int, ...]
    per_line: int
    share: F8
    bars: tuple[Bar, ...]
    zeros: float
    nonfinite: float
    step: int


def spread_grid(
    spread: Spread, edges: Extent, width: int, lines: int, cursor: float | None
) -> SpreadGrid | None:
    """The grid of the powers that occur, and the bars of one histogram; None where there is nothing."""
    chosen = spread.at(cursor)
    measured = spread.counts.sum(axis=1) > 0
    if chosen is None or not measured.any():
        return None
    signed = spread.counts[:, :ZEROS].reshape(-1, 2, POWERS).astype(np.float64)
    occupied = np.flatnonzero(signed.any(axis=(0, 1)))
    low, high = (int(occupied[0]), int(occupied[-1])) if len(occupied) else (-LEAST - 1, -LEAST)
    per_line = max(1, -(-(high - low + 1) // max(1, lines)))
    count = -(-(high - low + 1) // per_line)
    starts = [high + 1 - per_line * (line + 1) for line in range(count)]
    total = np.maximum(spread.counts.sum(axis=1), 1).astype(np.float64)
    grouped = np.stack([signed[:, :, max(s, 0) : s + per_line].sum(axis=2) for s in starts], axis=2)
    share = grouped / total[:, None, None]
    first, last = edges
    steps = first + np.arange(width) / max(width - 1, 1) * (last - first)
    held = np.searchsorted(spread.step, steps, side="right") - 1
    there = (held >= 0) & (steps <= spread.step[-1] + (last - first) / max(width - 1, 1))
    cells = np.full((count, width), np.nan)
    both = share.sum(axis=1).T
    both[:, ~measured] = np.nan
    cells[:, there] = both[:, held[there]]
    return SpreadGrid(
        lowest=tuple(start + LEAST for start in starts),
        per_line=per_line,
        share=cells,
        bars=tuple(Bar(*map(float, share[chosen, :, line])) for line in range(count)),
        zeros=float(spread.counts[chosen, ZEROS] / total[chosen]),
        nonfinite=float(spread.counts[chosen, NONFINITE] / total[chosen]),
        step=int(spread.step[chosen]),
    )
