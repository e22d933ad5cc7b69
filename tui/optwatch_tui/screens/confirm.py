"""Asks before anything is done to a run: what changes, where, when, and how to take it back."""

from collections.abc import Callable
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Input

from optwatch.wire.requests import Request
from optwatch_tui.acting import Preview
from optwatch_tui.forms import Field
from optwatch_tui.rows import Row, wrap
from optwatch_tui.widgets.frame import Lines

_LABEL = 14
_WIDTH = 76


class Choices(Lines, can_focus=True):
    """The prepared ways to do it, one of them marked; none once the form says something else."""

    def __init__(self, preview: Preview) -> None:
        super().__init__(id="choices")
        self._labels = [choice.label for choice in preview.choices]
        self.choice = 0
        self.own = False

    def lines(self, width: int, height: int) -> list[Row]:
        rows: list[Row] = []
        for at, label in enumerate(self._labels):
            mine = at == self.choice and not self.own
            rows.append((("  ▸ " if mine else "    ", "key"), (label, "title" if mine else "muted")))
        return rows

    def choose(self, at: int) -> None:
        self.choice, self.own = at, False
        self.renew()


class Facts(Lines):
    """What the request would do, or why it cannot be made."""

    def __init__(self, preview: Preview) -> None:
        super().__init__(id="facts")
        self.preview = preview
        self.request: Request | None = None
        self.problem = ""
        self.why = ""

    def lines(self, width: int, height: int) -> list[Row]:
        if over := self.preview.over(self.request):
            lines = wrap(over, width - 6, 3)
            return [((f"  {' ' if at else '–'} {line}", "warning"),) for at, line in enumerate(lines)]
        rows: list[Row] = []
        facts = self.preview.facts(self.request)
        for label, text in (*((("why", self.why),) if self.why else ()), *facts):
            for at, line in enumerate(wrap(text, width - _LABEL - 4, 4)):
                rows.append(((f"  {label if at == 0 else '':<{_LABEL}} ", "muted"), (line, "text")))
        for text, glyph, role in ((self.problem, "✗", "critical"), (self.preview.warning, "▲", "warning")):
            rows.extend(
                ((f"  {glyph if at == 0 else ' '} {line}", role),)
                for at, line in enumerate(wrap(text, width - 6, 3))
            )
        return rows


class Keys(Lines):
    """What the keys do here."""

    def __init__(self, preview: Preview) -> None:
        super().__init__(id="keys")
        self._preview = preview
        self.typing = False
        self.over = False

    def lines(self, width: int, height: int) -> list[Row]:
        do = "enter" if self.typing else "y"
        keys: Row = (("esc", "key"), (" leave it   ", "muted"))
        keys = (("  ", "text"), *keys) if self.over else ((f"  {do}", "key"), (" do it   ", "muted"), *keys)
        if len(self._preview.choices) > 1 or (self._preview.fields and not self.over):
            keys += (("↑↓", "key"), (" choose   ", "muted"))
        if self._preview.fields and not self.over:
            keys += (("tab", "key"), (" fill in", "muted"))
        return [keys]


class OptionField(Lines, can_focus=True):
    """A field that is one of a few words: space or the arrow keys go through them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,space", "turn(1)", show=False),
        Binding("left", "turn(-1)", show=False),
    ]

    class Changed(Message):
        """Another word was chosen."""

    def __init__(self, field: Field, value: str) -> None:
        super().__init__(id=f"field-{field.name}")
        self._options = field.options
        self.value = value

    def lines(self, width: int, height: int) -> list[Row]:
        role = "title@" if self.has_focus else "text"
        return [((f" {self.value} ", role), ("  ‹ › " + " ".join(self._options), "muted"))]

    def action_turn(self, by: int) -> None:
        at = self._options.index(self.value) if self.value in self._options else -1
        self.value = self._options[(at + by) % len(self._options)]
        self.renew()
        self.post_message(self.Changed())

    def on_click(self) -> None:
        self.action_turn(1)


class FieldLabel(Lines):
    """The name of a field."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_class("label")
        self._text = name

    def lines(self, width: int, height: int) -> list[Row]:
        return [((f"  {self._text}", "muted"),)]


class ConfirmScreen(ModalScreen[Request | None]):
    """Gives the chosen request, or None. `again`: the same question to the newest snapshot, None without one.

    What it says moves with the run; what can be chosen stays as it was asked.
    """

    CSS = """
    #question { border: round $accent; height: auto; max-height: 100%; overflow-y: auto; }
    #question { background: $background; }
    #question Lines { height: 1; width: 1fr; }
    #question Horizontal { height: 1; }
    #question .label { width: 17; }
    #question Input { height: 1; width: 1fr; background: $panel; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y,enter", "do", show=False),
        Binding("escape,n,q", "leave", show=False),
        Binding("down", "move(1)", show=False),
        Binding("up", "move(-1)", show=False),
        Binding("tab", "app.focus_next", show=False),
        Binding("shift+tab", "app.focus_previous", show=False),
    ]

    def __init__(self, preview: Preview, again: Callable[[], Preview | None]) -> None:
        super().__init__()
        self._preview = preview
        self._again = again
        self._choices, self._facts, self._keys = Choices(preview), Facts(preview), Keys(preview)
        said = preview.choices[0].said
        self._fields: dict[str, Input | OptionField] = {
            field.name: OptionField(field, said.get(field.name, ""))
            if field.options
            else Input(
                said.get(field.name, ""),
                placeholder=field.hint,
                id=f"field-{field.name}",
                compact=True,
                select_on_focus=False,
            )
            for field in preview.fields
        }

    def compose(self) -> ComposeResult:
        with Vertical(id="question") as frame:
            frame.border_title = self._preview.title
            yield self._choices
            for name, widget in self._fields.items():
                with Horizontal():
                    yield FieldLabel(name)
                    yield widget
            yield Blank()
            yield self._facts
            yield Blank()
            yield self._keys

    def on_mount(self) -> None:
        self._take_choice()
        if len(self._preview.choices) == 1 and self._preview.choices[0].request is None and self._fields:
            next(iter(self._fields.values())).focus()  # nothing to choose: it has to be filled in
        else:
            self._choices.focus()

    def on_resize(self, _event: events.Resize) -> None:
        self._fit()

    def on_descendant_focus(self, _event: events.DescendantFocus) -> None:
        self._keys.typing = isinstance(self.focused, Input)
        self._keys.renew()

    def _fit(self) -> None:
        width = min(_WIDTH, self.app.size.width - 2)
        self.query_one("#question").styles.width = width
        self._choices.styles.height = len(self._preview.choices)
        self._facts.styles.height = max(1, len(self._facts.lines(width - 2, 0)))

    def changed(self) -> None:
        """Say what is true now, or that there is nothing to answer any more."""
        if not self.query("#question"):  # it is put together, or taken apart
            return
        if (now := self._again()) is not None:
            self._facts.preview = now
            self._show()

    # --- what is asked for ----------------------------------------------------------------------------

    def _take_choice(self) -> None:
        """The marked choice is what is asked for; the form says the same."""
        choice = self._preview.choices[self._choices.choice]
        for name, widget in self._fields.items():
            with self.prevent(Input.Changed):
                widget.value = choice.said.get(name, "")
            if isinstance(widget, OptionField):
                widget.renew()
        self._facts.request, self._facts.problem, self._facts.why = choice.request, "", choice.why
        if choice.request is None:
            self._read()
            self._facts.problem = ""  # nothing was typed yet
        self._show()

    def _read(self) -> None:
        """What the form says is what is asked for."""
        assert self._preview.read is not None
        try:
            self._facts.request = self._preview.read(
                {name: each.value for name, each in self._fields.items()}
            )
            self._facts.problem = ""
        except ValueError as error:
            self._facts.request, self._facts.problem = None, str(error)

    def _said(self) -> dict[str, str]:
        return {name: widget.value for name, widget in self._fields.items()}

    def _show(self) -> None:
        self._keys.over = bool(self._facts.preview.over(self._facts.request))
        self._fit()
        self._facts.renew()
        self._keys.renew()

    def on_input_changed(self, _event: Input.Changed) -> None:
        self._filled_in()

    def on_option_field_changed(self, _event: OptionField.Changed) -> None:
        self._filled_in()

    def _filled_in(self) -> None:
        choice = self._preview.choices[self._choices.choice]
        if choice.request is not None and self._said() == choice.said:
            return  # the form says what the marked choice says
        self._choices.own = choice.request is not None
        self._choices.renew()
        self._facts.why = ""
        self._read()
        self._show()

    def on_input_submitted(self, _event: Input.Submitted) -> None:
        self.action_do()

    # --- keys -----------------------------------------------------------------------------------------

    def action_do(self) -> None:
        if self._facts.request is None:
            self._read()
            self._show()
        if self._facts.request is not None and not self._keys.over:
            self.dismiss(self._facts.request)

    def action_leave(self) -> None:
        self.dismiss(None)

    def action_move(self, by: int) -> None:
        """Through the choices, and beyond them through the form."""
        at, last = self._choices.choice, len(self._preview.choices) - 1
        if not self._choices.has_focus:
            (self.focus_next if by > 0 else self.focus_previous)()
            return
        if self._fields and not 0 <= at + by <= last:
            (self.focus_next if by > 0 else self.focus_previous)()
            return
        self._choices.choose((at + by) % (last + 1))
        self._take_choice()


class Blank(Lines):
    """An empty line."""

    def lines(self, width: int, height: int) -> list[Row]:
        return []
