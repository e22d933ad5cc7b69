"""The app: keeps what the feed says, and tells the screens when it is another."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from textual.app import App, SystemCommand
from textual.binding import BindingType
from textual.screen import Screen

from optwatch.client.effects import action_doc
from optwatch.wire.actions import ACTIONS
from optwatch.wire.requests import RunInfo
from optwatch_tui.bindings import bindings
from optwatch_tui.compared import ComparedRun
from optwatch_tui.describe import NamedKeys
from optwatch_tui.feed import (
    Answered,
    ComparedChanged,
    Feed,
    GlancesChanged,
    LinkChanged,
    RunChanged,
    RunsChanged,
    SpreadChanged,
)
from optwatch_tui.help import help_rows
from optwatch_tui.look import Smoothing
from optwatch_tui.model import Glance, Link, Snapshot
from optwatch_tui.screens.acting import ActingScreen
from optwatch_tui.screens.actions import ActionsScreen
from optwatch_tui.screens.base import LookingScreen, WatchScreen
from optwatch_tui.screens.compare import CompareScreen
from optwatch_tui.screens.confirm import ConfirmScreen
from optwatch_tui.screens.findings import FindingsScreen
from optwatch_tui.screens.ledger import LedgerScreen
from optwatch_tui.screens.ranks import RanksScreen
from optwatch_tui.screens.run import RunScreen
from optwatch_tui.screens.runs import RunsScreen
from optwatch_tui.screens.tensor import TensorScreen
from optwatch_tui.screens.tensors import TensorsScreen
from optwatch_tui.screens.text import TextScreen
from optwatch_tui.settings import DEFAULTS, Settings, canonical
from optwatch_tui.spread import Spread
from optwatch_tui.theme import PALETTES, first_palette, textual_theme


class OptwatchApp(App[None]):
    """Runs on one daemon, one of them watched at a time."""

    TITLE = "optwatch"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("app")]
    CSS = """
    Screen { layout: vertical; overflow: hidden; }
    #status { height: 2; }
    #keybar { height: 1; dock: bottom; }
    #upper, #lower, #lists { height: auto; }
    Chart, Listing { width: 1fr; height: 1fr; }
    #findings { width: 3fr; }
    #timeline { height: 2; }
    #ledger-side { width: 3fr; }
    #ledger-body { height: 1fr; }
    Page { height: 1fr; }
    #actions { width: 2fr; }
    #heat { height: auto; }
    #tensors, Horizontal { height: 1fr; }
    #differences { height: auto; }
    #tensor-charts { height: 1fr; }
    #spread { height: 1fr; }
    #tensor-name { height: 1; }
    FilterLine { height: 1; dock: bottom; margin-bottom: 1; }
    ModalScreen { align: center middle; background: $background 60%; }
    """

    def __init__(
        self,
        feed: Feed,
        *,
        run: str | None = None,
        readonly: bool = False,
        served: bool = False,
        settings: Settings = DEFAULTS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`run`: opened at once; else the first one that is live. `served`: in a browser, no file written."""
        super().__init__()
        self.feed = feed
        self.readonly = readonly
        self.served = served
        self.now = clock
        self.link = Link("connecting", "", clock())
        self.runs: tuple[RunInfo, ...] = ()
        self.snapshot: Snapshot | None = None
        self.glances: Mapping[str, Glance] = {}
        self.compared: tuple[ComparedRun, ...] = ()
        self.spread: Spread | None = None
        self.settings = settings
        self.smoothing: Smoothing = settings.smoothing
        """What the charts of the next screen begin with."""
        self._first = run
        self._opened = False
        for palette in PALETTES.values():
            self.register_theme(textual_theme(palette))
        self.theme = settings.theme or first_palette(os.environ).name
        self.set_keymap({name: canonical(key) for name, key in settings.keys.items()})

    @property
    def named_keys(self) -> NamedKeys:
        """The keys that sentences name here."""
        shown = self.settings.shown
        answer = None if self.readonly else (shown("approve"), shown("dismiss"))
        return NamedKeys(shown("findings"), shown("undo"), answer)

    def on_mount(self) -> None:
        self.push_screen(RunsScreen())
        if self._first is not None:
            self.open_run(self._first)
        self.set_interval(1.0, self._changed)  # ages and the time since the link was lost
        self.feed.start(self.post_message)

    def on_unmount(self) -> None:
        self.feed.close()

    # --- what the feed says ---------------------------------------------------------------------------

    def on_link_changed(self, message: LinkChanged) -> None:
        self.link = message.link
        self._changed()

    def on_runs_changed(self, message: RunsChanged) -> None:
        self.runs = message.runs
        live = [run for run in message.runs if run.state == "live"]
        if live and not self._opened and len(self.screen_stack) == 2:
            self.open_run(live[0].run)
        self._changed()

    def on_run_changed(self, message: RunChanged) -> None:
        if self._opened:
            self.snapshot = message.snapshot
            self._changed()

    def on_glances_changed(self, message: GlancesChanged) -> None:
        self.glances = message.glances
        self._changed()

    def on_compared_changed(self, message: ComparedChanged) -> None:
        self.compared = message.runs
        self._changed()

    def on_spread_changed(self, message: SpreadChanged) -> None:
        self.spread = message.spread
        self._changed()

    def on_answered(self, message: Answered) -> None:
        for screen in self._watch_screens():
            if message.refusal:
                screen.notice(((" ✗ ", "critical"), (message.refusal, "text")))
            elif message.command is None:
                screen.notice(((" ✓ ", "ok"), ("done", "text")))

    def _changed(self) -> None:
        for screen in self._watch_screens():
            if screen.ready:
                screen.changed()
        # What the feed said last is still handled while the app closes, when no screen is left.
        if self.screen_stack and isinstance(self.screen, ConfirmScreen):
            self.screen.changed()

    def _watch_screens(self) -> list[WatchScreen]:
        """What can be seen: the topmost screen, and the one under a question."""
        seen: list[WatchScreen] = []
        for screen in reversed(self.screen_stack):
            if isinstance(screen, WatchScreen):
                return [screen]
        return seen

    # --- where the user goes --------------------------------------------------------------------------

    def open_run(self, run: str) -> None:
        """Watch a run and show it."""
        self._opened = True
        self.snapshot = None
        self.feed.watch(run)
        self.push_screen(RunScreen())

    def compare(self, runs: tuple[str, ...]) -> None:
        """Show several runs over one another."""
        self.compared = ()
        self.feed.compare(runs)
        self.push_screen(CompareScreen())

    def show_tensors(self) -> None:
        self.push_screen(TensorsScreen())

    def show_tensor(self, name: str) -> None:
        if self.snapshot is not None:
            self.feed.look_into(self.snapshot.status.run, name)
        self.push_screen(TensorScreen(name))

    def show_ranks(self) -> None:
        self.push_screen(RanksScreen())

    def show_findings(self) -> None:
        self._show_beside(FindingsScreen())

    def show_actions(self) -> None:
        self._show_beside(ActionsScreen())

    def _show_beside(self, screen: LedgerScreen[Any]) -> None:
        """Findings and actions lead to one another: one takes the other's place."""
        if isinstance(self.screen, LedgerScreen):
            self.switch_screen(screen)
        else:
            self.push_screen(screen)

    def action_go_back(self) -> None:
        screen = self.screen
        if isinstance(screen, LookingScreen) and screen.back():
            return
        if isinstance(screen, WatchScreen) and not isinstance(screen, RunsScreen):
            if isinstance(screen, CompareScreen):
                self.feed.compare(())
            if isinstance(screen, TensorScreen):
                self.feed.look_into("", None)
            if isinstance(screen, RunScreen):
                self.feed.watch(None)
                self.snapshot = None
            self.pop_screen()
            self._changed()

    async def action_help(self) -> None:
        await self.push_screen(
            TextScreen(
                "help", lambda width: help_rows(width, self.settings.in_force(), readonly=self.readonly)
            )
        )

    def action_next_theme(self) -> None:
        names = list(PALETTES)
        self.theme = names[(names.index(self.theme) + 1) % len(names)] if self.theme in names else names[0]
        self._changed()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The palette: every key of the table that works on this screen."""
        scopes = {"app"} | {
            scope
            for kind, scope in (
                (RunsScreen, "runs"),
                (CompareScreen, "compare"),
                (RunScreen, "run"),
                (TensorsScreen, "tensors"),
                (TensorScreen, "tensor"),
                (RanksScreen, "ranks"),
                (FindingsScreen, "findings"),
                (ActionsScreen, "actions"),
            )
            if isinstance(screen, kind)
        }
        for key in self.settings.in_force():
            if scopes & set(key.scopes) and key.action != "app.command_palette":
                off = ", off: read-only" if key.acts and self.readonly else ""
                about = f"{key.help} ({key.shown}{off})"
                yield SystemCommand(key.label, about, self._runner(screen, key.action))
        acts = isinstance(screen, ActingScreen)
        if acts:
            with_key = {key.action for key in self.settings.in_force()}
            for name in ACTIONS:
                if (action := f"act({name!r})") not in with_key:
                    yield SystemCommand(
                        name,
                        f"{action_doc(name)} ({self.settings.shown('any_action')})",
                        self._runner(screen, action),
                    )

    def _runner(self, screen: Screen[object], action: str) -> Callable[[], object]:
        async def run() -> None:
            await self.run_action(action, default_namespace=screen)

        return run
