"""A framed list to move through: one item is selected, and the view follows it."""

from collections.abc import Sequence
from textwrap import wrap
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType

from optwatch_tui.rows import Item, Row, Span, clip_row, row_length
from optwatch_tui.widgets.frame import Framed
from optwatch_tui.widgets.moves import Chosen, Moved


class Listing(Framed, can_focus=True):
    """Items under a title. Moves with the arrow keys, page up and down, home, end, wheel and mouse."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", show=False),
        Binding("down", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home", "edge(0)", show=False),
        Binding("end", "edge(-1)", show=False),
    ]

    def __init__(self, title: str, empty: str, *, id: str, pinned: bool = False) -> None:
        """`pinned`: before anything was selected, the first item stays selected whatever comes."""
        super().__init__(id=id)
        self._title = title
        self._empty = empty
        self._note: Row = ()
        self._items: tuple[Item, ...] = ()
        self._heading: Row | None = None
        self._chosen: str | None = None
        self._top = 0
        self._pinned = pinned

    def show(
        self, items: Sequence[Item], note: Row = (), head: Row | None = None, empty: str | None = None
    ) -> None:
        """Draw other items, or `empty`; the selected one stays selected as long as it is there."""
        self._items, self._note, self._heading = tuple(items), note, head
        self._empty = self._empty if empty is None else empty
        keys = [item.key for item in self._items]
        if self._chosen not in keys:
            self._chosen = None if self._pinned or not keys else keys[0]
        self.renew()

    @property
    def selected(self) -> str | None:
        """The key of the selected item: the first as long as the user has not moved."""
        if self._chosen is None and self._items:
            return self._items[0].key
        return self._chosen

    def select(self, key: str) -> None:
        """Move to an item."""
        self._chosen = key
        self.renew()

    def _move_to(self, key: str) -> None:
        self.select(key)
        self.post_message(Moved(self, key))

    def title(self) -> Row:
        return ((self._title, "title"),)

    def note(self) -> Row:
        return self._note

    def body(self, width: int, height: int) -> list[Row]:
        if not self._items:
            return [((" " + line, "muted"),) for line in wrap(self._empty, max(width - 2, 1))]
        rows: list[Row] = []
        head = 0
        if self._heading is not None:
            rows.append(self._heading)
            head = 1
        lines = [(item.key, at, row) for item in self._items for at, row in enumerate(item.rows)]
        self._follow(lines, height - head)
        for key, at, row in lines[self._top : self._top + height - head]:
            chosen = key == self.selected and self.has_focus
            rows.append(_marked(row, width) if chosen and at == 0 else row)
        return rows

    def _follow(self, lines: list[tuple[str, int, Row]], height: int) -> None:
        mine = [at for at, (key, _, _) in enumerate(lines) if key == self.selected]
        if mine:
            self._top = min(self._top, mine[0])
            self._top = max(self._top, min(mine[-1] - height + 1, mine[0]))
        self._top = max(0, min(self._top, len(lines) - height))

    def action_move(self, by: int) -> None:
        keys = [item.key for item in self._items]
        if keys and self.selected in keys:
            self._move_to(keys[max(0, min(len(keys) - 1, keys.index(self.selected) + by))])

    def action_page(self, by: int) -> None:
        lines = len(self._items[0].rows) if self._items else 1
        self.action_move(by * max(1, (self.size.height - 3) // max(lines, 1)))

    def action_edge(self, at: int) -> None:
        if self._items:
            self._move_to(self._items[at].key)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.action_move(1)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.action_move(-1)

    def on_click(self, event: events.Click) -> None:
        lines = [item.key for item in self._items for _ in item.rows]
        at = event.y - 1 - (self._heading is not None) + self._top
        if 0 <= at < len(lines) and event.y >= 1:
            self._move_to(lines[at])
            self.post_message(Chosen(self, lines[at]))


def _marked(row: Row, width: int) -> Row:
    """A row as the selected one: every span over the selection's colour, `▸` where it begins with a space."""
    cut = clip_row(row, width)
    spans: list[Span] = [(text, f"{role}@") for text, role in cut]
    spans.append((" " * (width - row_length(cut)), "text@"))
    return tuple(spans)
