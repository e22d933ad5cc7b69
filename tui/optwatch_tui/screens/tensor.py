"""One tensor's history: gradient, update against parameter, moments, RMS_t, quiet elements, histograms."""

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
from optwatch_tui.widgets.spread import SpreadMap
from optwatch_tui.widgets.status import StatusHeader

_WIDE = 120
"""Columns of a terminal in which three charts fit side by side."""
_TALL = 36
"""Lines of a terminal in which the histograms fit under the charts."""


class TensorScreen(LookingScreen):
    """Six charts of one tensor, over the steps at which it was sampled, and how its gradient was spread."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("tensor")]

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._specs = tensor_charts(name)
        self._header = StatusHeader(id="status")
        self._heading = TensorName(name)
        self._charts = {spec.key: Chart(spec.key, spec.title, id=f"chart-{spec.key}") for spec in self._specs}
        self._grid = Grid(id="tensor-charts")
        self._spread = SpreadMap(id="spread")
        self._spread_alone = False
        self._log: dict[str, bool] = {}

    def compose(self) -> ComposeResult:
        yield self._header
        yield self._heading
        with self._grid:
            yield from self._charts.values()
        yield self._spread
        yield self.keybar(keys_of("tensor", "app"))

    def fit_panels(self) -> None:
        width, height = self.app.size
        self._grid.styles.grid_size_columns = 3 if width >= _WIDE else 2
        self._grid.display = not self._spread_alone
        self._spread.display = self._spread_alone or height >= _TALL
        self._spread.styles.height = "1fr" if self._spread_alone else height // 3

    def changed(self) -> None:
        app = self.watch_app
        self._header.show(app.snapshot, app.link, app.now(), self.badges(), app.named_keys)
        if (snapshot := self.looked_at()) is None:
            return
        for spec in self._specs:
            picture = charts.picture(spec, snapshot, self.look, self._log.get(spec.key))
            self._charts[spec.key].show(picture)
        spread = app.spread if app.spread is not None and app.spread.tensor == self._name else None
        self._spread.show(spread, self.look.window.edges(charts.extent(snapshot)), self.look.cursor)
        self.tell_of_cursor()

    def action_spread(self) -> None:
        self._spread_alone = not self._spread_alone
        self.fit_panels()
        self.call_after_refresh(self.changed)

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
