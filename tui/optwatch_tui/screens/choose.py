"""Chooses one of several things by its name."""

from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from optwatch_tui.rows import Item, Row, wrap
from optwatch_tui.widgets.listing import Listing
from optwatch_tui.widgets.moves import Chosen


class ChooseScreen(ModalScreen[str | None]):
    """Gives the chosen name, or None. `entries`: name, what it is, and a warning where there is one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y,enter", "do", show=False),
        Binding("escape,n,q", "leave", show=False),
    ]

    def __init__(self, title: str, entries: tuple[tuple[str, str, str], ...]) -> None:
        super().__init__()
        self._entries = entries
        self._listing = Listing(title, "nothing", id="choose")

    def compose(self) -> ComposeResult:
        yield self._listing

    def on_mount(self) -> None:
        self._fit()
        self._listing.focus()

    def on_resize(self, _event: events.Resize) -> None:
        self._fit()

    def _fit(self) -> None:
        width = min(76, self.app.size.width - 2)
        items = [self._item(*entry, width - 8) for entry in self._entries]
        self._listing.styles.width = width
        self._listing.styles.height = min(sum(len(item.rows) for item in items) + 2, self.app.size.height)
        note: Row = (("enter choose  esc leave it", "muted"),)
        self._listing.show(items, note=note)

    @staticmethod
    def _item(name: str, about: str, warning: str, width: int) -> Item:
        rows: list[Row] = [((f"   {name}", "title"),)]
        rows.extend(((f"     {line}", "muted"),) for line in wrap(about, width, 2))
        rows.extend(((f"     ▲ {line}", "warning"),) for line in wrap(warning, width - 2, 2))
        return Item(name, tuple(rows))

    def action_do(self) -> None:
        self.dismiss(self._listing.selected)

    def action_leave(self) -> None:
        self.dismiss(None)

    def on_chosen(self, event: Chosen) -> None:
        self.dismiss(event.key)
