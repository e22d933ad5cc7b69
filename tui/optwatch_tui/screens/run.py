"""One run: charts, tensors, findings and actions, and the keys to act."""

from dataclasses import replace
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal

from optwatch.wire.findings import Finding
from optwatch_tui import charts, describe, formats, layout
from optwatch_tui.bindings import bindings, keys_of
from optwatch_tui.charts import CHARTS, ChartSpec
from optwatch_tui.heat import STATISTICS, heat
from optwatch_tui.look import Window
from optwatch_tui.model import Snapshot
from optwatch_tui.rows import Row
from optwatch_tui.screens.acting import ActingScreen
from optwatch_tui.screens.text import TextScreen
from optwatch_tui.widgets.chart import Chart
from optwatch_tui.widgets.heat import HeatMap
from optwatch_tui.widgets.listing import Listing
from optwatch_tui.widgets.moves import Chosen
from optwatch_tui.widgets.status import StatusHeader


class RunScreen(ActingScreen):
    """What is known of the run that the app watches."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("run")]

    def __init__(self) -> None:
        super().__init__()
        self._log: dict[str, bool] = {}
        self._statistic = 0
        self._alone: str | None = None
        self._page = 0
        self._further: tuple[ChartSpec, ...] = ()
        self._header = StatusHeader(id="status")
        self._charts = {spec.key: Chart(spec.key, spec.title, id=f"chart-{spec.key}") for spec in CHARTS}
        self._heat = HeatMap(id="heat")
        self._findings = Listing("findings", "none", id="findings", pinned=True)
        self._actions = Listing("actions", "none", id="actions", pinned=True)
        self._upper, self._lower = Horizontal(id="upper"), Horizontal(id="lower")
        self._lists = Horizontal(id="lists")

    def compose(self) -> ComposeResult:
        yield self._header
        with self._upper:
            yield from (chart for key, chart in self._charts.items() if key in layout.UPPER)
        with self._lower:
            yield from (chart for key, chart in self._charts.items() if key not in layout.UPPER)
        yield self._heat
        with self._lists:
            yield self._findings
            yield self._actions
        yield self.keybar(keys_of("run", "app"))

    def on_mount(self) -> None:
        self._charts["loss"].focus()
        super().on_mount()

    def fit_panels(self) -> None:
        size = self.app.size
        smaller = [key for key in self._charts if key not in layout.UPPER]
        if self._alone is not None:
            plan = layout.alone(size.height, self._alone)
        else:
            plan = layout.arrange(*size, layout.page(smaller, size.width, self._page))
        for panel, lines in (
            (self._upper, plan.upper),
            (self._lower, plan.lower),
            (self._heat, plan.heat),
            (self._lists, plan.lists),
        ):
            panel.styles.height = lines
            panel.display = lines > 0
        for chart in self._charts.values():
            chart.display = chart.key in (
                plan.upper_charts if chart.key in layout.UPPER else plan.lower_charts
            )
        self._actions.display = plan.actions

    # --- drawing ------------------------------------------------------------------------------------

    def changed(self) -> None:
        app = self.watch_app
        self._header.show(app.snapshot, app.link, app.now(), self.badges(), app.named_keys)
        if app.snapshot is None:
            return
        self.tell_of_commands(app.snapshot)
        self._draw(self.held or app.snapshot)

    def _draw(self, snapshot: Snapshot) -> None:
        self._take_columns(snapshot)
        for spec in (*CHARTS, *self._further):
            chart = self._charts[spec.key]
            if chart.display and chart.size.area:
                chart.show(charts.picture(spec, snapshot, self.look, self._log.get(spec.key)))
        if self._heat.display and self._heat.size.area:
            self._heat.show(heat(snapshot, STATISTICS[self._statistic], self.look))
        self._draw_lists(snapshot)
        self.tell_of_cursor()

    def _take_columns(self, snapshot: Snapshot) -> None:
        """Charts for columns that are logged from now on; they stand on further pages."""
        further = charts.column_charts(snapshot.columns.names)
        new = [spec for spec in further if spec.key not in self._charts]
        self._further = further
        for spec in new:
            chart = Chart(spec.key, spec.title, id=f"chart-{len(self._charts)}")
            chart.display = False
            self._charts[spec.key] = chart
            self._lower.mount(chart)
        if new:
            self.fit_panels()

    def _draw_lists(self, snapshot: Snapshot) -> None:
        width = self._findings.size.width - 2
        # Open ones first, then what is over: each the newest first, alarms before hints.
        over = tuple(f for f in snapshot.findings if f.resolved_step is not None)
        ordered = (*snapshot.open_findings, *over)
        note: Row = ((f"{len(snapshot.open_findings)} open, {len(over)} over", "muted"),) if ordered else ()
        self._findings.show([describe.finding_item(f, width) for f in ordered], note=note)
        world, answer = snapshot.status.world_size, self.watch_app.named_keys.answer
        width = self._actions.size.width - 2
        self._actions.show(
            [describe.command_item(command, world, width, answer) for command in snapshot.commands],
            note=(("mode ", "muted"), (snapshot.status.mode, "text")),
        )

    # --- looking ------------------------------------------------------------------------------------

    def action_log(self) -> None:
        snapshot = self.looked_at()
        if snapshot is None:
            return
        focused = [chart for chart in self._charts.values() if chart.has_focus]
        for chart in focused or list(self._charts.values()):
            self._log[chart.key] = not chart.logarithmic
        self.changed()

    def action_more_charts(self) -> None:
        """The next of the charts that do not fit beside the others."""
        before = {chart.key for chart in self._charts.values() if chart.display}
        self._page += 1
        self.fit_panels()
        if before == {chart.key for chart in self._charts.values() if chart.display}:
            self.notice(((" – ", "muted"), ("there are no more charts to show", "text")))
        if (focused := self.focused) is not None and not focused.display:
            self.set_focus(self._charts["loss"])
        self.call_after_refresh(self.changed)

    def action_statistic(self) -> None:
        if not self._heat.display:
            key = self.watch_app.settings.shown("tensors")
            self.notice(((" – ", "muted"), (f"the heat map does not fit here: {key} shows it alone", "text")))
            return
        self._statistic = (self._statistic + 1) % len(STATISTICS)
        self.changed()

    def action_enlarge(self) -> None:
        focused = self.focused
        if isinstance(focused, Chart):
            self._show_alone(focused.key if self._alone is None else None)
        elif isinstance(focused, HeatMap):
            self.action_tensors()
        elif focused is self._findings:
            self._open_finding()

    def looking_charts(self) -> list[Chart]:
        return [chart for chart in self._charts.values() if chart.display and chart.size.area]

    def on_chart_opened(self, event: Chart.Opened) -> None:
        self._show_alone(event.chart.key if self._alone is None else None)

    def back(self) -> bool:
        """Bring all panels back, then take the cursor away; whether there was anything to undo."""
        if self._alone is None:
            return super().back()
        self._show_alone(None)
        return True

    def _show_alone(self, chart: str | None) -> None:
        self._alone = chart
        self.fit_panels()
        self.call_after_refresh(self.changed)

    def action_jump(self, by: int) -> None:
        """The next or the former finding of the list, and the cursor to its onset."""
        if self._findings.has_focus:
            self._findings.action_move(by)
        self.set_focus(self._findings)
        if (finding := self._selected_finding()) is not None:
            self.point_at(finding.onset_step)

    def action_go_to_finding(self) -> None:
        extent, finding = self.extent(), self._selected_finding()
        if extent is not None and finding is not None:
            self.look = replace(self.look, window=Window.around(finding.onset_step, extent))
            self.point_at(finding.onset_step)

    def action_tensors(self) -> None:
        self.watch_app.show_tensors()

    def action_ranks(self) -> None:
        self.watch_app.show_ranks()

    def on_chosen(self, event: Chosen) -> None:
        if event.panel is self._heat:
            self.watch_app.show_tensor(event.key)
        elif event.panel is self._findings:
            self._open_finding()

    def _open_finding(self) -> None:
        finding = self._selected_finding()
        if finding is not None:
            place = f"  {describe.where(finding)}" if describe.where(finding) else ""
            title = f"{finding.kind}{place}  since {formats.count(finding.onset_step)}"
            self.app.push_screen(TextScreen(title, lambda width: describe.finding_details(finding, width)))

    def _selected_finding(self) -> Finding | None:
        snapshot, key = self.looked_at(), self._findings.selected
        if snapshot is None:
            return None
        return next((finding for finding in snapshot.findings if str(finding.id) == key), None)

    def selected_command(self) -> str | None:
        return self._actions.selected
