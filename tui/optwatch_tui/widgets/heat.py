"""A heat map of one statistic of every tensor: depth down, time across."""

from typing import ClassVar

import numpy as np
from textual import events
from textual.binding import Binding, BindingType

from optwatch_tui.formats import number
from optwatch_tui.heat import Heat, group_bounds, heat_grid
from optwatch_tui.history import F8
from optwatch_tui.rows import Row
from optwatch_tui.theme import RAMP_LEVELS
from optwatch_tui.widgets.frame import Framed
from optwatch_tui.widgets.moves import Chosen
from optwatch_tui.widgets.shades import levels, shade, shades, with_cursor


class HeatMap(Framed, can_focus=True):
    """Tensors by depth and time. Where there are more tensors than lines, neighbours share one."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._heat: Heat | None = None
        self._cursor = 0

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", show=False),
        Binding("down", "move(1)", show=False),
    ]

    def show(self, heat: Heat) -> None:
        """Draw another map."""
        self._heat = heat
        self.renew()

    @property
    def selected(self) -> str | None:
        """The tensor at the cursor: the first of its line."""
        groups = self._groups()
        if self._heat is None or not groups:
            return None
        return self._heat.names[groups[min(self._cursor, len(groups) - 1)][0]]

    def action_move(self, by: int) -> None:
        self._cursor = max(0, min(len(self._groups()) - 1, self._cursor + by))
        self.renew()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.action_move(1)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.action_move(-1)

    def on_click(self, event: events.Click) -> None:
        """The first click selects a line, the second one opens it."""
        line = event.y - 1
        if not 0 <= line < len(self._groups()):
            return
        opened = event.chain == 2 or line == self._cursor
        self._cursor = line
        self.renew()
        if opened and event.chain <= 2 and self.selected is not None:
            self.post_message(Chosen(self, self.selected))

    def _groups(self) -> list[tuple[int, int]]:
        return group_bounds(len(self._heat.names), self.size.height - 2) if self._heat is not None else []

    def title(self) -> Row:
        what = self._heat.statistic.title if self._heat else ""
        return (("tensors by depth × time", "title"), (f" · {what}" if what else "", "first"))

    def note(self) -> Row:
        if self._heat is None or not len(self._heat.names):
            return ()
        low, high = self._heat.limits
        ramp = [shade(level, self.app.no_color) for level in range(0, RAMP_LEVELS, 2)]
        return (
            (f"{len(self._heat.names)} tensors  ", "muted"),
            (f"{number(10**low)} ", "muted"),
            *ramp,
            (f" {number(10**high)}", "muted"),
        )

    def body(self, width: int, height: int) -> list[Row]:
        heat = self._heat
        if heat is None or not len(heat.step) or not heat.names:
            return [*[()] * ((height - 1) // 2), (("no per-tensor samples yet".center(width), "muted"),)]
        groups = self._groups()
        more_cells = 4 if len(groups) < len(heat.names) else 0
        label = min(max(12, width // 5), 28, max(len(name) for name in heat.names) + 1 + more_cells)
        grid = heat_grid(heat, groups, max(1, width - label - 10))
        low, high = heat.limits
        with np.errstate(divide="ignore", invalid="ignore"):
            level = levels((np.log10(grid) - low) / (high - low))
        cursor = None if heat.cursor is None else heat.column(heat.cursor, grid.shape[1])
        rows: list[Row] = []
        for at, (start, stop) in enumerate(groups):
            flagged = any(name in heat.flagged for name in heat.names[start:stop])
            name = short_name(heat.names[start], label - 1 - 3 * (stop - start > 1))
            more = f" +{stop - start - 1}" if stop - start > 1 else ""
            told = _told(grid[at], cursor)
            role = "warning" if flagged else "text"
            if self.has_focus and at == min(self._cursor, len(groups) - 1):
                role += "@"
            rows.append(
                (
                    ((name + more).ljust(label)[:label], role),
                    *with_cursor(shades(level[at], self.app.no_color), cursor),
                    (f" {number(told):>8}", "muted"),
                    ("◀" if flagged else " ", "warning"),
                )
            )
        return rows


def _told(values: F8, cursor: int | None) -> float | None:
    """The value at the cursor, else the newest."""
    if cursor is not None:
        return float(values[cursor]) if np.isfinite(values[cursor]) else None
    measured = values[np.isfinite(values)]
    return float(measured[-1]) if len(measured) else None


def short_name(name: str, width: int) -> str:
    """A tensor's name in `width` cells: its end tells more than its beginning, but depth is in the middle."""
    if len(name) <= width:
        return name
    keep = max(1, width - 1)
    return name[: keep // 2] + "…" + name[len(name) - (keep - keep // 2) :]
