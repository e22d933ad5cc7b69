"""Several runs over one another, by step or by time, and a table of where they differ."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal

from optwatch_tui import compared
from optwatch_tui.bindings import bindings, keys_of
from optwatch_tui.charts import Mark
from optwatch_tui.compared import Alignment, ComparedRun
from optwatch_tui.look import Extent, Places
from optwatch_tui.rows import Row, Span
from optwatch_tui.screens.base import LookingScreen
from optwatch_tui.widgets.chart import Chart
from optwatch_tui.widgets.frame import Lines
from optwatch_tui.widgets.listing import Listing
from optwatch_tui.widgets.status import link_sentence

_CHART_ROWS = 7
"""Lines that a row of charts needs."""


class CompareHeader(Lines):
    """Which runs these are, each with its number and colour."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._rows: list[Row] = []

    def show(self, rows: list[Row]) -> None:
        self._rows = rows
        self.renew()

    def lines(self, width: int, height: int) -> list[Row]:
        return self._rows


class CompareScreen(LookingScreen):
    """Four charts with a line for each run, and a table."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("compare")]

    def __init__(self) -> None:
        super().__init__()
        self._align: Alignment = "step"
        self._held_runs: tuple[ComparedRun, ...] | None = None
        self._log: dict[str, bool] = {}
        self._header = CompareHeader(id="status")
        self._charts = {key: Chart(key, title, id=f"chart-{key}") for key, title, _ in compared.CHARTS}
        self._table = Listing("differences", "waiting for the runs", id="differences")
        self._rows = (Horizontal(), Horizontal())

    def compose(self) -> ComposeResult:
        charts = list(self._charts.values())
        yield self._header
        for row, pair in zip(self._rows, (charts[:2], charts[2:]), strict=True):
            with row:
                yield from pair
        yield self._table
        yield self.keybar(keys_of("compare", "app"))

    def on_mount(self) -> None:
        self._charts["loss"].focus()
        super().on_mount()

    def fit_panels(self) -> None:
        room = max(self.app.size.height - 3, 3)
        table = max(room // 3, min(12, room - _CHART_ROWS))
        self._table.styles.height = table
        self._rows[1].display = room - table >= 2 * _CHART_ROWS

    def changed(self) -> None:
        app = self.watch_app
        runs = self._runs()
        self._header.show(self._heading(runs))
        for chart in compared.CHARTS:
            self._charts[chart[0]].show(
                compared.picture(chart, runs, self._align, self.look, self._log.get(chart[0]))
            )
        note: Row = ((f"{len(compared.differences(runs))} settings differ", "muted"),) if runs else ()
        empty = "waiting for the runs" if app.link.state == "live" else app.link.reason or "connecting"
        self._table.show(compared.table(runs, self._table.size.width - 2), note=note, empty=empty)
        self.tell_of_cursor()

    def _heading(self, runs: tuple[ComparedRun, ...]) -> list[Row]:
        app = self.watch_app
        spans: list[Span] = [(" optwatch ▸ ", "muted"), ("compare", "title"), (f"  by {self._align}", "text")]
        spans += [("  ", "text"), *self.badges()] if self.badges() else []
        if app.link.state != "live":
            return [tuple(spans), link_sentence(app.link)]
        legend = [(f" {at + 1} {run.status.name} ", f"run{at}") for at, run in enumerate(runs)]
        return [tuple(spans), tuple(legend)]

    # --- what is looked at ----------------------------------------------------------------------------

    def _runs(self) -> tuple[ComparedRun, ...]:
        return self.watch_app.compared if self._held_runs is None else self._held_runs

    def looking_charts(self) -> list[Chart]:
        return [chart for chart in self._charts.values() if chart.size.area]

    def extent(self) -> Extent | None:
        return compared.extent(self._runs(), self._align)

    def places(self) -> Places:
        places = [run.places(self._align) for run in self._runs()]
        return np.unique(np.concatenate(places)) if places else np.empty(0)

    def looked_marks(self) -> tuple[Mark, ...]:
        return compared.marks(self._runs(), self._align)

    def badges(self) -> tuple[Span, ...]:
        held: tuple[Span, ...] = (("paused", "warning"),) if self._held_runs is not None else ()
        return (*super().badges(), *held)

    def savable(self) -> tuple[Chart | None, str]:
        return super().savable()[0], "compare"

    def action_pause(self) -> None:
        self._held_runs = None if self._held_runs is not None else self.watch_app.compared
        self.changed()

    def action_follow(self) -> None:
        self._held_runs = None
        super().action_follow()

    def action_align(self) -> None:
        """The same by the other axis: another window, since places mean something else there."""
        self._align = "time" if self._align == "step" else "step"
        self.look = replace(self.look, window=type(self.look.window)(), cursor=None)
        self.changed()

    def action_log(self) -> None:
        focused = [chart for chart in self._charts.values() if chart.has_focus]
        for chart in focused or list(self._charts.values()):
            self._log[chart.key] = not chart.logarithmic
        self.changed()
