"""Every tensor of a run: one statistic over depth and time, with order and filter."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import Input

from optwatch_tui.bindings import bindings, keys_of
from optwatch_tui.heat import STATISTICS, Heat, heat
from optwatch_tui.screens.base import LookingScreen
from optwatch_tui.widgets.chart import Chart
from optwatch_tui.widgets.filter import FilterLine
from optwatch_tui.widgets.heat import HeatMap
from optwatch_tui.widgets.moves import Chosen
from optwatch_tui.widgets.status import StatusHeader


class TensorsScreen(LookingScreen):
    """The heat map alone, as tall as the terminal."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("tensors")]

    def __init__(self) -> None:
        super().__init__()
        self._statistic = 0
        self._by_size = False
        self._header = StatusHeader(id="status")
        self._map = HeatMap(id="tensors")
        self._filter = FilterLine(id="filter")

    def compose(self) -> ComposeResult:
        yield self._header
        yield self._map
        yield self._filter
        yield self.keybar(keys_of("tensors", "app"))

    def on_mount(self) -> None:
        self._map.focus()
        super().on_mount()

    def changed(self) -> None:
        app = self.watch_app
        self._header.show(app.snapshot, app.link, app.now(), self.badges(), app.named_keys)
        if (snapshot := self.held or app.snapshot) is not None:
            whole = heat(snapshot, STATISTICS[self._statistic], self.look)
            self._map.show(self._chosen(whole))
        self.tell_of_cursor()

    def looking_charts(self) -> list[Chart]:
        return []

    def _chosen(self, whole: Heat) -> Heat:
        wanted = self._filter.value.casefold()
        at = np.array([i for i, name in enumerate(whole.names) if wanted in name.casefold()], dtype=np.int64)
        if self._by_size and len(whole.step):
            newest = np.nan_to_num(whole.values[-1, at], nan=-np.inf)
            at = at[np.argsort(-newest, kind="stable")]
        return replace(whole, names=tuple(whole.names[i] for i in at), values=whole.values[:, at])

    def action_statistic(self) -> None:
        self._statistic = (self._statistic + 1) % len(STATISTICS)
        self.changed()

    def action_sort(self) -> None:
        self._by_size = not self._by_size
        self.changed()
        order = "the loudest first" if self._by_size else "by depth"
        self.notice(((" ○ ", "info"), (f"order: {order}", "text")))

    def action_open(self) -> None:
        if (name := self._map.selected) is not None:
            self.watch_app.show_tensor(name)

    def on_chosen(self, event: Chosen) -> None:
        self.watch_app.show_tensor(event.key)

    def action_filter(self) -> None:
        self._filter.open()

    def on_input_changed(self, _event: Input.Changed) -> None:
        self.changed()

    def on_filter_line_done(self) -> None:
        self.set_focus(self._map)
