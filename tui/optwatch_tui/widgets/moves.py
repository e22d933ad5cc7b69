"""What a panel with a cursor tells its screen."""

from textual.message import Message
from textual.widget import Widget


class Moved(Message):
    """The user moved the cursor of a panel to another entry; `key` tells which."""

    def __init__(self, panel: Widget, key: str) -> None:
        super().__init__()
        self.panel = panel
        self.key = key


class Chosen(Message):
    """An entry of a panel is to be opened."""

    def __init__(self, panel: Widget, key: str) -> None:
        super().__init__()
        self.panel = panel
        self.key = key
