"""A grid of ranks: one cell each, drawn by one statistic, with a cursor."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from textual import events
from textual.binding import Binding, BindingType

from optwatch.wire.requests import RankInfo
from optwatch_tui import rank_grid
from optwatch_tui.rank_grid import GAP, UNKNOWN, GridShape, RankStatistic
from optwatch_tui.rows import Row, Span
from optwatch_tui.theme import RAMP_LEVELS, RANK_GLYPHS
from optwatch_tui.widgets.frame import Framed
from optwatch_tui.widgets.moves import Moved

_LABEL = 6
_DIGITS = "0123456789"
"""Glyphs from low to high: what the colours say, without them."""


class RankGrid(Framed, can_focus=True):
    """Every rank of a run; the cursor is the selected rank."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", show=False),
        Binding("right", "move(1)", show=False),
        Binding("up", "line(-1)", show=False),
        Binding("down", "line(1)", show=False),
        Binding("home", "edge(0)", show=False),
        Binding("end", "edge(-1)", show=False),
    ]

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._ranks: dict[int, RankInfo] = {}
        self._world = 0
        self._statistic = rank_grid.STATISTICS[0]
        self._kept: frozenset[int] = frozenset()
        self.cursor = 0

    def show(
        self,
        ranks: Sequence[RankInfo],
        world_size: int,
        statistic: RankStatistic,
        kept: frozenset[int],
        cursor: int,
    ) -> None:
        """Draw other ranks. `kept`: those that the filter lets through; the others are only hinted at."""
        self._ranks = {rank.rank: rank for rank in ranks}
        self._world = max(world_size, *(rank.rank + 1 for rank in ranks)) if ranks else world_size
        self._statistic, self._kept, self.cursor = statistic, kept, cursor
        self.renew()

    def lines_wanted(self, width: int, most: int, spare: int) -> int:
        """Lines for the grid with its frame, at most `most`: `spare` are left where all ranks fit then."""
        for lines in (most - spare, most):
            grid = rank_grid.shape(self._world, width - 2 - _LABEL, lines - 2)
            if grid.down <= lines - 2:
                return grid.down + 2
        return most

    def _shape(self) -> GridShape:
        return rank_grid.shape(self._world, self.size.width - 2 - _LABEL, self.size.height - 2)

    def title(self) -> Row:
        return (("ranks", "title"), (f" · {self._statistic.title}", "first"))

    def note(self) -> Row:
        ranks = list(self._ranks.values())
        if self._statistic.signs:
            there = rank_grid.values(ranks, self._statistic)
            counts = [(sign, int((there == at).sum())) for at, sign in enumerate(self._statistic.signs)]
            spans: list[Span] = []
            for (glyph, role, meaning), count in counts:
                if count:
                    spans += [(f"{glyph} ", role), (f"{meaning} {count}  ", "muted")]
        else:
            of = rank_grid.values(ranks, self._statistic)
            if np.isnan(of).all():
                return ((f"{UNKNOWN} not known of any rank", "muted"),)
            newest = rank_grid.newest_step(ranks)
            ends = (ranks[int(np.nanargmin(of))], ranks[int(np.nanargmax(of))])
            low, high = (self._statistic.text(rank, newest) for rank in ends)
            ramp = [(digit, f"ramp{at * (RAMP_LEVELS - 1) // 9}") for at, digit in enumerate(_DIGITS)]
            spans = [(f"{low} ", "muted"), *ramp, (f" {high}  ", "muted")]
        unknown = self._world - int(np.isfinite(rank_grid.values(ranks, self._statistic)).sum())
        if unknown:
            spans += [(f"{UNKNOWN} not known {unknown}", "muted")]
        return tuple(spans)

    def body(self, width: int, height: int) -> list[Row]:
        grid = rank_grid.shape(self._world, width - _LABEL, height)
        cells = self._cells(grid.cell)
        top = self._top(grid, height)
        rows: list[Row] = []
        for line in range(top, min(grid.down, top + height)):
            first = line * grid.across
            spans: list[Span] = [(f"{first:>{_LABEL - 1}} ", "muted")]
            for rank in range(first, min(first + grid.across, self._world)):
                if rank > first and (rank - first) % GAP == 0:
                    spans.append((" ", "text"))
                spans.append(cells[rank])
            rows.append(tuple(spans))
        return rows

    def _top(self, grid: GridShape, height: int) -> int:
        """The first line in view, where there are more lines than room: the cursor's is in view."""
        return max(0, min(self.cursor // grid.across - height // 2, grid.down - height))

    def _cells(self, width: int) -> list[Span]:
        ranks = list(self._ranks.values())
        of = rank_grid.values(ranks, self._statistic)
        level = rank_grid.levels(of, RAMP_LEVELS)
        cells: list[Span] = [(UNKNOWN.center(width), "muted")] * self._world
        for at, rank in enumerate(ranks):
            cells[rank.rank] = self._cell(rank, float(of[at]), int(level[at]), width)
        return cells

    def _cell(self, rank: RankInfo, value: float, level: int, width: int) -> Span:
        if rank.link in ("down", "suspect"):  # whatever is looked at, that is what matters
            glyph, role = RANK_GLYPHS[rank.link], "critical" if rank.link == "down" else "warning"
        elif level < 0:
            glyph, role = UNKNOWN, "muted"
        elif self._statistic.signs:
            glyph, role, _ = self._statistic.signs[int(value)]
        else:
            glyph, role = _DIGITS[level * 10 // RAMP_LEVELS], f"ramp{level}"
        if rank.rank not in self._kept:
            glyph, role = UNKNOWN, "frame"
        text = glyph.center(width)
        if rank.rank == self.cursor:
            return (text if width == 1 else f"[{glyph}]"[:width].ljust(width), "key@")
        return (text, role)

    # --- the cursor -----------------------------------------------------------------------------------

    def action_move(self, by: int) -> None:
        self._go(self.cursor + by)

    def action_line(self, by: int) -> None:
        self._go(self.cursor + by * self._shape().across)

    def action_edge(self, at: int) -> None:
        self._go(0 if at == 0 else self._world - 1)

    def _go(self, rank: int) -> None:
        if 0 <= rank < self._world:
            self.cursor = rank
            self.post_message(Moved(self, str(rank)))

    def on_click(self, event: events.Click) -> None:
        grid = self._shape()
        across = event.x - 1 - _LABEL
        block, rest = divmod(across, GAP * grid.cell + 1)
        column = block * GAP + min(rest // grid.cell, GAP - 1)
        if across >= 0 and column < grid.across and event.y >= 1:
            self._go((event.y - 1 + self._top(grid, self.size.height - 2)) * grid.across + column)
