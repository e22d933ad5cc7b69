"""The list of runs."""

from collections.abc import Callable
from math import inf
from typing import Any, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import Input

from optwatch.wire.findings import SEVERITIES
from optwatch.wire.requests import RunInfo
from optwatch_tui import describe
from optwatch_tui.bindings import bindings, keys_of
from optwatch_tui.compared import MOST
from optwatch_tui.rows import Row
from optwatch_tui.screens.base import WatchScreen
from optwatch_tui.widgets.filter import FilterLine
from optwatch_tui.widgets.frame import Lines
from optwatch_tui.widgets.listing import Listing
from optwatch_tui.widgets.moves import Chosen
from optwatch_tui.widgets.status import link_sentence

_EMPTY = "no runs yet: add watch = optwatch.attach(optimizer) to a training script, or try optwatch demo"


_ORDERS: dict[str, Callable[[RunInfo], Any]] = {
    "the newest first": lambda run: -run.started,
    "the worst finding first": lambda run: -SEVERITIES.index(run.worst) if run.worst in SEVERITIES else 1,
    "by name": lambda run: run.name.casefold(),
    "the lowest loss first": lambda run: run.loss if run.loss is not None and run.loss == run.loss else inf,
}


class RunsHeader(Lines):
    """Where the daemon is, and how many runs it has."""

    def lines(self, width: int, height: int) -> list[Row]:
        app = self.screen.watch_app  # type: ignore[attr-defined]
        link = app.link
        word = "  read-only" if app.readonly else ""
        if link.state != "live":
            return [((" optwatch ▸ runs", "title"), (word, "warning")), link_sentence(link)]
        live = sum(run.state == "live" for run in app.runs)
        return [
            ((" optwatch ▸ ", "muted"), ("runs", "title"), (word, "warning")),
            ((" ● ", "ok"), (f"{link.address}  {len(app.runs)} runs, {live} live", "muted")),
        ]


class RunsScreen(WatchScreen):
    """All runs that the daemon knows, the newest first."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("runs")]

    def __init__(self) -> None:
        super().__init__()
        self._order = next(iter(_ORDERS))
        self._picked: list[str] = []
        self._header = RunsHeader(id="status")
        self._listing = Listing("runs", _EMPTY, id="runs")
        self._filter = FilterLine(id="filter")

    def compose(self) -> ComposeResult:
        yield self._header
        yield self._listing
        yield self._filter
        yield self.keybar(keys_of("runs", "app"))

    def changed(self) -> None:
        app = self.watch_app
        listing, wanted = self._listing, self._filter.value.casefold()
        shown = [run for run in app.runs if wanted in f"{run.name} {run.run} {run.state}".casefold()]
        shown.sort(key=_ORDERS[self._order])
        width = listing.size.width - 2
        note: Row = ((f"{len(shown)} of {len(app.runs)} match", "warning"),) if wanted else ()
        listing.show(
            [
                describe.run_item(run, app.now(), width, app.glances.get(run.run), run.run in self._picked)
                for run in shown
            ],
            note=note,
            head=describe.run_head(width) if shown else None,
            empty=_EMPTY if app.link.state == "live" else app.link.reason or "connecting",
        )
        self._header.renew()

    def action_open(self) -> None:
        if run := self._listing.selected:
            self.watch_app.open_run(run)

    def action_pick(self) -> None:
        """Pick the selected run for a comparison, or put it back, and go on to the next."""
        if (run := self._listing.selected) is None:
            return
        if run in self._picked:
            self._picked.remove(run)
        elif len(self._picked) < MOST:
            self._picked.append(run)
        else:
            self.notice(((" – ", "muted"), (f"{MOST} runs are the most that can be told apart", "text")))
            return
        self._listing.action_move(1)
        self.changed()

    def action_compare(self) -> None:
        known = {run.run for run in self.watch_app.runs}
        picked = tuple(run for run in self._picked if run in known)
        if len(picked) < 2:
            self.notice(((" – ", "muted"), ("pick two runs or more with space, then compare them", "text")))
        else:
            self.watch_app.compare(picked)

    def action_order(self) -> None:
        names = list(_ORDERS)
        self._order = names[(names.index(self._order) + 1) % len(names)]
        self.changed()
        self.notice(((" ○ ", "info"), (f"order: {self._order}", "text")))

    def action_filter(self) -> None:
        self._filter.open()

    def on_input_changed(self, _event: Input.Changed) -> None:
        self.changed()

    def on_filter_line_done(self) -> None:
        self.set_focus(self._listing)

    def on_chosen(self, event: Chosen) -> None:
        self.watch_app.open_run(event.key)

    def on_key(self, event: events.Key) -> None:
        if event.key == "enter" and not isinstance(self.focused, Input):
            event.stop()
            self.action_open()
