"""Every rank of a run: a grid drawn by one statistic, a list with the worst first, and one rank in full."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import Input

from optwatch.wire.requests import RankInfo
from optwatch_tui import formats, rank_grid
from optwatch_tui.bindings import bindings, keys_of
from optwatch_tui.rank_grid import STATISTICS, RankStatistic
from optwatch_tui.rows import Item, Row, Span, row_length
from optwatch_tui.screens.base import WatchScreen
from optwatch_tui.theme import RANK_GLYPHS
from optwatch_tui.widgets.filter import FilterLine
from optwatch_tui.widgets.frame import Lines
from optwatch_tui.widgets.listing import Listing
from optwatch_tui.widgets.moves import Moved
from optwatch_tui.widgets.rank_grid import RankGrid
from optwatch_tui.widgets.status import StatusHeader

_ROLES = {"up": "ok", "suspect": "warning", "down": "critical", "left": "muted"}
_DETAILS = 3
"""Lines for the selected rank."""
_LIST = 6
"""Lines of the list below which it is left out."""


class RanksScreen(WatchScreen):
    """Grid, list and details move together: one rank is selected."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("ranks")]

    def __init__(self) -> None:
        super().__init__()
        self._statistic = 0
        self._worst_first = True
        self._selected = 0
        self._chosen = False
        """Whether the user has moved; until then the worst rank is the selected one."""
        self._header = StatusHeader(id="status")
        self._grid = RankGrid(id="grid")
        self._listing = Listing("list", "no rank matches", id="ranks")
        self._rank = RankDetails()
        self._filter = FilterLine(id="filter")

    def compose(self) -> ComposeResult:
        yield self._header
        yield self._grid
        yield self._listing
        yield self._rank
        yield self._filter
        yield self.keybar(keys_of("ranks", "app"))

    def on_mount(self) -> None:
        super().on_mount()
        self._grid.focus()

    def fit_panels(self) -> None:
        """The grid takes what it needs, the list what is left."""
        width, height = self.app.size
        room = height - 2 - 1 - _DETAILS
        grid = self._grid.lines_wanted(width, max(room, 3), _LIST)
        self._listing.display = room - grid >= _LIST
        self._grid.styles.height = grid if self._listing.display else max(room, 3)
        self._rank.styles.height = _DETAILS

    def changed(self) -> None:
        app = self.watch_app
        self._header.show(app.snapshot, app.link, app.now(), self.badges(), app.named_keys)
        if app.snapshot is None:
            return
        status, statistic = app.snapshot.status, STATISTICS[self._statistic]
        ranks, wanted = status.ranks, self._filter.value.casefold()
        newest = rank_grid.newest_step(ranks)
        shown = [
            rank for rank in ranks if wanted in f"{rank.rank} {rank.host} {rank.link} {rank.phase}".casefold()
        ]
        ordered = rank_grid.worst_first(shown, statistic) if self._worst_first else shown
        kept = frozenset(rank.rank for rank in shown)
        if ordered and not (self._chosen and (not wanted or self._selected in kept)):
            self._selected = ordered[0].rank
        self._grid.show(ranks, status.world_size, statistic, kept, self._selected)
        self.fit_panels()
        up = sum(rank.link == "up" for rank in ranks)
        matching: Row = ((f"{len(shown)} of {len(ranks)} match  ", "warning"),) if wanted else ()
        self._listing.show(
            [rank_item(rank, newest, statistic) for rank in ordered],
            note=(
                *matching,
                (f"{up} of {status.world_size} up", "ok" if up == status.world_size else "warning"),
            ),
            head=rank_head(statistic),
        )
        self._listing.select(str(self._selected))
        selected = next((rank for rank in ranks if rank.rank == self._selected), None)
        self._rank.show(self._selected, selected, newest)

    def _select(self, rank: int) -> None:
        self._selected, self._chosen = rank, True
        self.changed()

    def on_moved(self, event: Moved) -> None:
        self._select(int(event.key))

    def action_statistic(self) -> None:
        self._statistic = (self._statistic + 1) % len(STATISTICS)
        self.changed()

    def action_sort(self) -> None:
        self._worst_first = not self._worst_first
        self.changed()
        order = "the worst first" if self._worst_first else "by number"
        self.notice(((" ○ ", "info"), (f"order: {order}", "text")))

    def action_filter(self) -> None:
        self._filter.open()

    def on_input_changed(self, _event: Input.Changed) -> None:
        self.changed()

    def on_filter_line_done(self) -> None:
        self.set_focus(self._grid)


class RankDetails(Lines):
    """All that is known of the selected rank, over a few lines."""

    def __init__(self) -> None:
        super().__init__(id="rank")
        self._pieces: list[Row] = []

    def show(self, number: int, rank: RankInfo | None, newest: int) -> None:
        if rank is None:
            self._pieces = [((f"rank {number} ", "title"), ("was not heard yet", "warning"))]
        else:
            self._pieces = [
                ((f"{label} ", "muted"), (text, "critical" if text.startswith("DIFFERS") else "text"))
                for label, text in rank_grid.details(rank, newest)
            ]
        self.renew()

    def lines(self, width: int, height: int) -> list[Row]:
        rows: list[Row] = []
        line: list[Span] = [(" ", "text")]
        for piece in self._pieces:
            if row_length((*line, *piece)) > width and len(line) > 1:
                rows.append(tuple(line))
                line = [(" ", "text")]
            line += [*piece, ("   ", "text")]
        return [*rows, tuple(line)]


_STATISTIC = 12
"""Cells for what the grid shows, in the list."""


def rank_head(statistic: RankStatistic) -> Row:
    """The heading over `rank_item`s."""
    return (
        (f" {'link':<9}{'rank':>5} ", "muted"),
        (f"{statistic.short[: _STATISTIC - 1]:>{_STATISTIC}}", "first"),
        (f" {'step':>10} {'behind':>6} {'phase':<13} {'for':>8} {'late':>8}", "muted"),
        (f" {'norm':>8} {'checksum':>9} {'agent':>6} {'every':>5} {'lost':>5}  host", "muted"),
    )


def rank_item(rank: RankInfo, newest: int, statistic: RankStatistic) -> Item:
    """One rank in a line: first what the grid shows, then the rest as far as there is room."""
    told = {each.key: each.text(rank, newest) for each in STATISTICS}
    row: Row = (
        (f" {RANK_GLYPHS[rank.link]} {rank.link:<7}", _ROLES[rank.link]),
        (f"{rank.rank:>5} ", "title"),
        (f"{told[statistic.key]:>{_STATISTIC}}", "value"),
        (f" {formats.count(rank.step):>10} ", "text"),
        (f"{told['behind']:>6} ", "warning" if newest - rank.step > 1 else "muted"),
        (f"{formats.plain(rank.phase)[:13]:<13} ", "text"),
        (f"{told['phase_time']:>8} ", "text"),
        (f"{told['lateness']:>8} ", "text"),
        (f"{told['local_norm']:>8} ", "text"),
        (f"{told['agrees']:>9} ", "critical" if rank.agrees is False else "text"),
        (f"{told['overhead']:>6} ", "muted"),
        (f"{rank.sample_every:>5} ", "muted"),
        (f"{rank.dropped or '-':>5}", "warning" if rank.dropped else "muted"),
        (f"  {formats.plain(rank.host)}:{rank.pid}", "muted"),
    )
    return Item(str(rank.rank), (row,))
