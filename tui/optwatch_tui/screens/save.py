"""Asks what of a screen to save or copy, and does it."""

from pathlib import Path
from typing import ClassVar

from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import ModalScreen

from optwatch_tui import saving
from optwatch_tui.figure import figure
from optwatch_tui.rows import Row
from optwatch_tui.saving import NotSaved
from optwatch_tui.theme import palette_of
from optwatch_tui.widgets.chart import Chart
from optwatch_tui.widgets.frame import Framed

Entry = tuple[str, str]
"""Its key, and what it does."""
_OF_A_CHART: tuple[Entry, ...] = (
    ("c", "numbers in view, as CSV"),
    ("y", "copy these numbers to the clipboard"),
    ("s", "chart as SVG"),
    ("p", "chart as PNG"),
)
_OF_A_SCREEN: tuple[Entry, ...] = (("S", "whole screen as SVG"), ("P", "whole screen as PNG"))


class SaveMenu(Framed, can_focus=True):
    """What can be saved, a line each."""

    def __init__(self, entries: tuple[Entry, ...], what: str) -> None:
        super().__init__(id="save")
        self._entries = entries
        self._what = what
        self.choice = 0

    def title(self) -> Row:
        return ((f"save {self._what}", "title"),)

    def body(self, width: int, height: int) -> list[Row]:
        rows: list[Row] = [()]
        for at, (key, label) in enumerate(self._entries):
            mine = at == self.choice
            rows.append(
                (
                    (" ▸ " if mine else "   ", "key"),
                    (f"{key} ", "key"),
                    (label, "title" if mine else "muted"),
                )
            )
        keys: Row = (("   enter", "key"), (" do it  ", "muted"), ("esc", "key"), (" leave it", "muted"))
        return [*rows, (), keys]

    def move(self, by: int) -> None:
        self.choice = (self.choice + by) % len(self._entries)
        self.renew()

    def on_click(self, event: events.Click) -> None:
        if 0 <= event.y - 2 < len(self._entries):
            self.choice = event.y - 2
            self.renew()
            self.post_message(self.Taken())

    class Taken(Message):
        """A line was clicked."""


class SaveScreen(ModalScreen[str | None]):
    """Gives the key of what is to be saved, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "do", show=False),
        Binding("escape,q", "leave", show=False),
        Binding("down,tab", "move(1)", show=False),
        Binding("up,shift+tab", "move(-1)", show=False),
    ]

    def __init__(self, chart: Chart | None) -> None:
        super().__init__()
        there = chart is not None and chart.picture is not None and bool(chart.picture.lines)
        self._entries = (*_OF_A_CHART, *_OF_A_SCREEN) if there else _OF_A_SCREEN
        self._menu = SaveMenu(self._entries, chart.heading if there and chart is not None else "screen")

    def compose(self) -> ComposeResult:
        yield self._menu

    def on_mount(self) -> None:
        self._menu.styles.width = min(48, self.app.size.width)
        self._menu.styles.height = min(len(self._entries) + 5, self.app.size.height)
        self._menu.focus()

    def on_key(self, event: events.Key) -> None:
        if event.character in dict(self._entries):
            event.stop()
            self.dismiss(event.character)

    def on_save_menu_taken(self) -> None:
        self.action_do()

    def action_do(self) -> None:
        self.dismiss(self._entries[self._menu.choice][0])

    def action_leave(self) -> None:
        self.dismiss(None)

    def action_move(self, by: int) -> None:
        self._menu.move(by)


def carry_out(key: str, chart: Chart | None, name: str, app: App[None]) -> Row:
    """Save or copy what was chosen, and say what became of it."""
    try:
        if key in dict(_OF_A_SCREEN):
            svg = app.export_screenshot(title="optwatch")
            return _saved(
                saving.save(svg if key == "S" else saving.png(svg), f"optwatch-{name}", _ENDING[key])
            )
        assert chart is not None
        assert chart.picture is not None
        if key == "c":
            content: str | bytes = saving.csv_text(chart.picture)
        elif key == "y":
            return _copied(saving.csv_text(chart.picture), app)
        else:
            drawn = figure(chart.picture, name, palette_of(app.theme))
            content = drawn if key == "s" else saving.png(drawn)
        return _saved(saving.save(content, f"optwatch-{name}-{chart.key}", _ENDING[key]))
    except NotSaved as error:
        return ((" ✗ ", "critical"), (str(error), "text"))


_ENDING = {"c": "csv", "s": "svg", "S": "svg", "p": "png", "P": "png"}


def _saved(path: Path) -> Row:
    return ((" ✓ ", "ok"), (f"saved {path}", "text"))


def _copied(numbers: str, app: App[None]) -> Row:
    app.copy_to_clipboard(numbers)
    rows = numbers.count("\n") - 1
    return ((" ✓ ", "ok"), (f"copied {rows} rows as CSV, where the terminal allows it (OSC 52)", "text"))
