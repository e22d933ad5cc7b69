"""A list with one entry in full beside it, and a small chart of what it is about: findings and actions."""

from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Input

from optwatch_tui.bindings import Scope, keys_of
from optwatch_tui.charts import Picture
from optwatch_tui.model import Snapshot
from optwatch_tui.rows import Item, Row
from optwatch_tui.screens.acting import ActingScreen
from optwatch_tui.screens.text import Page, TextScreen
from optwatch_tui.widgets.chart import Chart
from optwatch_tui.widgets.filter import FilterLine
from optwatch_tui.widgets.listing import Listing
from optwatch_tui.widgets.moves import Chosen, Moved
from optwatch_tui.widgets.status import StatusHeader

Entry = TypeVar("Entry")

_BESIDE = 110
"""Cells from which on list and details stand side by side."""
_CHART = 5
"""Lines of the chart, at least."""


class LedgerScreen(ActingScreen, Generic[Entry]):
    """A subclass says what the entries are, and how one looks in the list, in full and as a chart."""

    SCOPE: ClassVar[Scope]
    WHAT: ClassVar[str]
    EMPTY: ClassVar[str]
    SHOWN: ClassVar[tuple[str, ...]] = ("all", "open", "over")

    def __init__(self) -> None:
        super().__init__()
        self._which = 0
        self._beneath = False
        """Whether the details stand under the list, with little room."""
        self._header = StatusHeader(id="status")
        self._listing = Listing(self.WHAT, self.EMPTY, id="ledger", pinned=True)
        self._details = Page("in full", self._details_rows, "tab here, ↑↓ scroll")
        self._chart = Chart("evidence", "evidence", id="evidence")
        self._filter = FilterLine(id="filter")
        self._body, self._side = Horizontal(id="ledger-body"), Vertical(id="ledger-side")

    def compose(self) -> ComposeResult:
        yield self._header
        yield from self.above()
        with self._body:
            yield self._listing
            with self._side:
                yield self._chart
                yield self._details
        yield self._filter
        yield self.keybar(keys_of(self.SCOPE, "app"))

    def on_mount(self) -> None:
        super().on_mount()
        self._listing.focus()

    # --- what a subclass says -------------------------------------------------------------------------

    def above(self) -> ComposeResult:
        """What stands between the header and the list."""
        yield from ()

    def entries(self, snapshot: Snapshot) -> list[Entry]:
        """All entries, in the order of the list."""
        raise NotImplementedError

    def key(self, entry: Entry) -> str:
        raise NotImplementedError

    def words(self, entry: Entry) -> str:
        """What the filter looks through."""
        raise NotImplementedError

    def is_open(self, entry: Entry) -> bool:
        raise NotImplementedError

    def item(self, entry: Entry, snapshot: Snapshot, width: int) -> Item:
        raise NotImplementedError

    def in_full(self, entry: Entry, snapshot: Snapshot, width: int) -> list[Row]:
        raise NotImplementedError

    def in_short(self, entry: Entry, snapshot: Snapshot, width: int) -> list[Row]:
        """The same where the list stands right above it."""
        return self.in_full(entry, snapshot, width)

    def heading(self, entry: Entry) -> str:
        raise NotImplementedError

    def picture(self, entry: Entry, snapshot: Snapshot) -> Picture:
        raise NotImplementedError

    def looking_charts(self) -> Sequence[Chart]:
        return (self._chart,) if self._chart.display else ()

    # --- drawing --------------------------------------------------------------------------------------

    def fit_panels(self) -> None:
        width, height = self.app.size
        beside = width >= _BESIDE
        self._body.styles.layout = "horizontal" if beside else "vertical"
        room = max(6, height - 5)
        side = room if beside else room * 2 // 3
        self._listing.styles.width = "2fr" if beside else "1fr"
        self._side.styles.width = "3fr" if beside else "1fr"
        self._side.styles.height = "1fr" if beside else side
        self._chart.display = side >= 11
        self._chart.styles.height = max(_CHART, side * 2 // 5)
        self._beneath = not beside

    def changed(self) -> None:
        app = self.watch_app
        self._header.show(app.snapshot, app.link, app.now(), self.badges(), app.named_keys)
        if app.snapshot is None:
            return
        self.tell_of_commands(app.snapshot)
        snapshot = self.held or app.snapshot
        everything = self.entries(snapshot)
        shown = [entry for entry in everything if self._kept(entry)]
        width = self._listing.size.width - 2
        wanted = len(shown) < len(everything) or bool(self._filter.value)
        count = f"{len(shown)} of {len(everything)}" if wanted else str(len(everything))
        self._listing.show(
            [self.item(entry, snapshot, width) for entry in shown],
            note=((f"{self.SHOWN[self._which]}  ", "text"), (count, "warning" if wanted else "muted")),
            empty=self.EMPTY if not everything else "nothing matches",
        )
        self._show_selected(snapshot)

    def _kept(self, entry: Entry) -> bool:
        which = self.SHOWN[self._which]
        if which in ("open", "over") and self.is_open(entry) != (which == "open"):
            return False
        return self._filter.value.casefold() in self.words(entry).casefold()

    def _show_selected(self, snapshot: Snapshot) -> None:
        entry = self.selected(snapshot)
        self._side.display = entry is not None
        if entry is None:
            return
        self._details.renew()
        if self._chart.display and self._chart.size.area:
            self._chart.show(self.picture(entry, snapshot))

    def selected(self, snapshot: Snapshot | None) -> Entry | None:
        """The entry at the cursor."""
        if snapshot is None:
            return None
        key = self._listing.selected
        return next((entry for entry in self.entries(snapshot) if self.key(entry) == key), None)

    def _details_rows(self, width: int) -> list[Row]:
        snapshot = self.looked_at()
        entry = self.selected(snapshot)
        if entry is None or snapshot is None:
            return []
        rows = self.in_short if self._beneath else self.in_full
        return rows(entry, snapshot, width)

    # --- keys -----------------------------------------------------------------------------------------

    def on_moved(self, _event: Moved) -> None:
        self._details.to_top()
        self.changed()

    def action_which(self) -> None:
        self._which = (self._which + 1) % len(self.SHOWN)
        self.changed()

    def action_filter(self) -> None:
        self._filter.open()

    def on_input_changed(self, _event: Input.Changed) -> None:
        self.changed()

    def on_filter_line_done(self) -> None:
        self.set_focus(self._listing)

    def action_open(self) -> None:
        snapshot = self.looked_at()
        entry = self.selected(snapshot)
        if entry is not None and snapshot is not None:
            rows = self.in_full
            self.app.push_screen(TextScreen(self.heading(entry), lambda width: rows(entry, snapshot, width)))

    def on_chosen(self, _event: Chosen) -> None:
        self.changed()
