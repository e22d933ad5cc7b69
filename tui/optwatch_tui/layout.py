"""What a run's screen shows at which size: what matters most first. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

_TOP = 2
_BOTTOM = 1


@dataclass(frozen=True)
class Arrangement:
    """Lines for each row of panels (0: none) and which charts stand in the first two."""

    upper: int
    lower: int
    heat: int
    lists: int
    upper_charts: tuple[str, ...]
    lower_charts: tuple[str, ...]
    actions: bool
    """Whether the actions have a panel of their own beside the findings."""


UPPER = ("loss", "grad_norm")
LOWER = ("lr", "update_ratio", "moments", "step_time", "rms_t")
_LEAST_WIDTH = 38


def page(keys: Sequence[str], width: int, number: int) -> tuple[str, ...]:
    """Those of the lower charts that stand side by side on a page; after the last page the first again."""
    room = max(1, min(len(LOWER), width // _LEAST_WIDTH))
    pages = [tuple(keys[at : at + room]) for at in range(0, len(keys), room)]
    return pages[number % len(pages)]


def arrange(width: int, height: int, lower_charts: tuple[str, ...] | None = None) -> Arrangement:
    """The best use of a terminal: loss, gradient norm and findings always, the rest as room allows.

    `lower_charts`: those in the second row, the first of `LOWER` that fit where None.
    """
    room = max(3, height - _TOP - _BOTTOM)
    upper_charts = UPPER if width >= 60 else UPPER[:1]
    if lower_charts is None:
        lower_charts = page(LOWER, width, 0)
    actions = width >= 70
    if room < 9:
        return Arrangement(room, 0, 0, 0, upper_charts, (), actions)
    if room < 18:
        lists = max(4, room * 2 // 5)
        return Arrangement(room - lists, 0, 0, lists, upper_charts, (), actions)
    if room < 30:
        lists = max(7, room // 3)
        lower = max(5, (room - lists) * 2 // 5)
        return Arrangement(room - lists - lower, lower, 0, lists, upper_charts, lower_charts, actions)
    lists = room * 5 // 18
    heat = room // 5
    lower = room // 5
    return Arrangement(room - lists - heat - lower, lower, heat, lists, upper_charts, lower_charts, actions)


def alone(height: int, chart: str) -> Arrangement:
    """One chart as large as can be, with the header and the keys."""
    room = max(3, height - _TOP - _BOTTOM)
    if chart in UPPER:
        return Arrangement(room, 0, 0, 0, (chart,), (), False)
    return Arrangement(0, room, 0, 0, (), (chart,), False)
