"""What all screens share: the app's state at hand, and a place for notices."""

from typing import TYPE_CHECKING, cast

from textual.screen import Screen

from optwatch_tui.bindings import Key
from optwatch_tui.rows import Row
from optwatch_tui.widgets.keybar import KeyBar

if TYPE_CHECKING:
    from optwatch_tui.app import OptwatchApp

_NOTICE_SECONDS = 6.0


class WatchScreen(Screen[None]):
    """A screen that shows the app's state. `changed` is called whenever that is another.

    It keeps its panels at hand instead of looking them up: news may come while it is being closed.
    """

    _bar: KeyBar | None = None

    def keybar(self, keys: tuple[Key, ...]) -> KeyBar:
        """The line of keys, to be composed at the end."""
        self._bar = KeyBar(keys, readonly=self.watch_app.readonly)
        return self._bar

    @property
    def watch_app(self) -> "OptwatchApp":
        return cast("OptwatchApp", self.app)

    def changed(self) -> None:
        """Draw what is not as it was."""
        raise NotImplementedError

    ready = False
    """Whether its panels are there to be drawn."""

    def on_mount(self) -> None:
        self.ready = True
        self.fit_panels()
        self.changed()

    def on_resize(self) -> None:
        if self.ready:
            self.fit_panels()
            self.call_after_refresh(self.changed)

    def fit_panels(self) -> None:
        """Fit the panels to the size of the terminal."""

    def notice(self, row: Row) -> None:
        """Say a sentence in the place of the keys, for a while."""
        if (bar := self._bar) is not None:
            bar.say(row)
            self.set_timer(_NOTICE_SECONDS, lambda: bar.say(None))

    def action_save(self) -> None:
        """Save a picture of the screen beside where the program was started."""
        path = self.app.save_screenshot()
        self.notice(((" ✓ ", "ok"), (f"saved {path}", "text")))
