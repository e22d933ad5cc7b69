"""What all screens share: the app's state at hand, and a place for notices."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
from textual.screen import Screen

from optwatch.wire.findings import ALARMS
from optwatch_tui import charts, formats
from optwatch_tui.bindings import Key
from optwatch_tui.charts import Mark
from optwatch_tui.look import SMOOTHINGS, Extent, Look, Places, Window, nearest
from optwatch_tui.model import Snapshot
from optwatch_tui.rows import Row, Span
from optwatch_tui.screens.save import SaveScreen, carry_out
from optwatch_tui.widgets.chart import Chart
from optwatch_tui.widgets.keybar import KeyBar

if TYPE_CHECKING:
    from optwatch_tui.app import OptwatchApp

_NOTICE_SECONDS = 6.0


class WatchScreen(Screen[None]):
    """A screen that shows the app's state. `changed` is called whenever that is another.

    It keeps its panels at hand instead of looking them up: news may come while it is being closed.
    """

    _bar: KeyBar | None = None

    def keybar(self, keys: tuple[Key, ...]) -> KeyBar:
        """The line of keys, to be composed at the end."""
        app = self.watch_app
        self._bar = KeyBar(app.settings.in_force(keys), readonly=app.readonly)
        return self._bar

    @property
    def watch_app(self) -> "OptwatchApp":
        return cast("OptwatchApp", self.app)

    def changed(self) -> None:
        """Draw what is not as it was."""
        raise NotImplementedError

    ready = False
    """Whether its panels are there to be drawn."""

    def on_mount(self) -> None:
        self.ready = True
        self.fit_panels()
        self.changed()

    def on_unmount(self) -> None:
        self.ready = False  # news may still come while it is taken apart

    def on_resize(self) -> None:
        if self.ready:
            self.fit_panels()
            self.call_after_refresh(self.changed)

    def fit_panels(self) -> None:
        """Fit the panels to the size of the terminal."""

    def badges(self) -> tuple[Span, ...]:
        """What stands in the header whatever has to go."""
        return (("read-only", "warning"),) if self.watch_app.readonly else ()

    def notice(self, row: Row) -> None:
        """Say a sentence in the place of the keys, for a while."""
        if (bar := self._bar) is not None:
            bar.say(row)
            self.set_timer(_NOTICE_SECONDS, lambda: bar.say(None))

    def action_save(self) -> None:
        """Ask what to save, and save it beside where the program was started."""
        if self.watch_app.served:
            self.notice(
                ((" – ", "warning"), ("in a browser nothing is saved: it would be on the server", "text"))
            )
            return
        chart, name = self.savable()

        def chosen(key: str | None) -> None:
            if key is not None:
                self.notice(carry_out(key, chart, name, self.app))

        self.app.push_screen(SaveScreen(chart), chosen)

    def savable(self) -> tuple[Chart | None, str]:
        """The chart that can be saved alone, and the name of what is shown."""
        snapshot = self.watch_app.snapshot
        return None, "runs" if snapshot is None else snapshot.status.name


class LookingScreen(WatchScreen):
    """A screen over steps: it can be held, zoomed and moved in time, and has a cursor over all its charts."""

    def __init__(self) -> None:
        super().__init__()
        self.look = Look()
        self.held: Snapshot | None = None
        self._pinned = False
        """Whether the cursor stays where it is when the pointer leaves."""
        self._due = False

    def looking_charts(self) -> Sequence[Chart]:
        """Its charts that can be seen."""
        raise NotImplementedError

    def savable(self) -> tuple[Chart | None, str]:
        shown = self.looking_charts()
        focused = [chart for chart in shown if chart.has_focus]
        return next(iter((*focused, *shown)), None), super().savable()[1]

    def extent(self) -> Extent | None:
        """What there is to look at; None before anything is there."""
        snapshot = self.looked_at()
        return None if snapshot is None else charts.extent(snapshot)

    def places(self) -> Places:
        """Where the cursor can stand, in order."""
        snapshot = self.looked_at()
        return np.empty(0) if snapshot is None else snapshot.columns.step

    def looked_marks(self) -> tuple[Mark, ...]:
        snapshot = self.looked_at()
        return () if snapshot is None else charts.marks(snapshot)

    def looked_at(self) -> Snapshot | None:
        """The snapshot that is shown: the newest, or the one that was held."""
        return self.held or self.watch_app.snapshot

    def on_mount(self) -> None:
        self.look = replace(self.look, smoothing=self.watch_app.smoothing)
        super().on_mount()

    def badges(self) -> tuple[Span, ...]:
        held: tuple[Span, ...] = (("paused", "warning"),) if self.held is not None else ()
        return (*super().badges(), *held)

    # --- keys -----------------------------------------------------------------------------------------

    def action_pause(self) -> None:
        self.held = None if self.held is not None else self.watch_app.snapshot
        self.changed()

    def action_zoom(self, factor: float) -> None:
        if (extent := self.extent()) is not None:
            self._see(self.look.window.zoomed(factor, extent, self.look.cursor))

    def action_pan(self, share: float) -> None:
        if (extent := self.extent()) is not None:
            self._see(self.look.window.panned(share, extent))

    def action_whole(self) -> None:
        self._see(Window())

    def action_follow(self) -> None:
        self.held = None
        self._see(Window(self.look.window.span))

    def _see(self, window: Window) -> None:
        self.look = replace(self.look, window=window)
        self.changed()

    def action_smooth(self) -> None:
        following = SMOOTHINGS.index(self.look.smoothing) + 1
        self.look = replace(self.look, smoothing=SMOOTHINGS[following % len(SMOOTHINGS)])
        self.watch_app.smoothing = self.look.smoothing
        self.changed()
        words = {
            "off": "off",
            "light": "light, over 1 % of the view",
            "strong": "strong, over 3 % of the view",
        }
        self.notice(((" ○ ", "info"), (f"smoothing {words[self.look.smoothing]}", "text")))

    def action_cursor(self, cells: int) -> None:
        """Move the cursor by columns, by one logged step at least; 0 brings it or takes it away."""
        extent, places = self.extent(), self.places()
        if extent is None or not len(places):
            return
        now = self.look.cursor
        if now is None or cells == 0:
            self.point_at(float(places[-1]) if now is None else None)
            return
        wanted = now + cells * self._cell(extent)
        if nearest(places, wanted) == now:
            at = int(np.searchsorted(places, now, side="right" if cells > 0 else "left"))
            wanted = float(places[min(max(at if cells > 0 else at - 1, 0), len(places) - 1)])
        self.point_at(wanted)

    def action_jump(self, by: int) -> None:
        """The cursor to the next or the former alarm."""
        alarms = sorted({mark.step for mark in self.looked_marks() if mark.role in ALARMS})
        now = self.look.cursor
        onward = [step for step in alarms if now is None or (step > now if by > 0 else step < now)]
        if onward:
            self.point_at(onward[0 if by > 0 else -1])
        else:
            self.notice(((" – ", "muted"), ("no further finding there", "text")))

    def point_at(self, wanted: float | None, stays: bool = True) -> None:
        """Put the cursor, in view, on the nearest mark in that column, else on the nearest logged step."""
        extent = self.extent()
        if extent is None:
            return
        self._pinned = stays and wanted is not None
        if wanted is None:
            self.look = replace(self.look, cursor=None)
        else:
            near = charts.marks_near(self.looked_marks(), wanted, self._cell(extent) / 2)
            place = near[0].step if near else nearest(self.places(), wanted)
            window = self.look.window if place is None else self.look.window.showing(place, extent)
            self.look = replace(self.look, cursor=place, window=window)
        self._soon()

    def back(self) -> bool:
        """Take away what is only there to look; whether there was anything."""
        had_cursor = self.look.cursor is not None
        self.point_at(None)
        return had_cursor

    def _cell(self, extent: Extent) -> float:
        """Steps in one column of the widest chart."""
        left, right = self.look.window.edges(extent)
        return (right - left) / max(1, *(chart.plot_width for chart in self.looking_charts()), 1)

    def _soon(self) -> None:
        """Draw once, however many movements of the pointer are waiting."""
        if not self._due:
            self._due = True
            self.call_later(self._draw_now)

    def _draw_now(self) -> None:
        self._due = False
        self.changed()

    def tell_of_cursor(self) -> None:
        """What happened at the cursor, in the place of the keys."""
        extent, cursor = self.extent(), self.look.cursor
        if self._bar is None:
            return
        near: list[Mark] = []
        if cursor is not None and extent is not None:
            near = charts.marks_near(self.looked_marks(), cursor, self._cell(extent) / 2)
        spans: list[Span] = [(f" {formats.count(int(near[0].step))}", "value")] if near else []
        for mark in near[:3]:
            spans += [(f"  {mark.glyph} ", mark.role), (mark.text, "text")]
        self._bar.under(tuple(spans))

    # --- the pointer ----------------------------------------------------------------------------------

    def on_chart_zoomed(self, event: Chart.Zoomed) -> None:
        if (extent := self.extent()) is not None:
            self.look = replace(self.look, window=self.look.window.zoomed(event.factor, extent, event.place))
            self._soon()

    def on_chart_panned(self, event: Chart.Panned) -> None:
        if (extent := self.extent()) is not None:
            self.look = replace(self.look, window=self.look.window.panned(event.share, extent))
            self._soon()

    def on_chart_pointed(self, event: Chart.Pointed) -> None:
        if event.stays or not self._pinned:
            self.point_at(event.place, event.stays)
