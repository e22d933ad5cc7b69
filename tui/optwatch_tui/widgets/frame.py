"""A frame with a title around lines of text: the base of every panel. Only changed lines are drawn anew."""

from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from optwatch_tui.rows import Row, clip_row, row_length, strip_of
from optwatch_tui.theme import palette_of


class Lines(Widget):
    """Rows of text, one a line. A subclass says which, and calls `renew` when they may have changed."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._strips: list[Strip] = []
        self._for: tuple[Size, str, bool] | None = None

    def lines(self, width: int, height: int) -> list[Row]:
        """The rows to draw, at most `height`, each cut to `width`."""
        raise NotImplementedError

    def renew(self) -> None:
        """Look again, and draw the lines that are not as they were."""
        if not self.is_mounted or not self.size.area:
            return
        old = self._strips
        self._draw()
        new = self._strips
        if len(old) != len(new):
            self.refresh()
            return
        changed = [y for y, (was, now) in enumerate(zip(old, new, strict=True)) if was != now]
        if changed:
            self.refresh(*(Region(0, y, self.size.width, 1) for y in changed))

    def render_line(self, y: int) -> Strip:
        if self._for != self._key():
            self._draw()
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.size.width)

    def _key(self) -> tuple[Size, str, bool]:
        return (self.size, self.app.theme, self.has_focus)

    def _draw(self) -> None:
        self._for = self._key()
        width, height = self.size
        palette = palette_of(self.app.theme)
        rows = self.lines(width, height)[:height]
        rows += [()] * (height - len(rows))
        self._strips = [strip_of(row, width, palette) for row in rows]

    def watch_has_focus(self, _has_focus: bool) -> None:
        self.refresh()


class Framed(Lines):
    """Lines in a rounded frame."""

    def title(self) -> Row:
        """What the frame says at its upper left."""
        return ()

    def note(self) -> Row:
        """What it says at its upper right, where there is room."""
        return ()

    def foot(self, width: int) -> Row:
        """What its lower edge says, exactly `width` cells of it."""
        return (("─" * width, self.edge),)

    def body(self, width: int, height: int) -> list[Row]:
        """The rows inside."""
        raise NotImplementedError

    @property
    def edge(self) -> str:
        return "focus" if self.has_focus else "frame"

    def lines(self, width: int, height: int) -> list[Row]:
        if width < 4 or height < 2:
            return []
        edge = self.edge
        inner = self.body(width - 2, height - 2)[: height - 2]
        inner += [()] * (height - 2 - len(inner))
        rows: list[Row] = [self._head(width)]
        for row in inner:
            cut = clip_row(row, width - 2)
            rows.append((("│", edge), *cut, (" " * (width - 2 - row_length(cut)), "text"), ("│", edge)))
        rows.append((("╰", edge), *self.foot(width - 2), ("╯", edge)))
        return rows

    def _head(self, width: int) -> Row:
        edge = self.edge
        title, note = clip_row(self.title(), width - 4), self.note()
        room = width - 4 - row_length(title)
        if note and row_length(note) + 3 > room:
            note = ()
        left: Row = ((" ", edge), *title, (" ", edge)) if title else ()
        right: Row = ((" ", edge), *note, (" ", edge)) if note else ()
        fill = width - 2 - row_length(left) - row_length(right)
        return (("╭", edge), *left, ("─" * fill, edge), *right, ("╮", edge))
