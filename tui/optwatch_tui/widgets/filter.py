"""The line in which a filter is typed: drafted, kept with enter, dropped with escape."""

from textual import events
from textual.message import Message
from textual.widgets import Input


class FilterLine(Input):
    """Hidden until opened; stays while it holds something."""

    class Done(Message):
        """The user has finished typing."""

    def __init__(self, *, id: str) -> None:
        super().__init__(placeholder="filter: what the line has to contain", id=id, compact=True)
        self.display = False

    def open(self) -> None:
        """Begin to type."""
        self.display = True
        self.screen.set_focus(self)

    def on_key(self, event: events.Key) -> None:
        if event.key == "escape":
            self.value = ""
        elif event.key != "enter":
            return
        event.stop()
        event.prevent_default()
        self.display = bool(self.value)
        self.post_message(self.Done())
