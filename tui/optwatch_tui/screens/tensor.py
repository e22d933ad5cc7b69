"""One tensor's history: gradient, update against parameter, moments, RMS_t, quiet elements."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Grid

from optwatch_tui import charts
from optwatch_tui.bindings import bindings, keys_of
from optwatch_tui.charts import tensor_charts
from optwatch_tui.rows import Row
from optwatch_tui.screens.base import LookingScreen
from optwatch_tui.widgets.chart import Chart
from optwatch_tui.widgets.frame import Lines
from optwatch_tui.widgets.status import StatusHeader

_WIDE = 120
"""Columns of a terminal in which three charts fit side by side."""


class TensorScreen(LookingScreen):
    """Six charts of one tensor, over the steps at which it was sampled."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("tensor")]

    def __init__(self, name: str) -> None:
        super().__init__()
        self._specs = tensor_charts(name)
        self._header = StatusHeader(id="status")
        self._heading = TensorName(name)
        self._charts = {spec.key: Chart(spec.key, spec.title, id=f"chart-{spec.key}") for spec in self._specs}
        self._grid = Grid(id="tensor-charts")
        self._log: dict[str, bool] = {}

    def compose(self) -> ComposeResult:
        yield self._header
        yield self._heading
        with self._grid:
            yield from self._charts.values()
        yield self.keybar(keys_of("tensor", "app"))

    def fit_panels(self) -> None:
        self._grid.styles.grid_size_columns = 3 if self.app.size.width >= _WIDE else 2

    def changed(self) -> None:
        app = self.watch_app
        self._header.show(app.snapshot, app.link, app.now(), self.badges(), app.named_keys)
        if (snapshot := self.looked_at()) is None:
            return
        for spec in self._specs:
            picture = charts.picture(spec, snapshot, self.look, self._log.get(spec.key))
            self._charts[spec.key].show(picture)
        self.tell_of_cursor()

    def looking_charts(self) -> list[Chart]:
        return list(self._charts.values())

    def action_log(self) -> None:
        for chart in self._charts.values():
            self._log[chart.key] = not chart.logarithmic
        self.changed()


class TensorName(Lines):
    """Which tensor it is."""

    def __init__(self, name: str) -> None:
        super().__init__(id="tensor-name")
        self._text = name

    def lines(self, width: int, height: int) -> list[Row]:
        return [((" tensor ", "muted"), (self._text, "title"))]
