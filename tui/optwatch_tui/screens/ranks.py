"""Every rank of a run: where it is, how it is heard, what the agent costs it."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import Input

from optwatch.wire.requests import RankInfo
from optwatch_tui import formats
from optwatch_tui.bindings import bindings, keys_of
from optwatch_tui.rows import Item, Row
from optwatch_tui.screens.base import WatchScreen
from optwatch_tui.theme import RANK_GLYPHS
from optwatch_tui.widgets.filter import FilterLine
from optwatch_tui.widgets.listing import Listing
from optwatch_tui.widgets.status import StatusHeader

_ROLES = {"up": "ok", "suspect": "warning", "down": "critical", "left": "muted"}


class RanksScreen(WatchScreen):
    """A list of ranks, those that lag or are not heard first."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("ranks")]

    def __init__(self) -> None:
        super().__init__()
        self._header = StatusHeader(id="status")
        self._listing = Listing("ranks", "no rank was heard yet", id="ranks")
        self._filter = FilterLine(id="filter")

    def compose(self) -> ComposeResult:
        yield self._header
        yield self._listing
        yield self._filter
        yield self.keybar(keys_of("ranks", "app"))

    def changed(self) -> None:
        app = self.watch_app
        self._header.show(app.snapshot, app.link, app.now(), (), app.readonly)
        if app.snapshot is None:
            return
        wanted = self._filter.value.casefold()
        ranks = app.snapshot.status.ranks
        newest = max((rank.step for rank in ranks), default=0)
        shown = [
            rank for rank in ranks if wanted in f"{rank.rank} {rank.host} {rank.link} {rank.phase}".casefold()
        ]
        shown.sort(key=lambda rank: (list(_ROLES).index(rank.link) in (0, 3), rank.step, rank.rank))
        up = sum(rank.link == "up" for rank in ranks)
        self._listing.show(
            [rank_item(rank, newest) for rank in shown],
            note=((f"{up} of {app.snapshot.status.world_size} up", "ok" if up == len(ranks) else "warning"),),
            head=_HEAD,
        )

    def action_filter(self) -> None:
        self._filter.open()

    def on_input_changed(self, _event: Input.Changed) -> None:
        self.changed()

    def on_filter_line_done(self) -> None:
        self.set_focus(self._listing)


_HEAD: Row = (
    (f" {'link':<10}{'rank':>5} {'step':>10} {'behind':>6} {'phase':<9}", "muted"),
    (f"{'agent':>6} {'every':>5} {'lost':>5}  host", "muted"),
)


def rank_item(rank: RankInfo, newest: int) -> Item:
    """One rank in a line."""
    behind = newest - rank.step
    row: Row = (
        (f" {RANK_GLYPHS[rank.link]} {rank.link:<8}", _ROLES[rank.link]),
        (f"{rank.rank:>5} ", "title"),
        (f"{formats.count(rank.step):>10} ", "text"),
        (f"{behind or '-':>6} ", "warning" if behind > 1 else "muted"),
        (f"{formats.plain(rank.phase)[:8]:<9}", "text"),
        (f"{rank.overhead:>6.1%} ", "muted"),
        (f"{rank.sample_every:>5} ", "muted"),
        (f"{rank.dropped or '-':>5}", "warning" if rank.dropped else "muted"),
        (f"  {formats.plain(rank.host)}:{rank.pid}", "muted"),
    )
    return Item(str(rank.rank), (row,))
