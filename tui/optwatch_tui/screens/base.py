"""What all screens share: the app's state at hand, and a place for notices."""

from typing import TYPE_CHECKING, cast

from textual.screen import Screen

from optwatch_tui.bindings import Key
from optwatch_tui.charts import Window
from optwatch_tui.model import Snapshot
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


class LookingScreen(WatchScreen):
    """A screen over steps: it can be held, zoomed and moved in time."""

    def __init__(self) -> None:
        super().__init__()
        self.window = Window()
        self.held: Snapshot | None = None

    def looked_at(self) -> Snapshot | None:
        """The snapshot that is shown: the newest, or the one that was held."""
        return self.held or self.watch_app.snapshot

    def action_pause(self) -> None:
        self.held = None if self.held is not None else self.watch_app.snapshot
        self.changed()

    def action_zoom(self, factor: float) -> None:
        if (snapshot := self.looked_at()) is not None:
            self.window = self.window.zoomed(factor, snapshot)
            self.changed()

    def action_pan(self, share: float) -> None:
        if (snapshot := self.looked_at()) is not None:
            self.window = self.window.panned(share, snapshot)
            self.changed()

    def action_whole(self) -> None:
        self.window = Window()
        self.changed()
