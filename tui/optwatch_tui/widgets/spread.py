"""How the gradient of one tensor is spread: powers of two down, time across, and one histogram as bars."""

import numpy as np

from optwatch_tui import formats
from optwatch_tui.look import Extent
from optwatch_tui.rows import Row, Span
from optwatch_tui.spread import Bar, Spread, SpreadGrid, spread_grid
from optwatch_tui.widgets.frame import Framed
from optwatch_tui.widgets.shades import levels, shades, with_cursor

_LABEL = 7
_WIDE = 100
"""Columns with room for what the title means."""
_LEAST_SHARE = 1e-5
"""The share of the elements that the quietest colour stands for."""


class SpreadMap(Framed):
    """A heat map of the histograms, and the newest one, or the one at the cursor, as bars beside it."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._spread: Spread | None = None
        self._edges: Extent = (0.0, 1.0)
        self._cursor: float | None = None
        self._grid: SpreadGrid | None = None

    def show(self, spread: Spread | None, edges: Extent, cursor: float | None) -> None:
        """Draw other histograms, or other steps of them."""
        self._spread, self._edges, self._cursor = spread, edges, cursor
        self.renew()

    def title(self) -> Row:
        meaning = " · share of elements at each power of two"
        return (("gradient by size", "title"), (meaning if self.size.width >= _WIDE else "", "muted"))

    def note(self) -> Row:
        if (grid := self._grid) is None:
            return ()
        zeros = (f"zero {formats.percent(grid.zeros)}", "muted")
        if grid.nonfinite:
            zeros = (f"not finite {formats.percent(grid.nonfinite)}", "critical")
        return (("█ positive ", "first"), ("▓ negative  ", "second"), zeros)

    def foot(self, width: int) -> Row:
        if (grid := self._grid) is None:
            return super().foot(width)
        first, last = (formats.short_count(int(edge)) for edge in self._edges)
        bars = f" step {formats.count(grid.step)} "
        heat = grid.share.shape[1] - len(first) - len(last)
        rest = width - _LABEL - grid.share.shape[1] - len(bars)
        if heat < 3 or rest < 2:
            return super().foot(width)
        return (
            ("─" * _LABEL, self.edge),
            (first, "muted"),
            ("─" * heat, self.edge),
            (last, "muted"),
            ("─" * (rest - 1), self.edge),
            (bars, "muted"),
            ("─", self.edge),
        )

    def lines(self, width: int, height: int) -> list[Row]:
        bars = self._bar_width(width - 2)
        cells = max(1, width - 2 - _LABEL - bars - 2)
        self._grid = None
        if self._spread is not None:
            self._grid = spread_grid(self._spread, self._edges, cells, height - 2, self._cursor)
        return super().lines(width, height)

    def body(self, width: int, height: int) -> list[Row]:
        grid = self._grid
        if grid is None:
            said = "not measured yet: histograms come seldom, as the budget allows"
            return [*[()] * ((height - 1) // 2), ((said.center(width), "muted"),)]
        bars = self._bar_width(width)
        most = max((bar.negative + bar.positive for bar in grid.bars), default=0.0) or 1.0
        with np.errstate(divide="ignore"):
            loud = np.log(grid.share / _LEAST_SHARE) / np.log(1 / _LEAST_SHARE)
        level = levels(np.where(grid.share > 0, np.maximum(loud, 0.0), np.nan))
        cursor = self._column(grid.share.shape[1])
        rows: list[Row] = []
        for line, (lowest, bar) in enumerate(zip(grid.lowest, grid.bars, strict=True)):
            share = bar.negative + bar.positive
            rows.append(
                (
                    (f"{formats.tick(2.0**lowest):>{_LABEL - 1}} ", "muted"),
                    *with_cursor(shades(level[line], self.app.no_color), cursor),
                    (" ", "text"),
                    *_bar(bar, most, bars - 6),
                    (f" {formats.percent(share) if share else '':>5}", "muted"),
                )
            )
        return rows

    def _bar_width(self, width: int) -> int:
        return max(14, width // 3)

    def _column(self, width: int) -> int | None:
        first, last = self._edges
        if self._cursor is None or not first <= self._cursor <= last:
            return None
        return round((self._cursor - first) / max(last - first, 1e-9) * (width - 1))


def _bar(bar: Bar, most: float, width: int) -> list[Span]:
    whole = round((bar.negative + bar.positive) / most * width)
    if not whole and bar.negative + bar.positive > 0:
        return [("▏".ljust(width), "first" if bar.positive else "second")]
    positive = round(bar.positive / most * width) if bar.negative else whole
    return [
        ("█" * min(positive, whole), "first"),
        ("▓" * max(0, whole - positive), "second"),
        (" " * (width - whole), "text"),
    ]
