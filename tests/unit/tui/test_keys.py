"""Every key of the table, pressed on each of its screens: what it must bring about.

A key that is added to the table, or works on a further screen, fails here until it is said what it does.
"""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest
from textual.command import CommandPalette
from textual.pilot import Pilot
from textual.widget import Widget

from optwatch_tui.app import OptwatchApp
from optwatch_tui.bindings import KEYS, Key, Scope
from optwatch_tui.feed import ComparedChanged, LinkChanged, RunChanged, RunsChanged
from optwatch_tui.look import Look
from optwatch_tui.screens.actions import ActionsScreen
from optwatch_tui.screens.base import LookingScreen
from optwatch_tui.screens.choose import ChooseScreen
from optwatch_tui.screens.compare import CompareScreen
from optwatch_tui.screens.confirm import ConfirmScreen
from optwatch_tui.screens.findings import FindingsScreen
from optwatch_tui.screens.ranks import RanksScreen
from optwatch_tui.screens.run import RunScreen
from optwatch_tui.screens.runs import RunsScreen
from optwatch_tui.screens.save import SaveScreen
from optwatch_tui.screens.tensor import TensorScreen
from optwatch_tui.screens.tensors import TensorsScreen
from optwatch_tui.screens.text import TextScreen
from optwatch_tui.widgets.chart import Chart
from optwatch_tui.widgets.filter import FilterLine
from tests.unit.tui import recorded
from tests.unit.tui.recorded import RecordedFeed
from tests.unit.tui.test_screens import RUN, shown, text

SCREENS: dict[Scope, tuple[tuple[Scope, ...], Callable[[OptwatchApp], object]]] = {
    "runs": ((), lambda app: app.push_screen(RunsScreen())),
    "run": ((), lambda app: app.open_run(RUN)),
    "findings": (("run",), lambda app: app.show_findings()),
    "actions": (("run",), lambda app: app.show_actions()),
    "tensors": (("run",), lambda app: app.show_tensors()),
    "tensor": (("run", "tensors"), lambda app: app.show_tensor("h.0.mlp.fc.weight")),
    "ranks": (("run",), lambda app: app.show_ranks()),
    "compare": ((), lambda app: app.compare(("7f3a2c10", "12ab99ee"))),
}
"""How one comes to the screen of each scope: the screens under it, over the list of runs, and its opening."""


@dataclass(frozen=True)
class Seen:
    """What can be seen at one time."""

    screen: object
    text: str
    focus: Widget | None
    theme: str
    look: Look
    log: tuple[bool, ...]

    @classmethod
    def of(cls, pilot: Pilot[None]) -> "Seen":
        screen = pilot.app.screen
        return cls(
            screen,
            text(pilot),
            pilot.app.focused,
            pilot.app.theme,
            screen.look if isinstance(screen, LookingScreen) else Look(),
            tuple(chart.logarithmic for chart in screen.query(Chart)),
        )


@dataclass(frozen=True)
class Effect:
    """`true` of what was seen before the key and after it. `first`: keys that bring about what it needs."""

    true: Callable[[Seen, Seen], object]
    first: tuple[str, ...] = ()


def opens(kind: type[object], *words: str, first: tuple[str, ...] = ()) -> Effect:
    return Effect(
        lambda was, now: (
            isinstance(now.screen, kind) and now.screen is not was.screen and not _missing(words, now)
        ),
        first,
    )


def says(*words: str) -> Effect:
    return Effect(lambda was, now: _missing(words, was) and not _missing(words, now))


def _missing(words: tuple[str, ...], seen: Seen) -> list[str]:
    return [word for word in words if word not in seen.text]


def cursor(true: Callable[[float, float], bool], *first: str) -> Effect:
    return Effect(lambda was, now: true(was.look.cursor or 0, now.look.cursor or 0), first)


def back(true: Callable[[float, float], bool], *first: str) -> Effect:
    return Effect(lambda was, now: true(was.look.window.back, now.look.window.back), first)


def span(true: Callable[[float, float], bool], *first: str) -> Effect:
    whole = float("inf")
    return Effect(lambda was, now: true(was.look.window.span or whole, now.look.window.span or whole), first)


def _less(was: float, now: float) -> bool:
    return now < was


def _more(was: float, now: float) -> bool:
    return now > was


ZOOMED = ("plus", "plus", "plus")
FILTERS = Effect(lambda _was, now: isinstance(now.focus, FilterLine))
FOCUS = Effect(lambda was, now: now.focus is not was.focus)
STAYS = Effect(lambda was, now: now.focus is was.focus and now.screen is was.screen)
CHARTS = Effect(lambda was, now: now.text.splitlines()[2:] != was.text.splitlines()[2:])
LOG = Effect(lambda was, now: now.log != was.log)

EFFECTS: dict[str, Effect | dict[Scope, Effect]] = {
    "act('restart')": opens(ConfirmScreen, "restart the optimizer?"),
    "act('scale_lr')": opens(ConfirmScreen, "scale the learning rate?"),
    "act('clip')": opens(ConfirmScreen, "clip the gradient norm?"),
    "approve": opens(ConfirmScreen, "approve the proposal?"),
    "turn_down": opens(ConfirmScreen, "dismiss the proposal?"),
    "undo": opens(ConfirmScreen, "undo?"),
    "mode": opens(ConfirmScreen, "change the mode?"),
    "any_action": opens(ChooseScreen, "which action?"),
    "mark": opens(ConfirmScreen, "mark this step?"),
    "jump(1)": cursor(_more),
    "jump(-1)": {
        "run": cursor(_more, "n", "n"),  # from the second of the list to the worst, which came later
        "tensors": cursor(_more),
        "tensor": cursor(_more),
        "compare": cursor(_more),
    },
    "go_to_finding": span(_less),
    "findings": opens(FindingsScreen),
    "actions": opens(ActionsScreen),
    "tensors": opens(TensorsScreen),
    "ranks": opens(RanksScreen),
    "statistic": CHARTS,
    "sort": {"tensors": says("order: the loudest first"), "ranks": says("order: by number")},
    "which": {"findings": says("open  2 of 3"), "actions": says("open  1 of 2")},
    "severity": says("shown: alarms"),
    "more_charts": Effect(lambda was, now: CHARTS.true(was, now) or "no more charts" in now.text),
    "spread": Effect(
        lambda was, now: "zero 3" in now.text and "RMS_t" in was.text and "RMS_t" not in now.text
    ),
    "pause": says("paused"),
    "zoom(0.5)": span(_less),
    "zoom(2.0)": span(_more, *ZOOMED),
    "pan(-0.5)": back(_more, *ZOOMED),
    "pan(0.5)": back(_less, *ZOOMED, "left", "left"),
    "whole": span(_more, *ZOOMED),
    "follow": back(lambda was, now: was > now == 0, *ZOOMED, "left"),
    "cursor(0)": cursor(_more),
    "cursor(-1)": cursor(_less, "i"),
    "cursor(1)": cursor(_more, "i", "less_than_sign"),
    "cursor(-10)": cursor(_less, "i"),
    "cursor(10)": cursor(_more, "i", "less_than_sign", "less_than_sign"),
    "smooth": says("smoothing light"),
    "log": LOG,
    "enlarge": CHARTS,
    "open": {
        "runs": opens(RunScreen),
        "tensors": opens(TensorScreen),
        "findings": opens(TextScreen, "likely causes"),
        "actions": opens(TextScreen, "asked"),
    },
    "pick": says("+■"),
    "compare": opens(CompareScreen, "by step", first=("space", "space")),
    "order": says("order: the worst finding first"),
    "align": CHARTS,
    "filter": FILTERS,
    "save": opens(SaveScreen),
    "app.focus_next": {
        **dict.fromkeys(SCREENS, FOCUS),
        "runs": STAYS,  # a panel alone keeps it
        "tensors": STAYS,
    },
    "app.help": opens(TextScreen, "help"),
    "app.command_palette": opens(CommandPalette),
    "app.next_theme": Effect(lambda was, now: now.theme != was.theme),
    "app.go_back": {
        "runs": opens(RunsScreen, first=("question_mark",)),
        "run": opens(RunsScreen),
        "findings": opens(RunScreen),
        "actions": opens(RunScreen),
        "tensors": opens(RunScreen),
        "tensor": opens(TensorsScreen),
        "ranks": opens(RunScreen),
        "compare": opens(RunsScreen),
    },
}
"""What each action of the table brings about, the same on all its screens or as each screen has it."""

COMPARED = recorded.compared(2)
SNAPSHOT = recorded.snapshot(2_000, ranks=recorded.ranks(64), world_size=64)
QUIT = "app.quit"
CHEAP_FIRST: tuple[Scope, ...] = (
    "actions",
    "runs",
    "findings",
    "tensors",
    "ranks",
    "tensor",
    "compare",
    "run",
)
"""The screens, the quickest to draw first."""


def keys_on(scope: Scope) -> list[Key]:
    return [key for key in KEYS if {scope, "app"} & set(key.scopes) and key.action != QUIT]


def first_of(key: Key) -> Scope:
    """The screen on which a key is pressed when it is pressed on one only."""
    return next(scope for scope in CHEAP_FIRST if {scope, "app"} & set(key.scopes))


def effect_of(key: Key, scope: Scope) -> Effect | None:
    effect = EFFECTS.get(key.action)
    return effect.get(scope) if isinstance(effect, dict) else effect


async def open_anew(pilot: Pilot[None], scope: Scope, under: int) -> None:
    """The screen as it is when one comes to it, over the `under` screens that lie under it."""
    app = pilot.app
    assert isinstance(app, OptwatchApp)
    while len(app.screen_stack) > under:
        await app.pop_screen()
    app.smoothing = "off"
    SCREENS[scope][1](app)
    app.post_message(ComparedChanged(COMPARED) if scope == "compare" else RunChanged(SNAPSHOT))
    await pilot.pause()


@pytest.mark.parametrize("scope", SCREENS)
async def test_every_key_does_what_it_says(scope: Scope) -> None:
    await press_all([key for key in keys_on(scope) if first_of(key) == scope], scope, (100, 30))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("scope", SCREENS)
async def test_every_key_does_so_on_all_its_screens(scope: Scope, size: tuple[int, int]) -> None:
    await press_all(keys_on(scope), scope, size)


async def press_all(keys: list[Key], scope: Scope, size: tuple[int, int]) -> None:
    """Press each on a screen that was opened anew, and see whether what it is for comes about."""
    ended = tuple(
        msgspec.structs.replace(run, state="ended") for run in recorded.RUNS
    )  # none opens by itself
    failed = []
    async with shown(RecordedFeed(LinkChanged(recorded.LIVE), RunsChanged(ended)), size) as pilot:
        for lower in SCREENS[scope][0]:
            await open_anew(pilot, lower, under=len(pilot.app.screen_stack))
        under = len(pilot.app.screen_stack)
        for key in keys:
            effect = effect_of(key, scope)
            assert effect is not None
            for pressed in key.key.split(","):
                await open_anew(pilot, scope, under)
                await pilot.press(*effect.first)
                was = Seen.of(pilot)
                await pilot.press(pressed)
                if not effect.true(was, Seen.of(pilot)):
                    failed.append(f"{pressed}: {key.help}")
        await open_anew(pilot, scope, under)
        await pilot.press("q")
    assert pilot.app.return_code == 0
    assert failed == []


def test_of_every_key_it_is_said_what_it_does_on_each_of_its_screens() -> None:
    for scope in SCREENS:
        for key in keys_on(scope):
            assert effect_of(key, scope) is not None, f"say what {key.shown} ({key.action}) does on {scope}"


def test_nothing_is_said_of_keys_that_are_not_there() -> None:
    assert set(EFFECTS) == {key.action for key in KEYS} - {QUIT}
    scopes = {action: {s for key in KEYS if key.action == action for s in key.scopes} for action in EFFECTS}
    for action, effect in EFFECTS.items():
        if isinstance(effect, dict):
            assert set(effect) == (scopes[action] if scopes[action] != {"app"} else set(SCREENS))
