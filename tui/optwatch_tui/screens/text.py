"""A page of text over the screen, to read and close: help, and a finding in full."""

from collections.abc import Callable
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from optwatch_tui.rows import Row
from optwatch_tui.widgets.frame import Framed


class Page(Framed, can_focus=True):
    """Rows that scroll. `note`: what the keys do here."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "scroll(1)", show=False),
        Binding("up", "scroll(-1)", show=False),
        Binding("pagedown", "scroll(10)", show=False),
        Binding("pageup", "scroll(-10)", show=False),
    ]

    def __init__(self, title: str, rows_for: Callable[[int], list[Row]], note: str) -> None:
        super().__init__(id="page")
        self._title = title
        self._note = note
        self._rows_for = rows_for
        self._top = 0

    def title(self) -> Row:
        return ((self._title, "title"),)

    def note(self) -> Row:
        return ((self._note, "muted"),)

    def body(self, width: int, height: int) -> list[Row]:
        rows = [((" ", "text"), *row) for row in self._rows_for(width - 2)]
        self._top = max(0, min(self._top, len(rows) - height))
        return rows[self._top : self._top + height]

    def action_scroll(self, by: int) -> None:
        self._top = max(0, self._top + by)
        self.renew()

    def to_top(self) -> None:
        self._top = 0
        self.renew()


class TextScreen(ModalScreen[None]):
    """Shows `rows_for(width)` under a title."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q,question_mark", "close", show=False),
        Binding("space", "page", show=False),
    ]

    def __init__(self, title: str, rows_for: Callable[[int], list[Row]]) -> None:
        super().__init__()
        self._title = title
        self._rows_for = rows_for

    def compose(self) -> ComposeResult:
        yield Page(self._title, self._rows_for, "↑↓ scroll  esc close")

    def on_mount(self) -> None:
        self._fit()
        self.query_one(Page).focus()

    def on_resize(self, _event: events.Resize) -> None:
        self._fit()

    def _fit(self) -> None:
        width, height = min(96, self.app.size.width - 2), self.app.size.height
        page = self.query_one(Page)
        page.styles.width = width
        page.styles.height = min(len(self._rows_for(width - 4)) + 2, height)

    def action_close(self) -> None:
        self.dismiss()

    def action_page(self) -> None:
        self.query_one(Page).action_scroll(10)
