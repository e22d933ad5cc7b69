"""The one table of keys: it drives dispatch, the footer, the help screen and the command palette."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from textual.binding import Binding

Scope = Literal["app", "runs", "run", "findings", "actions", "tensors", "tensor", "ranks", "compare"]


@dataclass(frozen=True)
class Key:
    """One key. `rank` orders the footer (the lowest first, 0: not in the footer); `acts`: on the run."""

    key: str
    shown: str
    action: str
    label: str
    help: str
    scopes: tuple[Scope, ...]
    rank: int = 0
    acts: bool = False

    @cached_property
    def name(self) -> str:
        """What the user's settings call its action: lower_lr."""
        return re.sub(r"[^a-z0-9]+", "_", self.label.lower())


_OVER_STEPS: tuple[Scope, ...] = ("run", "tensors", "tensor", "compare")
_SCREENS: tuple[Scope, ...] = ("runs", *_OVER_STEPS, "findings", "actions", "ranks")
_LISTS: tuple[Scope, ...] = ("runs", "findings", "actions", "tensors", "ranks")
_ACTING: tuple[Scope, ...] = ("run", "findings", "actions")

KEYS: tuple[Key, ...] = (
    Key("r", "r", "act('restart')", "restart", "zero the optimizer's moments and its step", _ACTING, 5, True),
    Key("l", "l", "act('scale_lr')", "lower LR", "multiply the learning rate", _ACTING, 3, True),
    Key("c", "c", "act('clip')", "clip", "clip the gradient norm from now on", _ACTING, 4, True),
    Key("a", "a", "approve", "approve", "let the proposed action go ahead", _ACTING, 1, True),
    Key("d", "d", "turn_down", "dismiss", "turn the proposed action down", _ACTING, 2, True),
    Key("u", "u", "undo", "undo", "take the last applied action back", _ACTING, 6, True),
    Key("m", "m", "mode", "mode", "who may act: observe, advise or auto", _ACTING, 13, True),
    Key("x", "x", "any_action", "any action", "every action there is, with its arguments", _ACTING, 17, True),
    Key("M", "M", "mark", "mark", "mark this step as a planned change", _ACTING, 21, True),
    Key("n", "n", "jump(1)", "next finding", "to the next finding, cursor on its onset", _OVER_STEPS, 14),
    Key("N", "N", "jump(-1)", "last finding", "to the finding before", _OVER_STEPS),
    Key("g", "g", "go_to_finding", "go to it", "zoom the charts to the selected finding's onset", ("run",)),
    Key(
        "f", "f", "findings", "findings", "every finding over time, with its evidence", ("run", "actions"), 8
    ),
    Key(
        "j",
        "j",
        "actions",
        "actions",
        "all that was done or proposed, with votes and outcome",
        ("run", "findings"),
        9,
    ),
    Key("t", "t", "tensors", "tensors", "every tensor, over depth and time", ("run",), 10),
    Key("k", "k", "ranks", "ranks", "every rank: step, phase, link", ("run",), 15),
    Key("s", "s", "statistic", "statistic", "another statistic in the heat map", ("run", "tensors"), 16),
    Key("s", "s", "statistic", "statistic", "what the grid shows of a rank", ("ranks",), 1),
    Key("o", "o", "sort", "order", "order tensors by depth or by how loud they are", ("tensors",), 8),
    Key("o", "o", "sort", "order", "the worst ranks first, or by number", ("ranks",), 3),
    Key(
        "o",
        "o",
        "which",
        "open/over",
        "all of them, those still open, those over",
        ("findings", "actions"),
        7,
    ),
    Key("s", "s", "severity", "severity", "all severities, alarms, critical ones, hints", ("findings",), 10),
    Key(
        "p",
        "p",
        "more_charts",
        "more charts",
        "the next of the smaller charts, all logged columns",
        ("run",),
        8,
    ),
    Key("h", "h", "spread", "histogram", "how its gradient is spread, and back", ("tensor",), 6),
    Key("space", "space", "pause", "pause", "hold the picture; data goes on", _OVER_STEPS, 7),
    Key("plus,equals_sign", "+", "zoom(0.5)", "zoom in", "half the steps", _OVER_STEPS, 11),
    Key("minus", "-", "zoom(2.0)", "zoom out", "twice the steps", _OVER_STEPS, 12),
    Key("left", "←", "pan(-0.5)", "back in time", "earlier steps", _OVER_STEPS),
    Key("right", "→", "pan(0.5)", "forward", "later steps", _OVER_STEPS),
    Key("0", "0", "whole", "whole run", "all steps again, following", _OVER_STEPS),
    Key("end", "end", "follow", "follow", "the newest steps again, at this zoom", _OVER_STEPS),
    Key("i", "i", "cursor(0)", "cursor", "values at one step; also by mouse", _OVER_STEPS, 17),
    Key("comma", ",", "cursor(-1)", "cursor left", "one column back", _OVER_STEPS),
    Key("full_stop", ".", "cursor(1)", "cursor right", "one column forward", _OVER_STEPS),
    Key("less_than_sign", "<", "cursor(-10)", "cursor far left", "ten columns back", _OVER_STEPS),
    Key("greater_than_sign", ">", "cursor(10)", "cursor far right", "ten columns forward", _OVER_STEPS),
    Key("e", "e", "smooth", "smooth", "smoothing off, light, strong", ("run", "tensor", "compare")),
    Key(
        "y",
        "y",
        "log",
        "log-y",
        "logarithmic axis, for the focused chart or for all",
        ("run", "tensor", "compare"),
        9,
    ),
    Key("enter", "enter", "enlarge", "enlarge", "the focused panel alone; esc brings all back", ("run",)),
    Key("enter", "enter", "open", "open", "open the selected run or tensor", ("runs", "tensors"), 1),
    Key("space", "space", "pick", "pick", "pick a run to compare, or put it back", ("runs",), 3),
    Key("c", "c", "compare", "compare", "the picked runs over one another, two to eight", ("runs",), 4),
    Key("o", "o", "order", "order", "newest, worst, name or loss first", ("runs",), 5),
    Key("b", "b", "align", "by time", "align the runs by step or by time of training", ("compare",), 1),
    Key("slash", "/", "filter", "filter", "keep only what contains a text", _LISTS, 2),
    Key("enter", "enter", "open", "in full", "the selected entry in full", ("findings", "actions"), 11),
    Key("v", "v", "save", "save", "save or copy: SVG, PNG, CSV", _SCREENS, 21),
    Key("tab", "tab", "app.focus_next", "focus", "to the next panel", ("app",)),
    Key("question_mark", "?", "app.help", "help", "every key, and what the signs mean", ("app",), 20),
    Key("ctrl+p", "ctrl+p", "app.command_palette", "palette", "find an action by its name", ("app",)),
    Key("T", "T", "app.next_theme", "theme", "dark, light, high contrast", ("app",)),
    Key("escape", "esc", "app.go_back", "back", "close, or back to the list of runs", ("app",), 18),
    Key("q,ctrl+c", "q", "app.quit", "quit", "leave; runs and daemon go on", ("app",), 19),
)


def keys_of(*scopes: Scope) -> tuple[Key, ...]:
    """The keys that work in any of these scopes, in the order of the table."""
    return tuple(key for key in KEYS if any(scope in key.scopes for scope in scopes))


def bindings(scope: Scope) -> list[Binding]:
    """Textual's own bindings for a scope."""
    return [
        Binding(key.key, key.action, key.label, show=False, key_display=key.shown, id=key.name)
        for key in KEYS
        if scope in key.scopes
    ]


def footer_keys(keys: Iterable[Key]) -> list[Key]:
    """Those that a footer shows, the most useful first."""
    return sorted((key for key in keys if key.rank), key=lambda key: key.rank)
