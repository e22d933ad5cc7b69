"""Asks before anything is done to a run: what changes, where, when, and how to take it back."""

from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from optwatch.wire.requests import Request
from optwatch_tui.acting import Preview
from optwatch_tui.rows import Row, wrap
from optwatch_tui.widgets.frame import Framed

_LABEL = 12


class Question(Framed, can_focus=True):
    """The preview, with one of its choices marked."""

    def __init__(self, preview: Preview) -> None:
        super().__init__(id="question")
        self._preview = preview
        self.choice = 0

    def title(self) -> Row:
        return ((self._preview.title, "title"),)

    def rows_for(self, width: int) -> list[Row]:
        """All rows at a width of `width` cells."""
        rows: list[Row] = [()]
        for at, choice in enumerate(self._preview.choices):
            mine = at == self.choice
            rows.append((("  ▸ " if mine else "    ", "key"), (choice.label, "title" if mine else "muted")))
        rows.append(())
        why = self._preview.choices[self.choice].why
        for label, text in (*((("why", why),) if why else ()), *self._preview.facts):
            for at, line in enumerate(wrap(text, width - _LABEL - 5, 4)):
                rows.append(((f"  {label if at == 0 else '':<{_LABEL}} ", "muted"), (line, "text")))
        if self._preview.warning:
            rows.append(())
            rows.extend(
                ((f"  {'▲' if at == 0 else ' '} {line}", "warning"),)
                for at, line in enumerate(wrap(self._preview.warning, width - 6, 3))
            )
        keys: Row = (("  y", "key"), (" do it   ", "muted"), ("esc", "key"), (" leave it   ", "muted"))
        if len(self._preview.choices) > 1:
            keys += (("↑↓", "key"), (" choose", "muted"))
        return [*rows, (), keys]

    def body(self, width: int, height: int) -> list[Row]:
        return self.rows_for(width)

    def move(self, by: int) -> None:
        self.choice = (self.choice + by) % len(self._preview.choices)
        self.renew()


class ConfirmScreen(ModalScreen[Request | None]):
    """Gives the chosen request, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y,enter", "do", show=False),
        Binding("escape,n,q", "leave", show=False),
        Binding("down,right,tab", "move(1)", show=False),
        Binding("up,left,shift+tab", "move(-1)", show=False),
    ]

    def __init__(self, preview: Preview) -> None:
        super().__init__()
        self._preview = preview

    def compose(self) -> ComposeResult:
        yield Question(self._preview)

    def on_mount(self) -> None:
        self._fit()
        self.query_one(Question).focus()

    def on_resize(self, _event: events.Resize) -> None:
        self._fit()

    def _fit(self) -> None:
        question = self.query_one(Question)
        width = min(76, self.app.size.width - 2)
        question.styles.width = width
        question.styles.height = min(len(question.rows_for(width - 2)) + 2, self.app.size.height)

    def action_do(self) -> None:
        self.dismiss(self._preview.choices[self.query_one(Question).choice].request)

    def action_leave(self) -> None:
        self.dismiss(None)

    def action_move(self, by: int) -> None:
        self.query_one(Question).move(by)
        self._fit()
